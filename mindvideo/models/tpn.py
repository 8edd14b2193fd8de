# SPDX-License-Identifier: Apache-2.0
"""TPN on SlowOnly (Yang et al., "Temporal Pyramid Network for Action Recognition", CVPR 2020), as DEAR trains it.

The maps of the last two stages are brought to one size and to one time step, passed down and up between the levels, and
fused into 2048 channels. In training an auxiliary head classifies the lower of the two maps.
"""

from __future__ import annotations

from mindspore import Tensor, nn, ops
from mindspore.common.initializer import Normal

from mindvideo.models.layers import Conv, ConvNorm, channel_axis, enter, leave, time_axis
from mindvideo.models.recognizer import Backbone, register_backbone
from mindvideo.models.resnet3d import ONE, pooled
from mindvideo.models.slowfast import slow_only
from mindvideo.noise import Dropout

NUM_FEATURES = 2048
GROUPS = 32
AUXILIARY_WEIGHT = 0.5


class LevelFusion(nn.Cell):
    """Two maps of `channels` to one of `out_channels`: a grouped 1x1x1 convolution each, then one for both."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.level0 = _pointwise(channels, channels, groups=GROUPS)
        self.level1 = _pointwise(channels, channels, groups=GROUPS)
        self.fusion = _pointwise(2 * channels, out_channels)

    def construct(self, lower: Tensor, upper: Tensor) -> Tensor:
        return self.fusion(ops.cat((self.level0(lower), self.level1(upper)), axis=channel_axis()))


class TemporalPyramid(nn.Cell):
    """The maps of the third and fourth stage, of up to 8 frames, to one of 2048 channels and one time step.

    In and out in the layout of the layers.
    """

    def __init__(self, in_channels: tuple[int, int]):
        super().__init__()
        lower, upper = in_channels
        self.spatial = ConvNorm(lower, upper, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))
        self.temporal0 = _over_time(upper, lower, groups=GROUPS)
        self.temporal1 = _over_time(upper, lower, groups=GROUPS)
        self.downsample = _over_time(lower, lower)
        self.fusion1 = LevelFusion(lower, upper)
        self.fusion2 = LevelFusion(lower, upper)
        self.pyramid = _pointwise(2 * upper, NUM_FEATURES)

    def construct(self, lower: Tensor, upper: Tensor) -> Tensor:
        time = time_axis()
        upper = self.temporal1(upper).max(axis=time, keepdims=True)
        lower = self.temporal0(self.spatial(lower)).max(axis=time, keepdims=True) + upper
        top_down = self.fusion1(lower, upper)
        bottom_up = self.fusion2(lower, upper + self.downsample(lower))
        return self.pyramid(ops.cat((top_down, bottom_up), axis=channel_axis()))


class TPN(Backbone):
    """Clips `[B, 3, 8, H, W]` to vectors `[B, 1, 2048]` and the third stage's map `[B, D, 8, H / 16, W / 16]`."""

    def __init__(self, *, depth: int = 50, width: int = 64):
        super().__init__()
        self.trunk = slow_only(depth, width)
        channels = self.trunk.stage_channels
        self.neck = TemporalPyramid((channels[2], channels[3]))
        self.num_features, self.num_map_channels = NUM_FEATURES, channels[2]

    def maps(self, clips_BCTHW: Tensor) -> tuple[Tensor, ...]:
        lower, upper = self.trunk.last_maps(clips_BCTHW)
        return leave(lower), leave(upper)

    def vectors(self, maps: tuple[Tensor, ...]) -> Tensor:
        lower, upper = maps
        return pooled(leave(self.neck(enter(lower), enter(upper))))


class AuxiliaryHead(nn.Cell):
    """TPN's training head: the third stage's map `[B, C, T, H, W]` to logits `[B, K]`; dropout needs a seed (uint32
    scalar), and is off without."""

    def __init__(self, channels: int, num_classes: int, *, dropout: float = 0.5):
        super().__init__()
        self.conv = ConvNorm(channels, 2 * channels, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))
        self.dropout = Dropout(dropout, stream=6)
        self.fc = nn.Dense(2 * channels, num_classes, weight_init=Normal(0.01), bias_init="zeros")

    def construct(self, features_BCTHW: Tensor, seed: Tensor | None = None) -> Tensor:
        vectors_BC = pooled(leave(self.conv(enter(features_BCTHW)))).squeeze(1)
        return self.fc(self.dropout(vectors_BC, seed))


def _pointwise(in_channels: int, out_channels: int, *, groups: int = 1) -> ConvNorm:
    return ConvNorm(in_channels, out_channels, ONE, stride=ONE, padding=(0, 0, 0), groups=groups)


def _over_time(in_channels: int, out_channels: int, *, groups: int = 1) -> Conv:
    return Conv(in_channels, out_channels, (3, 1, 1), stride=ONE, padding=(1, 0, 0), groups=groups, bias=False)


@register_backbone
def tpn_r50(*, width: int = 64) -> TPN:
    """TPN on SlowOnly with a ResNet-50."""
    return TPN(width=width)


@register_backbone
def tpn_r18(*, width: int = 64) -> TPN:
    """TPN on SlowOnly with a ResNet-18; `width` is at least 8."""
    return TPN(depth=18, width=width)
