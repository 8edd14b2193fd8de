# SPDX-License-Identifier: Apache-2.0
"""The shared parts against plain numpy: what inference folds together must equal its parts, gradients included."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

from mindvideo.models.layers import ConvNorm, MaxPool, enter, leave


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def conv_norm(*, residual, relu, bias):
    """A part with random weights and statistics."""
    part = ConvNorm(
        3, 4, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1), bias=bias, relu=relu, residual=residual, momentum=0.3
    )
    for i, parameter in enumerate(part.get_parameters()):
        parameter.set_data(Tensor(np.abs(normal(*parameter.shape, seed=i + 1)) + 0.1))
    return part


def reference(part, x, residual, mean=None, variance=None):
    """What the part should give, in float64 by its definition."""
    weight = part.conv.weight.asnumpy().astype(np.float64)
    padded = np.pad(x.astype(np.float64), [(0, 0)] * 3 + [(1, 1)] * 2)
    height, width = (x.shape[3] + 1) // 2, (x.shape[4] + 1) // 2
    taps = [
        np.einsum("bcthw,oc->bothw", padded[..., i : i + 2 * height : 2, j : j + 2 * width : 2], weight[:, :, 0, i, j])
        for i in range(3)
        for j in range(3)
    ]

    def wide(vector):
        return np.asarray(vector, np.float64).reshape(1, -1, 1, 1, 1)

    y = sum(taps) + (0.0 if part.conv.bias is None else wide(part.conv.bias.asnumpy()))
    statistics = y.mean((0, 2, 3, 4)), y.var((0, 2, 3, 4))
    mean, variance = statistics if mean is None else (mean, variance)
    gamma, beta = part.norm.gamma.asnumpy(), part.norm.beta.asnumpy()
    z = (y - wide(mean)) / np.sqrt(wide(variance) + part.norm.eps) * wide(gamma) + wide(beta)
    z = z if residual is None else z + residual
    return np.maximum(z, 0) if part.norm.relu else z, statistics, y.size // y.shape[1]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_conv_norm(with_residual, relu, bias):
    part = conv_norm(residual=with_residual, relu=relu, bias=bias)
    x = normal(2, 3, 3, 7, 6)
    residual = normal(2, 4, 3, 4, 3, seed=9) if with_residual else None
    mean, variance = (p.asnumpy().copy() for p in (part.norm.moving_mean, part.norm.moving_variance))
    inputs = [enter(Tensor(a)) for a in (x, residual) if a is not None]

    part.set_train(False)
    want, _, _ = reference(part, x, residual, mean, variance)
    np.testing.assert_allclose(leave(part(*inputs)).asnumpy(), want, atol=2e-5)
    np.testing.assert_array_equal(part.norm.moving_mean.asnumpy(), mean)

    part.set_train()
    want, (batch_mean, batch_variance), count = reference(part, x, residual)
    np.testing.assert_allclose(leave(part(*inputs)).asnumpy(), want, atol=2e-5)
    np.testing.assert_allclose(part.norm.moving_mean.asnumpy(), 0.7 * mean + 0.3 * batch_mean, atol=1e-5)
    unbiased = batch_variance * count / (count - 1)
    np.testing.assert_allclose(part.norm.moving_variance.asnumpy(), 0.7 * variance + 0.3 * unbiased, rtol=1e-5)


@pytest.mark.parametrize("with_residual", [False, True])
def test_folding_keeps_the_gradients(with_residual):
    """Of the input, the residual and every parameter, at inference: against the parts one by one."""
    part = conv_norm(residual=with_residual, relu=True, bias=True)
    part.set_train(False)
    x, residual = Tensor(normal(2, 3, 3, 7, 6)), Tensor(normal(2, 4, 3, 4, 3, seed=9))
    r = Tensor(normal(2, 4, 3, 4, 3, seed=10))
    norm = part.norm

    def one_by_one(x, residual):
        y = leave(part.conv(enter(x)))
        wide = (1, -1, 1, 1, 1)
        scale = norm.gamma / ops.sqrt(norm.moving_variance + norm.eps)
        y = (y - norm.moving_mean.reshape(wide)) * scale.reshape(wide) + norm.beta.reshape(wide)
        return (ops.relu(y + residual if with_residual else y) * r).sum()

    def folded(x, residual):
        y = part(enter(x), enter(residual)) if with_residual else part(enter(x))
        return (leave(y) * r).sum()

    weights = part.trainable_params()
    assert len(weights) == 4
    got, want = (ms.value_and_grad(f, (0, 1), weights)(x, residual) for f in (folded, one_by_one))
    np.testing.assert_allclose(got[0].asnumpy(), want[0].asnumpy(), rtol=1e-5)
    for a, b in zip((*got[1][0], *got[1][1]), (*want[1][0], *want[1][1]), strict=True):
        np.testing.assert_allclose(a.asnumpy(), b.asnumpy(), atol=2e-5 * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize(
    ("window", "stride", "padding"),
    [((2, 2), (), ()), ((3, 3), (2, 2), (1, 1)), ((2, 1, 1), (), ()), ((1, 3, 3), (2, 2, 2), (0, 1, 1))],
)
def test_max_pool(window, stride, padding):
    x = normal(2, 3, *(5, 8, 7)[-len(window) :])
    pads = padding or (0,) * len(window)
    padded = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in pads)], constant_values=-np.inf)
    axes = tuple(range(2, x.ndim))
    seen = np.lib.stride_tricks.sliding_window_view(padded, window, axes)
    want = seen[(slice(None), slice(None), *(slice(None, None, s) for s in stride or window))]
    got = leave(MaxPool(window, stride=stride, padding=padding)(enter(Tensor(x)))).asnumpy()
    np.testing.assert_array_equal(got, want.max(axis=tuple(range(-len(window), 0))))
