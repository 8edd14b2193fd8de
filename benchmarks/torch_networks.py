# SPDX-License-Identifier: Apache-2.0
"""The networks of `step.py` in torch, written from the same papers, as a torch user would write them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

BLOCKS, EXPANSION = (3, 4, 6, 3), 4
INFLATE = ((1, 1, 1), (1, 0, 1, 0), (1, 0, 1, 0, 1, 0), (0, 1, 0))  # which blocks of I3D span three frames
Extent = int | tuple[int, int, int]


def conv_norm(
    in_channels: int, out_channels: int, kernel: Extent, *, stride: Extent = 1, padding: Extent = 0, bias: bool = False
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, kernel, stride, padding, bias=bias), nn.BatchNorm3d(out_channels)
    )


class Bottleneck(nn.Module):
    def __init__(self, in_channels: int, width: int, stride: int, inflated: bool):
        super().__init__()
        out_channels, frames = EXPANSION * width, 3 if inflated else 1
        self.conv1 = conv_norm(in_channels, width, (frames, 1, 1), padding=(frames // 2, 0, 0))
        self.conv2 = conv_norm(width, width, (1, 3, 3), stride=(1, stride, stride), padding=(0, 1, 1))
        self.conv3 = conv_norm(width, out_channels, 1)
        same = stride == 1 and in_channels == out_channels
        self.downsample = nn.Identity() if same else conv_norm(in_channels, out_channels, 1, stride=(1, stride, stride))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.conv2(self.relu(self.conv1(x))))
        return self.relu(self.conv3(y) + self.downsample(x))


class I3D(nn.Module):
    def __init__(self, num_classes: int):
        super().__init__()
        stem = conv_norm(3, 64, (5, 7, 7), stride=2, padding=(2, 3, 3))
        layers: list[nn.Module] = [stem, nn.ReLU(inplace=True), nn.MaxPool3d((1, 3, 3), 2, (0, 1, 1))]
        channels = 64
        for stage, num_blocks in enumerate(BLOCKS):
            width = 64 * 2**stage
            for i in range(num_blocks):
                stride = 2 if i == 0 and stage > 0 else 1
                layers.append(Bottleneck(channels, width, stride, bool(INFLATE[stage][i])))
                channels = EXPANSION * width
            if stage == 0:
                layers.append(nn.MaxPool3d((2, 1, 1)))
        self.backbone = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, clips: Tensor) -> Tensor:
        return self.fc(self.backbone(clips).mean(dim=(2, 3, 4)))


class SpatialAttention(nn.Module):
    def __init__(self, channels: int, hidden: int = 16):
        super().__init__()
        self.layers = nn.Sequential(
            conv_norm(channels, hidden, 3, padding=1, bias=True), nn.ReLU(inplace=True), nn.MaxPool3d((2, 1, 1)),
            conv_norm(hidden, hidden, 3, padding=1, bias=True), nn.ReLU(inplace=True), nn.MaxPool3d((2, 1, 1)),
            nn.Conv3d(hidden, 1, 1),
        )  # fmt: skip

    def forward(self, phi: Tensor) -> Tensor:
        return torch.sigmoid(self.layers(phi))


class Comparator(nn.Module):
    def __init__(self, width: int = 64, hidden: int = 8):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
            for channels in (2, width, width, width)
        )
        self.pool = nn.MaxPool2d(2)
        self.fc1, self.fc2 = nn.Linear(width * 16, hidden), nn.Linear(hidden, 1)

    def forward(self, pairs: Tensor) -> Tensor:
        x = self.pool(self.blocks[0](pairs))
        for block in self.blocks[1:]:
            x = self.pool(x + block(x))
        return torch.sigmoid(self.fc2(torch.relu(self.fc1(x.flatten(1)))))


class ARN(nn.Module):
    def __init__(self, width: int = 64, sigma: float = 100.0):
        super().__init__()
        self.sigma = sigma
        layers = []
        for block, channels in enumerate((3, width, width, width)):
            layers += [conv_norm(channels, width, 3, padding=1, bias=True), nn.ReLU(inplace=True)]
            layers += [nn.MaxPool3d(2)] if block < 2 else []
        self.encoder = nn.Sequential(*layers)
        self.attention = SpatialAttention(width)
        self.comparator = Comparator(width)

    def encode(self, clips: Tensor) -> Tensor:
        phi = self.encoder(clips)
        phi = (phi * (1 + self.attention(phi))).flatten(2)
        autocorr = phi @ phi.transpose(1, 2) / phi.shape[2]
        trace = autocorr.diagonal(dim1=1, dim2=2).sum(1).reshape(-1, 1, 1)
        return 2 * torch.sigmoid(self.sigma * autocorr / trace) - 1

    def forward(self, support: Tensor, query: Tensor) -> Tensor:
        way, shot = support.shape[:2]
        classes = self.encode(support.flatten(0, 1)).unflatten(0, (way, shot)).mean(1)
        queries = self.encode(query)
        shape = (len(queries), way, *classes.shape[1:])
        pairs = torch.stack((classes[None].expand(shape), queries[:, None].expand(shape)), 2)
        return self.comparator(pairs.flatten(0, 1)).reshape(shape[:2])
