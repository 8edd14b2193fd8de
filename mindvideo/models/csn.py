# SPDX-License-Identifier: Apache-2.0
"""CSN: residual networks whose 3x3x3 convolutions keep the channels apart (Tran et al., "Video Classification with
Channel-separated Convolutional Networks", ICCV 2019), in the interaction-reduced form, ir-CSN: the depthwise
convolution stands in place of the bottleneck's own. Frames are halved three times, and BatchNorm's epsilon is 1e-3."""

from __future__ import annotations

from mindvideo.models.recognizer import register_backbone
from mindvideo.models.resnet3d import NOWHERE, ResNet3d


def _ircsn(depth: int, width: int) -> ResNet3d:
    return ResNet3d(
        depth=depth, inflate=NOWHERE, width=width, stem_frames=3, time_strides=(1, 2, 2, 2),
        block={"depthwise": True, "eps": 1e-3},
    )  # fmt: skip


@register_backbone
def ircsn_r50(*, width: int = 64) -> ResNet3d:
    """Interaction-reduced CSN on a ResNet-50."""
    return _ircsn(50, width)


@register_backbone
def ircsn_r152(*, width: int = 64) -> ResNet3d:
    """Interaction-reduced CSN on a ResNet-152."""
    return _ircsn(152, width)
