# SPDX-License-Identifier: Apache-2.0
"""What an attack sees of a classifier on [0, 1], and MindSpore networks seen so.

An attack knows nothing but `Target`: logits, and the gradient of a loss with respect to the input. A defence that hides
its gradient or draws at random is met by another target, and any attack then works on it: `Split` takes the gradient
where there is one (BPDA; Athalye, Carlini, Wagner, ICML 2018), `Averaged` takes the mean over draws (EOT).

N samples `[N, C, H, W]` or `[N, C, T, H, W]` in all, B of them at once, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindvideo.errors import InputError

_LOWEST = -3e38  # below every logit


class Target(Protocol):
    """A classifier on [0, 1]. All arrays but labels are float32."""

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Logits `[N, K]`."""
        ...

    def gradient(
        self, x: np.ndarray, labels: np.ndarray, loss: str = "cross_entropy"
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Loss of each sample `[N]`, the gradient of their sum by x (like x), and logits `[N, K]`.

        A greater loss is better for an attack that is not targeted. Losses and their labels are those of `LOSSES`.
        """
        ...


def cross_entropy(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """-log p_y. It has no gradient left where p_y rounds to 1."""
    return -_pick(_log_softmax(logits_BK), labels_B)


def margin(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """max_{i != y} z_i - z_y, above 0 where the label is missed (Carlini & Wagner 2017, f_6 with its sign changed)."""
    return _pick(logits_BK, _best_other(logits_BK, labels_B)) - _pick(logits_BK, labels_B)


def dlr(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """The margin over z_(1) - z_(3), the distance of the largest and third largest logit: whatever the logits' scale
    (Croce & Hein 2020, eq. 6). It needs K >= 3."""
    first_B, _, third_B = _ranked(logits_BK, 3)
    return margin(logits_BK, labels_B) / (first_B - third_B + 1e-12)


def targeted_dlr(logits_BK: Tensor, labels_B2: Tensor) -> Tensor:
    """(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2) of a true label y and a wanted one t (ibid., eq. 7). K >= 4."""
    true_B, wanted_B = labels_B2.unbind(1)
    first_B, _, third_B, fourth_B = _ranked(logits_BK, 4)
    distance_B = _pick(logits_BK, wanted_B) - _pick(logits_BK, true_B)
    return distance_B / (first_B - 0.5 * (third_B + fourth_B) + 1e-12)


def divergence(logits_BK: Tensor, probabilities_BK: Tensor) -> Tensor:
    """KL(probabilities || softmax(logits)), what TRADES (Zhang et al., ICML 2019) increases."""
    own_BK = ops.log(ops.clamp(probabilities_BK, min=1e-30))
    return (probabilities_BK * (own_BK - _log_softmax(logits_BK))).sum(axis=1)


LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {  # with the least number of classes
    "cross_entropy": (cross_entropy, 2),
    "margin": (margin, 2),
    "dlr": (dlr, 3),
    "targeted_dlr": (targeted_dlr, 4),  # labels `[N, 2]`: the true and the wanted one
    "kl": (divergence, 2),  # for labels, float probabilities `[N, K]`
}


class Network:
    """A MindSpore cell as a target, in evaluation mode, compiled once for a batch size and once more for each loss.

    Args:
        cell: `construct(x)` to logits, or with a seed below `construct(x, draw)`, draw an uint32 scalar.
        batch: samples at once; the last ones are filled up.
        seed: None if the cell draws nothing. Else every pass of a batch has its own draw, and these follow from the
            seed and the passes before.
    """

    def __init__(self, cell: nn.Cell, batch: int, *, seed: int | None = None):
        self.cell, self.batch = cell, batch
        self._graphs: dict[str, Callable[..., Any]] = {}
        self._rng = None if seed is None else np.random.default_rng(seed)

    def restart(self, *seed: int) -> None:
        """Begin the draws anew from a seed, such as a run's and the number of a step; nothing if there are none."""
        if self._rng is not None:
            self._rng = np.random.default_rng(seed)

    def logits(self, x: np.ndarray) -> np.ndarray:
        """As `Target` says; InputError where they are not finite."""
        (logits_NK,) = self._in_batches("", x, None)
        return _finite(logits_NK, "logits")

    def gradient(
        self, x: np.ndarray, labels: np.ndarray, loss: str = "cross_entropy"
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `Target` says; InputError for a loss or a label that there is not, and for numbers that are not finite."""
        if loss not in LOSSES:
            raise InputError(f"loss {loss!r}: allowed are {', '.join(LOSSES)}.")
        labels = np.asarray(labels, np.float32 if loss == "kl" else np.int32)
        losses_N, gradient, logits_NK = self._in_batches(loss, x, labels)
        num_classes, least = logits_NK.shape[1], LOSSES[loss][1]
        if num_classes < least:
            raise InputError(f"loss {loss} needs {least} classes or more; the network has {num_classes}.")
        if loss != "kl" and not (labels.min() >= 0 and labels.max() < num_classes):
            raise InputError(f"labels from {labels.min()} to {labels.max()}: the network has {num_classes} classes.")
        return losses_N, _finite(gradient, "gradients"), _finite(logits_NK, "logits")

    def _in_batches(self, loss: str, x: np.ndarray, labels: np.ndarray | None) -> list[np.ndarray]:
        """What the graph of this loss returns, or of no loss: of all samples."""
        x = np.asarray(x, np.float32)
        if loss not in self._graphs:
            self._graphs[loss] = _Gradient(self.cell, LOSSES[loss][0]) if loss else _Logits(self.cell)
        was_training = self.cell.training
        self.cell.set_train(False)
        try:
            parts = []
            for start in range(0, len(x), self.batch):
                chosen = [array[start : start + self.batch] for array in (x, labels) if array is not None]
                filled = [Tensor(np.resize(part, (self.batch, *part.shape[1:]))) for part in chosen]
                outputs = self._graphs[loss](*filled, self._drawn())
                parts.append([output.asnumpy()[: len(chosen[0])] for output in outputs])
        finally:
            self.cell.set_train(was_training)
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

    def _drawn(self) -> Tensor | None:
        """The seed of this pass."""
        return None if self._rng is None else Tensor(self._rng.integers(2**32, dtype=np.uint32))


class Averaged:
    """Expectation over transformation (Athalye et al., ICML 2018): a randomised target's mean over fresh draws.

    Losses and gradients are means. Logits are logarithms of mean probabilities: the prediction of the mean.
    """

    def __init__(self, target: Target, draws: int):
        if draws < 1:
            raise InputError(f"{draws} draws to average over: there must be 1 or more.")
        self.target, self.draws = target, draws

    def logits(self, x: np.ndarray) -> np.ndarray:
        """As `Target` says."""
        return _mean_logits([self.target.logits(x) for _ in range(self.draws)])

    def gradient(
        self, x: np.ndarray, labels: np.ndarray, loss: str = "cross_entropy"
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `Target` says."""
        losses_N, gradient, logits = self.target.gradient(x, labels, loss)
        each = [logits]
        for _ in range(self.draws - 1):
            more_N, more, logits = self.target.gradient(x, labels, loss)
            losses_N, gradient = losses_N + more_N, gradient + more
            each.append(logits)
        return losses_N / self.draws, gradient / self.draws, _mean_logits(each)


class Split:
    """Losses and gradients of one target, logits of another: an attack goes by the former and is judged by the latter.

    With `gradients` a twin of the victim whose backward pass leaves the defence out, this is BPDA.
    """

    def __init__(self, gradients: Target, predictions: Target):
        self.gradients, self.predictions = gradients, predictions

    def logits(self, x: np.ndarray) -> np.ndarray:
        """As `Target` says."""
        return self.predictions.logits(x)

    def gradient(
        self, x: np.ndarray, labels: np.ndarray, loss: str = "cross_entropy"
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `Target` says."""
        losses_N, gradient, _ = self.gradients.gradient(x, labels, loss)
        return losses_N, gradient, self.predictions.logits(x)


class _Logits(nn.Cell):
    """A cell's logits, as one graph. A function under `ms.jit` would go on with the weights it was compiled with when
    others are loaded into the cell (MindSpore 2.8)."""

    def __init__(self, cell: nn.Cell):
        super().__init__(auto_prefix=False)  # the cell's parameters keep their names
        self.cell = cell

    def construct(self, x: Tensor, draw: Tensor | None) -> tuple[Tensor]:
        return (self.cell(x) if draw is None else self.cell(x, draw),)


class _Gradient(nn.Cell):
    """Losses, gradient of their sum, and logits, likewise."""

    def __init__(self, cell: nn.Cell, loss: Callable[[Tensor, Tensor], Tensor]):
        super().__init__(auto_prefix=False)
        self.cell, self.loss = cell, loss
        self.value_and_grad: Any = ms.value_and_grad(self._forward, 0, None, has_aux=True)

    def construct(self, x: Tensor, labels: Tensor, draw: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        (_, losses_B, logits_BK), gradient = self.value_and_grad(x, labels, draw)
        return losses_B, gradient, logits_BK

    def _forward(self, x: Tensor, labels: Tensor, draw: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        logits_BK = self.cell(x) if draw is None else self.cell(x, draw)
        losses_B = self.loss(logits_BK, labels)
        return losses_B.sum(), losses_B, logits_BK


def _mean_logits(each: list[np.ndarray]) -> np.ndarray:
    logs_DNK = np.stack(each).astype(np.float64)
    logs_DNK -= np.logaddexp.reduce(logs_DNK, axis=2, keepdims=True)
    return (np.logaddexp.reduce(logs_DNK, axis=0) - np.log(len(each))).astype(np.float32)


def _finite(array: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(array).all():
        raise InputError(f"the network's {name} are not finite: an attack on it would mean nothing.")
    return array


def _log_softmax(logits_BK: Tensor) -> Tensor:
    """Written out: the value of MindSpore's own is not the same in every call."""
    shifted_BK = logits_BK - ops.stop_gradient(logits_BK.max(axis=1, keepdims=True))
    return shifted_BK - ops.log(ops.exp(shifted_BK).sum(axis=1, keepdims=True))


def _pick(logits_BK: Tensor, classes_B: Tensor) -> Tensor:
    """The logit of one class of each sample, `[B]`."""
    return (logits_BK * _one_hot(classes_B, logits_BK.shape[1], 1.0)).sum(axis=1)


def _best_other(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """The class of the largest logit but the label's, `[B]`; the first of equals."""
    others_BK = ops.stop_gradient(logits_BK) + _one_hot(labels_B, logits_BK.shape[1], _LOWEST)
    return others_BK.argmax(axis=1).astype(ms.int32)


def _one_hot(classes_B: Tensor, num_classes: int, value: float) -> Tensor:
    """`value` at one class of each sample, else 0; nowhere for a class that there is not."""
    return ops.one_hot(classes_B, num_classes, Tensor(value, ms.float32), Tensor(0.0, ms.float32))


def _ranked(logits_BK: Tensor, count: int) -> list[Tensor]:
    """The largest logits in order, each `[B]`."""
    left_BK, ranked = ops.stop_gradient(logits_BK), []
    for _ in range(count):
        best_B = left_BK.argmax(axis=1).astype(ms.int32)
        ranked.append(_pick(logits_BK, best_B))
        left_BK = left_BK + _one_hot(best_B, logits_BK.shape[1], _LOWEST)
    return ranked
