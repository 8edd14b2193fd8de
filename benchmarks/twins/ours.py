# SPDX-License-Identifier: Apache-2.0
"""The networks of `step.py` as MindVideo's tasks train and run them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from mindvideo.config import Config, load_config
from mindvideo.engine.optim import learning_rates, make_adam, make_adamax, make_sgd, same_scale, tsm_scale
from mindvideo.tasks import fewshot, fewshot_objective, openset_objective, pose, robust_objective
from mindvideo.tasks.setup import make_step
from twins.problems import CONFIGS, Problem

SEED = 7  # of dropout


def build(problem: Problem) -> tuple[Config, nn.Cell, nn.Cell]:
    """The config, the network with fresh weights, and its training loss."""
    config = load_config(CONFIGS / problem.config, [*problem.settings, f"optim.clip_norm={problem.clip_norm}"])
    if config.task == "fewshot":
        model = fewshot.make_model(config)
        objective = fewshot_objective.Objective(model, config, problem.num_classes)
    elif config.task == "openset":
        model = openset_objective.make_model(config, problem.num_classes)
        objective = openset_objective.Objective(model, config, problem.num_classes)
    elif config.task == "pose":
        model = pose.make_model(config, problem.num_classes)
        objective = pose.Objective(model)
    else:
        model = robust_objective.make_network(config, problem.num_classes)
        objective = robust_objective.Objective(robust_objective.defend(config, model), config.train.batch, 0.0)
    return config, model, objective


def train_step(problem: Problem) -> Callable[[], float]:
    """A step of training, which gives the loss."""
    config, model, objective = build(problem)
    step = make_step(config, "cpu", objective.set_train(), model, _optimizer(config, model, objective))
    batch = tuple(Tensor(array) for array in _batch(problem, config))
    return lambda: float(step([batch])[0][0].asnumpy())


def inference(problem: Problem) -> Callable[[], np.ndarray]:
    _, model, _ = build(problem)
    infer = ms.jit(model.set_train(False).construct)
    batch = [Tensor(array) for array in problem.inputs()]
    return lambda: infer(*batch).asnumpy()


def _batch(problem: Problem, config: Config) -> list[Any]:
    """What the task's loss takes: inputs, classes and, where there is dropout, a seed."""
    inputs, classes, seed, one = problem.inputs(), problem.classes(), np.uint32(SEED), np.float32(1)
    if config.task == "fewshot":
        return [*inputs, np.concatenate([classes, classes]), one]
    if config.task == "openset":
        return [*inputs, classes, one, seed]
    if config.task == "pose":
        lengths = np.full(len(classes), inputs[0].shape[1], np.int32)
        return [*inputs, lengths, classes, seed]
    ones = np.ones(len(classes), np.float32)
    return [*inputs, classes, classes, ones, ones / len(classes), seed, seed]


def _optimizer(config: Config, model: nn.Cell, objective: Any) -> nn.Optimizer:
    """The task's, at a constant rate."""
    settings = config.optim
    rates = learning_rates("constant", settings.lr, 1000)
    if config.task == "fewshot":
        return make_adam([model, *objective.heads], rates, weight_decay=settings.weight_decay)
    if config.task == "openset":
        return make_sgd(
            [model, *objective.heads], rates, momentum=settings.momentum, nesterov=settings.nesterov,
            weight_decay=settings.weight_decay, scale=tsm_scale if settings.groups == "tsm" else same_scale,
        )  # fmt: skip
    if config.task == "pose":
        return make_adamax([model], rates, weight_decay=settings.weight_decay)

    def scale(name: str) -> tuple[float, float]:
        return (1.0 if name.startswith("head.") else settings.backbone), 1.0

    return make_adamax([model], rates, weight_decay=settings.weight_decay, scale=scale)
