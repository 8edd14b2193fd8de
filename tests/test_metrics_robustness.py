# SPDX-License-Identifier: Apache-2.0
"""Robust accuracy by hand, and checks that call masked gradients masked and leave honest evaluations alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mindvideo.errors import InputError
from mindvideo.metrics.robustness import (
    attack_ratio,
    check_adaptive,
    check_budgets,
    check_iterations,
    check_losses,
    check_white_box,
    robust_accuracy,
    worst_case,
)

CLEAN = np.array([1, 1, 1, 1, 0, 0, 1, 1], bool)
ROBUST = np.array([1, 0, 1, 0, 1, 0, 0, 1], bool)  # the fifth is wrong as it is: it does not count


def some(right: int, count: int) -> np.ndarray:
    return np.arange(count) < right


def wilson(right: int, count: int) -> tuple[float, float]:
    z, share = 1.959963984540054, right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return middle - half, middle + half


def test_rates():
    accuracy, ratio = robust_accuracy(CLEAN, ROBUST), attack_ratio(CLEAN, ROBUST)
    assert (accuracy.value, accuracy.n) == (3 / 8, 8)
    assert (ratio.value, ratio.n) == (3 / 6, 6)
    assert accuracy.value == pytest.approx(ratio.value * CLEAN.mean())
    assert (accuracy.low, accuracy.high) == pytest.approx(wilson(3, 8))
    assert (ratio.low, ratio.high) == pytest.approx(wilson(3, 6))


def test_nothing_right_to_begin_with():
    ratio = attack_ratio(np.zeros(3, bool), np.ones(3, bool))
    assert ratio.n == 0
    assert math.isnan(ratio.value)
    assert robust_accuracy(np.zeros(3, bool), np.ones(3, bool)).value == 0.0


def test_the_worst_of_attacks_on_each_sample():
    found = worst_case(CLEAN, {"a": ROBUST, "b": np.array([1, 1, 0, 1, 1, 1, 1, 1], bool)})
    np.testing.assert_array_equal(found, [1, 0, 0, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(worst_case(CLEAN, {}), CLEAN)


def test_an_attack_that_must_be_stronger_is_significantly_weaker():
    """The published table: steps leave more right than one step does. Seven samples and none against are enough."""
    clean = np.ones(100, bool)
    finding = check_iterations(clean, one_step_N=some(90, 100), iterative_N=some(97, 100))
    assert not finding.passed
    assert "gradient masking" in finding.sentence
    assert "97 right" in finding.sentence
    assert check_iterations(clean, some(91, 100), some(97, 100)).passed  # six: once in 64 times by chance
    assert check_iterations(clean, some(97, 100), some(90, 100)).passed
    assert check_iterations(clean, some(97, 100), some(97, 100)).passed
    # What is wrong as it is does not count.
    assert check_iterations(some(90, 100), some(90, 100), some(97, 100)).passed


def test_white_box_is_compared_by_its_best_with_the_strongest_black_box():
    clean = np.ones(40, bool)
    black = {"noise": some(39, 40), "square": some(10, 40)}
    finding = check_white_box(clean, {"fgsm": some(30, 40), "pgd": some(35, 40)}, black)
    assert not finding.passed
    assert "square 10" in finding.sentence
    # Together the two white-box attacks break all, each on its own half.
    assert check_white_box(clean, {"fgsm": some(20, 40), "pgd": ~some(20, 40)}, black).passed
    with pytest.raises(InputError, match="one of each"):
        check_white_box(clean, {}, black)


def test_knowing_of_a_defence_that_hides_nothing_does_not_help():
    clean = np.ones(50, bool)
    assert not check_adaptive(clean, naive_N=some(48, 50), adaptive_N=some(2, 50)).passed
    assert check_adaptive(clean, some(2, 50), some(2, 50)).passed
    mixed = np.concatenate([some(5, 10), ~some(5, 10), some(0, 30)])
    assert check_adaptive(clean, np.concatenate([some(6, 10), some(0, 40)]), mixed).passed


def test_chance_alone_seldom_fails_a_check():
    """Two attacks of the same strength, such as with other draws: at most once in a hundred times."""
    rng = np.random.default_rng(0)
    clean = np.ones(60, bool)
    failed = sum(not check_adaptive(clean, *(rng.random((2, 60)) < 0.4)).passed for _ in range(3000))
    assert failed <= 45


def test_losses():
    rng = np.random.default_rng(0)
    rising = np.cumsum(rng.uniform(-0.1, 1.0, (20, 30)), axis=0)
    assert check_losses(rising).passed
    aimless = rng.normal(size=(20, 30))
    finding = check_losses(aimless)
    assert not finding.passed
    assert "gradient masking" in finding.sentence
    assert not check_losses(np.zeros((5, 30))).passed  # no gradient at all
    assert check_losses(np.array([[1.0], [0.5]])).passed  # one sample shows nothing
    few = rising.copy()
    few[-1, :5] = -1.0
    assert check_losses(few).passed
    with pytest.raises(InputError, match="2 steps or more"):
        check_losses(np.zeros((1, 5)))


def test_budgets():
    clean = np.ones(50, bool)
    epsilons, falling = (0.01, 0.5, 0.1), np.stack([some(40, 50), some(0, 50), some(9, 50)])
    assert check_budgets(epsilons, clean, falling).passed
    finding = check_budgets(epsilons[:1], clean, falling[:1], chance=0.1)
    assert not finding.passed
    assert "40 of 50" in finding.sentence
    assert check_budgets((0.1,), clean, falling[2:], chance=0.1).passed  # 9 of 50 may be chance
    assert not check_budgets((0.1,), clean, falling[2:]).passed
    with pytest.raises(InputError, match="3 budgets and 1 results"):
        check_budgets(epsilons, clean, falling[:1])


@pytest.mark.parametrize("robust", [np.ones(7, bool), np.ones((8, 1), bool)])
def test_results_that_do_not_go_together(robust):
    for function in (robust_accuracy, attack_ratio):
        with pytest.raises(InputError, match="one for each"):
            function(CLEAN, robust)
