# SPDX-License-Identifier: Apache-2.0
"""SlowOnly and SlowFast (Feichtenhofer et al., "SlowFast Networks for Video Recognition", ICCV 2019).

SlowOnly keeps all its frames to the end and is inflated in the last two stages. SlowFast 8x8 sees every fourth of 32
frames with such a network, the slow pathway, and all of them with a narrow one that is inflated everywhere, the fast
one; before each stage the slow pathway takes in what the fast one has seen.
"""

from __future__ import annotations

from mindspore import Tensor, nn, ops

from mindvideo.models.layers import Conv, channel_axis, leave
from mindvideo.models.recognizer import Backbone, register_backbone
from mindvideo.models.resnet3d import DEEP, EVERYWHERE, ResNet3d, pooled

ALPHA = 4  # frames of the fast pathway for one of the slow one


class SlowFast(Backbone):
    """Clips `[B, 3, T, H, W]`, T a multiple of 4, to vectors `[B, 1, C]` (the fast features first, as in the published
    weights) and the slow pathway's map `[B, D, T / 4, H / 32, W / 32]`."""

    def __init__(self, *, depth: int = 50, width: int = 64, fast_width: int = 8):
        super().__init__()
        self.fast = ResNet3d(depth=depth, inflate=EVERYWHERE, width=fast_width, stem_frames=5)
        fast_channels = [fast_width, *self.fast.stage_channels[:3]]
        self.laterals = nn.CellList(
            [
                Conv(channels, 2 * channels, (7, 1, 1), stride=(ALPHA, 1, 1), padding=(3, 0, 0), bias=False)
                for channels in fast_channels
            ]
        )
        added = [2 * channels for channels in fast_channels]
        self.slow = ResNet3d(depth=depth, inflate=DEEP, width=width, stem_frames=1, added=added)
        self.num_map_channels = self.slow.num_features
        self.num_features = self.fast.num_features + self.slow.num_features

    def pathways(self, clips_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
        """The maps of the slow and of the fast pathway."""
        if clips_BCTHW.shape[2] % ALPHA:
            raise ValueError(f"SlowFast takes clips of a multiple of {ALPHA} frames, not {clips_BCTHW.shape[2]}")
        slow, fast = self.slow.stem(clips_BCTHW[:, :, ::ALPHA]), self.fast.stem(clips_BCTHW)
        slow_stages = (self.slow.layer1, self.slow.layer2, self.slow.layer3, self.slow.layer4)
        fast_stages = (self.fast.layer1, self.fast.layer2, self.fast.layer3, self.fast.layer4)
        for i in range(4):
            slow = slow_stages[i](ops.cat((slow, self.laterals[i](fast)), axis=channel_axis()))
            fast = fast_stages[i](fast)
        return leave(slow), leave(fast)

    def maps(self, clips_BCTHW: Tensor) -> tuple[Tensor, ...]:
        return self.pathways(clips_BCTHW)

    def vectors(self, maps: tuple[Tensor, ...]) -> Tensor:
        slow, fast = maps
        return ops.cat((pooled(fast), pooled(slow)), axis=2)


@register_backbone
def slowfast_r50(*, width: int = 64, fast_width: int = 8) -> SlowFast:
    """SlowFast 8x8 on a ResNet-50."""
    return SlowFast(width=width, fast_width=fast_width)


@register_backbone
def slowfast_r18(*, width: int = 64, fast_width: int = 8) -> SlowFast:
    """SlowFast on a ResNet-18."""
    return SlowFast(depth=18, width=width, fast_width=fast_width)


def slow_only(depth: int, width: int) -> ResNet3d:
    """The network of SlowOnly, which is TPN's too."""
    return ResNet3d(depth=depth, inflate=DEEP, width=width, stem_frames=1)


@register_backbone
def slowonly_r50(*, width: int = 64) -> ResNet3d:
    """SlowOnly on a ResNet-50."""
    return slow_only(50, width)


@register_backbone
def slowonly_r18(*, width: int = 64) -> ResNet3d:
    """SlowOnly on a ResNet-18."""
    return slow_only(18, width)
