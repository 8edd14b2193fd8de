# SPDX-License-Identifier: Apache-2.0
"""Random numbers from a seed: the very ones of the hash, evenly or normally distributed, others by seed and stream."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from scipy import stats

from mindvideo.noise import Dropout, StandardNormal, Uniform


@pytest.fixture(params=[ms.PYNATIVE_MODE, ms.GRAPH_MODE], ids=["pynative", "graph"])
def mode(request):
    ms.set_context(mode=request.param)
    yield
    ms.set_context(mode=ms.GRAPH_MODE)


def seeded(seed: int) -> Tensor:
    return Tensor(np.uint32(seed))


def hashed(seed: int, stream: int, size: int) -> np.ndarray:
    """Wellons' lowbias32 of seed, stream and place, as fractions of 24 bits."""
    x = np.arange(size, dtype=np.uint32) + np.uint32(seed) + np.uint32(stream * 0x9E3779B9 % 2**32)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return (x >> np.uint32(8)) / 2.0**24


@pytest.mark.usefixtures("mode")
def test_uniform_numbers_are_those_of_the_hash():
    for seed, stream in ((0, 0), (77, 3), (2**32 - 1, 6)):
        found = Uniform(stream)(seeded(seed), 1000).asnumpy()
        np.testing.assert_array_equal(found, hashed(seed, stream, 1000).astype(np.float32))
        assert 0 <= found.min() < found.max() < 1


def test_uniform_numbers_are_even_and_independent():
    numbers = {(seed, stream): Uniform(stream)(seeded(seed), 100_000).asnumpy() for seed in (1, 2) for stream in (0, 1)}
    for values in numbers.values():
        assert stats.kstest(values, "uniform").pvalue > 0.01
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.01
    for (one, first), (other, second) in [(a, b) for a in numbers.items() for b in numbers.items() if a[0] < b[0]]:
        assert abs(np.corrcoef(first, second)[0, 1]) < 0.015, (one, other)


@pytest.mark.usefixtures("mode")
def test_normal_numbers():
    layer = StandardNormal(1)
    values = layer(seeded(5), (2, 250, 200)).asnumpy()
    assert values.shape == (2, 250, 200)
    u, v = hashed(5, 1, 100_000), hashed(5, 2, 100_000)
    expected = np.sqrt(-2 * np.log1p(-u)) * np.cos(2 * np.pi * v)
    np.testing.assert_allclose(values.ravel(), expected, atol=2e-5)
    assert stats.kstest(values.ravel(), "norm").pvalue > 0.01
    np.testing.assert_array_equal(layer(seeded(5), (2, 250, 200)).asnumpy(), values)
    assert abs(np.corrcoef(layer(seeded(6), (100_000,)).asnumpy(), values.ravel())[0, 1]) < 0.015


@pytest.mark.usefixtures("mode")
def test_dropout_is_by_the_seed_alone():
    x = np.random.default_rng(0).uniform(1, 2, (40, 50)).astype(np.float32)
    layer = Dropout(0.3, stream=3)
    np.testing.assert_array_equal(layer(Tensor(x)).asnumpy(), x)
    dropped = layer(Tensor(x), seeded(77)).asnumpy()
    kept = (hashed(77, 3, 2000) >= 0.3).reshape(40, 50)
    np.testing.assert_allclose(dropped, np.where(kept, x / 0.7, 0), rtol=1e-6)
    np.testing.assert_array_equal(layer(Tensor(x), seeded(77)).asnumpy(), dropped)
    assert (layer(Tensor(x), seeded(78)).asnumpy() != dropped).any()
    np.testing.assert_array_equal(Dropout(0.0, stream=3)(Tensor(x), seeded(77)).asnumpy(), x)


@pytest.mark.usefixtures("mode")
def test_the_gradient_of_dropout_is_its_mask():
    layer, x = Dropout(0.5, stream=0), Tensor(np.ones((3, 8), np.float32))

    def total(x: Tensor) -> Tensor:
        return layer(x, seeded_4).sum()

    seeded_4 = seeded(4)
    slope = ms.grad(total)(x).asnumpy()
    np.testing.assert_array_equal(slope, layer(x, seeded(4)).asnumpy())
    assert set(np.unique(slope)) == {0, 2}
