# SPDX-License-Identifier: Apache-2.0
"""Learning rates in closed form, and the compiled step against Adam and SGD written in numpy."""

import math
from collections.abc import Callable

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from mindvideo.engine.optim import (
    SCHEDULES,
    learning_rates,
    make_adam,
    make_adamax,
    make_sgd,
    make_step,
    same_scale,
    tsm_scale,
)

X = np.array([[0.5, -1.0, 2.0], [1.5, 0.3, -0.7], [-0.2, 0.8, 0.1], [1.0, 1.0, 1.0]])
Y = np.array([[1.0, 0.0], [-1.0, 0.5], [0.2, 0.2], [3.0, -2.0]])
WEIGHT = np.array([[0.1, -0.2, 0.3], [0.4, 0.5, -0.6]])
BIAS = np.array([0.05, -0.05])
RATES = np.array([0.1, 0.05, 0.02])


def test_constant_rate():
    rates = learning_rates("constant", 0.3, 7)
    assert rates.dtype == np.float32
    assert rates.tolist() == [np.float32(0.3)] * 7


def test_step_rate():
    rates = learning_rates("step", 1.0, 10, decay_every=4, decay_factor=0.5)
    assert rates.tolist() == [1.0] * 4 + [0.5] * 4 + [0.25] * 2


def test_step_rate_by_default_is_that_of_arn():
    rates = learning_rates("step", 1e-3, 100_001)
    assert rates[[0, 49_999, 50_000, 99_999, 100_000]] == pytest.approx([1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4])


def test_cosine_rate():
    rates = learning_rates("cosine", 0.2, 8)
    assert rates == pytest.approx([0.1 * (1 + math.cos(math.pi * i / 8)) for i in range(8)])
    assert rates[0] == pytest.approx(0.2)
    assert rates[4] == pytest.approx(0.1)
    assert 0 < rates[7] < 0.01


def test_a_rate_that_is_held_changes_once_an_epoch():
    rates = learning_rates("cosine", 0.2, 12, hold=3)
    epochs = [0.1 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)]
    assert rates == pytest.approx(np.repeat(epochs, 3))


@pytest.mark.parametrize(("schedule", "at_5"), [("constant", 0.2), ("step", 0.02), ("cosine", 0.1)])
def test_warmup_rises_from_a_tenth_of_what_the_rate_would_be(schedule, at_5):
    settings = {"decay_every": 5, "decay_factor": 0.1, "hold": 5}
    plain = learning_rates(schedule, 0.2, 10, **settings)
    warm = learning_rates(schedule, 0.2, 10, warmup=6, **settings)
    factors = [0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0, 1.0, 1.0, 1.0]
    assert warm == pytest.approx(plain * factors)
    assert (warm[0], warm[5], warm[6]) == pytest.approx((0.02, 0.85 * at_5, at_5))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rates_never_rise_and_there_is_one_a_step(schedule):
    rates = learning_rates(schedule, 1e-2, 33, decay_every=10, decay_factor=0.1)
    assert rates.shape == (33,)
    assert np.all(np.diff(rates) <= 0)


def slopes(weights: list[np.ndarray], clip_norm: float = 0.0) -> tuple[float, list[np.ndarray]]:
    """The mean squared error of a dense layer, and its gradient, clipped by the global norm."""
    error = X @ weights[0].T + weights[1] - Y
    slope = 2 * error / error.size
    grads = [slope.T @ X, slope.sum(axis=0)]
    norm = math.sqrt(sum((g**2).sum() for g in grads))
    if 0 < clip_norm < norm:
        grads = [g * clip_norm / norm for g in grads]
    return float((error**2).mean()), grads


def numpy_adam(clip_norm: float, weight_decay: float) -> tuple[list[float], list[np.ndarray]]:
    """Losses and final weights in float64, of mean squared error under Kingma and Ba's algorithm 1."""
    weights = [WEIGHT.copy(), BIAS.copy()]
    first, second = [np.zeros_like(w) for w in weights], [np.zeros_like(w) for w in weights]
    losses = []
    for step, rate in enumerate(RATES, start=1):
        loss, grads = slopes(weights, clip_norm)
        losses.append(loss)
        for i, grad in enumerate(grads):
            grad = grad + weight_decay * weights[i]
            first[i] = 0.9 * first[i] + 0.1 * grad
            second[i] = 0.999 * second[i] + 0.001 * grad**2
            mean, square = first[i] / (1 - 0.9**step), second[i] / (1 - 0.999**step)
            weights[i] = weights[i] - rate * mean / (np.sqrt(square) + 1e-8)
    return losses, weights


def three_steps(clip_norm: float, weight_decay: float, compiled: bool = True) -> tuple[list[float], list[np.ndarray]]:
    """Losses and final weights of `make_step` with Adam, compiled or run line by line."""
    return three_steps_of(
        lambda model: make_adam([model], RATES.astype(np.float32), weight_decay=weight_decay), clip_norm, compiled
    )


