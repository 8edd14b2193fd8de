# SPDX-License-Identifier: Apache-2.0
"""The networks of `step.py` in torch, with the losses and optimizers of the same configs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim import SGD, Adam, Adamax, Optimizer

from twins.actionnet import ActionNet
from twins.arn import ARN
from twins.convnext import ConvNeXt
from twins.problems import Problem
from twins.resnet3d import I3D
from twins.slowfast import SlowFast
from twins.tpn import TPN
from twins.tsm import TSM

DROPOUT = 0.5
AUXILIARY_WEIGHT = 0.5  # of TPN


def build(name: str, problem: Problem) -> nn.Module:
    classes = problem.num_classes
    if name == "arn":
        return ARN()
    if name == "actionnet":
        return ActionNet(classes, DROPOUT, length=problem.num_tokens)
    if name == "convnext":
        return ConvNeXt(classes)
    return {"i3d": I3D, "tsm": TSM, "slowfast": SlowFast, "tpn": TPN}[name](classes, DROPOUT)


def train_step(name: str, problem: Problem) -> Callable[[], float]:
    """A step of training, which gives the loss."""
    model = build(name, problem).train()
    optimizer = make_optimizer(name, model)
    batch = [torch.from_numpy(array) for array in problem.inputs()]
    classes = torch.from_numpy(problem.classes()).long()

    def step() -> float:
        optimizer.zero_grad()
        loss = loss_of(name, model(*batch), classes)
        loss.backward()
        if problem.clip_norm:
            nn.utils.clip_grad_norm_(model.parameters(), problem.clip_norm)
        optimizer.step()
        return loss.item()

    return step


def inference(name: str, problem: Problem) -> Callable[[], Tensor]:
    model = build(name, problem).eval()
    batch = [torch.from_numpy(array) for array in problem.inputs()]

    @torch.inference_mode()
    def infer() -> Tensor:
        return model(*batch)

    return infer


def loss_of(name: str, outputs: Tensor | tuple[Tensor, Tensor], classes: Tensor) -> Tensor:
    if name == "arn":
        return mse_loss(outputs, torch.eye(outputs.shape[1]))
    if name == "tpn":
        logits, auxiliary = outputs
        return cross_entropy(logits, classes) + AUXILIARY_WEIGHT * cross_entropy(auxiliary, classes)
    return cross_entropy(outputs, classes)


def make_optimizer(name: str, model: nn.Module) -> Optimizer:
    if name == "arn":
        return Adam(model.parameters(), 1e-3)
    if name == "tsm":
        return SGD(tsm_groups(model, 1e-3, 1e-4), momentum=0.9)
    if name == "actionnet":
        return Adamax(model.parameters(), 2e-5)
    if name == "convnext":
        groups = [{"params": model.backbone.parameters(), "lr": 1e-4}, {"params": model.cls_head.parameters()}]
        return Adamax(groups, 1e-3, weight_decay=1e-3)
    return SGD(model.parameters(), 1e-3, momentum=0.9, nesterov=True, weight_decay=1e-4)


def tsm_groups(model: nn.Module, rate: float, decay: float) -> list[dict]:
    """The classifier learns five times as fast, its bias ten times; batch norms and biases have no decay."""
    classifier = model.cls_head.fc_cls
    convolutions = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
    norms = [p for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]
    return [
        {"params": convolutions, "lr": rate, "weight_decay": decay},
        {"params": norms, "lr": rate, "weight_decay": 0.0},
        {"params": [classifier.weight], "lr": 5 * rate, "weight_decay": decay},
        {"params": [classifier.bias], "lr": 10 * rate, "weight_decay": 0.0},
    ]
