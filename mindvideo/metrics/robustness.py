# SPDX-License-Identifier: Apache-2.0
"""How a classifier stands up to attacks, and whether the attacks were any good. N samples, S steps, E budgets.

Everything is made of which samples were right: `clean_N` as they are, and under each attack. A sample that is wrong as
it is counts as broken by every attack: the least perturbation is none.

The checks are those of Athalye, Carlini, Wagner (ICML 2018) and Carlini et al. (2019). They compare attacks on the same
samples, one of which must be at least as strong, by the exact sign test over samples that only one of the two breaks.
A check fails where chance would bring about what was seen less than once in a hundred times, so that an honest
evaluation seldom fails one of a handful, and a small one that shows little is let pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from mindvideo.errors import InputError
from mindvideo.metrics.accuracy import share_interval

LEVEL = 0.01  # of each check's test
_FALLING = 0.1  # share of samples whose loss may fall under a sound attack


@dataclass(frozen=True)
class Rate:
    """A share of `n` samples and its 95 % interval (Wilson's)."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Finding:
    """The outcome of a check: its name, whether it was passed, and a sentence for the report."""

    name: str
    passed: bool
    sentence: str


def robust_accuracy(clean_N: np.ndarray, robust_N: np.ndarray) -> Rate:
    """The share of all samples that are right as they are and under the attack."""
    return _rate(_bools(clean_N, robust_N)[1])


def attack_ratio(clean_N: np.ndarray, robust_N: np.ndarray) -> Rate:
    """AR: the share still right under the attack, of those right as they are; nan where none is."""
    clean_N, robust_N = _bools(clean_N, robust_N)
    return _rate(robust_N[clean_N])


def worst_case(clean_N: np.ndarray, attacks: Mapping[str, np.ndarray]) -> np.ndarray:
    """Whether each sample is right as it is and under every attack, bool `[N]`: an adversary chooses the best."""
    return np.logical_and.reduce([np.asarray(clean_N, bool), *(_bools(clean_N, r)[1] for r in attacks.values())])


def check_iterations(clean_N: np.ndarray, one_step_N: np.ndarray, iterative_N: np.ndarray) -> Finding:
    """Many steps are at least as strong as one of the same budget."""
    return _compare(
        "iterative attacks are at least as strong as one step", clean_N,
        ("many steps", iterative_N), ("one step of the same budget", one_step_N),
    )  # fmt: skip


def check_white_box(
    clean_N: np.ndarray, white_box: Mapping[str, np.ndarray], black_box: Mapping[str, np.ndarray]
) -> Finding:
    """Attacks with gradients, the best of them on each sample, are at least as strong as every attack without (such as
    square, transfer, noise): the strongest of these is named."""
    if not white_box or not black_box:
        raise InputError("to compare attacks with and without gradients, one of each is needed.")
    strongest = min(black_box, key=lambda name: int(_bools(clean_N, black_box[name])[1].sum()))
    return _compare(
        "white-box attacks are at least as strong as black-box ones", clean_N,
        (f"gradients ({', '.join(white_box)})", worst_case(clean_N, white_box)), (strongest, black_box[strongest]),
    )  # fmt: skip


def check_adaptive(clean_N: np.ndarray, naive_N: np.ndarray, adaptive_N: np.ndarray) -> Finding:
    """An attack that knows of the defence (BPDA, EOT) breaks no more than one that does not: nothing was hidden."""
    return _compare(
        "adaptive attacks are no stronger than naive ones", clean_N,
        ("the defence's own gradient", naive_N), ("an attack that knows of the defence", adaptive_N),
    )  # fmt: skip


def check_losses(losses_SN: np.ndarray) -> Finding:
    """The loss is greater after the steps of an attack than before.

    It need not rise at every step, nor on every sample: the check fails where it does not on significantly more than a
    tenth of them.
    """
    losses_SN = np.asarray(losses_SN, np.float64)
    if losses_SN.ndim != 2 or len(losses_SN) < 2 or losses_SN.shape[1] == 0:
        raise InputError(f"losses of shape {list(losses_SN.shape)}: [steps, samples] with 2 steps or more are needed.")
    count, fallen = losses_SN.shape[1], int((losses_SN[-1] <= losses_SN[0]).sum())
    passed = _is_by_chance(fallen, count, _FALLING)
    first, last = losses_SN[0].mean(), losses_SN[-1].mean()
    sentence = f"The mean loss goes from {first:.3g} to {last:.3g}; it does not rise on {fallen} of {count} samples"
    return Finding("the loss rises over the steps", passed, _ended(sentence, passed))


def check_budgets(
    epsilons: Sequence[float], clean_N: np.ndarray, robust_EN: np.ndarray, chance: float = 0.0
) -> Finding:
    """With a large enough budget, no more is right than by chance (1 / classes, say)."""
    if len(epsilons) != len(robust_EN) or len(epsilons) == 0:
        raise InputError(f"{len(epsilons)} budgets and {len(robust_EN)} results: as many are needed, one or more.")
    largest = int(np.argmax(epsilons))
    robust_N = _bools(clean_N, robust_EN[largest])[1]
    right, count = int(robust_N.sum()), len(robust_N)
    passed = _is_by_chance(right, count, chance)
    sentence = f"At the largest budget, {epsilons[largest]:.3g}, {right} of {count} are right; chance: {chance:.3g}"
    return Finding("accuracy falls to chance as the budget grows", passed, _ended(sentence, passed))


def _compare(
    name: str, clean_N: np.ndarray, stronger: tuple[str, np.ndarray], weaker: tuple[str, np.ndarray]
) -> Finding:
    """Fails where what must be the stronger attack breaks significantly less than the other."""
    (strong_name, strong_N), (weak_name, weak_N) = stronger, weaker
    strong_N, weak_N = _bools(clean_N, strong_N)[1], _bools(clean_N, weak_N)[1]
    missed, only = int((strong_N & ~weak_N).sum()), int((~strong_N & weak_N).sum())
    passed = missed == 0 or _is_by_chance(missed, missed + only, 0.5)
    sentence = (
        f"Of {len(strong_N)} samples, {strong_name} leaves {int(strong_N.sum())} right and {weak_name} "
        f"{int(weak_N.sum())}; {missed} are broken by the latter alone, {only} by the former alone"
    )
    return Finding(name, passed, _ended(sentence, passed))


def _is_by_chance(count: int, among: int, share: float) -> bool:
    """Whether so many or more, of a share that is expected, would be seen often enough."""
    return bool(stats.binomtest(count, among, share, alternative="greater").pvalue >= LEVEL)


def _ended(sentence: str, passed: bool) -> str:
    return f"{sentence}." if passed else f"{sentence}: a sign of gradient masking, so its robustness is not shown."


def _bools(clean_N: np.ndarray, robust_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Right as it is, and right under the attack too; InputError for arrays that do not go together."""
    clean_N, robust_N = np.asarray(clean_N, bool), np.asarray(robust_N, bool)
    if clean_N.ndim != 1 or len(clean_N) == 0 or robust_N.shape != clean_N.shape:
        raise InputError(f"results {list(robust_N.shape)} under attack of samples {list(clean_N.shape)}: one for each.")
    return clean_N, clean_N & robust_N


def _rate(right_N: np.ndarray) -> Rate:
    if len(right_N) == 0:
        return Rate(np.nan, np.nan, np.nan, 0)
    return Rate(*share_interval(right_N), n=len(right_N))
