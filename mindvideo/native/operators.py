# SPDX-License-Identifier: Apache-2.0
"""The native operators as MindSpore cells without parameters, for graph mode and PyNative, float32 only.

Activations are [B, S..., C], where S are the spatial extents (H, W or T, H, W), or [B, C, S...] with
`channels_last=False`. A kernel, stride, padding or dilation has one number per spatial extent; padding is the
same on both sides. Weights are [O, C / groups, kernel...] in either case, as everywhere in MindSpore.

Wrong shapes raise ValueError and wrong types TypeError while MindSpore infers shapes; a failure of oneDNN
itself raises RuntimeError with the operator and its shapes.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindvideo import native

Shape = Sequence[int]
# Tensors that an operator may be given: activations and parameters, and the bytes that a forward pass left.
ALLOWED = (ms.TensorType(ms.float32), ms.TensorType(ms.uint8))


@functools.cache
def _library() -> ctypes.CDLL:
    if not native.available():
        raise RuntimeError(f"the native operators are not available: {native.reason()}")
    # MindSpore hands a graph to a second thread and waits for it in an empty loop, which takes a core away
    # from the operators. With this it runs the graph in the calling thread. It is read at the first graph.
    library = ctypes.CDLL(native.load()[0])
    library.mindvideo_batch_norm_workspace.restype = ctypes.c_int64
    library.mindvideo_max_pool_workspace.restype = ctypes.c_int64
    return library


def _operator(name: str, attributes: list[int], shapes: Callable, outputs: str = "f") -> Callable[..., Any]:
    """A custom operator whose first input is the tensor of `attributes`.

    Args:
        shapes: output shape, or shapes if several, from the shapes of the inputs after the attributes.
        outputs: one letter per output: f for float32, b for bytes.
    """
    types = {"f": ms.float32, "b": ms.uint8}

    def infer_shape(_attributes, *inputs):
        return shapes(*inputs)

    def infer_type(_attributes, *inputs):
        if any(t not in ALLOWED for t in inputs):
            raise TypeError(f"native {name} takes float32 tensors, got {[str(t) for t in inputs]}")
        return types[outputs] if len(outputs) == 1 else tuple(types[letter] for letter in outputs)

    _library()
    operator = ops.Custom(f"{native.load()[0]}:mindvideo_{name}", infer_shape, infer_type, func_type="aot")
    # PyNative caches inferred shapes by these attributes: without them, two strides would share one shape.
    operator.add_prim_attr("parameters", attributes)
    return operator


def _tensor(attributes: list[int]) -> Tensor:
    return Tensor(np.array(attributes, np.int64))


def _logical(shape: Shape, channels_last: bool) -> list[int]:
    """[B, C, S...] of a shape that may have its channels last."""
    return [shape[0], shape[-1], *shape[1:-1]] if channels_last else list(shape)


def _physical(shape: Shape, channels_last: bool) -> list[int]:
    return [shape[0], *shape[2:], shape[1]] if channels_last else list(shape)


def _named(shape: Shape, channels_last: bool) -> str:
    return f"input {list(shape)} with channels {'last' if channels_last else 'first'}"


def _check(**window: tuple[int, ...]) -> None:
    """Raise ValueError unless each of kernel, stride... gives one sensible number per spatial extent."""
    extents = len(window["stride"])
    for name, numbers in window.items():
        least = 0 if name == "padding" else 1
        if len(numbers) != extents or min(numbers) < least:
            raise ValueError(f"{name} {numbers} is not {extents} numbers of at least {least}")


def _slid(extents: Shape, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape) -> list[int]:
    """Extents after a window has slid over them."""
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    out = [(e + 2 * p - r) // s + 1 for e, p, r, s in zip(extents, padding, reach, stride, strict=True)]
    if min(out) < 1:
        raise ValueError(f"a window of extents {reach} does not fit {list(extents)} padded by {list(padding)}")
    return out


class _Convolution(nn.Cell):
    """What convolutions with and without bias share.

    Args:
        relu: apply a ReLU, for inference with folded batch norm; in training the batch norm does it.
        input_grad: False where the input is data: its gradient is then zero and costs nothing.
    """

    def __init__(
        self,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        *,
        groups: int = 1,
        relu: bool = False,
        input_grad: bool = True,
        channels_last: bool = True,
    ):
        super().__init__()
        _check(stride=stride, padding=padding, dilation=dilation)
        self.relu, self.input_grad = relu, input_grad

        def output(x: Shape, weight: Shape, *bias: Shape) -> list[int]:
            batch, channels, *extents = _logical(x, channels_last)
            fits = len(x) == len(weight) == len(stride) + 2 and channels == weight[1] * groups
            if not fits or weight[0] % groups or any(list(b) != [weight[0]] for b in bias):
                raise ValueError(
                    f"{_named(x, channels_last)} does not fit a convolution with weight and bias "
                    f"{[list(w) for w in (weight, *bias)]}, stride {stride} and {groups} group(s)"
                )
            return _physical([batch, weight[0], *_slid(extents, weight[2:], stride, padding, dilation)], channels_last)

        self.parameters = [int(channels_last), groups, int(relu), *stride, *padding, *dilation]
        self.attributes = _tensor(self.parameters)
        self.output = output
        self.grad_input = _operator("conv_grad_input", self.parameters, lambda x, w, dy: x)

    def backward_input(self, x: Tensor, weight: Tensor, dy: Tensor) -> Tensor:
        """The input's gradient, by its own operator: a compiled graph drops it where nobody uses it."""
        return self.grad_input(self.attributes, x, weight, dy) if self.input_grad else ops.zeros_like(x)

    def through_relu(self, y: Tensor, dy: Tensor) -> Tensor:
        return ops.mul(dy, ops.cast(ops.greater(y, 0), ms.float32)) if self.relu else dy


