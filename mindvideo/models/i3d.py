# SPDX-License-Identifier: Apache-2.0
"""I3D on a ResNet-50: the video network of Carreira and Zisserman, CVPR 2017, in the form that DEAR trains.

The stem spans five frames and strides over two, two poolings halve the frames again, and every other block of the
deeper stages is inflated. A clip of 32 frames of 224x224 pixels ends as 2048 features of 4x7x7.
"""

from __future__ import annotations

from mindvideo.models.recognizer import register_backbone
from mindvideo.models.resnet3d import ResNet3d

INFLATE = ((1, 1, 1), (1, 0, 1, 0), (1, 0, 1, 0, 1, 0), (0, 1, 0))


def _i3d(depth: int, width: int) -> ResNet3d:
    return ResNet3d(
        depth=depth, inflate=INFLATE, width=width, stem_frames=5, stem_stride=2, pool_stride=2, halve_time=True
    )


@register_backbone
def i3d_r50(*, width: int = 64) -> ResNet3d:
    """I3D on a ResNet-50."""
    return _i3d(50, width)


@register_backbone
def i3d_r18(*, width: int = 64) -> ResNet3d:
    """I3D on a ResNet-18."""
    return _i3d(18, width)
