# SPDX-License-Identifier: Apache-2.0
"""The few parts that several networks share, and the only place that knows MindSpore's differing defaults.

B batch, C channels, T frames, H height, W width. PyTorch's conventions hold here, because every published number of
this field was measured with them: explicit padding, BatchNorm `momentum` as the weight of the new batch (MindSpore's
layers take 1 - momentum), unbiased running variance.

On a CPU the parts run on the native operators (`mindvideo/native`) where these load; elsewhere, and on every other
device, on MindSpore's own. The native ones want the channels last: a network calls `enter` on what comes in and `leave`
on what goes out, and in between its parts pass tensors in the operators' own layout. Parameters, and so checkpoints,
are the same either way.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindvideo import native
from mindvideo.errors import InputError
from mindvideo.native import operators, tokens
from mindvideo.noise import Dropout


@functools.cache
def is_native() -> bool:
    """Whether the networks of this process run on the native operators; settled at the first call."""
    return native.in_use()


@contextmanager
def portable_operators() -> Iterator[None]:
    """Inside, networks are built, run and compiled on MindSpore's operators: nothing else can be exported.

    A network built inside does not run outside, nor the other way.
    """
    is_native.cache_clear()
    try:
        with native.set_aside():
            yield
    finally:
        is_native.cache_clear()


def describe_operators() -> str:
    """Which operators the networks of this process run on, and why if they are not the native ones."""
    if is_native():
        return "native operators"
    why = f": {native.reason()}" if ms.get_context("device_target") == "CPU" else ""
    return f"MindSpore's operators{why}"


def enter(x: Tensor) -> Tensor:
    """`[B, C, ...]` to the layout that the parts below pass among themselves."""
    return x.transpose((0, *range(2, x.ndim), 1)) if is_native() else x


def leave(x: Tensor) -> Tensor:
    """The layout of the parts below to `[B, C, ...]`, and float16 of mixed precision to float32."""
    return x.transpose((0, x.ndim - 1, *range(1, x.ndim - 1))) if is_native() else x.astype(ms.float32)


def channel_axis() -> int:
    """Where the layout of the parts below has the channels of a clip."""
    return 4 if is_native() else 1


def time_axis() -> int:
    """Where the layout of the parts below has the frames of a clip."""
    return 1 if is_native() else 2


def space_axes() -> tuple[int, int]:
    """Where the layout of the parts below has the height and width of an image."""
    return (1, 2) if is_native() else (2, 3)


def to_channels_last(x: Tensor) -> Tensor:
    """An image's map in the layout of the parts below to `[B, H, W, C]`, for layers that work on the last axis."""
    return x if is_native() else x.transpose((0, 2, 3, 1))


def from_channels_last(x_BHWC: Tensor) -> Tensor:
    """The way back."""
    return x_BHWC if is_native() else x_BHWC.transpose((0, 3, 1, 2))


class Float32(nn.Cell):
    """A part that mixed precision leaves in float32: it takes what comes in to that."""

    def add_flags_recursive(self, **flags: bool) -> nn.Cell:
        """What mixed precision calls on every cell of a network."""
        if flags.get("fp16") or flags.get("bf16"):
            flags |= {"fp16": False, "bf16": False, "fp32": True}
        return super().add_flags_recursive(**flags)


