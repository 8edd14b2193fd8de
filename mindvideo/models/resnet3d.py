# SPDX-License-Identifier: Apache-2.0
"""3-D residual networks for video: the trunk of I3D, SlowOnly and SlowFast.

Bottleneck blocks of three convolutions (1x1, 3x3, 1x1 over space) of which some are inflated: their first
convolution then also spans three frames (Feichtenhofer et al., "SlowFast Networks", ICCV 2019; Carreira and
Zisserman, "Quo Vadis, Action Recognition?", CVPR 2017). Stride is in the 3x3 convolution, and every convolution is
followed by BatchNorm.

B clips, C channels, T frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

from mindspore import Tensor, nn

from mindvideo.models.layers import ConvNorm, MaxPool, enter, leave

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
EXPANSION = 4


class Bottleneck3d(nn.Cell):
    """Residual block of `width` inner and `4 width` outer channels; `inflated`: the first kernel is 3x1x1."""

    def __init__(self, in_channels: int, width: int, *, stride: int, inflated: bool):
        super().__init__()
        out_channels, frames = EXPANSION * width, 3 if inflated else 1
        one, over_space = (1, 1, 1), (1, stride, stride)
        self.conv1 = ConvNorm(in_channels, width, (frames, 1, 1), stride=one, padding=(frames // 2, 0, 0))
        self.conv2 = ConvNorm(width, width, (1, 3, 3), stride=over_space, padding=(0, 1, 1))
        self.conv3 = ConvNorm(width, out_channels, one, stride=one, padding=(0, 0, 0), residual=True)
        self.downsample = None
        if stride > 1 or in_channels != out_channels:
            self.downsample = ConvNorm(in_channels, out_channels, one, stride=over_space, padding=(0, 0, 0), relu=False)

    def construct(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.conv3(self.conv2(self.conv1(x)), shortcut)


class ResNet3d(nn.Cell):
    """Clips `[B, 3, T, H, W]` to features `[B, num_features, T', H / 32, W / 32]`.

    Args:
        depth: 50, 101 or 152.
        inflate: for each of the four stages which blocks are inflated, repeated over its blocks.
        width: channels of the first convolution.
        stem_frames: frames its kernel spans.
        stem_stride, pool_stride: strides over time of the first convolution and of the pooling behind it.
        halve_time: halve the frames again by max pooling after the first stage.
    """

    def __init__(
        self,
        *,
        depth: int = 50,
        inflate: Sequence[Sequence[int]],
        width: int = 64,
        stem_frames: int = 5,
        stem_stride: int = 2,
        pool_stride: int = 2,
        halve_time: bool = True,
    ):
        super().__init__()
        self.num_features = 8 * EXPANSION * width
        self.conv1 = ConvNorm(
            3, width, (stem_frames, 7, 7), stride=(stem_stride, 2, 2), padding=(stem_frames // 2, 3, 3)
        )
        self.pool1 = MaxPool((1, 3, 3), stride=(pool_stride, 2, 2), padding=(0, 1, 1))
        self.layer1 = _stage(width, width, BLOCKS[depth][0], stride=1, inflate=inflate[0])
        self.pool2 = MaxPool((2, 1, 1)) if halve_time else nn.Identity()
        self.layer2 = _stage(4 * width, 2 * width, BLOCKS[depth][1], stride=2, inflate=inflate[1])
        self.layer3 = _stage(8 * width, 4 * width, BLOCKS[depth][2], stride=2, inflate=inflate[2])
        self.layer4 = _stage(16 * width, 8 * width, BLOCKS[depth][3], stride=2, inflate=inflate[3])

    def construct(self, clips_BCTHW: Tensor) -> Tensor:
        x = self.pool1(self.conv1(enter(clips_BCTHW)))
        x = self.layer2(self.pool2(self.layer1(x)))
        return leave(self.layer4(self.layer3(x)))


def _stage(in_channels: int, width: int, num_blocks: int, *, stride: int, inflate: Sequence[int]) -> nn.SequentialCell:
    blocks = []
    for i in range(num_blocks):
        inflated = bool(inflate[i % len(inflate)])
        blocks.append(Bottleneck3d(in_channels, width, stride=stride if i == 0 else 1, inflated=inflated))
        in_channels = EXPANSION * width
    return nn.SequentialCell(blocks)
