# SPDX-License-Identifier: Apache-2.0
"""Inflated residual networks in torch: I3D (Carreira and Zisserman, "Quo Vadis, Action Recognition?", CVPR 2017) and
SlowOnly (Feichtenhofer et al., "SlowFast Networks for Video Recognition", ICCV 2019) on a ResNet-50."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

BLOCKS, EXPANSION = (3, 4, 6, 3), 4
I3D_INFLATE = ((1, 1, 1), (1, 0, 1, 0), (1, 0, 1, 0, 1, 0), (0, 1, 0))  # which blocks span three frames
SLOW_INFLATE = ((0,), (0,), (1,), (1,))
FAST_INFLATE = ((1,), (1,), (1,), (1,))

Extent = int | tuple[int, int, int]


class ConvNorm(nn.Module):
    def __init__(
        self, in_channels: int, out_channels: int, kernel: Extent, *, stride: Extent = 1, padding: Extent = 0,
        groups: int = 1, relu: bool = True,
    ):  # fmt: skip
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm3d(out_channels)
        self.activate = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.activate(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, in_channels: int, width: int, stride: int, inflated: bool):
        super().__init__()
        out_channels, frames = EXPANSION * width, 3 if inflated else 1
        spatial = (1, stride, stride)
        self.conv1 = ConvNorm(in_channels, width, (frames, 1, 1), padding=(frames // 2, 0, 0))
        self.conv2 = ConvNorm(width, width, (1, 3, 3), stride=spatial, padding=(0, 1, 1))
        self.conv3 = ConvNorm(width, out_channels, 1, relu=False)
        same = stride == 1 and in_channels == out_channels
        self.downsample = nn.Identity() if same else ConvNorm(in_channels, out_channels, 1, stride=spatial, relu=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv3(self.conv2(self.conv1(x))) + self.downsample(x))


class ResNet3d(nn.Module):
    """Clips `[B, 3, T, H, W]` to the maps of the third and fourth stage; `added` channels join the stages' inputs."""

    def __init__(
        self, inflate: Sequence[Sequence[int]], *, width: int = 64, stem_frames: int, time_stride: int = 1,
        added: Sequence[int] = (0, 0, 0, 0),
    ):  # fmt: skip
        super().__init__()
        self.conv1 = ConvNorm(
            3, width, (stem_frames, 7, 7), stride=(time_stride, 2, 2), padding=(stem_frames // 2, 3, 3)
        )
        self.maxpool = nn.MaxPool3d((1, 3, 3), (time_stride, 2, 2), (0, 1, 1))
        self.pool2 = nn.MaxPool3d((time_stride, 1, 1)) if time_stride > 1 else nn.Identity()
        stages, channels = [], width
        for stage, num_blocks in enumerate(BLOCKS):
            inner, channels, blocks = width * 2**stage, channels + added[stage], []
            for i in range(num_blocks):
                stride = 2 if i == 0 and stage > 0 else 1
                inflated = bool(inflate[stage][i % len(inflate[stage])])
                blocks.append(Bottleneck(channels, inner, stride, inflated))
                channels = EXPANSION * inner
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        third = self.layer3(self.layer2(self.pool2(self.layer1(self.maxpool(self.conv1(clips))))))
        return third, self.layer4(third)


class Head(nn.Module):
    """Dropout and a dense layer on pooled features."""

    def __init__(self, channels: int, num_classes: int, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.fc_cls = nn.Linear(channels, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.fc_cls(self.dropout(features))


class I3D(nn.Module):
    def __init__(self, num_classes: int, dropout: float):
        super().__init__()
        self.backbone = ResNet3d(I3D_INFLATE, stem_frames=5, time_stride=2)
        self.cls_head = Head(2048, num_classes, dropout)

    def forward(self, clips: Tensor) -> Tensor:
        return self.cls_head(self.backbone(clips)[1].mean(dim=(2, 3, 4)))
