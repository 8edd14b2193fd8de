# SPDX-License-Identifier: Apache-2.0
"""Heads against numpy and scipy."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from scipy.special import logsumexp
from scipy.stats import norm

from mindvideo.errors import InputError
from mindvideo.heads import BayesianHead, LinearHead, ReciprocalHead, log_posterior, log_prior, make_head
from tests.test_losses_fewshot import finite_differences

pytestmark = pytest.mark.usefixtures("pynative")

KINDS = ["linear", "evidential", "bayesian", "rpl", "gcpl", "rpl_euclidean", "gcpl_euclidean"]
LABELS = np.array([0, 2, 1, 2])


def vectors_BSC(segments: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((4, segments, 6)).astype(np.float32)


def outputs_of(head: nn.Cell, vectors: np.ndarray) -> tuple[np.ndarray, float]:
    logits, penalty = head.outputs(Tensor(vectors), Tensor(LABELS.astype(np.int32)), seeded(3))
    return logits.asnumpy(), float(penalty)


@pytest.mark.parametrize("kind", KINDS)
def test_any_head_gives_logits_and_a_penalty(kind):
    head = make_head(kind, 6, 3, dropout=0.0)
    assert head(Tensor(vectors_BSC(2))).shape == (4, 3)
    logits, penalty = outputs_of(head, vectors_BSC(2))
    assert logits.shape == (4, 3)
    assert (penalty == 0.0) == (kind in ("linear", "evidential"))


def test_an_unknown_head():
    with pytest.raises(
        InputError, match=r"unknown head 'baysian', did you mean 'bayesian'\? Known: linear, evidential"
    ):
        make_head("baysian", 6, 3)


def test_linear():
    ms.set_seed(0)
    head = make_head("evidential", 400, 101, dropout=0.0)
    assert isinstance(head, LinearHead)
    weight = head.fc.weight.asnumpy()
    assert weight.std() == pytest.approx(0.01, rel=0.02)
    assert not head.fc.bias.asnumpy().any()
    vectors = np.random.default_rng(0).standard_normal((2, 8, 400)).astype(np.float32)
    expected = (vectors @ weight.T).mean(axis=1)
    np.testing.assert_allclose(head.set_train(True)(Tensor(vectors)).asnumpy(), expected, rtol=1e-4, atol=1e-5)


def seeded(seed: int) -> Tensor:
    return Tensor(np.uint32(seed))


@pytest.mark.parametrize(("kind", "segments"), [("linear", 3), ("rpl", 1)])
def test_dropout_is_of_the_features_and_by_the_seed_alone(kind, segments):
    head, vectors = make_head(kind, 6, 3, dropout=0.4), Tensor(vectors_BSC(segments))
    plain = head(vectors).asnumpy()
    drawn = np.stack([head.sample(vectors, seeded(seed)).asnumpy() for seed in range(60)])
    assert len(np.unique(drawn[:, 0, 0])) > 10
    # The mean over draws is the logits without dropout.
    np.testing.assert_allclose(drawn.mean(axis=0), plain, atol=5 * drawn.std(axis=0).max() / np.sqrt(60))
    logits, _ = head.outputs(vectors, Tensor(LABELS.astype(np.int32)), seeded(7))
    np.testing.assert_array_equal(logits.asnumpy(), drawn[7])
    dropped = head.dropout(vectors, seeded(7))
    np.testing.assert_array_equal(head(dropped).asnumpy(), drawn[7])
    np.testing.assert_array_equal(head(vectors).asnumpy(), plain)


def bayesian_head() -> BayesianHead:
    ms.set_seed(2)
    return BayesianHead(6, 3)


def test_bayesian_initial_weights():
    ms.set_seed(3)
    head = BayesianHead(500, 100)
    for mu, rho in ((head.weight_mu, head.weight_rho), (head.bias_mu, head.bias_rho)):
        assert np.abs(mu.asnumpy()).max() <= 0.2
        assert -5 <= rho.asnumpy().min() < rho.asnumpy().max() <= -4
    assert head.weight_mu.asnumpy().std() == pytest.approx(0.4 / np.sqrt(12), rel=0.01)
    assert head.weight_rho.asnumpy().mean() == pytest.approx(-4.5, abs=0.01)


def test_the_prior_is_a_mixture_that_does_not_vanish_far_away():
    weights = np.array([0.0, 1e-3, -0.02, 0.3, -1.0, 14.0, -40.0], np.float32)
    w = weights.astype(np.float64)
    parts = np.stack([norm.logpdf(w), norm.logpdf(w, scale=np.exp(-6))]) + np.log(0.5)
    value, gradient = ms.value_and_grad(log_prior)(Tensor(weights))
    assert float(value) == pytest.approx(logsumexp(parts, axis=0).sum(), rel=1e-6)
    share = np.exp(parts - logsumexp(parts, axis=0))
    expected = -w * (share[0] + share[1] * np.exp(12))
    np.testing.assert_allclose(gradient.asnumpy(), expected, rtol=1e-3, atol=1e-5)


def test_the_posterior_is_normal():
    rng = np.random.default_rng(4)
    rho, noise = rng.uniform(-5, -4, (3, 6)), rng.standard_normal((2, 3, 6))
    sigma = np.log1p(np.exp(rho))
    expected = norm.logpdf(sigma * noise, scale=sigma).sum()
    actual = log_posterior(Tensor(rho.astype(np.float32)), Tensor(noise.astype(np.float32)))
    assert float(actual) == pytest.approx(expected, rel=1e-5)


def test_bayesian_logits_and_penalty_with_given_noise():
    head, vectors = bayesian_head(), vectors_BSC(2)
    noise = np.random.default_rng(5).standard_normal((4, 3, 7)).astype(np.float32)
    p = {parameter.name: parameter.asnumpy().astype(np.float64) for parameter in head.get_parameters()}
    weight = p["weight_mu"] + np.log1p(np.exp(p["weight_rho"])) * noise[..., :-1]
    bias = p["bias_mu"] + np.log1p(np.exp(p["bias_rho"])) * noise[..., -1]
    expected = np.einsum("bsc,pkc->pbk", vectors, weight) / 2 + bias[:, None]
    logits = head.logits_of(Tensor(vectors), Tensor(noise))
    np.testing.assert_allclose(logits.asnumpy(), expected, rtol=1e-4, atol=1e-5)
    penalties = [float(head.penalty_of(Tensor(noise[i : i + 1]))) for i in range(4)]
    assert float(head.penalty_of(Tensor(noise))) == pytest.approx(np.mean(penalties), rel=1e-5)


def test_bayesian_samples_spread_as_the_weights_do():
    head, vectors = bayesian_head(), vectors_BSC()
    sample = ms.jit(head.sample)
    samples = np.stack([sample(Tensor(vectors), seeded(seed)).asnumpy() for seed in range(400)])
    sigma = np.log1p(np.exp(head.weight_rho.asnumpy()))
    sigma_bias = np.log1p(np.exp(head.bias_rho.asnumpy()))
    expected = np.sqrt(vectors[:, 0] ** 2 @ sigma.T**2 + sigma_bias**2)
    np.testing.assert_allclose(samples.std(axis=0), expected, rtol=0.2)
    np.testing.assert_allclose(samples.mean(axis=0), at_mu(head, vectors), atol=5 * expected.max() / 20)


def at_mu(head: BayesianHead, vectors: np.ndarray) -> np.ndarray:
    return vectors[:, 0] @ head.weight_mu.asnumpy().T + head.bias_mu.asnumpy()


def test_a_bayesian_test_averages_a_draw_with_mu_which_halves_its_distance():
    head, vectors = bayesian_head(), vectors_BSC()
    head.draws = 1
    one, mean = head.sample(Tensor(vectors), head.test_seed).asnumpy(), head(Tensor(vectors)).asnumpy()
    np.testing.assert_allclose(mean, (one + at_mu(head, vectors)) / 2, atol=1e-6)
    assert np.abs(one - mean).max() > 1e-3


@pytest.mark.parametrize("mode", [ms.PYNATIVE_MODE, ms.GRAPH_MODE])
def test_bayesian_draws_follow_from_the_seed(mode):
    ms.set_context(mode=mode)
    head, vectors, classes = bayesian_head(), Tensor(vectors_BSC()), Tensor(LABELS.astype(np.int32))
    runs = [[head.outputs(vectors, classes, seeded(seed))[0].asnumpy() for seed in (1, 2)] for _ in range(2)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0][0] != runs[0][1]).any()
    np.testing.assert_array_equal(*(head(vectors).asnumpy() for _ in range(2)))


def test_a_compiled_bayesian_step_draws_by_the_seed():
    head = bayesian_head()

    def loss_of(x, labels, seed):
        return sum_of(head.outputs(x, labels, seed))

    value_and_grad = ms.value_and_grad(loss_of, None, head.trainable_params())

    @ms.jit
    def step(x, labels, seed):
        return value_and_grad(x, labels, seed)

    inputs = Tensor(vectors_BSC()), Tensor(LABELS.astype(np.int32))
    (first, gradients), (second, _) = (step(*inputs, seeded(seed)) for seed in (1, 2))
    assert float(first) != float(second)
    assert all(np.isfinite(g.asnumpy()).all() and g.asnumpy().any() for g in gradients)


def sum_of(outputs: tuple[Tensor, Tensor]) -> Tensor:
    logits, penalty = outputs
    return ops.square(logits).sum() + penalty


def reciprocal_oracle(features: np.ndarray, centers: np.ndarray, radius: float, kind: str) -> tuple[np.ndarray, float]:
    own = ((features - centers[LABELS]) ** 2).mean(axis=1)
    if kind.endswith("euclidean"):
        distance = ((features[:, None] - centers) ** 2).mean(axis=2)
        penalty = ((own - radius) ** 2).mean()
    else:
        distance, penalty = features @ centers.T, ((features - radius) ** 2).mean() / 2
    if kind.startswith("gcpl"):
        return -distance, 0.1 * own.mean() / 2
    return distance, 0.1 * penalty


@pytest.mark.parametrize("kind", KINDS[3:])
def test_reciprocal_points_and_gradients(kind):
    head = make_head(kind, 6, 3, dropout=0.0)
    head.centers.set_data(Tensor(np.random.default_rng(1).normal(0, 0.7, (3, 6)), ms.float32))
    assert isinstance(head, ReciprocalHead)
    if head.radius is not None:
        assert float(head.radius) == 0.0
        head.radius.set_data(Tensor([0.4], ms.float32))
    features, centers = vectors_BSC()[:, 0].astype(np.float64), head.centers.asnumpy().astype(np.float64)
    logits, penalty = outputs_of(head, vectors_BSC())
    expected, its_penalty = reciprocal_oracle(features, centers, 0.4, kind)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    assert penalty == pytest.approx(its_penalty, rel=1e-5)

    def loss_of(x):
        return sum_of(head.outputs(x, Tensor(LABELS.astype(np.int32))))

    def oracle(features, centers):
        logits, penalty = reciprocal_oracle(features, centers, 0.4, kind)
        return (logits**2).sum() + penalty

    of_vectors, grads = ms.grad(loss_of, 0, head.trainable_params())(Tensor(vectors_BSC()))
    np.testing.assert_allclose(
        of_vectors.asnumpy()[:, 0], finite_differences(lambda f: oracle(f, centers), features), rtol=1e-3, atol=1e-5
    )
    np.testing.assert_allclose(
        grads[0].asnumpy(), finite_differences(lambda c: oracle(features, c), centers), rtol=1e-3, atol=1e-5
    )
