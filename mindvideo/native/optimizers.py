# SPDX-License-Identifier: Apache-2.0
"""Steps of optimizers in one pass over their parameters, which they change in place; for graph mode and PyNative."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.ops import signature

from mindvideo import native


def _signature(*written: str) -> tuple[Any, ...]:
    """Of a step whose `written` inputs change, so that MindSpore keeps the order of what reads and writes them."""
    reads = [signature.make_sig(name) for name in ("attributes", "rate", "gain")]
    writes = [signature.make_sig(name, signature.sig_rw.RW_WRITE) for name in written]
    return (*reads, *writes, signature.make_sig("gradient"))


class _Operator(ops.Custom):
    """A step by its name in optimizers.cc; its output is a number nobody reads."""

    def __init__(self, name: str):
        super().__init__(f"{native.load()[0]}:mindvideo_{name}", _shape, _type, func_type="aot")
        self.add_prim_attr("side_effect_mem", True)


class _SGDOperator(_Operator):
    __mindspore_signature__ = _signature("parameter", "velocity")


class _AdamaxOperator(_Operator):
    __mindspore_signature__ = _signature("parameter", "mean", "norm")


def _shape(_attributes, _rate, _gain, parameter, *others):
    if any(list(shape) != list(parameter) for shape in others):
        raise ValueError(f"moments and gradient {[list(s) for s in others]} are not of the shape {list(parameter)}")
    return [1]


def _one(_attributes, _x):
    return [1]


def _type(_attributes, *inputs):
    if any(t != ms.TensorType(ms.float32) for t in inputs):
        raise TypeError(f"a native optimizer takes float32 tensors, got {[str(t) for t in inputs]}")
    return ms.float32


class SGDStep(nn.Cell):
    """SGD's step of one parameter: see engine/optim.py, whose numbers these are."""

    def __init__(self, momentum: float, nesterov: bool):
        super().__init__()
        self.momentum, self.nesterov, self.operator = momentum, nesterov, _SGDOperator("sgd")

    def settings(self, factor: float, decay: float) -> Tensor:
        return _attributes(self.momentum, decay, factor, float(self.nesterov))

    def construct(
        self, rate: Tensor, gain: Tensor, settings: Tensor, parameter: Parameter, velocity: Parameter, gradient: Tensor
    ) -> Tensor:
        return self.operator(settings, rate, gain, parameter, velocity, gradient)


class AdamaxStep(nn.Cell):
    """Adamax's step of one parameter, likewise."""

    def __init__(self):
        super().__init__()
        self.operator = _AdamaxOperator("adamax")

    def settings(self, factor: float, decay: float) -> Tensor:
        return _attributes(decay, factor)

    def construct(
        self, rate: Tensor, gain: Tensor, settings: Tensor, parameter: Parameter, mean: Parameter, norm: Parameter,
        gradient: Tensor,
    ) -> Tensor:  # fmt: skip
        return self.operator(settings, rate, gain, parameter, mean, norm, gradient)


class SquareSum(nn.Cell):
    """The sum of a tensor's squares, `[1]`; it has no gradient."""

    def __init__(self):
        super().__init__()
        self.attributes = _attributes(0.0)
        self.operator = ops.Custom(f"{native.load()[0]}:mindvideo_square_sum", _one, _type, func_type="aot")

    def construct(self, x: Tensor) -> Tensor:
        return self.operator(self.attributes, x)


def _attributes(*values: float) -> Tensor:
    """Numbers as operators take them: the bits of doubles."""
    return Tensor(np.array(values, np.float64).view(np.int64))
