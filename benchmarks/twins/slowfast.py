# SPDX-License-Identifier: Apache-2.0
"""SlowFast 8x8 on a ResNet-50 in torch (Feichtenhofer et al., "SlowFast Networks for Video Recognition", ICCV 2019)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from twins.resnet3d import FAST_INFLATE, SLOW_INFLATE, Head, ResNet3d

ALPHA, FAST_WIDTH = 4, 8
FAST_CHANNELS = (FAST_WIDTH, 4 * FAST_WIDTH, 8 * FAST_WIDTH, 16 * FAST_WIDTH)  # of what is handed over


class Lateral(nn.Module):
    """A convolution over time that brings the fast pathway's frames to the slow one's."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv3d(channels, 2 * channels, (7, 1, 1), (ALPHA, 1, 1), (3, 0, 0), bias=False)

    def forward(self, fast: Tensor) -> Tensor:
        return self.conv(fast)


class SlowPath(ResNet3d):
    def __init__(self):
        super().__init__(SLOW_INFLATE, stem_frames=1, added=[2 * channels for channels in FAST_CHANNELS])
        self.conv1_lateral, self.layer1_lateral, self.layer2_lateral, self.layer3_lateral = map(Lateral, FAST_CHANNELS)


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.slow_path = SlowPath()
        self.fast_path = ResNet3d(FAST_INFLATE, width=FAST_WIDTH, stem_frames=5)

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        slow_path, fast_path = self.slow_path, self.fast_path
        slow = slow_path.maxpool(slow_path.conv1(clips[:, :, ::ALPHA]))
        fast = fast_path.maxpool(fast_path.conv1(clips))
        slow = slow_path.layer1(torch.cat((slow, slow_path.conv1_lateral(fast)), 1))
        fast = fast_path.layer1(fast)
        slow = slow_path.layer2(torch.cat((slow, slow_path.layer1_lateral(fast)), 1))
        fast = fast_path.layer2(fast)
        slow = slow_path.layer3(torch.cat((slow, slow_path.layer2_lateral(fast)), 1))
        fast = fast_path.layer3(fast)
        slow = slow_path.layer4(torch.cat((slow, slow_path.layer3_lateral(fast)), 1))
        return slow, fast_path.layer4(fast)


class SlowFast(nn.Module):
    def __init__(self, num_classes: int, dropout: float):
        super().__init__()
        self.backbone = Backbone()
        self.cls_head = Head(2048 + 32 * FAST_WIDTH, num_classes, dropout)

    def forward(self, clips: Tensor) -> Tensor:
        slow, fast = self.backbone(clips)
        return self.cls_head(torch.cat((fast.mean(dim=(2, 3, 4)), slow.mean(dim=(2, 3, 4))), 1))
