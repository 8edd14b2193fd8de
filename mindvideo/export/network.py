# SPDX-License-Identifier: Apache-2.0
"""The trained network of a checkpoint of any task, and the same network on other operators."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mindspore import Tensor, nn

from mindvideo.config import Config
from mindvideo.engine.checkpoint import TrainingState, load_checkpoint, read_checkpoint
from mindvideo.engine.device import use_device
from mindvideo.errors import InputError
from mindvideo.predict.predictors import load_predictor, settings_of
from mindvideo.tasks import fewshot, openset_objective, pose, robust_objective


@dataclass(frozen=True)
class Trained:
    """A network with its weights, its config, and the names of its classes; a few-shot network has none."""

    network: nn.Cell
    config: Config
    labels: tuple[str, ...]


def load_trained(
    checkpoint: Path, model: str = "", config: Path | None = None, device: str = "auto", labels: Path | None = None
) -> Trained:
    """The network of a checkpoint of any task, as it was trained; the arguments are those of `load_predictor`.

    InputError if the network is not called `model`, where that is given, or if anything does not fit the weights.
    """
    use_device(device)
    values, state = read_checkpoint(checkpoint)
    twin = checkpoint.with_suffix(".ckpt")
    if not state.config and checkpoint.suffix == ".safetensors" and twin.is_file():
        state = read_checkpoint(twin)[1]
    settings = settings_of(checkpoint, config, values, state)
    if settings.task in ("openset", "pose"):
        predictor = load_predictor(checkpoint, model, config, device, labels)
        return Trained(predictor.model, predictor.config, predictor.labels)
    if model and model != settings.model.name:
        raise InputError(f"{checkpoint} holds the model {settings.model.name!r}, not {model!r}.")
    names = _class_names(checkpoint, settings, state, labels)
    network = make_network(settings, len(names))
    load_checkpoint(checkpoint, network, settings.model.name)
    return Trained(network, settings, names)


def _class_names(checkpoint: Path, config: Config, state: TrainingState, labels: Path | None) -> tuple[str, ...]:
    """Those of an image network; a few-shot one has none."""
    if config.task == "fewshot":
        if labels:
            raise InputError(f"{checkpoint}: --labels does not go with few-shot networks, which know no classes.")
        return ()
    if labels and not labels.is_file():
        raise InputError(f"{labels}: no such file of class names.")
    names = labels.read_text(encoding="utf-8", errors="replace").splitlines() if labels else state.classes
    if not names:
        raise InputError(f"{checkpoint} does not name its classes: give a file of their names (--labels).")
    return tuple(names)


def rebuilt(trained: Trained) -> Trained:
    """The same network once more, on the operators that are in force now."""
    network = make_network(trained.config, len(trained.labels))
    for parameter, value in zip(network.get_parameters(), trained.network.get_parameters(), strict=True):
        parameter.set_data(Tensor(value.asnumpy()))
    return Trained(network, trained.config, trained.labels)


def make_network(config: Config, num_classes: int) -> nn.Cell:
    """The network of a config of any task, with fresh weights."""
    if config.task == "fewshot":
        return fewshot.make_model(config)
    makers = {
        "openset": openset_objective.make_model, "pose": pose.make_model, "robust": robust_objective.make_network,
    }  # fmt: skip
    return makers[config.task](config, num_classes)
