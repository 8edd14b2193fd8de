# SPDX-License-Identifier: Apache-2.0
"""Residual networks for video: the trunk of I3D, TSM, SlowOnly, SlowFast, TPN and CSN.

Blocks of convolutions over space, of which some are inflated: their first convolution then also spans three frames
(Feichtenhofer et al., "SlowFast Networks", ICCV 2019; Carreira and Zisserman, "Quo Vadis, Action Recognition?", CVPR
2017). Without inflation it is a ResNet on every frame for itself. Stride is in the 3x3 convolution, and every
convolution is followed by BatchNorm.

Every video backbone built from it maps clips `[B, 3, T, H, W]` to two tensors: `vectors_BSC`, what a head classifies,
pooled, with S = 1 or one vector a frame, of `num_features` channels; and `features_BDTHW`, of `num_map_channels`, the
map that DEAR's debiasing works on.

B clips, C channels, T frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mindspore import Tensor, nn, ops

from mindvideo.models.layers import ConvNorm, MaxPool, channel_axis, enter, is_native, leave, time_axis
from mindvideo.models.recognizer import Backbone
from mindvideo.native import operators

ONE = (1, 1, 1)


class TemporalShift(nn.Cell):
    """The first 1 / `div` of the channels come from the frame after, the next from the frame before, zero where there
    is none (Lin et al., "TSM", ICCV 2019)."""

    def __init__(self, channels: int, div: int):
        super().__init__()
        self.channels, self.fold = channels, channels // div
        self.native = operators.Shift(self.fold) if is_native() else None

    def construct(self, x: Tensor) -> Tensor:
        if self.native is not None:
            return self.native(x)
        time, channel, frames = time_axis(), channel_axis(), x.shape[time_axis()]
        fold, rest = self.fold, self.channels - 2 * self.fold
        after, before = x.narrow(channel, 0, fold), x.narrow(channel, fold, fold)
        zero = ops.zeros_like(after.narrow(time, 0, 1))
        shifted = (
            ops.cat((after.narrow(time, 1, frames - 1), zero), axis=time),
            ops.cat((zero, before.narrow(time, 0, frames - 1)), axis=time),
            x.narrow(channel, 2 * fold, rest),
        )
        return ops.cat(shifted, axis=channel)


class BasicBlock3d(nn.Cell):
    """Residual block of two 3x3 convolutions; `inflated`: the first spans three frames; `shift_div` as Bottleneck3d."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, *, stride: Sequence[int], inflated: bool, shift_div: int = 0):
        super().__init__()
        frames = 3 if inflated else 1
        self.shift = TemporalShift(in_channels, shift_div) if shift_div else nn.Identity()
        self.conv1 = ConvNorm(in_channels, width, (frames, 3, 3), stride=stride, padding=(frames // 2, 1, 1))
        self.conv2 = ConvNorm(width, width, (1, 3, 3), stride=ONE, padding=(0, 1, 1), residual=True)
        self.downsample = _downsample(in_channels, width, stride)

    def construct(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(self.shift(x)), self.downsample(x))


class Bottleneck3d(nn.Cell):
    """Residual block of `width` inner and `4 width` outer channels; `inflated`: the first kernel is 3x1x1.

    `shift_div`: the frames are shifted before the first convolution, by 1 / `shift_div` of the channels each way.
    `depthwise`: the middle convolution is 3x3x3 and keeps the channels apart (CSN).
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        stride: Sequence[int],
        inflated: bool,
        shift_div: int = 0,
        depthwise: bool = False,
        eps: float = 1e-5,
    ):
        super().__init__()
        out_channels, frames, middle = self.expansion * width, 3 if inflated else 1, 3 if depthwise else 1
        self.shift = TemporalShift(in_channels, shift_div) if shift_div else nn.Identity()
        self.conv1 = ConvNorm(in_channels, width, (frames, 1, 1), stride=ONE, padding=(frames // 2, 0, 0), eps=eps)
        self.conv2 = ConvNorm(
            width, width, (middle, 3, 3), stride=stride, padding=(middle // 2, 1, 1),
            groups=width if depthwise else 1, eps=eps,
        )  # fmt: skip
        self.conv3 = ConvNorm(width, out_channels, ONE, stride=ONE, padding=(0, 0, 0), residual=True, eps=eps)
        self.downsample = _downsample(in_channels, out_channels, stride, eps)

    def construct(self, x: Tensor) -> Tensor:
        return self.conv3(self.conv2(self.conv1(self.shift(x))), self.downsample(x))


def _downsample(in_channels: int, out_channels: int, stride: Sequence[int], eps: float = 1e-5) -> nn.Cell:
    """The shortcut of a block: a 1x1 convolution where the shape changes."""
    if max(stride) == 1 and in_channels == out_channels:
        return nn.Identity()
    return ConvNorm(in_channels, out_channels, ONE, stride=stride, padding=(0, 0, 0), relu=False, eps=eps)


DEPTHS: dict[int, tuple[type[BasicBlock3d] | type[Bottleneck3d], tuple[int, ...]]] = {
    18: (BasicBlock3d, (2, 2, 2, 2)),
    34: (BasicBlock3d, (3, 4, 6, 3)),
    50: (Bottleneck3d, (3, 4, 6, 3)),
    101: (Bottleneck3d, (3, 4, 23, 3)),
    152: (Bottleneck3d, (3, 8, 36, 3)),
}
Inflation = Sequence[Sequence[int]]
NOWHERE: Inflation = ((0,), (0,), (0,), (0,))
EVERYWHERE: Inflation = ((1,), (1,), (1,), (1,))
DEEP: Inflation = ((0,), (0,), (1,), (1,))  # SlowOnly, and SlowFast's slow pathway


class ResNet3d(Backbone):
    """Clips `[B, 3, T, H, W]` to vectors `[B, 1, C]` and their map `[B, C, T', H / 32, W / 32]`, C = `num_features`.

    Args:
        depth: 18, 34, 50, 101 or 152.
        inflate: for each of the four stages which blocks are inflated, repeated over its blocks.
        width: channels of the first convolution.
        stem_frames, stem_stride: frames that the first convolution spans, and strides over.
        pool_stride: frames that the max pooling behind it strides over.
        halve_time: halve the frames again by max pooling after the first stage.
        time_strides: frames that the first block of each stage strides over.
        added: channels that something else adds to the input of each stage (SlowFast's lateral connections).
        block: further options of the blocks.
    """

    def __init__(
        self,
        *,
        depth: int,
        inflate: Inflation,
        width: int = 64,
        stem_frames: int,
        stem_stride: int = 1,
        pool_stride: int = 1,
        halve_time: bool = False,
        time_strides: Sequence[int] = (1, 1, 1, 1),
        added: Sequence[int] = (0, 0, 0, 0),
        block: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        make, counts = DEPTHS[depth]
        options = dict(block or {})
        self.stage_channels = [make.expansion * width * 2**i for i in range(4)]
        self.num_features = self.num_map_channels = self.stage_channels[-1]
        eps = options.get("eps", 1e-5)
        self.conv1 = ConvNorm(
            3, width, (stem_frames, 7, 7), stride=(stem_stride, 2, 2), padding=(stem_frames // 2, 3, 3), eps=eps
        )
        self.pool1 = MaxPool((1, 3, 3), stride=(pool_stride, 2, 2), padding=(0, 1, 1))
        self.pool2 = MaxPool((2, 1, 1)) if halve_time else nn.Identity()
        inputs = [width, *self.stage_channels]
        stages = []
        for i in range(4):
            blocks, channels = [], inputs[i] + added[i]
            for j in range(counts[i]):
                over_time, over_space = (time_strides[i], 1 if i == 0 else 2) if j == 0 else (1, 1)
                stride, inflated = (over_time, over_space, over_space), bool(inflate[i][j % len(inflate[i])])
                blocks.append(make(channels, width * 2**i, stride=stride, inflated=inflated, **options))
                channels = self.stage_channels[i]
            stages.append(nn.SequentialCell(blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

    def stem(self, clips_BCTHW: Tensor) -> Tensor:
        """The first convolution and pooling, in the layout of the layers."""
        return self.pool1(self.conv1(enter(clips_BCTHW)))

    def last_maps(self, clips_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
        """The maps of the third and fourth stage, in the layout of the layers."""
        third = self.layer3(self.layer2(self.pool2(self.layer1(self.stem(clips_BCTHW)))))
        return third, self.layer4(third)

    def maps(self, clips_BCTHW: Tensor) -> tuple[Tensor, ...]:
        return (leave(self.last_maps(clips_BCTHW)[1]),)

    def vectors(self, maps: tuple[Tensor, ...]) -> Tensor:
        return pooled(maps[0])


def pooled(features_BCTHW: Tensor) -> Tensor:
    """The mean over all positions, as one vector a clip `[B, 1, C]`."""
    return features_BCTHW.mean(axis=(2, 3, 4)).expand_dims(1)