def three_steps_of(
    make_optimizer: Callable[[nn.Cell], nn.Optimizer], clip_norm: float = 0.0, compiled: bool = True
) -> tuple[list[float], list[np.ndarray]]:
    """Losses and final weights of `make_step` on a dense layer."""
    model = nn.Dense(3, 2)
    model.weight.set_data(Tensor(WEIGHT, ms.float32))
    model.bias.set_data(Tensor(BIAS, ms.float32))

    def forward(x, y):
        output = model(x)
        return ((output - y) ** 2).mean(), output

    step = make_step(forward, make_optimizer(model), clip_norm=clip_norm)
    step = step if compiled else step.__wrapped__
    losses = []
    for _ in RATES:
        loss, _ = step(Tensor(X, ms.float32), Tensor(Y, ms.float32))
        losses.append(float(loss.asnumpy()))
    return losses, [model.weight.asnumpy(), model.bias.asnumpy()]


@pytest.fixture
def pynative():
    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield
    ms.set_context(mode=ms.GRAPH_MODE)


CASES = [(0.0, 0.0), (0.25, 0.0), (100.0, 0.0), (0.0, 0.1), (0.25, 0.1)]


@pytest.mark.parametrize(("clip_norm", "weight_decay"), CASES)
def test_three_steps_equal_adam_in_numpy(clip_norm, weight_decay):
    losses, weights = three_steps(clip_norm, weight_decay)
    expected_losses, expected_weights = numpy_adam(clip_norm, weight_decay)
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    for weight, expected in zip(weights, expected_weights, strict=True):
        assert np.allclose(weight, expected, rtol=1e-5, atol=1e-6)


def test_the_cases_differ():
    """The oracle's own cases would tell a step that ignores clipping or decay."""
    finals = [numpy_adam(*case)[1][0] for case in CASES]
    assert np.array_equal(finals[0], finals[2])  # a norm that is never reached clips nothing
    for a, b in [(0, 1), (0, 3), (1, 4), (3, 4)]:
        assert np.abs(finals[a] - finals[b]).max() > 1e-4


@pytest.mark.usefixtures("pynative")
@pytest.mark.parametrize(("clip_norm", "weight_decay"), CASES)
def test_the_compiled_step_equals_pynative(clip_norm, weight_decay):
    eager = three_steps(clip_norm, weight_decay, compiled=False)
    ms.set_context(mode=ms.GRAPH_MODE)
    graph = three_steps(clip_norm, weight_decay)
    assert graph[0] == pytest.approx(eager[0], rel=1e-6)
    for weight, expected in zip(graph[1], eager[1], strict=True):
        assert np.allclose(weight, expected, rtol=1e-6, atol=1e-7)


def test_the_second_value_is_that_before_the_update_of_all_models():
    body, head = nn.Dense(3, 2), nn.Dense(2, 1, has_bias=False)
    body.weight.set_data(Tensor(WEIGHT, ms.float32))
    body.bias.set_data(Tensor(BIAS, ms.float32))
    head.weight.set_data(Tensor([[1.0, -2.0]], ms.float32))
    head.update_parameters_name("head.")

    def forward(x):
        output = head(body(x))
        return output.sum(), output

    step = make_step(forward, make_adam([body, head], RATES.astype(np.float32)))
    loss, output = step(Tensor(X, ms.float32))
    expected = (X @ WEIGHT.T + BIAS) @ [[1.0], [-2.0]]
    assert np.allclose(output.asnumpy(), expected, atol=1e-6)
    assert float(loss.asnumpy()) == pytest.approx(expected.sum(), rel=1e-5)
    # Adam's first step is the rate against the gradient's sign.
    slopes = np.outer([1.0, -2.0], X.sum(axis=0)), (X @ WEIGHT.T + BIAS).sum(axis=0)[None]
    assert np.allclose(body.weight.asnumpy(), WEIGHT - RATES[0] * np.sign(slopes[0]), atol=1e-6)
    assert np.allclose(head.weight.asnumpy(), [[1.0, -2.0]] - RATES[0] * np.sign(slopes[1]), atol=1e-6)


def numpy_sgd(
    momentum: float, nesterov: bool, weight_decay: float, scale: Callable[[str], tuple[float, float]]
) -> tuple[list[float], list[np.ndarray]]:
    """Losses and final weights in float64 under SGD as PyTorch documents it."""
    weights, losses = [WEIGHT.copy(), BIAS.copy()], []
    velocities = [np.zeros_like(w) for w in weights]
    for rate in RATES:
        loss, grads = slopes(weights)
        losses.append(loss)
        for i, name in enumerate(("weight", "bias")):
            of_rate, of_decay = scale(name)
            grad = grads[i] + of_decay * weight_decay * weights[i]
            velocities[i] = momentum * velocities[i] + grad
            weights[i] = weights[i] - of_rate * rate * (grad + momentum * velocities[i] if nesterov else velocities[i])
    return losses, weights


