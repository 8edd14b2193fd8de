# SPDX-License-Identifier: Apache-2.0
"""The native steps of optimizers against MindSpore's operators, and their place in a graph."""

from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from mindvideo import native
from mindvideo.engine import optim
from mindvideo.native import optimizers

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason())

# The second is one value more than two pieces that different threads take.
SHAPES = [(3, 5), (2 * 2**14 + 1,), (64, 3, 5, 7, 7)]
SGD = {"plain": (0.9, False, 1.0, 0.0), "nesterov": (0.9, True, 0.5, 1e-2), "no momentum": (0.0, False, 2.0, 1e-3)}
ADAMAX = {"plain": (1.0, 0.0), "decay": (0.1, 1e-2)}


def values(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def after_three_steps(
    step: Any, settings: tuple[float, float], shape: tuple[int, ...], num_moments: int, mode: int
) -> list[np.ndarray]:
    """The parameter and its moments; `settings` are the factor of the rate and the weight decay."""
    with_mode = ms.get_context("mode")
    ms.set_context(mode=mode)
    try:
        starts = [values(shape, 0), *(np.zeros(shape, np.float32) for _ in range(num_moments))]
        held = [Parameter(Tensor(start), name=f"p{i}") for i, start in enumerate(starts)]
        for number in range(3):
            rate, gain = Tensor(0.1 / (number + 1), ms.float32), Tensor(0.75, ms.float32)
            step(rate, gain, step.settings(*settings), *held, Tensor(values(shape, 1 + number)))
        return [parameter.asnumpy() for parameter in held]
    finally:
        ms.set_context(mode=with_mode)


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", SGD.values(), ids=SGD)
def test_sgd_equals_that_of_mindspores_operators(options, shape, mode):
    made, settings = options[:2], options[2:]
    ours = after_three_steps(optimizers.SGDStep(*made), settings, shape, 1, mode)
    plain = after_three_steps(optim.SGDStep(*made), settings, shape, 1, ms.PYNATIVE_MODE)
    for own, other in zip(ours, plain, strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", ADAMAX.values(), ids=ADAMAX)
def test_adamax_equals_that_of_mindspores_operators(options, shape, mode):
    ours = after_three_steps(optimizers.AdamaxStep(), options, shape, 2, mode)
    plain = after_three_steps(optim.AdamaxStep(), options, shape, 2, ms.PYNATIVE_MODE)
    for own, other in zip(ours, plain, strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-6)


class Reader(nn.Cell):
    """Reads a parameter before and after its step."""

    def __init__(self):
        super().__init__()
        self.weight = Parameter(Tensor(np.ones(4, np.float32)), name="weight")
        self.velocity = Parameter(Tensor(np.zeros(4, np.float32)), name="velocity")
        self.step = optimizers.SGDStep(0.5, False)
        self.settings, self.one = self.step.settings(1.0, 0.0), Tensor(1.0, ms.float32)

    def construct(self, gradient: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
        before = (2 * self.weight).sum()
        self.step(rate, self.one, self.settings, self.weight, self.velocity, gradient)
        return before, (2 * self.weight).sum()


def test_a_compiled_graph_reads_the_parameter_as_it_was_and_as_it_became():
    network = ms.jit(Reader().construct)
    gradient, rate = Tensor(np.ones(4, np.float32)), Tensor(0.25, ms.float32)
    found = [[float(value) for value in network(gradient, rate)] for _ in range(2)]
    assert found == [[8.0, 6.0], [6.0, 3.0]]  # velocities 1 and 1.5


def test_another_shape_of_gradient_is_refused():
    step = optimizers.SGDStep(0.9, False)
    held = [Parameter(Tensor(values((3,), 0)), name=f"p{i}") for i in range(2)]
    with pytest.raises(ValueError, match=r"\[\[3\], \[4\]\] are not of the shape \[3\]"):
        step(Tensor(0.1, ms.float32), Tensor(1.0, ms.float32), step.settings(1.0, 0.0), *held, Tensor(values((4,), 0)))


@pytest.mark.parametrize("shape", [(), (1,), (15,), (2**14 + 17,), (3, 100, 501)])
def test_sum_of_squares(shape):
    x = np.asarray(values(shape, 5))
    found = optimizers.SquareSum()(Tensor(x)).asnumpy()
    np.testing.assert_allclose(found, [(x.astype(np.float64) ** 2).sum()], rtol=1e-7)
