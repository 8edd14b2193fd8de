# SPDX-License-Identifier: Apache-2.0
"""The attack of Carlini and Wagner (*Towards Evaluating the Robustness of Neural Networks*, S&P 2017) in L2: the
smallest perturbation that is enough."""

from __future__ import annotations

import numpy as np

from mindvideo.attacks.inputs import checked, is_broken
from mindvideo.attacks.norms import l2_size, norm_named, times
from mindvideo.attacks.target import Target

_INSIDE = 0.999999  # of the range of tanh, so that values at its ends have a finite argument


def carlini_wagner(
    target: Target,
    x: np.ndarray,
    labels: np.ndarray,
    *,
    epsilon: float | None = None,
    searches: int = 5,
    steps: int = 200,
    rate: float = 0.01,
    constant: float = 1e-3,
    confidence: float = 0.0,
) -> np.ndarray:
    """Minimise |x' - x|^2 + c max(confidence - margin(x'), 0) over w, x' = (tanh w + 1) / 2, by Adam (eq. 8 there).

    c is searched for each sample: ten times more where nothing was found yet, and else halfway between what was and
    was not enough. The smallest perturbation that broke the prediction is returned, and the sample itself where none
    did.

    Args:
        epsilon: a budget that longer perturbations are scaled to, mostly to no effect; None for none.
        searches: tries of c, each of `steps` steps at the learning rate `rate`.
        constant: the first c.
        confidence: by how much the largest logit must exceed the label's.
    """
    x, labels = checked(x, labels, epsilon or 0.0, min(searches, steps))
    best, best_sizes_N = x.copy(), np.full(len(x), np.inf)
    constants_N, low_N, high_N = np.full(len(x), constant), np.zeros(len(x)), np.full(len(x), np.inf)
    for _ in range(searches):
        found_N = _search(target, x, labels, constants_N, steps, rate, confidence, best, best_sizes_N)
        low_N, high_N = np.where(found_N, low_N, constants_N), np.where(found_N, constants_N, high_N)
        constants_N = np.where(np.isinf(high_N), 10.0 * constants_N, 0.5 * (low_N + high_N))
    return best if epsilon is None else norm_named("l2").project(x, best, epsilon)


def _search(
    target: Target,
    x: np.ndarray,
    labels: np.ndarray,
    constants_N: np.ndarray,
    steps: int,
    rate: float,
    confidence: float,
    best: np.ndarray,
    best_sizes_N: np.ndarray,
) -> np.ndarray:
    """One try of the constants: whether each broke the sample, `[N]`. What is better than `best` replaces it."""
    w = np.arctanh(_INSIDE * (2.0 * x - 1.0))
    mean, square, found_N = np.zeros_like(x), np.zeros_like(x), np.zeros(len(x), bool)
    for step in range(1, steps + 1):
        tanh = np.tanh(w)
        moved = 0.5 * (tanh + 1.0)
        margins_N, gradient, logits_NK = target.gradient(moved, labels, "margin")
        broken_N, sizes_N = is_broken(logits_NK, labels) & (margins_N >= confidence), l2_size(moved - x)
        found_N |= broken_N
        better_N = broken_N & (sizes_N < best_sizes_N)
        best[better_N], best_sizes_N[better_N] = moved[better_N], sizes_N[better_N]
        slope = 2.0 * (moved - x) - times(gradient, np.where(margins_N < confidence, constants_N, 0.0))
        slope = slope * (0.5 * (1.0 - tanh * tanh))
        # Adam (Kingma & Ba, ICLR 2015, algorithm 1).
        mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope * slope
        w = w - rate * (mean / (1.0 - 0.9**step)) / (np.sqrt(square / (1.0 - 0.999**step)) + 1e-8)
    return found_N
