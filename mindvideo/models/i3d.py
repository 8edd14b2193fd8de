# SPDX-License-Identifier: Apache-2.0
"""I3D on a ResNet-50: the video classifier of Carreira and Zisserman, CVPR 2017, in the form that DEAR trains.

The stem spans five frames and strides over two, two poolings halve the frames again, and every other block of the
deeper stages is inflated. A clip of 32 frames of 224x224 pixels ends as 2048 features of 4x7x7.
"""

from __future__ import annotations

from mindspore import Tensor, nn

from mindvideo.models.registry import register
from mindvideo.models.resnet3d import ResNet3d

INFLATE = ((1, 1, 1), (1, 0, 1, 0), (1, 0, 1, 0, 1, 0), (0, 1, 0))


class I3D(nn.Cell):
    """Clips `[B, 3, T, H, W]` to logits `[B, num_classes]`: trunk, mean over all positions, dropout, linear layer."""

    def __init__(self, num_classes: int, *, depth: int = 50, width: int = 64, dropout: float = 0.5):
        super().__init__()
        self.backbone = ResNet3d(depth=depth, inflate=INFLATE, width=width)
        self.dropout = nn.Dropout(p=dropout)
        self.fc = nn.Dense(self.backbone.num_features, num_classes)

    def construct(self, clips_BCTHW: Tensor) -> Tensor:
        features_BCTHW = self.backbone(clips_BCTHW)
        return self.fc(self.dropout(features_BCTHW.mean(axis=(2, 3, 4))))


@register
def i3d_r50(*, num_classes: int = 101, width: int = 64, dropout: float = 0.5) -> I3D:
    """I3D on a ResNet-50, a video classifier."""
    return I3D(num_classes, width=width, dropout=dropout)
