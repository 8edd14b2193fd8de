# SPDX-License-Identifier: Apache-2.0
"""One step of training by one or many processes, and the moving average of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from mindvideo.engine import distributed
from mindvideo.engine.optim import LossScale, each, make_gradient, make_step, make_update

Batch = tuple[Tensor, ...]


def _add_part(parts: int, total: Parameter, x: Tensor) -> Tensor:
    return ops.assign_add(total, x / parts)


def _clear(total: Parameter) -> Tensor:
    return ops.assign(total, ops.zeros_like(total))


def _approach(kept: Tensor, average: Parameter, x: Tensor) -> Tensor:
    return ops.assign(average, kept * average + (1.0 - kept) * x)


class Step:
    """The mean gradient of `accumulate` batches, clipped by its global norm (0: not), and the optimizer's step by it.

    The processes deal the batches among them. BatchNorm sees one batch at a time, whichever process has it, and its
    running statistics become the mean of what each of the step's batches would have made of them. So the weights do not
    depend on the number of processes, but for rounding.
    """

    def __init__(
        self,
        objective: nn.Cell,
        optimizer: nn.Optimizer,
        *,
        clip_norm: float = 0.0,
        accumulate: int = 1,
        average: Average | None = None,
        scale: LossScale | None = None,
    ):
        """`objective` gives the loss of a batch and a second value, such as scores; there are no more processes than
        batches. `average` is one of the weights to keep, and `scale` is for float16."""
        self.optimizer, self.average = optimizer, average
        self._settings = {"clip_norm": clip_norm, "accumulate": accumulate, "average": average, "scale": scale}
        self.batches = len(distributed.own_batches(0, 1, accumulate))
        self._statistics = _Statistics(objective, accumulate)
        self._finish: Callable[[], None] = lambda: None
        if accumulate == distributed.size():
            reduce = _sum_over_processes(optimizer.parameters, mean=True)
            self._look = make_step(objective, optimizer, clip_norm=clip_norm, reduce=reduce, scale=scale)
        else:
            self._look, self._finish = _accumulating(objective, optimizer, accumulate, clip_norm, scale)

    def towards(self, objective: nn.Cell) -> Step:
        """The same step for another objective, by the same optimizer, average and scale."""
        return Step(objective, self.optimizer, **self._settings)

    @property
    def kept(self) -> list[Parameter]:
        """What a checkpoint needs besides weights and optimizer, so that training goes on as if it had not stopped."""
        kinds = (self.average, self._settings["scale"])
        return [parameter for kind in kinds if kind is not None for parameter in kind.parameters]

    def __call__(self, batches: Sequence[Batch]) -> list[tuple[Tensor, Tensor]]:
        """Train on this process's batches, `self.batches` of them; the loss and second value of each."""
        found = []
        self._statistics.begin()
        for batch in batches:
            found.append(self._look(*batch))
            self._statistics.collect()
        self._finish()
        self._statistics.end()
        return found


def _sum_over_processes(parameters: ParameterTuple, *, mean: bool) -> Callable[[Any], Any] | None:
    """Gradients of these parameters to their sum or mean over the processes; None where there is one."""
    size = distributed.size()
    return nn.DistributedGradReducer(parameters, mean=mean, degree=size) if size > 1 else None


def _accumulating(
    objective: nn.Cell, optimizer: nn.Optimizer, accumulate: int, clip_norm: float, scale: LossScale | None
) -> tuple[Callable[..., tuple[Tensor, Tensor]], Callable[[], None]]:
    """What adds a batch's gradient to a sum, and what takes the step by the mean of all batches and starts anew."""
    gradient = make_gradient(objective, optimizer.parameters, scale)
    reduce = _sum_over_processes(optimizer.parameters, mean=False)
    follow = make_update(optimizer, clip_norm, reduce, scale)
    sums = optimizer.parameters.clone(prefix="sum", init="zeros")

    @ms.jit
    def add(*batch: Tensor) -> tuple[Tensor, Tensor]:
        (loss, second), gradients = gradient(*batch)
        each(ops.partial(_add_part, accumulate), sums, gradients)
        return loss, second

    @ms.jit
    def update() -> None:
        follow(tuple(sums))
        each(_clear, sums)

    return add, update


class _Statistics:
    """The running statistics of a network's batch norms through a step: every batch finds those from before the step,
    and the step ends with the mean of what the batches of all processes made of them."""

    def __init__(self, network: nn.Cell, accumulate: int):
        named = [p for p in network.get_parameters() if p.name.endswith((".moving_mean", ".moving_variance"))]
        own = ParameterTuple(named)
        self.begin = self.collect = self.end = lambda: None
        if not named or accumulate == 1:
            return
        before, means = own.clone(prefix="before", init="zeros"), own.clone(prefix="mean", init="zeros")
        add = ops.AllReduce() if distributed.size() > 1 else None

        @ms.jit
        def begin() -> None:
            each(ops.assign, before, own)
            each(_clear, means)

        @ms.jit
        def collect() -> None:
            each(ops.partial(_add_part, accumulate), means, own)
            each(ops.assign, own, before)

        @ms.jit
        def end() -> None:
            each(ops.assign, own, means if add is None else each(add, means))

        self.begin, self.collect, self.end = begin, collect, end


class Average:
    """The exponential moving average of all of a model's parameters, batch norms' running statistics among them.

    It starts at the weights of `restart` and keeps min(decay, (1 + s) / (10 + s)) of itself in step s, so that the
    first weights are soon forgotten.
    """

    def __init__(self, model: nn.Cell, decay: float):
        self.decay = decay
        self.weights = ParameterTuple(list(model.get_parameters()))
        self.parameters = self.weights.clone(prefix="average", init="same")
        averages, weights = self.parameters, self.weights

        @ms.jit
        def follow(kept: Tensor) -> None:
            each(ops.partial(_approach, kept), averages, weights)

        self._follow = follow

    def restart(self) -> None:
        """Take the present weights for the average."""
        for average, weight in zip(self.parameters, self.weights, strict=True):
            ops.assign(average, weight)

    def follow(self, step: int) -> None:
        """Go on after step `step`, counted from 1."""
        self._follow(Tensor(min(self.decay, (1 + step) / (10 + step)), ms.float32))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model have the averaged weights for a while."""
        own = [weight.asnumpy().copy() for weight in self.weights]
        for weight, average in zip(self.weights, self.parameters, strict=True):
            ops.assign(weight, average)
        try:
            yield
        finally:
            for weight, values in zip(self.weights, own, strict=True):
                ops.assign(weight, Tensor(values))
