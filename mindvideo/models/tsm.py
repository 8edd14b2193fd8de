# SPDX-License-Identifier: Apache-2.0
"""TSM: a ResNet on frames, whose blocks shift an eighth of their channels to either neighbour (Lin, Gan and Han, "TSM:
Temporal Shift Module for Efficient Video Understanding", ICCV 2019). Each frame is classified; the outputs are
averaged.

Its 2-D convolutions are held as 1x3x3 ones over the frames: the same numbers in weights with one more axis.
"""

from __future__ import annotations

from mindspore import Tensor

from mindvideo.models.recognizer import register_backbone
from mindvideo.models.resnet3d import NOWHERE, ResNet3d

SHIFT_DIV = 8


class TSM(ResNet3d):
    """Clips `[B, 3, T, H, W]` to one vector a frame `[B, T, C]` and the map `[B, C, T, H / 32, W / 32]`."""

    def __init__(self, *, depth: int = 50, width: int = 64):
        super().__init__(depth=depth, inflate=NOWHERE, width=width, stem_frames=1, block={"shift_div": SHIFT_DIV})

    def vectors(self, maps: tuple[Tensor, ...]) -> Tensor:
        return maps[0].mean(axis=(3, 4)).swapaxes(1, 2)


@register_backbone
def tsm_r50(*, width: int = 64) -> TSM:
    """TSM on a ResNet-50."""
    return TSM(width=width)


@register_backbone
def tsm_r18(*, width: int = 64) -> TSM:
    """TSM on a ResNet-18."""
    return TSM(depth=18, width=width)
