# SPDX-License-Identifier: Apache-2.0
"""HSIC against its definition as sums over pairs, triples and quadruples of clips."""

from __future__ import annotations

import itertools
import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindvideo.losses.hsic import biased_hsic, median_variance, normalized_hsic, rbf_kernel, unbiased_hsic
from tests.test_losses_fewshot import finite_differences

pytestmark = pytest.mark.usefixtures("pynative")


def pair_of_features(num_clips: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Dependent ones, exact in float32."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num_clips, 5))
    y = x[:, :3] ** 2 + 0.5 * rng.standard_normal((num_clips, 3))
    return x.astype(np.float32).astype(np.float64), y.astype(np.float32).astype(np.float64)


def to_tensors(*arrays: np.ndarray) -> list[Tensor]:
    return [Tensor(a.astype(np.float32)) for a in arrays]


def kernel_oracle(x: np.ndarray, variance: float) -> np.ndarray:
    return np.array([[math.exp(-((a - b) @ (a - b)) / (2 * variance)) for b in x] for a in x])


def definition(kernel: np.ndarray, other: np.ndarray, distinct: bool) -> float:
    """The mean of k_ij l_ij + k_ij l_qr - 2 k_ij l_iq over quadruples, of different clips or of any."""
    n = len(kernel)
    quadruples = itertools.permutations(range(n), 4) if distinct else itertools.product(range(n), repeat=4)
    terms = [kernel[i, j] * (other[i, j] + other[q, r] - 2 * other[i, q]) for i, j, q, r in quadruples]
    return float(np.mean(terms))


def unbiased_oracle(x: np.ndarray, y: np.ndarray) -> float:
    return definition(kernel_oracle(x, x.shape[1]), kernel_oracle(y, y.shape[1]), distinct=True)


def biased_oracle(x: np.ndarray, y: np.ndarray) -> float:
    n = len(x)
    return (n / (n - 1)) ** 2 * definition(kernel_oracle(x, x.shape[1]), kernel_oracle(y, y.shape[1]), distinct=False)


def biased(x: Tensor, y: Tensor) -> Tensor:
    return biased_hsic(rbf_kernel(x), rbf_kernel(y))


def unbiased(x: Tensor, y: Tensor) -> Tensor:
    return unbiased_hsic(rbf_kernel(x), rbf_kernel(y))


@pytest.mark.parametrize(("hsic", "oracle"), [(biased, biased_oracle), (unbiased, unbiased_oracle)])
def test_estimators_and_gradients(hsic, oracle):
    x, y = pair_of_features(5)
    value, (of_x, of_y) = ms.value_and_grad(hsic, (0, 1))(*to_tensors(x, y))
    assert float(value) == pytest.approx(oracle(x, y), rel=1e-5)
    np.testing.assert_allclose(of_x.asnumpy(), finite_differences(lambda a: oracle(a, y), x), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(of_y.asnumpy(), finite_differences(lambda b: oracle(x, b), y), rtol=1e-3, atol=1e-6)
    assert float(ms.jit(hsic)(*to_tensors(x, y))) == pytest.approx(float(value), rel=1e-5)


def test_unscaled():
    kernels = [rbf_kernel(x) for x in to_tensors(*pair_of_features(7))]
    assert float(unbiased_hsic(*kernels, scaled=False)) == pytest.approx(28 * float(unbiased_hsic(*kernels)), rel=1e-6)


def test_what_stands_on_the_diagonal_is_no_matter_to_the_unbiased_one():
    kernel, other = [rbf_kernel(x) for x in to_tensors(*pair_of_features())]
    changed = kernel + Tensor(np.diag(np.arange(6)).astype(np.float32))
    assert float(unbiased_hsic(changed, other)) == pytest.approx(float(unbiased_hsic(kernel, other)), rel=1e-5)


def test_kernels_of_nearly_one_keep_their_digits():
    x, y = (1e-3 * a for a in pair_of_features())
    x, y = x.astype(np.float32).astype(np.float64), y.astype(np.float32).astype(np.float64)
    kernels = [np.expm1(-((a[:, None] - a) ** 2).sum(axis=2) / (2 * a.shape[1])) for a in (x, y)]
    assert float(unbiased(*to_tensors(x, y))) == pytest.approx(definition(*kernels, distinct=True), rel=1e-4)


def test_huge_features_keep_their_distances():
    """Such as evidence is; multiplied out in float32, these squares would lose the distances."""
    x = 22026.0 + np.random.default_rng(1).integers(0, 4, (6, 5))
    np.testing.assert_allclose(
        rbf_kernel(Tensor(x.astype(np.float32))).asnumpy() + 1, kernel_oracle(x, 5), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("num_clips", [1, 2, 3])
def test_few_clips_give_zero(num_clips):
    few = to_tensors(*pair_of_features(num_clips))
    for hsic in (biased, unbiased):
        value, gradient = ms.value_and_grad(hsic, 0)(*few)
        assert float(value) == 0.0
        assert not gradient.asnumpy().any()
    assert float(normalized_hsic(*few)) == 0.0


def median_oracle(x: np.ndarray) -> float:
    distances = sorted(((a - b) ** 2).sum() for a, b in itertools.combinations(x, 2))
    return distances[len(distances) // 2]


def normalized_oracle(x: np.ndarray, y: np.ndarray, variances: tuple[float, float]) -> float:
    k, m = kernel_oracle(x, variances[0]), kernel_oracle(y, variances[1])
    own = definition(k, k, distinct=False) * definition(m, m, distinct=False)
    return definition(k, m, distinct=False) / math.sqrt(own)


def test_normalized_and_gradient():
    x, y = pair_of_features(5, seed=2)
    variances = median_oracle(x), median_oracle(y)
    assert float(median_variance(to_tensors(x)[0])) == pytest.approx(variances[0], rel=1e-6)
    value, gradient = ms.value_and_grad(normalized_hsic, 0)(*to_tensors(x, y))
    assert float(value) == pytest.approx(normalized_oracle(x, y, variances), rel=1e-5)
    expected = finite_differences(lambda a: normalized_oracle(a, y, variances), x)
    np.testing.assert_allclose(gradient.asnumpy(), expected, rtol=1e-3, atol=1e-5)
    assert float(ms.jit(normalized_hsic)(*to_tensors(x, y))) == pytest.approx(float(value), rel=1e-5)


def test_normalized_is_one_for_the_same_and_the_same_at_any_scale():
    x, y = pair_of_features(8, seed=3)
    assert float(normalized_hsic(*to_tensors(x, 7 * x + 1))) == pytest.approx(1.0, rel=1e-5)
    value = float(normalized_hsic(*to_tensors(x, y)))
    assert 0 < value < 1
    assert float(normalized_hsic(*to_tensors(1000 * x, y / 1000))) == pytest.approx(value, rel=1e-4)


def test_normalized_of_equal_clips_is_zero():
    x, y = pair_of_features()
    value, gradient = ms.value_and_grad(normalized_hsic, 0)(*to_tensors(np.ones_like(x), y))
    assert float(value) == 0.0
    assert np.isfinite(gradient.asnumpy()).all()
