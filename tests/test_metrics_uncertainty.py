# SPDX-License-Identifier: Apache-2.0
"""Uncertainties against scipy, integrals and the limits of what networks say."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from mindvideo.metrics.uncertainty import (
    dirichlet_mutual_information,
    entropy,
    mutual_information,
    uncertainties,
    vacuity,
)


def made(*shape: int) -> np.ndarray:
    """Probabilities over the last axis, some of them almost sure."""
    return np.random.default_rng(len(shape)).dirichlet(np.full(shape[-1], 0.3), shape[:-1])


def test_entropy_is_scipy_s():
    probabilities = made(40, 7)
    assert entropy(probabilities) == pytest.approx(stats.entropy(probabilities, axis=1), rel=1e-12)
    assert entropy(np.eye(5)).tolist() == [0] * 5
    assert entropy(np.full((1, 5), 0.2))[0] == pytest.approx(math.log(5))
    assert entropy(probabilities.astype(np.float32)).dtype == np.float64


def test_mutual_information_against_a_loop():
    draws = made(9, 4, 6)
    for video, found in zip(draws, mutual_information(draws), strict=True):
        mean = sum(video) / 4
        expected = -sum(p * math.log(p) for p in mean) + sum(p * math.log(p) for draw in video for p in draw) / 4
        assert found == pytest.approx(expected, rel=1e-10)


def test_mutual_information_of_draws_that_agree_or_contradict():
    agreeing = np.repeat(made(30, 1, 6), 5, axis=1)
    assert (mutual_information(agreeing) >= 0).all()  # never -1e-16
    assert mutual_information(agreeing) == pytest.approx(0, abs=1e-12)
    sure_of_different_classes = np.eye(4)[None]
    assert mutual_information(sure_of_different_classes)[0] == pytest.approx(math.log(4))
    assert mutual_information(made(3, 1, 6)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("alpha", [(1.0, 1.0), (1.0, 3.0), (2.5, 40.0), (1.0, 300.0)])
def test_mutual_information_of_two_classes_is_an_integral(alpha):
    """Entropy of the mean minus the mean entropy under the Beta distribution."""
    distribution = stats.beta(*alpha)
    binary_entropy = lambda p: stats.entropy([p, 1 - p])  # noqa: E731
    expected, _ = integrate.quad(lambda p: binary_entropy(p) * distribution.pdf(p), 0, 1, epsabs=1e-11, limit=200)
    expected = binary_entropy(distribution.mean()) - expected
    assert dirichlet_mutual_information(np.array([alpha]))[0] == pytest.approx(expected, rel=1e-5)


def test_mutual_information_of_a_dirichlet_is_that_of_its_draws():
    alpha = np.array([[1.0, 2.0, 5.0, 1.5]])
    draws = np.random.default_rng(0).dirichlet(alpha[0], 200_000)[None]
    assert dirichlet_mutual_information(alpha)[0] == pytest.approx(mutual_information(draws)[0], rel=0.01)


def test_more_evidence_leaves_less_to_learn():
    scales = np.array([1.0, 10, 1e3, 1e6, 1e12])
    found = dirichlet_mutual_information(scales[:, None] * [[1.0, 2.0, 4.0]])
    assert (np.diff(found) < 0).all()
    assert (found >= 0).all()
    assert found[3] == pytest.approx((3 - 1) / (2 * 7e6), rel=1e-3)  # (K - 1) / 2 S


def test_vacuity():
    assert vacuity(np.ones((1, 9)))[0] == 1
    assert vacuity(np.array([[3.0, 1.0, 1.0, 5.0]]))[0] == pytest.approx(0.4)
    # DEAR's plateau: one class of 101 at the evidence of exp(10), the others without any.
    alpha = np.ones((1, 101))
    alpha[0, 3] += np.exp(10)
    assert vacuity(alpha)[0] == pytest.approx(0.0045645, abs=1e-7)


def test_every_score_that_a_method_has_by_hand():
    logits, alpha = np.array([[1.0, -2.0, 0.5]], np.float32), np.array([[4.0, 1.0, 3.0]], np.float32)
    found = uncertainties(logits, alpha / 8, alpha_NK=alpha)
    expected = {
        "vacuity": 3 / 8,
        "max_probability": 0.5,
        "entropy": -(0.5 * math.log(0.5) + 0.125 * math.log(0.125) + 0.375 * math.log(0.375)),
        "mutual_information": dirichlet_mutual_information(alpha)[0],
        "total_evidence": -5.0,
        "max_logit": -1.0,
        "energy": -math.log(math.exp(1) + math.exp(-2) + math.exp(0.5)),
    }
    assert list(found) == list(expected)
    for name, values in found.items():
        assert values.dtype == np.float64
        assert values.tolist() == pytest.approx([expected[name]], rel=1e-12), name


def test_scores_of_networks_without_evidence():
    logits, probabilities = np.zeros((2, 4)), np.full((2, 4), 0.25)
    assert list(uncertainties(logits, probabilities)) == ["max_probability", "entropy", "max_logit", "energy"]
    given = np.array([0.1, 0.2], np.float32)
    found = uncertainties(logits, probabilities, mutual_information_N=given)
    assert list(found) == ["max_probability", "entropy", "mutual_information", "max_logit", "energy"]
    assert np.array_equal(found["mutual_information"], given.astype(np.float64))


def test_extremes_stay_finite():
    logits = np.array([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [0.0, 0.0, 0.0]])
    probabilities = np.array([[1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3], [0.0, 0.5, 0.5]])
    alpha = np.array([[1e12, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0 + 1e-9, 1.0]])
    found = uncertainties(logits, probabilities, alpha_NK=alpha)
    for name, values in found.items():
        assert np.isfinite(values).all(), name
    assert found["energy"] == pytest.approx([-1e4, 1e4 - math.log(3), -math.log(3)])
    assert found["total_evidence"][2] == pytest.approx(-1e-9, rel=1e-6)


def test_larger_is_less_known():
    """Every score of a sure video is below that of one that the network knows nothing of."""
    evidence = np.array([[50.0, 0.0, 0.0, 0.0], [0.1, 0.1, 0.1, 0.1]])
    found = uncertainties(
        np.log(evidence + 1e-3), (evidence + 1) / (evidence.sum(1, keepdims=True) + 4), alpha_NK=evidence + 1
    )
    assert len(found) == 7
    for name, (sure, unsure) in found.items():
        assert sure < unsure, name
