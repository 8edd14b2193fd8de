# SPDX-License-Identifier: Apache-2.0
"""Optimizers and learning rates, and the compiled training step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

SCHEDULES = ("constant", "step", "cosine")


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


def make_sgd(
    models: Sequence[nn.Cell],
    rates: np.ndarray,
    *,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    scale: Scale = same_scale,
) -> nn.Optimizer:
    """SGD with momentum, as PyTorch defines it, and one rate a step; `scale` gives factors by a parameter's name.

    Not nn.Momentum, whose Nesterov steps on a CPU are others than it says.
    """
    groups: dict[tuple[float, float], list[Parameter]] = {}
    for model in models:
        for parameter in model.trainable_params():
            groups.setdefault(scale(parameter.name), []).append(parameter)
    parameters = [
        {"params": members, "lr": Tensor(rate * rates, ms.float32), "weight_decay": decay * weight_decay}
        for (rate, decay), members in groups.items()
    ]
    return nn.SGD(parameters, Tensor(rates), momentum=momentum, nesterov=nesterov)


def make_step(
    forward: Callable[..., tuple[Tensor, Tensor]], optimizer: nn.Optimizer, *, clip_norm: float = 0.0
) -> Callable[..., tuple[Tensor, Tensor]]:
    """Compile forward, gradient, clipping by global norm (0: none) and update into one graph.

    `forward` returns the loss and a second value that is passed through, such as scores.
    """
    no_input: Any = None  # gradients of the weights alone; MindSpore's own annotation forgets this case
    value_and_grad: Any = ms.value_and_grad(forward, no_input, optimizer.parameters, has_aux=True)

    @ms.jit
    def step(*batch: Tensor) -> tuple[Tensor, Tensor]:
        (loss, scores), grads = value_and_grad(*batch)
        if clip_norm > 0:
            grads = ops.clip_by_global_norm(grads, clip_norm)
        optimizer(grads)
        return loss, scores

    return step
