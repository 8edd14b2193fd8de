# SPDX-License-Identifier: Apache-2.0
"""How large a network is and what a forward pass costs: parameters, and multiply-adds by layer.

One multiply-add (MAC) counts as one FLOP, as in the tables of this field. Convolutions, dense layers and matrix
products (attention, second-order pooling) count; biases, normalisation, activations and pooling do not. The numbers are
those of shapes alone: convolutions, which cost most, are not carried out.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.common.initializer import Initializer
from mindspore.ops.auto_generate.gen_ops_prim import MatMulExt

from mindvideo.models.layers import Conv, ConvNorm, is_native
from mindvideo.models.mldecoder import MLDecoder
from mindvideo.native import tokens

CONVOLUTION, DENSE, PRODUCT = "convolution", "dense", "matrix product"
# What carries out `ops.matmul`, `ops.bmm`, `nn.Dense` and the operators of these names in PyNative mode.
_PRODUCTS = {ops.MatMul: DENSE, ops.BatchMatMul: PRODUCT, MatMulExt: PRODUCT}
_MOST_PARTS = 16


class Layer(NamedTuple):
    """One call of a layer: its place in the network ("" for the network itself), its kind, and multiply-adds."""

    name: str
    kind: str
    macs: int


class Count(NamedTuple):
    """What `count` found, layer by layer in the order of the forward pass."""

    parameters: int
    layers: tuple[Layer, ...]

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    def by_kind(self) -> dict[str, int]:
        """Multiply-adds of each kind of layer that occurs."""
        return _summed((layer.kind, layer.macs) for layer in self.layers)

    def by_part(self) -> dict[str, int]:
        """Multiply-adds of the network's parts, as fine as 16 of them are."""
        parts: dict[str, int] = {}
        deepest = max((layer.name.count(".") + 1 for layer in self.layers), default=0)
        for depth in range(1, deepest + 1):
            finer = _summed((".".join(layer.name.split(".")[:depth]), layer.macs) for layer in self.layers)
            if parts and len(finer) > _MOST_PARTS:
                break
            parts = finer
        return parts


def count(network: nn.Cell, *inputs: Tensor, call: Callable[..., object] | None = None) -> Count:
    """Count a network's parameters and what `call(*inputs)` costs in evaluation; `call` is the network unless given."""
    counter = _Counter(network)
    mode, training = ms.get_context("mode"), network.training
    ms.set_context(mode=ms.PYNATIVE_MODE)
    network.set_train(False)
    try:
        with counter.listening():
            (call or network)(*inputs)
    finally:
        network.set_train(training)
        ms.set_context(mode=mode)
    return Count(count_parameters(network), tuple(counter.layers))


def count_parameters(network: nn.Cell) -> int:
    """Parameters as PyTorch counts them: all that are trained, and ML-Decoder's queries, which may not be.

    Running statistics and constant tables, which MindSpore keeps as parameters too, do not count.
    """
    frozen = [cell.queries for _, cell in network.cells_and_names() if isinstance(cell, MLDecoder)]
    return sum(p.size for p in network.trainable_params()) + sum(q.size for q in frozen if not q.requires_grad)


@contextmanager
def undrawn() -> Iterator[None]:
    """Give networks that are made meanwhile zeros for weights: counting sees shapes, and drawing takes longer."""
    with _replaced(Initializer, lambda original, initializer, array: array.fill(0)):
        yield


class _Counter:
    """Takes the place of the calls of cells and products while it is `listening`."""

    def __init__(self, network: nn.Cell):
        self.names = {id(cell): name for name, cell in network.cells_and_names()}
        self.path = [""]
        self.layers: list[Layer] = []

    @contextmanager
    def listening(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(_replaced(nn.Cell, self.call_cell))
            for product in _PRODUCTS:
                stack.enter_context(_replaced(product, self.call_product))
            yield

    def call_cell(self, original: Callable[..., Any], cell: nn.Cell, *inputs: Any, **named: Any) -> Any:
        name = self.names.get(id(cell), self.path[-1])
        shapes = _convolved(cell, inputs[0].shape) if isinstance(cell, (Conv, ConvNorm, nn.Conv2d)) else None
        if shapes is not None:
            shape, weight = shapes
            self.layers.append(Layer(name, CONVOLUTION, math.prod(shape) * math.prod(weight[1:])))
            return Tensor.from_numpy(np.zeros(shape, np.float32))
        if isinstance(cell, (tokens.Dense, tokens.BiasedDense)):
            out = original(cell, *inputs)
            self.layers.append(Layer(self.path[-1], DENSE, out.size * inputs[1].shape[1]))
            return out
        self.path.append(name)
        try:
            return original(cell, *inputs, **named)
        finally:
            self.path.pop()

    def call_product(self, original: Callable[..., Any], product: Any, left: Tensor, right: Tensor) -> Tensor:
        out = original(product, left, right)
        inner = left.shape[-2] if getattr(product, "transpose_a", False) else left.shape[-1]
        self.layers.append(Layer(self.path[-1], _PRODUCTS[type(product)], out.size * inner))
        return out


@contextmanager
def _replaced(owner: Any, call: Callable[..., Any]) -> Iterator[None]:
    """Have `call(original, instance, ...)` answer the calls of a class's instances."""
    original = owner.__call__

    @functools.wraps(original)
    def answer(instance: Any, *inputs: Any, **named: Any) -> Any:
        return call(original, instance, *inputs, **named)

    owner.__call__ = answer
    try:
        yield
    finally:
        owner.__call__ = original


def _convolved(cell: Any, x: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of what a convolution of `x` gives and of its weight `[O, C / groups, kernel...]`."""
    if isinstance(cell, nn.Conv2d):
        weight, channels_last = cell.weight.shape, False
        top, bottom, left, right = cell.padding if isinstance(cell.padding, tuple) else (cell.padding,) * 4
        paddings, window = (top + bottom, left + right), (cell.stride, cell.dilation)
        if cell.pad_mode == "same":
            extents = [-(-n // s) for n, s in zip(x[2:], cell.stride, strict=True)]
            return (x[0], weight[0], *extents), weight
    else:
        conv = cell.conv if isinstance(cell, ConvNorm) else cell
        weight, channels_last = conv.weight.shape, is_native()
        stride, padding, dilation = conv.window
        paddings, window = [2 * p for p in padding], (stride, dilation)
    extents = [
        (n + p - d * (k - 1) - 1) // s + 1
        for n, p, k, s, d in zip(x[1:-1] if channels_last else x[2:], paddings, weight[2:], *window, strict=True)
    ]
    return ((x[0], *extents, weight[0]) if channels_last else (x[0], weight[0], *extents)), weight


def _summed(items: Iterator[tuple[str, int]]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for name, number in items:
        sums[name] = sums.get(name, 0) + number
    return sums