class Conv(nn.Cell):
    """Convolution over as many axes as `kernel` has, with symmetric zero padding."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Sequence[int],
        *,
        stride: Sequence[int],
        padding: Sequence[int],
        groups: int = 1,
        bias: bool = True,
    ):
        super().__init__()
        self.weight = Parameter(Tensor(np.zeros((out_channels, in_channels // groups, *kernel), np.float32)))
        self.bias = Parameter(Tensor(np.zeros(out_channels, np.float32))) if bias else None
        self.window = (tuple(stride), tuple(padding), (1,) * len(kernel))
        if is_native():
            operator = operators.BiasedConvolution if bias else operators.Convolution
            self.operator = operator(*self.window, groups=groups)
        else:
            operator = ops.Conv3D if len(kernel) == 3 else ops.Conv2D
            pads = tuple(p for p in padding for _ in (0, 1))
            self.operator = operator(
                out_channels, tuple(kernel), pad_mode="pad", pad=pads, stride=tuple(stride), group=groups
            )

    def construct(self, x: Tensor) -> Tensor:
        if self.bias is None:
            return self.operator(x, self.weight)
        if is_native():
            return self.operator(x, self.weight, self.bias)
        return self.operator(x, self.weight) + self.bias.reshape((1, -1) + (1,) * (x.ndim - 2))


def conv3d(in_channels: int, out_channels: int, kernel: int, *, padding: int = 0) -> Conv:
    """Convolution over T, H and W with equal extents."""
    return Conv(in_channels, out_channels, (kernel,) * 3, stride=(1,) * 3, padding=(padding,) * 3)


def conv2d(in_channels: int, out_channels: int, kernel: int, *, padding: int = 0) -> Conv:
    """Convolution over H and W with equal extents."""
    return Conv(in_channels, out_channels, (kernel,) * 2, stride=(1,) * 2, padding=(padding,) * 2)


class BatchNorm(Float32):
    """Batch normalisation over the channels, for any number of further axes, then an optional ReLU.

    `momentum` is the weight of the newest batch in the running statistics (PyTorch's sense): 1 keeps the last
    batch only. A residual of the input's shape, if given, is added before the ReLU.
    """

    def __init__(self, channels: int, *, relu: bool = False, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__()
        self.channels, self.relu, self.momentum, self.eps = channels, relu, momentum, eps
        self.gamma = Parameter(Tensor(np.ones(channels, np.float32)))
        self.beta = Parameter(Tensor(np.zeros(channels, np.float32)))
        self.moving_mean = Parameter(Tensor(np.zeros(channels, np.float32)), requires_grad=False)
        self.moving_variance = Parameter(Tensor(np.ones(channels, np.float32)), requires_grad=False)
        if is_native():
            self.batch_norm = operators.BatchNorm(eps, relu=relu)
            self.residual_norm = operators.ResidualBatchNorm(eps, relu=relu)
            self.frozen_norm = operators.FrozenBatchNorm(eps, relu=relu)
        else:
            self.batch_norm = ops.BatchNorm(is_training=True, epsilon=eps, momentum=momentum)
            self.frozen_norm = ops.BatchNorm(is_training=False, epsilon=eps)

    def construct(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if not is_native():
            norm = self.batch_norm if self.training else self.frozen_norm
            x_BCNW = x.reshape((x.shape[0], self.channels, -1, x.shape[-1]))
            y = norm(x_BCNW, self.gamma, self.beta, self.moving_mean, self.moving_variance)[0].reshape(x.shape)
            y = y if residual is None else y + residual
            return ops.relu(y) if self.relu else y
        if not self.training:
            return self.frozen_norm(x, self.gamma, self.beta, self.moving_mean, self.moving_variance)
        if residual is None:
            y, mean, variance = self.batch_norm(x, self.gamma, self.beta)
        else:
            y, mean, variance = self.residual_norm(x, self.gamma, self.beta, residual)
        count = x.size // self.channels
        unbiased = variance * (count / max(1, count - 1))
        y = ops.depend(y, self._follow(self.moving_mean, mean))
        return ops.depend(y, self._follow(self.moving_variance, unbiased))

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift `[C]` that inference amounts to."""
        scale = self.gamma * ops.rsqrt(self.moving_variance + self.eps)
        return scale, self.beta - self.moving_mean * scale

    def _follow(self, running: Parameter, newest: Tensor) -> Tensor:
        return ops.assign(running, (1.0 - self.momentum) * running + self.momentum * ops.stop_gradient(newest))


class BatchNormReLU(BatchNorm):
    """Batch normalisation, then ReLU."""

    def __init__(self, channels: int, *, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__(channels, relu=True, momentum=momentum, eps=eps)


class ConvNorm(nn.Cell):
    """Convolution, batch normalisation, then an optional ReLU; with `residual`, one is added before the ReLU.

    For inference the native operators do all of it in one, with the normalisation folded into the convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Sequence[int],
        *,
        stride: Sequence[int],
        padding: Sequence[int],
        groups: int = 1,
        bias: bool = False,
        relu: bool = True,
        residual: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ):
        super().__init__()
        self.conv = Conv(in_channels, out_channels, kernel, stride=stride, padding=padding, groups=groups, bias=bias)
        self.norm = BatchNorm(out_channels, relu=relu, momentum=momentum, eps=eps)
        if is_native():
            folded = operators.FoldedResidual if residual else operators.FoldedConvolution
            self.folded = folded(*self.conv.window, groups=groups, relu=relu)

    def construct(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if not is_native() or self.training:
            return self.norm(self.conv(x), residual)
        scale, shift = self.norm.affine()
        if self.conv.bias is not None:
            shift = shift + scale * self.conv.bias
        if residual is None:
            return self.folded(x, self.conv.weight, scale, shift)
        return self.folded(x, self.conv.weight, scale, shift, residual)


class MaxPool(nn.Cell):
    """Max pooling over as many axes as `window` has; padding never wins, an incomplete window at the end is dropped.

    Windows do not overlap unless a `stride` is given.
    """

    def __init__(self, window: tuple[int, ...], *, stride: Sequence[int] = (), padding: Sequence[int] = ()):
        super().__init__()
        self.window, self.stride = window, tuple(stride) or window
        self.padding = tuple(padding) or (0,) * len(window)
        if is_native():
            self.operator = operators.MaxPool(self.window, self.stride, self.padding)
        elif len(window) == 2 and not any(self.padding):
            # On the CPU this primitive is three times faster than max_pool3d, and 200 times faster than max_pool2d.
            self.operator = ops.MaxPool(kernel_size=window, strides=self.stride)

    def construct(self, x: Tensor) -> Tensor:
        if is_native():
            return self.operator(x)[0]
        if len(self.window) == 3:
            return ops.max_pool3d(x, self.window, self.stride, self.padding)
        if any(self.padding):
            flat = (1, *self.window), (1, *self.stride), (0, *self.padding)
            return ops.max_pool3d(x.expand_dims(2), *flat).squeeze(2)
        return self.operator(x)


class NativeDense(nn.Dense):
    """nn.Dense by a native operator."""

    def __init__(self, in_channels: int, out_channels: int, *, has_bias: bool):
        super().__init__(in_channels, out_channels, has_bias=has_bias)
        self.operator = tokens.BiasedDense() if has_bias else tokens.Dense()

    def construct(self, x: Tensor) -> Tensor:
        if self.has_bias:
            return self.operator(x, self.weight, self.bias)
        return self.operator(x, self.weight)


def dense(in_channels: int, out_channels: int, *, has_bias: bool = True) -> nn.Dense:
    """A dense layer of the last axis of `[..., in_channels]`."""
    return (NativeDense if is_native() else nn.Dense)(in_channels, out_channels, has_bias=has_bias)


class Attention(nn.Cell):
    """Scaled dot-product attention of several heads (Vaswani et al., NeurIPS 2017), with dropout of its weights.

    B samples, Q queries, L memory places, D = `width`, a multiple of the H heads.
    """

    def __init__(self, width: int, num_heads: int, *, bias: bool, dropout: float, stream: int):
        super().__init__()
        if num_heads < 1 or width % num_heads:
            raise InputError(f"attention of width {width} cannot have {num_heads} heads: they must divide the width.")
        self.num_heads, self.scale = num_heads, (width // num_heads) ** -0.5
        self.query, self.key, self.value, self.output = (dense(width, width, has_bias=bias) for _ in range(4))
        self.dropout = Dropout(dropout, stream)
        self.softmax = tokens.Softmax() if is_native() else ops.Softmax(axis=-1)

    def construct(self, query_BQD: Tensor, memory_BLD: Tensor, seed: Tensor | None = None) -> Tensor:
        weights_BHQL = self.dropout(self.weights(query_BQD, memory_BLD), seed)
        context_BHQC = ops.matmul(weights_BHQL, self._heads(self.value(memory_BLD)))
        return self.output(context_BHQC.swapaxes(1, 2).reshape(query_BQD.shape))

    def weights(self, query_BQD: Tensor, memory_BLD: Tensor) -> Tensor:
        """What share of each memory place each query takes, by head: `[B, H, Q, L]`, sums over L are 1."""
        query_BHQC, key_BHLC = self._heads(self.query(query_BQD)), self._heads(self.key(memory_BLD))
        return self.softmax(ops.matmul(query_BHQC * self.scale, key_BHLC.swapaxes(2, 3)))

    def _heads(self, x_BLD: Tensor) -> Tensor:
        return x_BLD.reshape((*x_BLD.shape[:2], self.num_heads, -1)).swapaxes(1, 2)


class Normalize(nn.Cell):
    """Images `[B, 3, H, W]` in [0, 1] with ImageNet's mean taken off, over its deviation."""

    def __init__(self):
        super().__init__()
        self.mean = Tensor(np.array([0.485, 0.456, 0.406], np.float32).reshape(1, 3, 1, 1))
        self.std = Tensor(np.array([0.229, 0.224, 0.225], np.float32).reshape(1, 3, 1, 1))

    def construct(self, images_BCHW: Tensor) -> Tensor:
        return (images_BCHW - self.mean) / self.std


class LayerNorm(Float32):
    """Layer normalisation of the last axis, with PyTorch's epsilon (MindSpore's is 1e-7)."""

    def __init__(self, width: int, eps: float = 1e-5):
        super().__init__()
        self.gamma = Parameter(Tensor(np.ones(width, np.float32)))
        self.beta = Parameter(Tensor(np.zeros(width, np.float32)))
        self.operator = tokens.LayerNorm(eps) if is_native() else ops.LayerNorm(-1, -1, eps)

    def construct(self, x: Tensor) -> Tensor:
        return self.operator(x, self.gamma, self.beta)[0]


class GELU(nn.Cell):
    """x Phi(x), by the error function as in PyTorch (MindSpore's default is near it, by tanh)."""

    def __init__(self):
        super().__init__()
        self.operator = tokens.GELU() if is_native() else nn.GELU(approximate=False)

    def construct(self, x: Tensor) -> Tensor:
        return self.operator(x)


def initialize(model: nn.Cell, seed: int) -> None:
    """Draw all weights anew, as the ARN authors' code does, from `seed` alone (`initialize_kaiming` is the other way).

    Convolutions N(0, 2 / (k_1 k_2 out)), with the first two extents of the kernel even in 3-D, and zero bias; dense
    layers N(0, 0.01^2) with bias 1; BatchNorm is left at gamma 1, beta 0.
    """
    rng = np.random.default_rng(seed)
    for _, cell in model.cells_and_names():
        if isinstance(cell, Conv):
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


def initialize_kaiming(model: nn.Cell, seed: int) -> None:
    """Draw the convolutions anew from `seed` alone, N(0, 2 / fan out), with zero bias (He et al., ICCV 2015).

    The rest stays as it was made: BatchNorm at gamma 1, beta 0, dense layers as their heads draw them.
    """
    rng = np.random.default_rng(seed)
    for _, cell in model.cells_and_names():
        if isinstance(cell, Conv):
            shape = cell.weight.shape
            weight = rng.standard_normal(shape) * math.sqrt(2.0 / (shape[0] * math.prod(shape[2:])))
            cell.weight.set_data(Tensor(weight.astype(np.float32)))


def initialize_dense(model: nn.Cell, rng: np.random.Generator) -> None:
    """Draw the dense layers anew as PyTorch does: weight and bias U(-a, a), a = 1 / sqrt(fan in)."""
    for _, cell in model.cells_and_names():
        if isinstance(cell, nn.Dense):
            bound = 1.0 / math.sqrt(cell.in_channels)
            for parameter in cell.get_parameters():
                draw_uniform(parameter, bound, rng)


def draw_uniform(parameter: Parameter, bound: float, rng: np.random.Generator) -> None:
    """Draw a parameter anew, U(-bound, bound)."""
    put(parameter, rng.uniform(-bound, bound, parameter.shape))


def put(parameter: Parameter, value: np.ndarray | float) -> None:
    """Give a parameter a value (a number: everywhere), which graphs compiled before see too."""
    # Not set_data: a compiled graph would go on with the old values.
    ops.assign(parameter, Tensor(np.broadcast_to(np.float32(value), parameter.shape)))
