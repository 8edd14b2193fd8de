# SPDX-License-Identifier: Apache-2.0
"""The native operators of networks of tokens, as MindSpore cells: see operators.py, whose conventions hold here too."""

from __future__ import annotations

import math

import numpy as np
from mindspore import Tensor, nn, ops

from mindvideo.native.operators import Shape, constant, make_operator


class Dense(nn.Cell):
    """x [..., I] times a weight [O, I] transposed."""

    def __init__(self):
        super().__init__()
        self.attributes = constant([0])
        self.forward = make_operator("dense", [0], _dense)
        self.grad_input = make_operator("dense_grad_input", [0], lambda x, w, dy: x)
        self.grad_weight = make_operator("dense_grad_weight", [0], lambda x, w, dy: w)

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.forward(self.attributes, x, weight)

    def bprop(self, x, weight, y, dy):
        dweight = self.grad_weight(self.attributes, x, weight, dy)
        return self.grad_input(self.attributes, x, weight, dy), dweight


class BiasedDense(nn.Cell):
    """The same plus a bias [O]."""

    def __init__(self):
        super().__init__()
        self.attributes = constant([0])
        self.forward = make_operator("dense_bias", [0], _dense)
        self.grad_input = make_operator("dense_grad_input", [0], lambda x, w, dy: x)
        self.grad_weight = make_operator("dense_grad_weight_bias", [0], lambda x, w, dy: (w, w[:1]), "ff")

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return self.forward(self.attributes, x, weight, bias)

    def bprop(self, x, weight, bias, y, dy):
        dweight, dbias = self.grad_weight(self.attributes, x, weight, dy)
        return self.grad_input(self.attributes, x, weight, dy), dweight, dbias


def _dense(x: Shape, weight: Shape, *vectors: Shape) -> list[int]:
    if len(x) < 2 or len(weight) != 2 or x[-1] != weight[1] or any(list(v) != [weight[0]] for v in vectors):
        raise ValueError(f"input {list(x)} does not fit a dense layer of {[list(w) for w in (weight, *vectors)]}")
    return [*x[:-1], weight[0]]


class LayerNorm(nn.Cell):
    """Layer normalisation of the last axis of x [..., C]; returns the output and what the gradient needs of it."""

    def __init__(self, epsilon: float):
        super().__init__()
        parameters = [int(np.float64(epsilon).view(np.int64))]

        def outputs(x: Shape, scale: Shape, shift: Shape) -> tuple[Shape, Shape, Shape]:
            if len(x) < 2 or any(list(v) != [x[-1]] for v in (scale, shift)):
                raise ValueError(f"input {list(x)} does not fit a layer norm with {[list(scale), list(shift)]}")
            rows = [math.prod(x[:-1])]
            return x, rows, rows

        self.attributes = constant(parameters)
        self.forward = make_operator("layer_norm", parameters, outputs, "fff")
        self.gradient = make_operator("layer_norm_grad", parameters, lambda x, scale, *_: (x, scale, scale), "fff")

    def construct(self, x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.forward(self.attributes, x, scale, shift)

    def bprop(self, x, scale, shift, out, dout):
        return self.gradient(self.attributes, x, scale, shift, out[1], out[2], dout[0])


class Softmax(nn.Cell):
    """Softmax over the last axis."""

    def __init__(self):
        super().__init__()
        self.attributes = constant([0])
        self.forward = make_operator("softmax", [0], lambda x: x)
        self.gradient = make_operator("softmax_grad", [0], lambda y, dy: y)

    def construct(self, x: Tensor) -> Tensor:
        return self.forward(self.attributes, x)

    def bprop(self, x, y, dy):
        return (self.gradient(self.attributes, y, dy),)


class GELU(nn.Cell):
    """x Phi(x), Phi being the normal distribution's (by its error function, not the tanh that is near it)."""

    def __init__(self):
        super().__init__()
        self.attributes = constant([0])
        self.forward = make_operator("gelu", [0], lambda x: x)
        self.gradient = make_operator("gelu_grad", [0], lambda x, dy: x)

    def construct(self, x: Tensor) -> Tensor:
        return self.forward(self.attributes, x)

    def bprop(self, x, y, dy):
        return (self.gradient(self.attributes, x, dy),)


class Dropout(nn.Cell):
    """Zero a share `p` of x and scale up the rest, by the numbers of noise.Uniform from `start` and a seed."""

    def __init__(self, p: float, start: int):
        super().__init__()
        parameters = [start, *(int(np.float64(value).view(np.int64)) for value in (p, 1.0 / (1.0 - p)))]
        self.attributes = constant(parameters)
        self.drop = make_operator("dropout", parameters, lambda seed, x: x)

    def construct(self, seed: Tensor, x: Tensor) -> Tensor:
        return self.drop(self.attributes, seed, x)

    def bprop(self, seed, x, y, dy):
        return ops.zeros_like(seed), self.drop(self.attributes, seed, dy)
