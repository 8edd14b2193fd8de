# SPDX-License-Identifier: Apache-2.0
"""The native operators as MindSpore cells without parameters, for graph mode and PyNative, float32 only.

Activations have the channels last: [B, S..., C], where S are the spatial extents (H, W or T, H, W), since oneDNN's
kernels run on that as it lies. A kernel, stride, padding or dilation has one number per spatial extent; padding is the
same on both sides. Weights are [O, C / groups, kernel...], as everywhere in MindSpore.

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
# Tensors that an operator may be given: activations and parameters, the bytes that a forward pass left, and a seed.
ALLOWED = (ms.TensorType(ms.float32), ms.TensorType(ms.uint8), ms.TensorType(ms.uint32))


@functools.cache
def _library() -> ctypes.CDLL:
    if not native.available():
        raise RuntimeError(f"the native operators are not available: {native.reason()}")
    # MindSpore hands a graph to a second thread and waits for it in an empty loop, which takes a core away
    # from the operators. With this it runs the graph in the calling thread. It is read at the first graph.
    library = ctypes.CDLL(native.load()[0])
    library.mindvideo_max_pool_workspace.restype = ctypes.c_int64
    return library


def make_operator(name: str, attributes: list[int], shapes: Callable, outputs: str = "f") -> Callable[..., Any]:
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


def constant(attributes: list[int]) -> Tensor:
    """An operator's attributes as its first input."""
    return Tensor(np.array(attributes, np.int64))


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
    ):
        super().__init__()
        _check(stride=stride, padding=padding, dilation=dilation)
        self.relu, self.input_grad = relu, input_grad

        def output(x: Shape, weight: Shape, *vectors: Shape) -> list[int]:
            fits = len(x) == len(weight) == len(stride) + 2 and x[-1] == weight[1] * groups
            if not fits or weight[0] % groups or any(list(v) != [weight[0]] for v in vectors):
                raise ValueError(
                    f"input {list(x)} does not fit a convolution with weight and vectors "
                    f"{[list(w) for w in (weight, *vectors)]}, stride {stride} and {groups} group(s)"
                )
            return [x[0], *_slid(x[1:-1], weight[2:], stride, padding, dilation), weight[0]]

        self.parameters = [groups, int(relu), *stride, *padding, *dilation]
        self.attributes = constant(self.parameters)
        self.output = output
        self.grad_input = make_operator("conv_grad_input", self.parameters, lambda x, w, dy: x)

    def backward_input(self, x: Tensor, weight: Tensor, dy: Tensor) -> Tensor:
        """The input's gradient, by its own operator: a compiled graph drops it where nobody uses it."""
        return self.grad_input(self.attributes, x, weight, dy) if self.input_grad else ops.zeros_like(x)


class Convolution(_Convolution):
    """Convolution of x with a weight."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.forward = make_operator("conv", self.parameters, self.output)
        self.grad_weight = make_operator("conv_grad_weight", self.parameters, lambda x, w, dy: w)

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.forward(self.attributes, x, weight)

    def bprop(self, x, weight, y, dy):
        return self.backward_input(x, weight, dy), self.grad_weight(self.attributes, x, weight, dy)


class BiasedConvolution(_Convolution):
    """Convolution of x with a weight, plus a bias [O]."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.forward = make_operator("conv_bias", self.parameters, self.output)
        self.grad_weight = make_operator("conv_grad_weight_bias", self.parameters, lambda x, w, dy: (w, w[:1]), "ff")

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return self.forward(self.attributes, x, weight, bias)

    def bprop(self, x, weight, bias, y, dy):
        dweight, dbias = self.grad_weight(self.attributes, x, weight, dy)
        return self.backward_input(x, weight, dy), dweight, dbias


