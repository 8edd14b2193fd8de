# SPDX-License-Identifier: Apache-2.0
"""The C3D encoders.

Conv-4-64 is the small 3-D encoder of ARN (Zhang et al., "Few-shot Action Recognition with
Permutation-invariant Attention", ECCV 2020): four 3x3x3 convolutions of 64 channels, each with BatchNorm and
ReLU; the first two are followed by 2x2x2 max pooling. It is trained from scratch and is not the large C3D.

B clips, C channels, T frames, H height, W width.
"""

from __future__ import annotations

from mindspore import Tensor, nn

from mindvideo.models.layers import ConvNorm, MaxPool, enter, leave


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
