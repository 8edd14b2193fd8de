# SPDX-License-Identifier: Apache-2.0
"""Optimizers and learning rates, and the compiled training step.

On a CPU, SGD and Adamax take their steps by the native operators where these load.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindvideo import native
from mindvideo.native import optimizers

SCHEDULES = ("constant", "step", "cosine")

# A function of each parameter, gradient...: a `for` over hundreds of them takes ten times as long to compile, and two
# of these in one graph are too deep for MindSpore.
each = ops.HyperMap()


def learning_rates(
    schedule: str,
    lr: float,
    num_steps: int,
    *,
    decay_every: int = 50_000,
    decay_factor: float = 0.5,
    hold: int = 1,
    warmup: int = 0,
) -> np.ndarray:
    """The rate of each step, float32 `[num_steps]`.

    `step` multiplies by `decay_factor` after every `decay_every` steps (ARN: 0.5, 50,000); `cosine` falls from `lr` to
    0 and changes every `hold` steps (MMAction2: once an epoch). In the first `warmup` steps the rate rises from a tenth
    of what it would be, linearly, as in MMCV.
    """
    steps = np.arange(num_steps)
    if schedule == "step":
        rates = lr * decay_factor ** (steps // decay_every)
    elif schedule == "cosine":
        rates = lr * 0.5 * (1 + np.cos(np.pi * (steps // hold * hold) / num_steps))
    else:
        rates = np.full(num_steps, lr)
    rates[:warmup] *= 0.1 + 0.9 * steps[:warmup] / max(1, warmup)
    return rates.astype(np.float32)


def make_adam(models: Sequence[nn.Cell], rates: np.ndarray, *, weight_decay: float = 0.0) -> nn.Optimizer:
    """Adam with PyTorch's defaults (0.9, 0.999, 1e-8) and one rate a step."""
    parameters = [parameter for model in models for parameter in model.trainable_params()]
    return nn.Adam(parameters, learning_rate=Tensor(rates), weight_decay=weight_decay)


Scale = Callable[[str], tuple[float, float]]


def same_scale(name: str) -> tuple[float, float]:
    """Factors of learning rate and weight decay by a parameter's name: 1, 1."""
    return 1.0, 1.0


def tsm_scale(name: str) -> tuple[float, float]:
    """TSM's factors of learning rate and weight decay by a parameter's name (Lin et al., ICCV 2019).

    BatchNorm and biases have no decay; biases learn twice as fast, the classifier (`head.`) five times, its bias ten
    times. DEAR's code gave the last two to the debiasing head, which it took for the classifier.
    """
    if name.endswith((".gamma", ".beta")):
        return 1.0, 0.0
    if name.startswith("head."):
        return (10.0, 0.0) if name.endswith("bias") else (5.0, 1.0)
    return (2.0, 0.0) if name.endswith("bias") else (1.0, 1.0)


def _settings(step: Any, parameters: Sequence[Parameter], weight_decay: float, scale: Scale) -> tuple[Tensor, ...]:
    """Of each parameter's steps: its factor of the rate and its weight decay."""
    factors = [scale(parameter.name) for parameter in parameters]
    return tuple([step.settings(rate, decay * weight_decay) for rate, decay in factors])


class _Step(nn.Cell):
    """A step of one parameter by MindSpore's operators: what the native one does in one pass."""

    def settings(self, factor: float, decay: float) -> Tensor:
        return Tensor(np.array([factor, decay], np.float32))


class SGDStep(_Step):
    """That of SGD."""

    def __init__(self, momentum: float, nesterov: bool):
        super().__init__()
        self.momentum, self.nesterov = momentum, nesterov

    def construct(
        self, rate: Tensor, gain: Tensor, settings: Tensor, parameter: Parameter, velocity: Parameter, gradient: Tensor
    ) -> Tensor:
        slope = gain * gradient + settings[1] * parameter
        faster = ops.assign(velocity, self.momentum * velocity + slope)
        step = slope + self.momentum * faster if self.nesterov else faster
        return ops.assign_sub(parameter, (rate * settings[0]) * step)