class _Folded(_Convolution):
    """What folded convolutions with and without residual share: the gradients."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        groups, relu, *window = self.parameters
        self.relu = bool(relu)
        plain = [groups, 0, *window]
        self.convolve = make_operator("conv", plain, self.output)
        self.grad_weight = make_operator("conv_grad_weight", plain, lambda x, w, dy: w)

    def through_relu(self, y: Tensor, dy: Tensor) -> Tensor:
        return ops.mul(dy, ops.cast(ops.greater(y, 0), ms.float32)) if self.relu else dy

    def gradients(self, x: Tensor, weight: Tensor, scale: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
        """Of x, weight, scale and shift; that of the scale needs the convolution once more."""
        inner, positions = dy * scale, tuple(range(dy.ndim - 1))
        convolved = self.convolve(self.attributes, x, weight)
        return (
            self.backward_input(x, weight, inner),
            self.grad_weight(self.attributes, x, weight, inner),
            (dy * convolved).sum(axis=positions),
            dy.sum(axis=positions),
        )


class FoldedConvolution(_Folded):
    """Convolution of x, times a scale [O] plus a shift [O], then an optional ReLU: with a batch norm folded in.

    For inference; it has gradients all the same, for attacks and for training with frozen statistics.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.forward = make_operator("conv_folded", self.parameters, self.output)

    def construct(self, x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return self.forward(self.attributes, x, weight, scale, shift)

    def bprop(self, x, weight, scale, shift, y, dy):
        return self.gradients(x, weight, scale, self.through_relu(y, dy))


class FoldedResidual(_Folded):
    """The same with a residual of the output's shape added before the ReLU: the end of a ResNet block."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)

        def output(x: Shape, weight: Shape, scale: Shape, shift: Shape, residual: Shape) -> list[int]:
            shape = self.output(x, weight, scale, shift)
            if list(residual) != list(shape):
                raise ValueError(f"residual {list(residual)} is not of the convolution's output shape {list(shape)}")
            return shape

        self.forward = make_operator("conv_folded_add", self.parameters, output)

    def construct(self, x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, residual: Tensor) -> Tensor:
        return self.forward(self.attributes, x, weight, scale, shift, residual)

    def bprop(self, x, weight, scale, shift, residual, y, dy):
        dy = self.through_relu(y, dy)
        return (*self.gradients(x, weight, scale, dy), dy)


class _BatchNorm(nn.Cell):
    """What all batch norms share."""

    def __init__(self, epsilon: float, *, relu: bool, frozen: bool):
        super().__init__()
        self.parameters = [int(relu), int(frozen), int(np.float64(epsilon).view(np.int64))]
        self.attributes = constant(self.parameters)

    @staticmethod
    def check(x: Shape, *vectors: Shape) -> None:
        if len(x) < 2 or any(list(v) != [x[-1]] for v in vectors):
            raise ValueError(
                f"input {list(x)} does not fit a batch norm with parameters and statistics {[list(v) for v in vectors]}"
            )


class BatchNorm(_BatchNorm):
    """Batch norm with the batch's own statistics, with an optional ReLU.

    Returns the output, the mean [C] and the biased variance [C]. These two are for the running statistics: no gradient
    flows back through them.
    """

    def __init__(self, epsilon: float, *, relu: bool = False):
        super().__init__(epsilon, relu=relu, frozen=False)

        def outputs(x: Shape, scale: Shape, shift: Shape) -> tuple[Shape, Shape, Shape]:
            self.check(x, scale, shift)
            return x, scale, scale

        self.forward = make_operator("batch_norm", self.parameters, outputs, "fff")
        self.gradient = make_operator("batch_norm_grad", self.parameters, lambda x, scale, *_: (x, scale, scale), "fff")

    def construct(self, x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.forward(self.attributes, x, scale, shift)

    def bprop(self, x, scale, shift, out, dout):
        return self.gradient(self.attributes, x, scale, out[1], out[2], out[0], dout[0])


class ResidualBatchNorm(_BatchNorm):
    """The same with a residual of the input's shape added before the ReLU: the end of a ResNet block."""

    def __init__(self, epsilon: float, *, relu: bool = False):
        super().__init__(epsilon, relu=relu, frozen=False)

        def outputs(x: Shape, scale: Shape, shift: Shape, residual: Shape) -> tuple[Shape, Shape, Shape]:
            self.check(x, scale, shift)
            if list(residual) != list(x):
                raise ValueError(f"residual {list(residual)} is not of the batch norm's shape {list(x)}")
            return x, scale, scale

        self.forward = make_operator("batch_norm_add", self.parameters, outputs, "fff")
        self.gradient = make_operator(
            "batch_norm_add_grad", self.parameters, lambda x, scale, *_: (x, scale, scale, x), "ffff"
        )

    def construct(self, x: Tensor, scale: Tensor, shift: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.forward(self.attributes, x, scale, shift, residual)

    def bprop(self, x, scale, shift, residual, out, dout):
        return self.gradient(self.attributes, x, scale, out[1], out[2], out[0], dout[0])


class FrozenBatchNorm(_BatchNorm):
    """Batch norm with given statistics, for inference and fine-tuning, with an optional ReLU.

    The statistics receive zero gradients.
    """

    def __init__(self, epsilon: float, *, relu: bool = False):
        super().__init__(epsilon, relu=relu, frozen=True)

        def output(x: Shape, *vectors: Shape) -> Shape:
            self.check(x, *vectors)
            return x

        self.forward = make_operator("batch_norm", self.parameters, output)
        self.gradient = make_operator("batch_norm_grad", self.parameters, lambda x, scale, *_: (x, scale, scale), "fff")

    def construct(self, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return self.forward(self.attributes, x, scale, shift, mean, variance)

    def bprop(self, x, scale, shift, mean, variance, y, dy):
        dx, dscale, dshift = self.gradient(self.attributes, x, scale, mean, variance, y, dy)
        return dx, dscale, dshift, ops.zeros_like(mean), ops.zeros_like(variance)


def _pooled(kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...]) -> Callable[[Shape], list[int]]:
    """The function from input to output shape of a pooling."""

    def output(x: Shape) -> list[int]:
        if len(x) != len(kernel) + 2:
            raise ValueError(f"input {list(x)} does not fit a pooling over {len(kernel)} extents")
        return [x[0], *_slid(x[1:-1], kernel, stride, padding, [1] * len(kernel)), x[-1]]

    _check(kernel=kernel, stride=stride, padding=padding)
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        raise ValueError(f"padding {padding} is more than half the kernel {kernel}")
    return output


class MaxPool(nn.Cell):
    """Max pooling; padding never wins. Returns the output and a workspace of bytes for the gradient."""

    def __init__(self, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...]):
        super().__init__()
        attributes = [0, *kernel, *stride, *padding]
        values = (ctypes.c_int64 * len(attributes))(*attributes)
        pooled = _pooled(kernel, stride, padding)

        def outputs(x: Shape) -> tuple[Shape, Shape]:
            y = pooled(x)
            source, target = ((ctypes.c_int64 * len(x))(s[0], s[-1], *s[1:-1]) for s in (x, y))
            return y, [max(1, _library().mindvideo_max_pool_workspace(len(x), source, target, values))]

        self.attributes = constant(attributes)
        self.forward = make_operator("max_pool", attributes, outputs, "fb")
        self.gradient = make_operator("max_pool_grad", attributes, lambda x, workspace, dy: x)

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
    ):
        super().__init__()
        attributes = [int(count_include_pad), *kernel, *stride, *padding]
        self.attributes = constant(attributes)
        self.forward = make_operator("avg_pool", attributes, _pooled(kernel, stride, padding))
        self.gradient = make_operator("avg_pool_grad", attributes, lambda x, dy: x)

    def construct(self, x: Tensor) -> Tensor:
        return self.forward(self.attributes, x)

    def bprop(self, x, y, dy):
        return (self.gradient(self.attributes, x, dy),)


class Shift(nn.Cell):
    """TSM's temporal shift of x [B, T, H, W, C]: a frame's first `fold` channels come from the frame after it, the next
    `fold` from the one before, zeros where there is none."""

    def __init__(self, fold: int):
        super().__init__()

        def output(x: Shape) -> Shape:
            if len(x) != 5 or not 2 <= 2 * fold <= x[-1]:
                raise ValueError(f"input {list(x)} does not fit a shift of {fold} channels each way")
            return x

        self.attributes, self.back = constant([fold, 1]), constant([fold, -1])
        self.forward = make_operator("shift", [fold], output)

    def construct(self, x: Tensor) -> Tensor:
        return self.forward(self.attributes, x)

    def bprop(self, x, y, dy):
        return (self.forward(self.back, dy),)
