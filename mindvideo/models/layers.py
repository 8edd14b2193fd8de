# SPDX-License-Identifier: Apache-2.0
"""The few parts that several networks share, and the only place that knows MindSpore's differing defaults.

B batch, C channels, T frames, H height, W width. PyTorch's conventions hold here, because every
published number of this field was measured with them: explicit padding, BatchNorm `momentum` as the weight
of the new batch (MindSpore's layers take 1 - momentum), unbiased running variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops


def _per_axis(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    return (value,) * axes if isinstance(value, int) else tuple(value)


def conv3d(
    in_channels: int,
    out_channels: int,
    kernel_size: int | tuple[int, int, int],
    *,
    stride: int | tuple[int, int, int] = 1,
    padding: int | tuple[int, int, int] = 0,
    bias: bool = True,
) -> nn.Cell:
    """Convolution over `[B, C, T, H, W]` with symmetric zero padding."""
    pads = tuple(p for p in _per_axis(padding, 3) for _ in (0, 1))
    return nn.Conv3d(in_channels, out_channels, kernel_size, stride, pad_mode="pad", padding=pads, has_bias=bias)


def conv2d(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    padding: int = 0,
    bias: bool = True,
) -> nn.Cell:
    """Convolution over `[B, C, H, W]` with symmetric zero padding."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, pad_mode="pad", padding=padding, has_bias=bias)


class BatchNorm(nn.Cell):
    """Batch normalisation over axis 1 of `[B, C, ...]`, for any number of trailing axes.

    `momentum` is the weight of the newest batch in the running statistics (PyTorch's sense): 1 keeps the last
    batch only.
    """

    def __init__(self, channels: int, *, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__()
        self.channels = channels
        self.gamma = Parameter(Tensor(np.ones(channels, np.float32)))
        self.beta = Parameter(Tensor(np.zeros(channels, np.float32)))
        self.moving_mean = Parameter(Tensor(np.zeros(channels, np.float32)), requires_grad=False)
        self.moving_variance = Parameter(Tensor(np.ones(channels, np.float32)), requires_grad=False)
        self.batch_norm = ops.BatchNorm(is_training=True, epsilon=eps, momentum=momentum)
        self.fixed_norm = ops.BatchNorm(is_training=False, epsilon=eps)

    def construct(self, x: Tensor) -> Tensor:
        norm = self.batch_norm if self.training else self.fixed_norm
        x_BCNW = x.reshape((x.shape[0], self.channels, -1, x.shape[-1]))
        return norm(x_BCNW, self.gamma, self.beta, self.moving_mean, self.moving_variance)[0].reshape(x.shape)


def max_pool3d(x_BCTHW: Tensor, window: tuple[int, int, int]) -> Tensor:
    """Non-overlapping max pooling; an incomplete window at the end is dropped."""
    return x_BCTHW if window == (1, 1, 1) else ops.max_pool3d(x_BCTHW, window, window)


def max_pool2d(x_BCHW: Tensor, window: int) -> Tensor:
    """Non-overlapping max pooling; an incomplete window at the end is dropped.

    Not `ops.max_pool2d`: on the CPU it is two hundred times slower than this primitive.
    """
    return ops.MaxPool(kernel_size=window, strides=window)(x_BCHW)


def initialize(model: nn.Cell, seed: int) -> None:
    """Draw all weights anew, as the ARN authors' code does, from `seed` alone.

    Convolutions N(0, 2 / (k_1 k_2 out)), with the first two extents of the kernel even in 3-D, and zero bias; dense
    layers N(0, 0.01^2) with bias 1; BatchNorm is left at gamma 1, beta 0.
    """
    rng = np.random.default_rng(seed)
    for _, cell in model.cells_and_names():
        if isinstance(cell, (nn.Conv2d, nn.Conv3d)):
            out_channels, _, k1, k2 = cell.weight.shape[:4]
            std, bias = math.sqrt(2.0 / (k1 * k2 * out_channels)), 0.0
        elif isinstance(cell, nn.Dense):
            std, bias = 0.01, 1.0
        else:
            continue
        weight = rng.standard_normal(cell.weight.shape) * std
        cell.weight.set_data(Tensor(weight.astype(np.float32)))
        if cell.bias is not None:
            cell.bias.set_data(ms.numpy.full(cell.bias.shape, bias, ms.float32))
