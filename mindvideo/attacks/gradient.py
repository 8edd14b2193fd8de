# SPDX-License-Identifier: Apache-2.0
"""Attacks by a few steps along the gradient, and their forms for training.

All return float32 samples like `x` in [0, 1]. Where an attack is `targeted`, the labels are the classes it wants.
Without `rng` an attack starts at the samples themselves, and else at a random point of the ball. N samples, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mindvideo.attacks.inputs import checked, is_broken
from mindvideo.attacks.norms import NORMS, Norm, l1_size, norm_named, times
from mindvideo.attacks.target import Target
from mindvideo.errors import InputError

_REACH = 1.5  # budgets that all steps make together, unless said: RobustART's 3/40 in 20 steps

Watch = Callable[[np.ndarray], None]


def fgsm(
    target: Target,
    x: np.ndarray,
    labels: np.ndarray,
    *,
    epsilon: float,
    norm: str = "linf",
    loss: str = "cross_entropy",
    targeted: bool = False,
) -> np.ndarray:
    """One step of the whole budget (Goodfellow, Shlens, Szegedy, ICLR 2015)."""
    return pgd(
        target, x, labels, epsilon=epsilon, norm=norm, steps=1, relative_step=1.0, loss=loss, targeted=targeted
    )  # fmt: skip


def pgd(
    target: Target,
    x: np.ndarray,
    labels: np.ndarray,
    *,
    epsilon: float,
    norm: str = "linf",
    steps: int = 20,
    relative_step: float | None = None,
    restarts: int = 1,
    loss: str = "cross_entropy",
    targeted: bool = False,
    rng: np.random.Generator | None = None,
    watch: Watch | None = None,
) -> np.ndarray:
    """Projected gradient descent (Madry et al., ICLR 2018): the last step's samples.

    Args:
        norm: of `NORMS`.
        relative_step: step size as a share of epsilon; None for 1.5 / steps.
        restarts: tries, the second and later ones of what is not broken; each sample's best is returned, a broken one
            before one of greater loss. More than one need `rng`.
        watch: is given the losses `[N]` before each step of the first try.
    """
    x, labels = checked(x, labels, epsilon, min(steps, restarts))
    if restarts > 1 and rng is None:
        raise InputError(f"{restarts} restarts without random numbers would all be the same: give `rng`.")
    sign = -1.0 if targeted else 1.0
    ball, size = norm_named(norm), sign * epsilon * (_REACH / steps if relative_step is None else relative_step)

    def climb(x: np.ndarray, labels: np.ndarray, watch: Watch | None = None) -> np.ndarray:
        return _climb(target, x, ball.start(x, epsilon, rng), labels, ball, epsilon, size, steps, loss, watch)

    best = climb(x, labels, watch)
    if restarts == 1:
        return best
    losses_N, _, logits_NK = target.gradient(best, labels, loss)
    broken_N = is_broken(logits_NK, labels, targeted)
    for _ in range(restarts - 1):
        left = np.flatnonzero(~broken_N)
        if not len(left):
            break
        again = climb(x[left], labels[left])
        new_losses, _, logits = target.gradient(again, labels[left], loss)
        now_broken = is_broken(logits, labels[left], targeted)
        better = now_broken | (sign * new_losses > sign * losses_N[left])
        best[left[better]], losses_N[left[better]] = again[better], new_losses[better]
        broken_N[left] = now_broken
    return best


def _climb(
    target: Target,
    x: np.ndarray,
    moved: np.ndarray,
    labels: np.ndarray,
    ball: Norm,
    epsilon: float,
    size: float,
    steps: int,
    loss: str,
    watch: Watch | None = None,
) -> np.ndarray:
    """Steps of a size, negative for descent, from `moved` on; labels as the loss takes them."""
    for _ in range(steps):
        losses_N, gradient, _ = target.gradient(moved, labels, loss)
        if watch is not None:
            watch(losses_N)
        gradient = np.float32(np.sign(size)) * gradient
        moved = ball.project(x, moved + abs(size) * ball.direction(gradient, moved), epsilon)
    return moved


def mim(
    target: Target,
    x: np.ndarray,
    labels: np.ndarray,
    *,
    epsilon: float,
    norm: str = "linf",
    steps: int = 10,
    decay: float = 1.0,
    loss: str = "cross_entropy",
    targeted: bool = False,
) -> np.ndarray:
    """The momentum iterative method (Dong et al., CVPR 2018, algorithm 1): steps of epsilon / `steps` along a decaying
    sum of gradients, each divided by its L1 norm. It transfers to other networks better than PGD does."""
    x, labels = checked(x, labels, epsilon, steps)
    ball, moved, sum_of_gradients = norm_named(norm), x, np.zeros_like(x)
    for _ in range(steps):
        _, gradient, _ = target.gradient(moved, labels, loss)
        sizes_N = l1_size(gradient)
        gradient = times(gradient, (-1.0 if targeted else 1.0) / np.where(sizes_N > 0, sizes_N, 1.0))
        sum_of_gradients = decay * sum_of_gradients + gradient
        moved = ball.project(x, moved + epsilon / steps * ball.direction(sum_of_gradients, moved), epsilon)
    return moved


def n_fgsm(
    target: Target,
    x: np.ndarray,
    labels: np.ndarray,
    *,
    epsilon: float,
    rng: np.random.Generator,
    noise: float = 2.0,
    step: float = 1.0,
) -> np.ndarray:
    """One step from noisy samples, for training (N-FGSM; de Jorge et al., NeurIPS 2022), where plain FGSM can collapse.

    Noise and step are in budgets. As there, the sum is not brought back into the ball: a value changes by up to
    (noise + step) epsilon.
    """
    x, labels = checked(x, labels, epsilon)
    noisy = np.clip(x + np.float32(noise * epsilon) * NORMS["linf"].draw(rng, x.shape), 0.0, 1.0)
    _, gradient, _ = target.gradient(noisy, labels)
    return np.clip(noisy + np.float32(step * epsilon) * np.sign(gradient), 0.0, 1.0)


def trades(
    target: Target,
    x: np.ndarray,
    *,
    epsilon: float,
    rng: np.random.Generator,
    steps: int = 10,
    relative_step: float | None = None,
) -> np.ndarray:
    """The inner maximisation of TRADES (Zhang et al., ICML 2019): samples in the L-infinity ball whose predictions
    differ most from those of `x`. It begins beside them, as the divergence has no gradient there."""
    x, _ = checked(x, np.zeros(len(x), np.int32), epsilon, steps)
    ball, size = NORMS["linf"], epsilon * (_REACH / steps if relative_step is None else relative_step)
    logits_NK = target.logits(x).astype(np.float64)
    probabilities_NK = np.exp(logits_NK - np.logaddexp.reduce(logits_NK, axis=1, keepdims=True)).astype(np.float32)
    beside = ball.project(x, x + np.float32(1e-3) * rng.standard_normal(x.shape, np.float32), epsilon)
    return _climb(target, x, beside, probabilities_NK, ball, epsilon, size, steps, "kl")
