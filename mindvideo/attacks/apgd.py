# SPDX-License-Identifier: Apache-2.0
"""Auto-PGD (Croce & Hein, *Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
Attacks*, ICML 2020): steps with momentum that are halved where they no longer help.

With the losses "cross_entropy" and "dlr" it is APGD-CE and APGD-DLR, and `apgd_targeted` is APGD-T.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from mindvideo.attacks.inputs import checked, is_broken
from mindvideo.attacks.norms import Norm, norm_named, times
from mindvideo.attacks.target import Target
from mindvideo.errors import InputError

_MOMENTUM = 0.75  # alpha: the share of the new step
_RISING = 0.75  # rho: the share of steps that must have raised the loss


def apgd(
    target: Target,
    x: np.ndarray,
    labels: np.ndarray,
    *,
    epsilon: float,
    norm: str = "linf",
    loss: str = "cross_entropy",
    steps: int = 100,
    restarts: int = 1,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Samples that break the prediction where some were found, and else those of the greatest loss.

    What is misclassified from the start is returned as it is. Without `rng` it starts at the samples themselves.

    Args:
        norm: "linf" or "l2".
        restarts: tries, each of what is not broken; more than one need `rng`.
    """
    x, labels = checked(x, labels, epsilon, min(steps, restarts))
    if restarts > 1 and rng is None:
        raise InputError(f"{restarts} restarts without random numbers would all be the same: give `rng`.")
    run = _Run(target, _ball(norm), epsilon, loss, steps)
    return run.attack(x, labels, is_broken(target.logits(x), labels), [labels] * restarts, rng)


def apgd_targeted(
    target: Target,
    x: np.ndarray,
    labels: np.ndarray,
    *,
    epsilon: float,
    norm: str = "linf",
    classes: int = 9,
    steps: int = 100,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """One APGD run towards each of the `classes` most likely other classes, with the targeted DLR loss; K >= 4."""
    x, labels = checked(x, labels, epsilon, min(steps, classes))
    run, logits_NK = _Run(target, _ball(norm), epsilon, "targeted_dlr", steps), target.logits(x)
    others_NK = logits_NK.copy()
    np.put_along_axis(others_NK, labels[:, None], -np.inf, axis=1)
    likely_NK = np.argsort(-others_NK, axis=1, kind="stable").astype(np.int32)
    ranks = range(min(classes, logits_NK.shape[1] - 1))
    aims = [np.stack([labels, likely_NK[:, rank]], axis=1) for rank in ranks]
    return run.attack(x, labels, is_broken(logits_NK, labels), aims, rng)


def _ball(norm: str) -> Norm:
    if norm not in ("linf", "l2"):
        raise InputError(f"norm {norm!r}: APGD works in linf and l2.")
    return norm_named(norm)


def checkpoints(steps: int) -> list[int]:
    """After which steps it is decided whether to halve (section 3.2 there): ceil(p_j steps), p_1 = 0.22, the distances
    of the p_j shrinking by 0.03 down to 0.06."""
    shares = [0.0, 0.22]
    while shares[-1] < 1.0:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return sorted({int(np.ceil(round(share * steps, 6))) for share in shares if share <= 1.0})


@dataclass
class _Climbers:
    """The samples on their way, n of them; `place` is where each is among all."""

    place: np.ndarray
    x: np.ndarray
    labels: np.ndarray
    aims: np.ndarray  # labels as the loss takes them
    moved: np.ndarray
    before: np.ndarray  # a step ago
    losses: np.ndarray
    gradient: np.ndarray
    size: np.ndarray
    best: np.ndarray
    best_losses: np.ndarray
    best_gradient: np.ndarray
    rises: np.ndarray  # steps since the last checkpoint that raised the loss
    last_best: np.ndarray  # `best_losses` at the last checkpoint
    was_halved: np.ndarray  # whether the size was, at the last checkpoint

    def keep(self, chosen: np.ndarray) -> None:
        """Go on with the chosen ones alone."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[chosen])

    def halve(self, interval: int) -> None:
        """At a checkpoint, `interval` steps after the last: halve steps that do not help, and go back to the best."""
        is_stuck = ~self.was_halved & (self.best_losses <= self.last_best)
        halved = (self.rises < _RISING * interval) | is_stuck
        self.size = np.where(halved, 0.5 * self.size, self.size)
        self.moved[halved], self.losses[halved] = self.best[halved], self.best_losses[halved]
        self.gradient[halved] = self.best_gradient[halved]
        self.was_halved, self.last_best = halved, self.best_losses.copy()
        self.rises = np.zeros_like(self.rises)


@dataclass(frozen=True)
class _Run:
    """What stays the same in all tries of an attack."""

    target: Target
    ball: Norm
    epsilon: float
    loss: str
    steps: int

    def attack(
        self,
        x: np.ndarray,
        labels: np.ndarray,
        broken_N: np.ndarray,
        tries: Sequence[np.ndarray],
        rng: np.random.Generator | None,
    ) -> np.ndarray:
        """The last try's samples, each of what those before left unbroken. A try is the labels that its loss takes."""
        best, broken_N = x.copy(), broken_N.copy()
        for aims in tries:
            left = np.flatnonzero(~broken_N)
            if not len(left):
                break
            start = self.ball.start(x[left], self.epsilon, rng)
            best[left], broken_N[left] = self._climb(x[left], start, labels[left], aims[left])
        return best

    def _climb(
        self, x: np.ndarray, start: np.ndarray, labels: np.ndarray, aims: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Algorithm 1 there: samples, and whether they are broken. A broken one is not worked on further."""
        losses, gradient, logits = self.target.gradient(start, aims, self.loss)
        reached, broken, count = start.copy(), is_broken(logits, labels), len(x)
        on = _Climbers(
            np.arange(count), x, labels, aims, start.copy(), start.copy(), losses, gradient.copy(),
            np.full(count, 2.0 * self.epsilon), start.copy(), losses.copy(), gradient.copy(), np.zeros(count, int),
            losses.copy(), np.zeros(count, bool),
        )  # fmt: skip
        on.keep(~broken)
        marks = checkpoints(self.steps)
        for step in range(1, self.steps + 1):
            if not len(on.place):
                break
            now_broken = self._move(on, momentum=1.0 if step == 1 else _MOMENTUM)
            gone = on.place[now_broken]
            reached[gone], broken[gone] = on.moved[now_broken], True
            on.keep(~now_broken)
            if step in marks:
                on.halve(step - marks[marks.index(step) - 1])
        reached[on.place] = on.best
        return reached, broken

    def _move(self, on: _Climbers, momentum: float) -> np.ndarray:
        """One step; whether it broke each."""
        steps = times(self.ball.direction(on.gradient, on.moved), on.size)
        ahead = self.ball.project(on.x, on.moved + steps, self.epsilon)
        blend = on.moved + momentum * (ahead - on.moved) + (1.0 - momentum) * (on.moved - on.before)
        on.before, on.moved = on.moved, self.ball.project(on.x, blend, self.epsilon)
        losses, gradient, logits = self.target.gradient(on.moved, on.aims, self.loss)
        on.rises = on.rises + (losses > on.losses)
        on.losses, on.gradient = losses.copy(), gradient.copy()
        better = losses > on.best_losses
        on.best[better], on.best_losses[better] = on.moved[better], losses[better]
        on.best_gradient[better] = gradient[better]
        return is_broken(logits, on.labels)
