# SPDX-License-Identifier: Apache-2.0
"""Native softmax, dense layers, dropout and temporal shift against scipy, numpy and MindSpore's operators."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from scipy.special import softmax

from mindvideo import native
from mindvideo.native import operators, tokens
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
    layer = tokens.Softmax()
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


@pytest.mark.parametrize("shape", [(1, 1, 2, 3, 8), (2, 5, 3, 4, 16), (3, 2, 1, 1, 7)])
def test_shift_and_its_gradient(shape):
    x, dy = values(*shape), values(*shape)[::-1].copy()
    fold = shape[-1] // 3
    layer = operators.Shift(fold)
    expected, dx = x.copy(), dy.copy()
    for array, moved, back in ((expected, x, 1), (dx, dy, -1)):
        for first, step in ((0, back), (fold, -back)):
            part = slice(first, first + fold)
            array[..., part] = 0
            for frame in range(shape[1]):
                if 0 <= frame + step < shape[1]:
                    array[:, frame, ..., part] = moved[:, frame + step, ..., part]
    np.testing.assert_array_equal(layer(Tensor(x)).asnumpy(), expected)

    def weighted(x, dy):
        return (layer(x) * dy).sum()

    np.testing.assert_array_equal(ms.grad(weighted)(Tensor(x), Tensor(dy)).asnumpy(), dx)


@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(("shape", "out"), [((3, 5), 2), ((2, 3, 4, 17), 33), ((1, 1), 1), ((130, 96), 384)])
def test_dense_and_its_gradients(shape, out, has_bias):
    x, weight, bias = values(*shape), values(out, shape[-1]), values(out)
    dy = values(*shape[:-1], out, scale=0.5)
    layer = tokens.BiasedDense() if has_bias else tokens.Dense()
    given = [x, weight, bias] if has_bias else [x, weight]
    y = layer(*map(Tensor, given)).asnumpy()
    exact = x.astype(np.float64) @ weight.T + (bias if has_bias else 0)
    np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-5)

    def weighted(dy, *given):
        return (layer(*given) * dy).sum()

    found = ms.grad(weighted, tuple(range(1, len(given) + 1)))(Tensor(dy), *map(Tensor, given))
    rows, dy_rows = x.reshape(-1, shape[-1]).astype(np.float64), dy.reshape(-1, out).astype(np.float64)
    expected = [(dy_rows @ weight).reshape(shape), dy_rows.T @ rows, dy_rows.sum(0)]
    for gradient, wanted in zip(found, expected, strict=False):
        np.testing.assert_allclose(gradient.asnumpy(), wanted, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("fold", [0, 3])
def test_a_shift_of_no_or_too_many_channels_is_refused(fold):
    with pytest.raises(ValueError, match=rf"\[1, 2, 3, 3, 5\] does not fit a shift of {fold} channels"):
        operators.Shift(fold)(Tensor(values(1, 2, 3, 3, 5)))


def test_a_dense_layer_of_another_width_is_refused():
    with pytest.raises(ValueError, match=r"\[2, 3\] does not fit a dense layer of \[\[5, 4\]\]"):
        tokens.Dense()(Tensor(values(2, 3)), Tensor(values(5, 4)))
