# SPDX-License-Identifier: Apache-2.0
"""ARN (Zhang et al., "Few-shot Action Recognition with Permutation-invariant Attention", ECCV 2020) in torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv_norm_relu(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [
        nn.Conv3d(in_channels, out_channels, 3, padding=1), nn.BatchNorm3d(out_channels), nn.ReLU(inplace=True),
    ]  # fmt: skip


class Encoder(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.layer1 = nn.Sequential(*conv_norm_relu(3, width), nn.MaxPool3d(2))
        self.layer2 = nn.Sequential(*conv_norm_relu(width, width), nn.MaxPool3d(2))
        self.layer3 = nn.Sequential(*conv_norm_relu(width, width))
        self.layer4 = nn.Sequential(*conv_norm_relu(width, width))

    def forward(self, clips: Tensor) -> Tensor:
        return self.layer4(self.layer3(self.layer2(self.layer1(clips))))


class SpatialAttention(nn.Module):
    def __init__(self, channels: int, hidden: int = 16):
        super().__init__()
        self.sd1 = nn.Sequential(
            *conv_norm_relu(channels, hidden), nn.MaxPool3d((2, 1, 1)),
            *conv_norm_relu(hidden, hidden), nn.MaxPool3d((2, 1, 1)),
            nn.Conv3d(hidden, 1, 1),
        )  # fmt: skip

    def forward(self, phi: Tensor) -> Tensor:
        return torch.sigmoid(self.sd1(phi))


class Comparator(nn.Module):
    def __init__(self, width: int, hidden: int = 8):
        super().__init__()
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
            for channels in (2, width, width, width)
        )
        self.pool = nn.MaxPool2d(2)
        self.fc1, self.fc2 = nn.Linear(width * 16, hidden), nn.Linear(hidden, 1)

    def forward(self, pairs: Tensor) -> Tensor:
        x = self.pool(self.layer1(pairs))
        for layer in (self.layer2, self.layer3, self.layer4):
            x = self.pool(x + layer(x))
        return torch.sigmoid(self.fc2(torch.relu(self.fc1(x.flatten(1)))))


class ARN(nn.Module):
    """Support `[N, K, 3, T, H, W]` and queries `[M, 3, T, H, W]` of T from 16 to 19 to scores `[M, N]`."""

    def __init__(self, width: int = 64, sigma: float = 100.0):
        super().__init__()
        self.sigma = sigma
        self.feature_encoder = Encoder(width)
        self.spatial_detector = SpatialAttention(width)
        self.relation_network = Comparator(width)

    def encode(self, clips: Tensor) -> Tensor:
        phi = self.feature_encoder(clips)
        phi = (phi * (1 + self.spatial_detector(phi))).flatten(2)
        autocorr = phi @ phi.transpose(1, 2) / phi.shape[2]
        trace = autocorr.diagonal(dim1=1, dim2=2).sum(1).reshape(-1, 1, 1)
        return 2 * torch.sigmoid(self.sigma * autocorr / trace) - 1

    def forward(self, support: Tensor, query: Tensor) -> Tensor:
        way, shot = support.shape[:2]
        classes = self.encode(support.flatten(0, 1)).unflatten(0, (way, shot)).mean(1)
        queries = self.encode(query)
        shape = (len(queries), way, *classes.shape[1:])
        pairs = torch.stack((classes[None].expand(shape), queries[:, None].expand(shape)), 2)
        return self.relation_network(pairs.flatten(0, 1)).reshape(shape[:2])