class SGD(nn.Optimizer):
    """SGD with momentum as PyTorch defines it: v = momentum v + g + decay p, and p falls by the rate times v or,
    looking ahead (Nesterov), times g + decay p + momentum v.

    MindSpore's nn.Momentum takes other Nesterov steps on a CPU, and its nn.SGD holds a further copy of all weights.

    Called with gradients and, if they are to be scaled first, their `gain`, a scalar.

    Args:
        rates: the learning rate of each step.
        scale: factors of learning rate and weight decay by a parameter's name.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        rates: np.ndarray,
        *,
        momentum: float,
        nesterov: bool,
        weight_decay: float,
        scale: Scale = same_scale,
    ):
        super().__init__(Tensor(rates), list(parameters))
        self.velocities = self.parameters.clone(prefix="velocity", init="zeros")
        self.step = (optimizers.SGDStep if native.in_use() else SGDStep)(momentum, nesterov)
        self.one = Tensor(1.0, ms.float32)
        self.settings = _settings(self.step, self.parameters, weight_decay, scale)

    def construct(self, gradients: tuple[Tensor, ...], gain: Tensor | None = None) -> None:
        gain = self.one if gain is None else gain
        rate = self.get_lr()
        self.assignadd(self.global_step, self.global_step_increase_tensor)
        each(ops.partial(self.step, rate, gain), self.settings, self.parameters, self.velocities, gradients)


def make_sgd(models: Sequence[nn.Cell], rates: np.ndarray, **options: Any) -> SGD:
    """SGD, with these options of it, of all that the models have to learn."""
    return SGD([parameter for model in models for parameter in model.trainable_params()], rates, **options)


class AdamaxStep(_Step):
    """That of Adamax."""

    def construct(
        self, rate: Tensor, gain: Tensor, settings: Tensor, parameter: Parameter, mean: Parameter, norm: Parameter,
        gradient: Tensor,
    ) -> Tensor:  # fmt: skip
        slope = gain * gradient + settings[1] * parameter
        newer = ops.assign(mean, 0.9 * mean + 0.1 * slope)
        larger = ops.assign(norm, ops.maximum(0.999 * norm, ops.abs(slope) + 1e-8))
        return ops.assign_sub(parameter, (rate * settings[0]) * newer / larger)


class Adamax(nn.Optimizer):
    """Adamax as PyTorch defines it (Kingma and Ba, ICLR 2015, algorithm 2): m = 0.9 m + 0.1 g, u = max(0.999 u,
    |g| + 1e-8), and p falls by rate / (1 - 0.9^t) m / u in step t; g holds decay p too.

    Called with gradients and, if they are to be scaled first, their `gain`, a scalar.

    Args:
        rates: the learning rate of each step, through all restarts.
        scale: factors of learning rate and weight decay by a parameter's name.
    """

    def __init__(
        self, parameters: Sequence[Parameter], rates: np.ndarray, *, weight_decay: float, scale: Scale = same_scale
    ):
        super().__init__(Tensor(rates), list(parameters))
        self.means = self.parameters.clone(prefix="mean", init="zeros")
        self.norms = self.parameters.clone(prefix="norm", init="zeros")
        self.power = Parameter(Tensor(1.0, ms.float32), name="power")  # 0.9^t
        self.step = (optimizers.AdamaxStep if native.in_use() else AdamaxStep)()
        self.one = Tensor(1.0, ms.float32)
        self.settings = _settings(self.step, self.parameters, weight_decay, scale)

    def construct(self, gradients: tuple[Tensor, ...], gain: Tensor | None = None) -> None:
        gain = self.one if gain is None else gain
        power = ops.assign(self.power, 0.9 * self.power)
        rate = self.get_lr() / (1.0 - power)
        self.assignadd(self.global_step, self.global_step_increase_tensor)
        each(ops.partial(self.step, rate, gain), self.settings, self.parameters, self.means, self.norms, gradients)

    def restart(self) -> None:
        """Forget all gradients, as a new optimizer would have seen none; the rates go on."""
        ops.assign(self.power, Tensor(1.0, ms.float32))
        for moments in (*self.means, *self.norms):
            ops.assign(moments, ops.zeros_like(moments))


def make_adamax(
    models: Sequence[nn.Cell], rates: np.ndarray, *, weight_decay: float = 0.0, scale: Scale = same_scale
) -> Adamax:
    """Adamax of all that the models have to learn."""
    parameters = [parameter for model in models for parameter in model.trainable_params()]
    return Adamax(parameters, rates, weight_decay=weight_decay, scale=scale)


class _Square(nn.Cell):
    """The sum of a tensor's squares, `[1]`."""

    def construct(self, x: Tensor) -> Tensor:
        return (2.0 * ops.L2Loss()(x)).reshape((1,))


