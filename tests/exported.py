# SPDX-License-Identifier: Apache-2.0
"""Small networks of every model to export, and what files of them differ by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor

from mindvideo.config import Config, parse_config
from mindvideo.engine.device import operator_by_operator
from mindvideo.export import Trained
from mindvideo.export.graph import (
    largest_difference,
    run_mindir,
    run_network,
    run_onnx,
    write_mindir,
    write_onnx,
)
from mindvideo.export.interface import interface_of
from mindvideo.export.network import make_network
from mindvideo.models import list_models, options_of
from mindvideo.models.relation import pair_up
from mindvideo.zoo import ZOO
from tests.test_convert import randomize

# By what the zoo calls their task; `model` has further options of what a model has.
SMALL: dict[str, dict[str, Any]] = {
    "video": {"task": "openset", "data": {"length": 8, "short_side": 32}, "eval": {"size": 32}},
    "few-shot": {
        "task": "fewshot", "model": {"sigma": 20.0}, "data": {"length": 8, "height": 32, "width": 32},
        "eval": {"way": 3, "shot": 2},
    },
    "pose": {"task": "pose", "model": {"length": 8, "decoder_width": 16}},
    "image": {"task": "robust", "model": {"patch": 2, "depth": 1}, "data": {"size": 32, "short_side": 32}},
}  # fmt: skip
WIDTHS = {"video": 8, "few-shot": 16, "pose": 16, "image": 8}
# Once one of MindCV's is exported, MindSpore compiles no gradient with a `stop_gradient` in it in this process.
MINDCV = ("resnet50", "densenet121", "efficientnet_b4", "swin_small", "vit_b_16", "wide_resnet50_2")
# The weights that logits are linear in, and what is added to them, by network: the first of these that it has.
LAST = {
    "head.fc.weight": "head.fc.bias", "head.weight_mu": "head.bias_mu", "head.centers": "",
    "comparator.fc3.weight": "comparator.fc3.bias", "comparator.fc2.weight": "comparator.fc2.bias",
    "network.classifier.weight": "network.classifier.bias", "": "",
}  # fmt: skip
CLASSES = ("run", "sit", "wave")


def families() -> list[str]:
    """Of networks of several depths the shallowest, and all others but MindCV's."""
    names = [name for name in list_models() if name not in MINDCV]
    shallowest: dict[str, tuple[int, str]] = {}
    for name in names:
        family, _, depth = name.partition("_r")
        key = (int(depth) if depth.isdigit() else 0, name)
        shallowest[family if depth.isdigit() else name] = min(key, shallowest.get(family, key))
    return sorted(name for _, name in shallowest.values())


def small(name: str, **sections: dict[str, Any]) -> Config:
    """The config of a small network of this name, with further settings by section."""
    kind = ZOO[name].task
    given = {key: dict(value) if isinstance(value, dict) else value for key, value in SMALL[kind].items()}
    options = {"width": WIDTHS[kind]} | given.get("model", {})
    if name == "c3d":  # its dense layers grow with the square of the width
        options, given["data"], given["eval"] = {"width": 4}, {"length": 16}, {"size": 112}
    if "fast_width" in options_of(name):
        options["fast_width"] = 2
    given["model"] = {"name": name} | {key: value for key, value in options.items() if key in options_of(name)}
    for section, settings in sections.items():
        given[section] = given.get(section, {}) | settings
    return parse_config(given, "here")


def trained(config: Config) -> Trained:
    """The config's network with random weights, of BatchNorm's statistics too, on the operators of this process; the
    last layer's are such that logits differ by about 1."""
    labels = () if config.task == "fewshot" else CLASSES
    network = make_network(config, len(labels))
    randomize(network)
    named: dict[str, Any] = dict(network.parameters_and_names())
    for name, parameter in named.items():
        if name.endswith("_rho"):  # of a Bayesian head: rather certain, as in training
            parameter.set_data(parameter - 3.0)
    network.set_train(False)
    inputs = [Tensor(x.draw(np.random.default_rng(0))) for x in interface_of(config, batch=4).inputs.values()]
    with operator_by_operator():
        if config.task == "fewshot":
            support_NK, query_M = network.encode_episode(*inputs)
            logits = network.comparator(pair_up(support_NK.mean(axis=1), query_M)).asnumpy()[:, None]
        elif config.task == "robust":
            logits = network(inputs[0]).asnumpy()
        else:
            logits = network(*inputs).asnumpy()
    weight, bias = next((named.get(x), named.get(y)) for x, y in LAST.items() if x in named or not x)
    if bias is not None:
        bias.set_data(Tensor(bias.asnumpy() - logits.mean(axis=0)))
        logits = logits - logits.mean(axis=0)
    for parameter in (weight, bias):
        if parameter is not None:
            parameter.set_data(Tensor(parameter.asnumpy() / logits.std()))
    return Trained(network, config, labels)


def differences(subject: Trained, folder: Path, *, batch: int = 2, frames: int = 0) -> dict[str, float]:
    """By how much the outputs of a MINDIR and of an ONNX file, made in `folder`, differ from the network's on inputs
    that the files have not seen; the outputs are such that it would show if the files computed something else."""
    interface = interface_of(subject.config, batch=batch, frames=frames)
    rng = np.random.default_rng(1)
    traced, shown = ([value.draw(rng) for value in interface.inputs.values()] for _ in range(2))
    expected, other = run_network(interface, subject, shown), run_network(interface, subject, traced)
    assert all(np.isfinite(array).all() for array in expected)
    for name, array, elsewhere in zip(interface.outputs, expected, other, strict=True):
        assert np.abs(array).max() > 0.05, name
        assert np.abs(array - elsewhere).max() > 1e-3, name
    mindir, onnx = folder / "a.mindir", folder / "a.onnx"
    write_mindir(mindir, interface, subject, traced)
    write_onnx(mindir, onnx, interface, {"model": subject.config.model.name})
    return {
        "mindir": largest_difference(run_mindir(mindir, shown), expected),
        "onnx": largest_difference(run_onnx(onnx, shown), expected),
    }
