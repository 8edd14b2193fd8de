# SPDX-License-Identifier: Apache-2.0
"""What attacks see of MindSpore networks: losses and gradients against float64 differences, draws, batches, weights."""

from __future__ import annotations

import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from mindvideo.attacks import LOSSES, Averaged, Network, Split
from mindvideo.attacks.target import Target
from mindvideo.errors import InputError
from tests.attacked import Linear, Noisy, Small, samples

CLASSES = 5


def in_float64(loss: str, logits_NK: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The losses by their formulas, `[N]`."""
    log_NK = logits_NK - np.log(np.exp(logits_NK).sum(axis=1, keepdims=True))
    losses = []
    for z, log, label in zip(logits_NK, log_NK, labels, strict=True):
        ranked = np.sort(z)[::-1]
        if loss == "cross_entropy":
            losses.append(-log[label])
        elif loss == "kl":
            losses.append((label * (np.log(label) - log)).sum())
        elif loss == "targeted_dlr":
            losses.append((z[label[1]] - z[label[0]]) / (ranked[0] - (ranked[2] + ranked[3]) / 2))
        else:
            margin = np.delete(z, label).max() - z[label]
            losses.append(margin if loss == "margin" else margin / (ranked[0] - ranked[2]))
    return np.array(losses)


def labels_for(loss: str, count: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    if loss == "kl":
        return rng.dirichlet(np.ones(CLASSES), count).astype(np.float32)
    labels_N = rng.integers(CLASSES, size=count)
    return np.stack([labels_N, (labels_N + 1) % CLASSES], axis=1) if loss == "targeted_dlr" else labels_N


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shape", [(2, 3, 2), (2, 2, 3, 1)])
def test_losses_and_gradients(loss, shape):
    """A batch of 4 for 6 samples: the last is filled up."""
    net, x = Small(12, CLASSES), samples(6, *shape)
    labels = labels_for(loss, len(x))
    losses, gradient, logits = Network(net, batch=4).gradient(x, labels, loss)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(logits, net.in_float64(exact), atol=1e-5)
    np.testing.assert_allclose(losses, in_float64(loss, net.in_float64(exact), labels), atol=2e-5, rtol=2e-5)
    step = 1e-6
    for place in np.ndindex(shape):
        up, down = exact.copy(), exact.copy()
        up[(slice(None), *place)] += step
        down[(slice(None), *place)] -= step
        ends = [in_float64(loss, net.in_float64(end), labels) for end in (up, down)]
        np.testing.assert_allclose(
            gradient[(slice(None), *place)], (ends[0] - ends[1]) / (2 * step), atol=1e-4, rtol=1e-4
        )


@pytest.mark.usefixtures("pynative")
def test_large_logits_have_finite_losses():
    net = Small(12, CLASSES, gain=100.0)
    for loss in LOSSES:
        losses, gradient, _ = Network(net, batch=6).gradient(samples(6, 12), labels_for(loss, 6), loss)
        assert np.isfinite(losses).all(), loss
        assert np.isfinite(gradient).all(), loss


def test_evaluation_mode_whatever_training_does():
    class WithDropout(nn.Cell):
        def __init__(self):
            super().__init__()
            self.inner, self.dropout = Small(12, CLASSES), nn.Dropout(p=0.5)

        def construct(self, x: Tensor) -> Tensor:
            return self.inner(self.dropout(x))

    net, x = WithDropout(), samples(4, 12)
    net.set_train(True)
    target = Network(net, batch=4)
    for _ in range(2):
        np.testing.assert_allclose(target.logits(x), net.inner.in_float64(x), atol=1e-5)
        np.testing.assert_allclose(target.gradient(x, labels_for("dlr", 4))[2], net.inner.in_float64(x), atol=1e-5)
        assert net.training
        assert net.dropout.training


@pytest.mark.parametrize("change", ["set_data", "assign"])
def test_new_weights_are_seen(change):
    net, x = Small(12, CLASSES), samples(4, 12)
    target, labels = Network(net, batch=4), labels_for("dlr", 4)
    before = target.logits(x), target.gradient(x, labels)
    weight = net.second.weight
    if change == "set_data":
        weight.set_data(Tensor(2.0 * weight.asnumpy()))
    else:
        ops.assign(weight, Tensor(2.0 * weight.asnumpy()))
    np.testing.assert_allclose(target.logits(x), net.in_float64(x), atol=2e-5)
    np.testing.assert_allclose(target.gradient(x, labels)[2], net.in_float64(x), atol=2e-5)
    assert np.abs(target.gradient(x, labels)[1] - before[1][1]).max() > 0.01


@pytest.mark.usefixtures("pynative")
def test_draws():
    net, x = Noisy(Small(12, CLASSES), (12,)), samples(6, 12)
    fresh = Network(net, batch=2, seed=0)
    assert np.abs(fresh.logits(x) - fresh.logits(x)).max() > 0.1
    fresh.restart(0)
    again = fresh.logits(x)
    fresh.restart(0)
    np.testing.assert_array_equal(fresh.gradient(x, labels_for("dlr", 6))[2], again)
    fresh.restart(0)
    np.testing.assert_array_equal(fresh.logits(x), again)
    fresh.restart(0, 1)
    assert np.abs(fresh.logits(x) - again).max() > 0.1
    np.testing.assert_array_equal(Network(net, batch=2, seed=4).logits(x), Network(net, batch=2, seed=4).logits(x))
    plain = Network(net.inner, batch=2)
    plain.restart(1)
    assert plain.logits(x).shape == (6, CLASSES)


@pytest.mark.usefixtures("pynative")
def test_averaged_over_draws():
    net, x = Noisy(Small(12, CLASSES), (12,)), samples(3, 12)
    labels = labels_for("cross_entropy", 3)
    one = Network(net, batch=3, seed=5)
    each = [one.gradient(x, labels) for _ in range(4)]
    losses, gradient, logits = Averaged(Network(net, batch=3, seed=5), 4).gradient(x, labels)
    np.testing.assert_allclose(losses, np.mean([e[0] for e in each], axis=0), rtol=1e-5)
    np.testing.assert_allclose(gradient, np.mean([e[1] for e in each], axis=0), atol=1e-5)
    exponentials = [np.exp(e[2]) for e in each]
    probabilities = np.mean([e / e.sum(axis=1, keepdims=True) for e in exponentials], axis=0)
    np.testing.assert_allclose(np.exp(logits), probabilities, atol=1e-5)
    np.testing.assert_allclose(np.exp(Averaged(Network(net, batch=3, seed=5), 4).logits(x)), probabilities, atol=1e-5)


def test_split_goes_by_one_and_is_judged_by_the_other():
    rng = np.random.default_rng(0)
    a, b = (Linear(rng.standard_normal((12, CLASSES))) for _ in range(2))
    x, labels = samples(3, 12), np.array([0, 1, 2])
    split: Target = Split(a, b)
    losses, gradient, logits = split.gradient(x, labels)
    np.testing.assert_array_equal(losses, a.gradient(x, labels)[0])
    np.testing.assert_array_equal(gradient, a.gradient(x, labels)[1])
    np.testing.assert_array_equal(logits, b.logits(x))
    np.testing.assert_array_equal(split.logits(x), b.logits(x))


@pytest.mark.usefixtures("pynative")
def test_mistakes():
    target, x = Network(Small(12, 3), batch=2), samples(2, 12)
    with pytest.raises(InputError, match="'hinge': allowed are cross_entropy"):
        target.gradient(x, np.array([0, 1]), "hinge")
    with pytest.raises(InputError, match="labels from 0 to 3: the network has 3 classes"):
        target.gradient(x, np.array([0, 3]))
    with pytest.raises(InputError, match="needs 3 classes or more"):
        Network(Small(12, 2), batch=2).gradient(x, np.array([0, 1]), "dlr")
    with pytest.raises(InputError, match="0 draws"):
        Averaged(target, 0)
    broken = Small(12, 3)
    broken.second.bias.set_data(Tensor(np.full(3, np.nan, np.float32)))
    with pytest.raises(InputError, match="logits are not finite"):
        Network(broken, batch=2).logits(x)
