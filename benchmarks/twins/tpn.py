# SPDX-License-Identifier: Apache-2.0
"""TPN on SlowOnly R50 in torch (Yang et al., "Temporal Pyramid Network for Action Recognition", CVPR 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from twins.resnet3d import SLOW_INFLATE, ConvNorm, Head, ResNet3d

LOWER, UPPER, GROUPS = 1024, 2048, 32  # channels of the two levels


def halve_space(in_channels: int, out_channels: int) -> ConvNorm:
    return ConvNorm(in_channels, out_channels, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))


class SpatialModulation(nn.Module):
    def __init__(self):
        super().__init__()
        self.spatial_modulation = nn.ModuleList((nn.Sequential(halve_space(LOWER, UPPER)), nn.Identity()))

    def forward(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        first, second = self.spatial_modulation
        return first(lower), second(upper)


class OverTime(nn.Module):
    """A convolution over three frames, then the maximum over `pool` of them."""

    def __init__(self, in_channels: int, groups: int, pool: int):
        super().__init__()
        conv = nn.Conv3d(in_channels, LOWER, (3, 1, 1), padding=(1, 0, 0), groups=groups, bias=False)
        self.conv = nn.ModuleDict({"conv": conv})
        self.pool = nn.MaxPool3d((pool, 1, 1)) if pool > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.conv["conv"](x))


class LevelFusion(nn.Module):
    def __init__(self):
        super().__init__()
        self.downsamples = nn.ModuleList(
            nn.ModuleDict({"conv": ConvNorm(LOWER, LOWER, 1, groups=GROUPS)}) for _ in range(2)
        )
        self.fusion_conv = ConvNorm(2 * LOWER, UPPER, 1)

    def forward(self, lower: Tensor, upper: Tensor) -> Tensor:
        first, second = (level["conv"] for level in self.downsamples)
        return self.fusion_conv(torch.cat((first(lower), second(upper)), 1))


class AuxiliaryHead(nn.Module):
    def __init__(self, num_classes: int, dropout: float):
        super().__init__()
        self.conv = halve_space(LOWER, 2 * LOWER)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(2 * LOWER, num_classes)

    def forward(self, lower: Tensor) -> Tensor:
        return self.fc(self.dropout(self.conv(lower).mean(dim=(2, 3, 4))))


class Neck(nn.Module):
    def __init__(self, num_classes: int, dropout: float, num_frames: int):
        super().__init__()
        self.spatial_modulation = SpatialModulation()
        self.temporal_modulation_ops = nn.ModuleList(OverTime(UPPER, GROUPS, num_frames) for _ in range(2))
        self.downsample_ops = nn.ModuleList((OverTime(LOWER, 1, 1),))
        self.level_fusion_1, self.level_fusion_2 = LevelFusion(), LevelFusion()
        self.pyramid_fusion = ConvNorm(2 * UPPER, 2048, 1)
        self.aux_head = AuxiliaryHead(num_classes, dropout)

    def forward(self, lower: Tensor, upper: Tensor) -> Tensor:
        lower, upper = self.spatial_modulation(lower, upper)
        lower, upper = (over_time(x) for over_time, x in zip(self.temporal_modulation_ops, (lower, upper), strict=True))
        lower = lower + upper
        top_down = self.level_fusion_1(lower, upper)
        bottom_up = self.level_fusion_2(lower, upper + self.downsample_ops[0](lower))
        return self.pyramid_fusion(torch.cat((top_down, bottom_up), 1))


class TPN(nn.Module):
    """Clips to logits, in training with those of the auxiliary head."""

    def __init__(self, num_classes: int, dropout: float, num_frames: int = 8):
        super().__init__()
        self.backbone = ResNet3d(SLOW_INFLATE, stem_frames=1)
        self.neck = Neck(num_classes, dropout, num_frames)
        self.cls_head = Head(2048, num_classes, dropout)

    def forward(self, clips: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        lower, upper = self.backbone(clips)
        logits = self.cls_head(self.neck(lower, upper).mean(dim=(2, 3, 4)))
        return (logits, self.neck.aux_head(lower)) if self.training else logits
