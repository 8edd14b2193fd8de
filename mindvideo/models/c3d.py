# SPDX-License-Identifier: Apache-2.0
"""The C3D encoders.

Conv-4-64 is the small 3-D encoder of ARN (Zhang et al., "Few-shot Action Recognition with
Permutation-invariant Attention", ECCV 2020): four 3x3x3 convolutions of 64 channels, each with BatchNorm and
ReLU; the first two are followed by 2x2x2 max pooling. It is trained from scratch and is not the large C3D.

The large C3D (Tran et al., "Learning Spatiotemporal Features with 3D Convolutional Networks", ICCV 2015) is a video
classifier for clips of 16 frames of 112x112 pixels.

B clips, C channels, T frames, H height, W width.
"""

from __future__ import annotations

from mindspore import Tensor, nn, ops

from mindvideo.models.layers import Conv, ConvNorm, MaxPool, conv3d, enter, leave
from mindvideo.models.recognizer import Backbone, register_backbone

C3D_CLIP = (16, 112, 112)


class Conv4Encoder(nn.Cell):
    """Clips `[B, 3, T, H, W]` to features `[B, width, T // 4, H // 4, W // 4]` (both poolings round down)."""

    def __init__(self, *, width: int = 64, momentum: float = 0.1):
        super().__init__()
        self.num_features = width
        self.block1 = _block(3, width, momentum)
        self.block2 = _block(width, width, momentum)
        self.block3 = _block(width, width, momentum)
        self.block4 = _block(width, width, momentum)
        self.pool = MaxPool((2, 2, 2))

    def construct(self, clips_BCTHW: Tensor) -> Tensor:
        x = self.pool(self.block1(enter(clips_BCTHW)))
        x = self.pool(self.block2(x))
        return leave(self.block4(self.block3(x)))


def _block(in_channels: int, out_channels: int, momentum: float) -> ConvNorm:
    return ConvNorm(
        in_channels, out_channels, (3, 3, 3), stride=(1, 1, 1), padding=(1, 1, 1), bias=True, momentum=momentum
    )


class C3D(Backbone):
    """Clips `[B, 3, 16, 112, 112]` to vectors `[B, 1, 64 width]`, of fc7, and the map `[B, 8 width, 2, 7, 7]`."""

    def __init__(self, *, width: int = 64, dropout: float = 0.5):
        super().__init__()
        self.num_features, self.num_map_channels = 64 * width, 8 * width
        self.conv1a = _plain(3, width)
        self.conv2a = _plain(width, 2 * width)
        self.conv3a, self.conv3b = _plain(2 * width, 4 * width), _plain(4 * width, 4 * width)
        self.conv4a, self.conv4b = _plain(4 * width, 8 * width), _plain(8 * width, 8 * width)
        self.conv5a, self.conv5b = _plain(8 * width, 8 * width), _plain(8 * width, 8 * width)
        self.halve_space = MaxPool((1, 2, 2))
        self.halve = MaxPool((2, 2, 2))
        self.pool5 = MaxPool((2, 2, 2), padding=(0, 1, 1))
        self.fc6 = nn.Dense(8 * width * 4 * 4, self.num_features)
        self.fc7 = nn.Dense(self.num_features, self.num_features)
        self.dropout = nn.Dropout(p=dropout)

    def maps(self, clips_BCTHW: Tensor) -> tuple[Tensor, ...]:
        if tuple(clips_BCTHW.shape[2:]) != C3D_CLIP:
            raise ValueError(f"C3D takes clips of {C3D_CLIP} frames and pixels, not {clips_BCTHW.shape[2:]}")
        x = self.halve_space(ops.relu(self.conv1a(enter(clips_BCTHW))))
        x = self.halve(ops.relu(self.conv2a(x)))
        x = self.halve(ops.relu(self.conv3b(ops.relu(self.conv3a(x)))))
        x = self.halve(ops.relu(self.conv4b(ops.relu(self.conv4a(x)))))
        return (leave(ops.relu(self.conv5b(ops.relu(self.conv5a(x))))),)

    def vectors(self, maps: tuple[Tensor, ...]) -> Tensor:
        vectors_BC = self.dropout(ops.relu(self.fc6(leave(self.pool5(enter(maps[0]))).flatten(1))))
        return ops.relu(self.fc7(vectors_BC)).expand_dims(1)


def _plain(in_channels: int, out_channels: int) -> Conv:
    return conv3d(in_channels, out_channels, 3, padding=1)


@register_backbone
def c3d(*, width: int = 64) -> C3D:
    """The large C3D, for clips of 16 frames of 112x112 pixels."""
    return C3D(width=width)