def numpy_adamax(weight_decay: float, rates: np.ndarray = RATES) -> list[np.ndarray]:
    """Final weights in float64 under Kingma and Ba's algorithm 2, with PyTorch's 1e-8 within the maximum."""
    weights = [WEIGHT.copy(), BIAS.copy()]
    means, norms = [np.zeros_like(w) for w in weights], [np.zeros_like(w) for w in weights]
    for step, rate in enumerate(rates, start=1):
        for i, grad in enumerate(slopes(weights)[1]):
            grad = grad + weight_decay * weights[i]
            means[i] = 0.9 * means[i] + 0.1 * grad
            norms[i] = np.maximum(0.999 * norms[i], np.abs(grad) + 1e-8)
            weights[i] = weights[i] - rate / (1 - 0.9**step) * means[i] / norms[i]
    return weights


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_three_steps_equal_adamax_in_numpy(weight_decay):
    _, weights = three_steps_of(lambda model: make_adamax([model], RATES.astype(np.float32), weight_decay=weight_decay))
    for weight, expected in zip(weights, numpy_adamax(weight_decay), strict=True):
        assert np.allclose(weight, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("pynative")
def test_adamax_starts_anew_where_its_rates_go_on():
    """Two steps, then one with the third rate from the weights and moments of the beginning."""
    model = nn.Dense(3, 2)
    optimizer = make_adamax([model], RATES.astype(np.float32))
    gradients = [Tensor(g, ms.float32) for g in slopes([WEIGHT, BIAS])[1]]
    for step in range(3):
        if step == 2:
            optimizer.restart()
        for parameter, value in zip((model.weight, model.bias), (WEIGHT, BIAS), strict=True):
            parameter.set_data(Tensor(value, ms.float32))
        optimizer(tuple(gradients))
    for parameter, expected in zip((model.weight, model.bias), numpy_adamax(0.0, RATES[2:]), strict=True):
        assert np.allclose(parameter.asnumpy(), expected, rtol=1e-5, atol=1e-6)


def uneven_scale(name: str) -> tuple[float, float]:
    return {"weight": (0.5, 3.0), "bias": (2.0, 0.0)}[name]


SGD_CASES = [
    (0.0, False, 0.0, same_scale), (0.9, False, 0.0, same_scale), (0.9, True, 0.0, same_scale),
    (0.9, True, 0.1, same_scale), (0.9, True, 0.1, uneven_scale), (0.9, False, 0.1, uneven_scale),
]  # fmt: skip


@pytest.mark.parametrize(("momentum", "nesterov", "weight_decay", "scale"), SGD_CASES)
def test_three_steps_equal_sgd_in_numpy(momentum, nesterov, weight_decay, scale):
    losses, weights = three_steps_of(
        lambda model: make_sgd(
            [model], RATES.astype(np.float32), momentum=momentum, nesterov=nesterov, weight_decay=weight_decay,
            scale=scale,
        )
    )  # fmt: skip
    expected_losses, expected_weights = numpy_sgd(momentum, nesterov, weight_decay, scale)
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    for weight, expected in zip(weights, expected_weights, strict=True):
        assert np.allclose(weight, expected, rtol=1e-5, atol=1e-6)


def test_the_cases_of_sgd_differ():
    finals = [numpy_sgd(*case)[1] for case in SGD_CASES]
    for i in range(len(finals)):
        for j in range(i):
            assert max(np.abs(a - b).max() for a, b in zip(finals[i], finals[j], strict=True)) > 1e-3, (i, j)


def test_tsm_s_factors_by_name():
    """Of what a model, the debiasing head and TPN's auxiliary head call their parameters."""
    expected = {
        "backbone.conv1.conv.weight": (1, 1), "backbone.conv1.norm.gamma": (1, 0), "backbone.conv1.norm.beta": (1, 0),
        "head.fc.weight": (5, 1), "head.fc.bias": (10, 0), "head.centers": (5, 1),
        "debias.f3.fc.weight": (1, 1), "debias.f3.fc.bias": (2, 0), "debias.f1.conv.norm.beta": (1, 0),
    }  # fmt: skip
    assert {name: tsm_scale(name) for name in expected} == expected


class Many(nn.Cell):
    """A sum of as many weights as SlowFast has, and more."""

    def __init__(self):
        super().__init__()
        weights = [ms.Parameter(Tensor(np.float32(number % 5)), name=f"w{number}") for number in range(500)]
        self.weights = ms.ParameterTuple(weights)

    def construct(self, x):
        total = ops.stack(tuple(self.weights)).sum() * x
        return total, total


def test_hundreds_of_parameters_are_not_too_deep_for_a_graph():
    model = Many()
    optimizer = make_sgd([model], np.float32([0.5]), momentum=0.9, nesterov=False, weight_decay=0.0)
    step = make_step(model, optimizer, clip_norm=10.0)
    assert float(step(Tensor(2.0, ms.float32))[0]) == 2000.0
    slope = 10.0 / (2.0 * math.sqrt(500)) * 2.0  # of each weight, clipped
    found = np.array([float(weight.asnumpy()) for weight in model.weights])
    np.testing.assert_allclose(found, np.arange(500) % 5 - 0.5 * slope, rtol=1e-5, atol=1e-6)
