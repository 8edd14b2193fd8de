# SPDX-License-Identifier: Apache-2.0
"""Losses of episodes against float64 numpy, gradients included."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from scipy.special import log_softmax, softmax

from mindvideo.losses.fewshot import classification_loss, relation_loss


def test_relation_loss_is_the_mean_squared_error():
    rng = np.random.default_rng(0)
    scores, target = rng.random((6, 3)), np.eye(3)[[0, 1, 2, 2, 1, 0]]
    tensors = Tensor(scores.astype(np.float32)), Tensor(target.astype(np.float32))
    loss, gradient = ms.value_and_grad(relation_loss, 0)(*tensors)
    assert float(loss) == pytest.approx(((scores - target) ** 2).mean(), rel=1e-6)
    np.testing.assert_allclose(gradient.asnumpy(), 2 * (scores - target) / scores.size, rtol=1e-5, atol=1e-7)


def test_a_constant_fifth_costs_what_the_paper_starts_from():
    target = Tensor(np.eye(5, dtype=np.float32))
    assert float(relation_loss(Tensor(np.full((5, 5), 0.2, np.float32)), target)) == pytest.approx(0.16, rel=1e-6)


def test_classification_loss_is_the_cross_entropy():
    rng = np.random.default_rng(1)
    logits, classes = 5 * rng.standard_normal((8, 4)), rng.integers(4, size=8)
    tensors = Tensor(logits.astype(np.float32)), Tensor(classes.astype(np.int32))
    loss, gradient = ms.value_and_grad(classification_loss, 0)(*tensors)
    expected = -log_softmax(logits, axis=1)[np.arange(8), classes].mean()
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(
        gradient.asnumpy(), (softmax(logits, axis=1) - np.eye(4)[classes]) / 8, rtol=1e-4, atol=1e-6
    )
