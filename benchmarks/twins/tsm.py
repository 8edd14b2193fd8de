# SPDX-License-Identifier: Apache-2.0
"""TSM on a ResNet-50 in torch (Lin, Gan and Han, "TSM: Temporal Shift Module for Efficient Video Understanding", ICCV
2019): a network for images, on the frames of all clips at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from twins.resnet3d import BLOCKS, EXPANSION, Head


class ShiftedConv(nn.Module):
    """A 1x1 convolution of frames `[B * T, C, H, W]` that have taken an eighth of their channels from the next frame,
    and an eighth from the one before."""

    def __init__(self, in_channels: int, out_channels: int, num_frames: int):
        super().__init__()
        self.num_frames, self.fold = num_frames, in_channels // 8
        self.net = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        frames, fold = x.unflatten(0, (-1, self.num_frames)), self.fold
        shifted = torch.zeros_like(frames)
        shifted[:, :-1, :fold] = frames[:, 1:, :fold]
        shifted[:, 1:, fold : 2 * fold] = frames[:, :-1, fold : 2 * fold]
        shifted[:, :, 2 * fold :] = frames[:, :, 2 * fold :]
        return self.net(shifted.flatten(0, 1))


class ConvNorm(nn.Module):
    def __init__(self, conv: nn.Module, channels: int, *, relu: bool = True):
        super().__init__()
        self.conv, self.bn = conv, nn.BatchNorm2d(channels)
        self.activate = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.activate(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, in_channels: int, width: int, stride: int, num_frames: int):
        super().__init__()
        out_channels = EXPANSION * width
        self.conv1 = ConvNorm(ShiftedConv(in_channels, width, num_frames), width)
        self.conv2 = ConvNorm(nn.Conv2d(width, width, 3, stride, 1, bias=False), width)
        self.conv3 = ConvNorm(nn.Conv2d(width, out_channels, 1, bias=False), out_channels, relu=False)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.downsample = ConvNorm(shortcut, out_channels, relu=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv3(self.conv2(self.conv1(x))) + self.downsample(x))


class Backbone(nn.Module):
    def __init__(self, num_frames: int):
        super().__init__()
        self.conv1 = ConvNorm(nn.Conv2d(3, 64, 7, 2, 3, bias=False), 64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        stages, channels = [], 64
        for stage, num_blocks in enumerate(BLOCKS):
            width, blocks = 64 * 2**stage, []
            for i in range(num_blocks):
                blocks.append(Bottleneck(channels, width, 2 if i == 0 and stage > 0 else 1, num_frames))
                channels = EXPANSION * width
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

    def forward(self, frames: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(frames))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class TSM(nn.Module):
    def __init__(self, num_classes: int, dropout: float, num_frames: int = 8):
        super().__init__()
        self.num_frames = num_frames
        self.backbone = Backbone(num_frames)
        self.cls_head = Head(2048, num_classes, dropout)

    def forward(self, clips: Tensor) -> Tensor:
        features = self.backbone(clips.transpose(1, 2).flatten(0, 1)).mean(dim=(2, 3))
        return self.cls_head(features).unflatten(0, (-1, self.num_frames)).mean(1)