class Clipping(nn.Cell):
    """The gain (a scalar) that scales gradients down together so that their global norm is `most` where it is more, as
    PyTorch does it."""

    def __init__(self, most: float):
        super().__init__()
        self.most, self.square = most, optimizers.SquareSum() if native.in_use() else _Square()

    def construct(self, gradients: tuple[Tensor, ...]) -> Tensor:
        norm = ops.sqrt(ops.concat(each(self.square, gradients)).sum())
        return ops.clamp(self.most / (norm + 1e-6), max=1.0)


def multiply(factor: Tensor, x: Tensor) -> Tensor:
    """Their product: for `each`."""
    return factor * x


class LossScale:
    """What the loss is multiplied by, so that its gradients are not lost in float16: doubled after 2000 steps with
    finite gradients, halved after one without, in which the weights stay as they are (Micikevicius et al., ICLR 2018).
    """

    def __init__(self, start: float = 2.0**16, patience: int = 2000):
        self.patience = patience
        self.value = Parameter(Tensor(start, ms.float32), name="loss_scale")
        self.good = Parameter(Tensor(0, ms.int32), name="loss_scale_good")
        self.parameters = (self.value, self.good)

    def follow(self, is_finite: Tensor) -> None:
        """Go on after a step whose gradients were finite or not."""
        good = ops.assign(self.good, ops.where(is_finite, self.good + 1, 0).astype(ms.int32))
        grown = ops.where(good % self.patience == 0, 2.0 * self.value, self.value)
        ops.assign(self.value, ops.where(is_finite, grown, 0.5 * self.value))


Reduce = Callable[[Any], Any]


def make_gradient(
    forward: Callable[..., tuple[Tensor, Tensor]], parameters: Any, scale: LossScale | None
) -> Callable[..., tuple[tuple[Tensor, Tensor], Any]]:
    """Of a batch, for use in a graph: `forward`'s loss and second value, and the gradients, times `scale` if given."""
    no_input: Any = None  # gradients of the weights alone; MindSpore's own annotation forgets this case
    if scale is None:
        return ms.value_and_grad(forward, no_input, parameters, has_aux=True)

    def scaled(*batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        loss, second = forward(*batch)
        return loss * scale.value, loss, second

    value_and_grad: Any = ms.value_and_grad(scaled, no_input, parameters, has_aux=True)

    def gradient(*batch: Tensor) -> tuple[tuple[Tensor, Tensor], Any]:
        (_, loss, second), gradients = value_and_grad(*batch)
        return (loss, second), gradients

    return gradient


def make_update(
    optimizer: nn.Optimizer, clip_norm: float, reduce: Reduce | None, scale: LossScale | None
) -> Callable[[Any], None]:
    """The optimizer's step by gradients, for use in a graph: `reduce` is what they go through first, and `clip_norm`
    their largest global norm, 0 for none."""

    clipping = Clipping(clip_norm) if clip_norm > 0 else None
    takes_gain = isinstance(optimizer, (SGD, Adamax))

    def follow(gradients: Any) -> None:
        if clipping is None:
            optimizer(gradients)
        elif takes_gain:
            optimizer(gradients, clipping(gradients))
        else:
            optimizer(each(ops.partial(multiply, clipping(gradients)), gradients))

    def update(gradients: Any) -> None:
        if reduce is not None:
            gradients = reduce(gradients)
        if scale is None:
            follow(gradients)
        else:
            gradients = each(ops.partial(multiply, 1.0 / scale.value), gradients)
            is_finite = ms.amp.all_finite(gradients)
            if is_finite:
                follow(gradients)
            scale.follow(is_finite)

    return update


def make_step(
    forward: Callable[..., tuple[Tensor, Tensor]],
    optimizer: nn.Optimizer,
    *,
    clip_norm: float = 0.0,
    reduce: Reduce | None = None,
    scale: LossScale | None = None,
) -> Callable[..., tuple[Tensor, Tensor]]:
    """Compile forward, gradient and update, see `make_update`, into one graph.

    `forward` returns the loss and a second value that is passed through, such as scores.
    """
    gradient = make_gradient(forward, optimizer.parameters, scale)
    update = make_update(optimizer, clip_norm, reduce, scale)

    @ms.jit
    def step(*batch: Tensor) -> tuple[Tensor, Tensor]:
        (loss, second), gradients = gradient(*batch)
        update(gradients)
        return loss, second

    return step