class Convolution(_Convolution):
    """Convolution of x with a weight."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.forward = _operator("conv", self.parameters, self.output)
        self.grad_weight = _operator("conv_grad_weight", self.parameters, lambda x, w, dy: w)

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.forward(self.attributes, x, weight)

    def bprop(self, x, weight, y, dy):
        dy = self.through_relu(y, dy)
        return self.backward_input(x, weight, dy), self.grad_weight(self.attributes, x, weight, dy)


class BiasedConvolution(_Convolution):
    """Convolution of x with a weight, plus a bias [O]."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.forward = _operator("conv_bias", self.parameters, self.output)
        self.grad_weight = _operator("conv_grad_weight_bias", self.parameters, lambda x, w, dy: (w, w[:1]), "ff")

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return self.forward(self.attributes, x, weight, bias)

    def bprop(self, x, weight, bias, y, dy):
        dy = self.through_relu(y, dy)
        dweight, dbias = self.grad_weight(self.attributes, x, weight, dy)
        return self.backward_input(x, weight, dy), dweight, dbias


class _BatchNorm(nn.Cell):
    """What training and frozen statistics share: the operators and the gradient."""

    def __init__(self, frozen: bool, epsilon: float, relu: bool, channels_last: bool):
        super().__init__()
        attributes = [int(channels_last), int(relu), int(frozen), int(np.float64(epsilon).view(np.int64))]
        values = (ctypes.c_int64 * len(attributes))(*attributes)

        def outputs(x: Shape, scale: Shape, *vectors: Shape) -> tuple[Shape, ...]:
            logical = _logical(x, channels_last)
            if len(x) < 3 or any(list(v) != logical[1:2] for v in (scale, *vectors)):
                raise ValueError(
                    f"{_named(x, channels_last)} does not fit a batch norm with parameters and statistics "
                    f"{[list(v) for v in (scale, *vectors)]}"
                )
            shape = (ctypes.c_int64 * len(x))(*logical)
            workspace = [max(1, _library().mindvideo_batch_norm_workspace(len(x), shape, values))]
            return (x, workspace) if frozen else (x, scale, scale, workspace)

        self.attributes = _tensor(attributes)
        name, letters = ("batch_norm_frozen", "fb") if frozen else ("batch_norm", "fffb")
        self.forward = _operator(name, attributes, outputs, letters)
        self.gradient = _operator("batch_norm_grad", attributes, lambda x, scale, *_: (x, scale, scale), "fff")


