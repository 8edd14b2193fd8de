# SPDX-License-Identifier: Apache-2.0
"""Small classifiers on [0, 1] for the tests of attacks: one in numpy whose best attack is known, one in MindSpore."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindvideo import attacks


class Linear:
    """Logits x W + b with their exact gradients, for cross-entropy and margin. It counts the samples it sees."""

    def __init__(self, weights_DK: np.ndarray, bias_K: np.ndarray | None = None):
        self.weights = weights_DK.astype(np.float64)
        self.bias = np.zeros(weights_DK.shape[1]) if bias_K is None else bias_K
        self.seen: list[int] = []

    def logits(self, x: np.ndarray) -> np.ndarray:
        self.seen.append(len(x))
        return (x.reshape(len(x), -1).astype(np.float64) @ self.weights + self.bias).astype(np.float32)

    def gradient(self, x: np.ndarray, labels: np.ndarray, loss: str = "cross_entropy"):
        logits_NK = self.logits(x).astype(np.float64)
        label_NK = np.eye(logits_NK.shape[1])[labels]
        if loss == "margin":
            other_NK = np.eye(logits_NK.shape[1])[np.where(label_NK > 0, -np.inf, logits_NK).argmax(axis=1)]
            by_logits_NK, losses_N = other_NK - label_NK, attacks.margins(logits_NK, labels)
        else:
            log_NK = logits_NK - np.logaddexp.reduce(logits_NK, axis=1, keepdims=True)
            by_logits_NK, losses_N = np.exp(log_NK) - label_NK, -(log_NK * label_NK).sum(axis=1)
        gradient = (by_logits_NK @ self.weights.T).reshape(x.shape).astype(np.float32)
        return losses_N.astype(np.float32), gradient, logits_NK.astype(np.float32)


class Small(nn.Cell):
    """Two layers with tanh between, on samples of `size` values."""

    def __init__(self, size: int, num_classes: int = 5, width: int = 16, seed: int = 0, gain: float = 3.0):
        super().__init__()
        rng = np.random.default_rng(seed)
        self.first, self.second = _dense(rng, size, width, gain), _dense(rng, width, num_classes, gain)

    def construct(self, x: Tensor) -> Tensor:
        return self.second(ops.tanh(self.first(x.reshape((x.shape[0], -1)) - 0.5)))

    def in_float64(self, x: np.ndarray) -> np.ndarray:
        """The same in numpy."""
        layers = [(layer.weight.asnumpy(), layer.bias.asnumpy()) for layer in (self.first, self.second)]
        (a, b), (c, d) = [[np.asarray(array, np.float64) for array in layer] for layer in layers]
        return np.tanh((x.reshape(len(x), -1) - 0.5) @ a.T + b) @ c.T + d


class Concealed(nn.Cell):
    """A classifier behind x + 1e-8 sin(1e20 x), or with `is_open` behind the same with the gradient of x alone."""

    def __init__(self, inner: nn.Cell, *, is_open: bool = False):
        super().__init__(auto_prefix=False)
        self.inner, self.is_open = inner, is_open

    def construct(self, x: Tensor) -> Tensor:
        wave = 1e-8 * ops.sin(1e20 * x)
        return self.inner(x + (ops.stop_gradient(wave) if self.is_open else wave))


class Noisy(nn.Cell):
    """A classifier of samples of a shape that multiplies each value with 0 or 1, which the draw decides."""

    def __init__(self, inner: nn.Cell, shape: tuple[int, ...]):
        super().__init__(auto_prefix=False)
        self.inner = inner
        places = np.arange(np.prod(shape), dtype=np.uint32) * np.uint32(2654435761)
        self.places = Tensor(places.reshape(1, *shape), ms.uint32)
        self.spare = Tensor(9, ms.uint32)

    def construct(self, x: Tensor, draw: Tensor) -> Tensor:
        bits = ops.bitwise_right_shift((self.places + draw) * draw, self.spare).astype(ms.float32)
        return self.inner(x * (bits > 2.0**21).astype(ms.float32))  # three of four are kept


def samples(count: int, *shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=(count, *shape)).astype(np.float32)


def predictions(target: attacks.Target, x: np.ndarray) -> np.ndarray:
    return target.logits(x).argmax(axis=1)


def _dense(rng: np.random.Generator, ins: int, outs: int, gain: float) -> nn.Dense:
    weight, bias = gain * rng.standard_normal((outs, ins)) / np.sqrt(ins), 0.1 * rng.standard_normal(outs)
    return nn.Dense(
        ins, outs, weight_init=Tensor(weight.astype(np.float32)), bias_init=Tensor(bias.astype(np.float32))
    )  # fmt: skip
