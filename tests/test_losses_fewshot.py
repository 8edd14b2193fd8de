# SPDX-License-Identifier: Apache-2.0
"""Losses of episodes against float64 numpy; gradients against its finite differences."""

from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from scipy.special import digamma, gammaln, log_softmax
from scipy.stats import dirichlet

from mindvideo.losses.fewshot import (
    annealing_weight,
    classification_loss,
    episode_loss,
    evidential_loss,
    prototype_loss,
    relation_loss,
)

KNOWN = np.eye(3)[[0, 1, 2, 2, 1, 0]]
SOME_UNKNOWN = np.vstack([KNOWN, np.zeros((2, 3))])


def relation_oracle(scores: np.ndarray, target: np.ndarray) -> float:
    return float(((scores - target) ** 2).mean())


def prototype_oracle(logits: np.ndarray, target: np.ndarray) -> float:
    known = target.sum(axis=1) > 0
    return float(-log_softmax(logits, axis=1)[known][target[known] > 0].mean()) if known.any() else 0.0


def evidential_oracle(evidence: np.ndarray, target: np.ndarray, annealing: float = 1.0) -> float:
    total = 0.0
    for e, y in zip(evidence, target, strict=True):
        alpha = e + 1
        total += y @ (np.log(alpha.sum()) - np.log(alpha))
        wrong = (1 - y) * e + 1
        divergence = gammaln(wrong.sum()) - gammaln(wrong).sum() - gammaln(len(wrong))
        total += annealing * (divergence + (wrong - 1) @ (digamma(wrong) - digamma(wrong.sum())))
    return total / len(evidence)


def finite_differences(function: Callable[[np.ndarray], float], x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    gradient = np.empty_like(x)
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (function(up) - function(down)) / (2 * step)
    return gradient


def outputs(comparator: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Such as this comparator gives, exact in float32."""
    rng = np.random.default_rng(seed)
    drawn = {"relation": rng.random, "distance": rng.standard_normal, "evidential": rng.random}[comparator](shape)
    return drawn.astype(np.float32).astype(np.float64) * (1 if comparator == "relation" else 8)


@pytest.mark.parametrize(
    "target", [KNOWN, SOME_UNKNOWN, np.zeros((4, 3))], ids=["known", "some unknown", "all unknown"]
)
@pytest.mark.parametrize(
    ("comparator", "loss", "oracle"),
    [
        ("relation", relation_loss, relation_oracle),
        ("distance", prototype_loss, prototype_oracle),
        ("evidential", evidential_loss, evidential_oracle),
    ],
)
def test_losses_and_gradients(comparator, loss, oracle, target):
    more = (0.3,) if comparator == "evidential" else ()
    x = outputs(comparator, target.shape)
    tensors = Tensor(x.astype(np.float32)), Tensor(target.astype(np.float32))
    value, gradient = ms.value_and_grad(loss, 0)(*tensors, *more)
    assert float(value) == pytest.approx(oracle(x, target, *more), rel=1e-5, abs=1e-6)
    expected = finite_differences(lambda x: oracle(x, target, *more), x)
    np.testing.assert_allclose(gradient.asnumpy(), expected, rtol=1e-4, atol=1e-6)
    assert float(episode_loss(comparator, *tensors, *more)) == pytest.approx(float(value), rel=1e-6)


def test_a_constant_fifth_costs_what_the_paper_starts_from():
    target = Tensor(np.eye(5, dtype=np.float32))
    assert float(relation_loss(Tensor(np.full((5, 5), 0.2, np.float32)), target)) == pytest.approx(0.16, rel=1e-6)


def test_no_evidence_costs_what_guessing_does():
    target = np.eye(5, dtype=np.float32)
    loss = evidential_loss(Tensor(np.zeros((5, 5), np.float32)), Tensor(target), 1.0)
    assert float(loss) == pytest.approx(np.log(5), rel=1e-6)


def test_wrong_evidence_costs_its_divergence_from_the_uniform_distribution():
    """The closed form against a mean over draws from the distribution itself."""
    evidence = np.array([[0.5, 2.0, 1.0]])
    draws = dirichlet(evidence[0] + 1).rvs(200_000, random_state=0)
    divergence = (dirichlet(evidence[0] + 1).logpdf(draws.T) - dirichlet(np.ones(3)).logpdf(draws.T)).mean()
    loss = evidential_loss(Tensor(evidence.astype(np.float32)), Tensor(np.zeros((1, 3), np.float32)), 1.0)
    assert float(loss) == pytest.approx(divergence, abs=0.01)


@pytest.mark.parametrize("size", [0.0, 1e-6, 1e2, 1e4])
def test_any_amount_of_evidence_has_a_finite_loss_and_gradient(size):
    evidence = np.full((2, 3), size, np.float32)
    value, gradient = ms.value_and_grad(evidential_loss, 0)(Tensor(evidence), Tensor(SOME_UNKNOWN[5:7]), 1.0)
    assert float(value) == pytest.approx(evidential_oracle(evidence.astype(float), SOME_UNKNOWN[5:7]), rel=1e-2)
    assert np.isfinite(gradient.asnumpy()).all()


def test_wrong_evidence_weighs_more_as_training_goes_on():
    assert [annealing_weight(progress) for progress in (0, 0.5, 1)] == pytest.approx([0.01, 0.1, 1])


def test_classification_loss_is_the_cross_entropy():
    classes = np.random.default_rng(1).integers(4, size=8)
    logits = outputs("distance", (8, 4), seed=1)
    tensors = Tensor(logits.astype(np.float32)), Tensor(classes.astype(np.int32))
    loss, gradient = ms.value_and_grad(classification_loss, 0)(*tensors)
    assert float(loss) == pytest.approx(prototype_oracle(logits, np.eye(4)[classes]), rel=1e-5)
    expected = finite_differences(lambda x: prototype_oracle(x, np.eye(4)[classes]), logits)
    np.testing.assert_allclose(gradient.asnumpy(), expected, rtol=1e-4, atol=1e-6)
