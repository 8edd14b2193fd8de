# SPDX-License-Identifier: Apache-2.0
"""Native softmax against scipy, and native dropout against MindSpore's operators, bit for bit."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from scipy.special import softmax

from mindvideo import native
from mindvideo.native import operators
from mindvideo.noise import Dropout

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason())


def values(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(len(shape)).standard_normal(shape)).astype(np.float32)


@pytest.fixture(params=[ms.PYNATIVE_MODE, ms.GRAPH_MODE], ids=["pynative", "graph"], autouse=True)
def mode(request):
    ms.set_context(mode=request.param)
    yield
    ms.set_context(mode=ms.GRAPH_MODE)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 4, 5, 33), (2, 3, 100)])
def test_softmax_and_its_gradient(shape):
    x, dy = values(*shape, scale=10.0), values(*shape[:-1], shape[-1])[::-1].copy()
    layer = operators.Softmax()
    y = layer(Tensor(x)).asnumpy()
    expected = softmax(x.astype(np.float64), axis=-1)
    np.testing.assert_allclose(y, expected, rtol=2e-6, atol=1e-7)

    def weighted(x, dy):
        return (layer(x) * dy).sum()

    dx = ms.grad(weighted)(Tensor(x), Tensor(dy)).asnumpy()
    inner = (expected * dy).sum(-1, keepdims=True)
    np.testing.assert_allclose(dx, expected * (dy - inner), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.875])
@pytest.mark.parametrize("shape", [(7,), (3, 50, 401)])
def test_dropout_and_its_gradient_are_those_of_mindspores_operators(shape, p):
    x, dy, seed = Tensor(values(*shape)), Tensor(values(*shape) ** 2), Tensor(np.uint32(2**32 - 5))
    layer = Dropout(p, stream=3)
    with native.set_aside():
        plain = Dropout(p, stream=3)
    assert layer.native is not None
    assert plain.native is None
    np.testing.assert_array_equal(layer(x, seed).asnumpy(), plain(x, seed).asnumpy())

    def gradient(dropout):
        def weighted(x, dy):
            return (dropout(x, seed) * dy).sum()

        return ms.grad(weighted)(x, dy).asnumpy()

    np.testing.assert_allclose(gradient(layer), gradient(plain), rtol=1e-6)
    assert 0 < (gradient(layer) == 0).mean() < 1
