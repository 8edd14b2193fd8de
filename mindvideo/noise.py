# SPDX-License-Identifier: Apache-2.0
"""Random numbers inside networks, as functions of a seed.

MindSpore's generator starts anew in every process, so that a training run that is continued would go on with other
numbers than an unbroken one. Here they come from a hash of the seed, of the `stream` that tells the layers of a network
apart, and of the place in the tensor.
"""

from __future__ import annotations

import math

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindvideo import native
from mindvideo.native import tokens

# A 32-bit hash by multiplication and shift, Wellons' "lowbias32": its rounds of shift and factor.
_HASH_ROUNDS = ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1))


def _start(stream: int) -> int:
    """Where a stream's numbers begin, in those of the hash."""
    return stream * 0x9E3779B9 % 2**32


class Uniform(nn.Cell):
    """`size` numbers in [0, 1) from a seed (uint32 scalar)."""

    def __init__(self, stream: int):
        super().__init__()
        self.start = Tensor(_start(stream), ms.uint32)
        self.rounds = tuple((Tensor(shift, ms.uint32), Tensor(factor, ms.uint32)) for shift, factor in _HASH_ROUNDS)
        self.spare = Tensor(8, ms.uint32)  # bits that a float32 cannot hold, so that 1 is never reached

    def construct(self, seed: Tensor, size: int) -> Tensor:
        hash_N = ops.arange(0, size, 1, dtype=ms.int32).astype(ms.uint32) + (seed + self.start)
        for shift, factor in self.rounds:
            hash_N = ops.bitwise_xor(hash_N, ops.bitwise_right_shift(hash_N, shift)) * factor
        return ops.bitwise_right_shift(hash_N, self.spare).astype(ms.float32) * 2.0**-24


class Dropout(nn.Cell):
    """Zero a share `p` of what comes in and scale up the rest, wherever a seed is given; without one, nothing."""

    def __init__(self, p: float, stream: int):
        super().__init__()
        self.p, self.uniform = p, Uniform(stream)
        self.native = tokens.Dropout(p, _start(stream)) if native.in_use() else None

    def construct(self, x: Tensor, seed: Tensor | None = None) -> Tensor:
        if seed is None or self.p == 0.0:
            return x
        if self.native is not None:
            return self.native(seed, x)
        kept_N = self.uniform(seed, x.size) >= self.p
        return x * kept_N.astype(x.dtype).reshape(x.shape) * (1.0 / (1.0 - self.p))


class StandardNormal(nn.Cell):
    """Numbers of N(0, 1) from a seed (uint32 scalar), by Box and Muller (1958); they take this stream and the next."""

    def __init__(self, stream: int):
        super().__init__()
        self.radius, self.angle = Uniform(stream), Uniform(stream + 1)

    def construct(self, seed: Tensor, shape: tuple[int, ...]) -> Tensor:
        size = math.prod(shape)
        # ln(1 - u) by log1p, as MindSpore's log rounds otherwise from call to call on a CPU.
        radius_N = ops.sqrt(-2.0 * ops.log1p(-self.radius(seed, size)))
        return (radius_N * ops.cos(2.0 * math.pi * self.angle(seed, size))).reshape(shape)