class BatchNorm(_BatchNorm):
    """Batch norm with the batch's own statistics, with an optional ReLU.

    Returns the output, the mean [C], the biased variance [C] and a workspace of bytes for the gradient. The
    mean and variance are for the running statistics: no gradient flows back through them.
    """

    def __init__(self, epsilon: float, *, relu: bool = False, channels_last: bool = True):
        super().__init__(False, epsilon, relu, channels_last)

    def construct(self, x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.forward(self.attributes, x, scale, shift)

    def bprop(self, x, scale, shift, out, dout):
        return self.gradient(self.attributes, x, scale, out[1], out[2], out[3], dout[0])


class FrozenBatchNorm(_BatchNorm):
    """Batch norm with given statistics, for inference and fine-tuning, with an optional ReLU.

    Returns the output and a workspace of bytes for the gradient. The statistics receive zero gradients.
    """

    def __init__(self, epsilon: float, *, relu: bool = False, channels_last: bool = True):
        super().__init__(True, epsilon, relu, channels_last)

    def construct(
        self, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.forward(self.attributes, x, scale, shift, mean, variance)

    def bprop(self, x, scale, shift, mean, variance, out, dout):
        dx, dscale, dshift = self.gradient(self.attributes, x, scale, mean, variance, out[1], dout[0])
        return dx, dscale, dshift, ops.zeros_like(mean), ops.zeros_like(variance)


def _pooled(
    kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...], channels_last: bool
) -> Callable[[Shape], list[int]]:
    """The function from input to output shape of a pooling."""

    def output(x: Shape) -> list[int]:
        if len(x) != len(kernel) + 2:
            raise ValueError(f"{_named(x, channels_last)} does not fit a pooling over {len(kernel)} extents")
        batch, channels, *extents = _logical(x, channels_last)
        return _physical([batch, channels, *_slid(extents, kernel, stride, padding, [1] * len(kernel))], channels_last)

    _check(kernel=kernel, stride=stride, padding=padding)
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        raise ValueError(f"padding {padding} is more than half the kernel {kernel}")
    return output


class MaxPool(nn.Cell):
    """Max pooling; padding never wins. Returns the output and a workspace of bytes for the gradient."""

    def __init__(
        self,
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        *,
        channels_last: bool = True,
    ):
        super().__init__()
        attributes = [int(channels_last), 0, *kernel, *stride, *padding]
        values = (ctypes.c_int64 * len(attributes))(*attributes)
        pooled = _pooled(kernel, stride, padding, channels_last)

        def outputs(x: Shape) -> tuple[Shape, Shape]:
            y = pooled(x)
            source, target = ((ctypes.c_int64 * len(x))(*_logical(shape, channels_last)) for shape in (x, y))
            return y, [max(1, _library().mindvideo_max_pool_workspace(len(x), source, target, values))]

        self.attributes = _tensor(attributes)
        self.forward = _operator("max_pool", attributes, outputs, "fb")
        self.gradient = _operator("max_pool_grad", attributes, lambda x, workspace, dy: x)

    def construct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward(self.attributes, x)

    def bprop(self, x, out, dout):
        return (self.gradient(self.attributes, x, out[1], dout[0]),)


class AvgPool(nn.Cell):
    """Average pooling; `count_include_pad` counts the padding's zeros as values."""

    def __init__(
        self,
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        *,
        count_include_pad: bool = True,
        channels_last: bool = True,
    ):
        super().__init__()
        attributes = [int(channels_last), int(count_include_pad), *kernel, *stride, *padding]
        self.attributes = _tensor(attributes)
        self.forward = _operator("avg_pool", attributes, _pooled(kernel, stride, padding, channels_last))
        self.gradient = _operator("avg_pool_grad", attributes, lambda x, dy: x)

    def construct(self, x: Tensor) -> Tensor:
        return self.forward(self.attributes, x)

    def bprop(self, x, y, dy):
        return (self.gradient(self.attributes, x, dy),)
