# SPDX-License-Identifier: Apache-2.0
"""Optimizers and learning rates, and the compiled training step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

SCHEDULES = ("constant", "step", "cosine")


def learning_rates(
    schedule: str, lr: float, num_steps: int, *, decay_every: int = 50_000, decay_factor: float = 0.5
) -> np.ndarray:
    """The rate of each step, float32 `[num_steps]`.

    `step` multiplies by `decay_factor` after every `decay_every` steps (ARN: 0.5, 50,000); `cosine` falls
    from `lr` to 0.
    """
    steps = np.arange(num_steps)
    if schedule == "step":
        rates = lr * decay_factor ** (steps // decay_every)
    elif schedule == "cosine":
        rates = lr * 0.5 * (1 + np.cos(np.pi * steps / num_steps))
    else:
        rates = np.full(num_steps, lr)
    return rates.astype(np.float32)


def make_adam(models: Sequence[nn.Cell], rates: np.ndarray, *, weight_decay: float = 0.0) -> nn.Optimizer:
    """Adam with PyTorch's defaults (0.9, 0.999, 1e-8) and one rate a step."""
    parameters = [parameter for model in models for parameter in model.trainable_params()]
    return nn.Adam(parameters, learning_rate=Tensor(rates), weight_decay=weight_decay)


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
