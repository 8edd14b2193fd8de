# SPDX-License-Identifier: Apache-2.0
"""The C3D encoders.

Conv-4-64 is the small 3-D encoder of ARN (Zhang et al., "Few-shot Action Recognition with
Permutation-invariant Attention", ECCV 2020): four 3x3x3 convolutions of 64 channels, each with BatchNorm and
ReLU; the first two are followed by 2x2x2 max pooling. It is trained from scratch and is not the large C3D.

B clips, C channels, T frames, H height, W width.
"""

from __future__ import annotations

from mindspore import Tensor, nn

from mindvideo.models.layers import BatchNormReLU, MaxPool, conv3d, enter, leave


class ConvBlock3d(nn.Cell):
    """3x3x3 convolution, BatchNorm, ReLU and, if `pool` > 1, max pooling."""

    def __init__(self, in_channels: int, out_channels: int, *, pool: int, momentum: float):
        super().__init__()
        self.conv = conv3d(in_channels, out_channels, 3, padding=1)
        self.norm = BatchNormReLU(out_channels, momentum=momentum)
        self.pool = MaxPool((pool, pool, pool)) if pool > 1 else nn.Identity()

    def construct(self, x: Tensor) -> Tensor:
        return self.pool(self.norm(self.conv(x)))


class Conv4Encoder(nn.Cell):
    """Clips `[B, 3, T, H, W]` to features `[B, width, T // 4, H // 4, W // 4]` (both poolings round down)."""

    def __init__(self, *, width: int = 64, momentum: float = 0.1):
        super().__init__()
        self.num_features = width
        self.block1 = ConvBlock3d(3, width, pool=2, momentum=momentum)
        self.block2 = ConvBlock3d(width, width, pool=2, momentum=momentum)
        self.block3 = ConvBlock3d(width, width, pool=1, momentum=momentum)
        self.block4 = ConvBlock3d(width, width, pool=1, momentum=momentum)

    def construct(self, clips_BCTHW: Tensor) -> Tensor:
        return leave(self.block4(self.block3(self.block2(self.block1(enter(clips_BCTHW))))))
