# SPDX-License-Identifier: Apache-2.0
"""ConvNeXt-tiny in torch (Liu et al., "A ConvNet for the 2020s", CVPR 2022) under the robust-classification head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

DEPTHS, WIDTHS = (3, 3, 9, 3), (96, 192, 384, 768)
LAYER_SCALE, EPSILON = 1e-6, 1e-6


class Permute(nn.Module):
    def __init__(self, *order: int):
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order)


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of `[B, C, H, W]`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    def __init__(self, channels: int, drop: float):
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(channels, channels, 7, padding=3, groups=channels),
            Permute(0, 2, 3, 1),
            nn.LayerNorm(channels, eps=EPSILON),
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
            nn.Linear(4 * channels, channels),
            Permute(0, 3, 1, 2),
        )
        self.layer_scale = nn.Parameter(torch.full((channels, 1, 1), LAYER_SCALE))
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        branch = self.layer_scale * self.block(x)
        if self.training and self.drop > 0:  # stochastic depth
            kept = torch.empty(len(x), 1, 1, 1).bernoulli_(1 - self.drop)
            branch = branch * (kept / (1 - self.drop))
        return x + branch


def features(drop_path: float) -> nn.Sequential:
    drops = torch.linspace(0, drop_path, sum(DEPTHS)).tolist()
    stages: list[nn.Module] = [nn.Sequential(nn.Conv2d(3, WIDTHS[0], 4, 4), ChannelNorm(WIDTHS[0], eps=EPSILON))]
    for stage, (depth, width) in enumerate(zip(DEPTHS, WIDTHS, strict=True)):
        if stage > 0:
            few = WIDTHS[stage - 1]
            stages.append(nn.Sequential(ChannelNorm(few, eps=EPSILON), nn.Conv2d(few, width, 2, 2)))
        first = sum(DEPTHS[:stage])
        stages.append(nn.Sequential(*(Block(width, drop) for drop in drops[first : first + depth])))
    return nn.Sequential(*stages)


def hidden_layer(in_features: int, out_features: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_features, out_features), nn.GELU(), nn.Dropout(0.2), nn.LayerNorm(out_features))


class ConvNeXt(nn.Module):
    def __init__(self, num_classes: int, drop_path: float = 0.1):
        super().__init__()
        self.backbone = nn.Sequential(features(drop_path), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.cls_head = nn.Sequential(
            hidden_layer(WIDTHS[-1], 512), hidden_layer(512, 256), nn.Linear(256, num_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.cls_head(self.backbone(images))
