# SPDX-License-Identifier: Apache-2.0
"""The recipe that the golden arrays of DEAR's networks were made with; names are those of its state dicts."""

from __future__ import annotations

import json
import zlib
from typing import Any

import numpy as np
from mindspore import Tensor, nn

from mindvideo.convert.families import FAMILIES

# Where the published name of a network stands in the reference's config.
ARCHITECTURES = {"ResNet3d": "i3d", "ResNetTSM": "tsm", "ResNet3dSlowFast": "slowfast", "ResNet3dSlowOnly": "tpn"}


def theirs(model: str, name: str) -> str:
    """The reference name of one of our parameters."""
    return FAMILIES[model].layouts[0].theirs(name)


def weight(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The recipe's value of the reference tensor `name`, float32."""
    r = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32).random_sample(shape)
    if name.endswith("running_mean"):
        value = 0.2 * (2 * r - 1)
    elif name.endswith("running_var"):
        value = 0.5 + r
    elif name.endswith(".bn.weight"):
        value = 0.2 + 0.2 * r if name.endswith("conv3.bn.weight") else 0.6 + 0.6 * r
    elif name.endswith(".weight"):
        value = np.sqrt(6 / np.prod(shape[1:])) * (2 * r - 1) * (0.3 if len(shape) == 2 else 1.0)
    else:
        value = 0.1 * (2 * r - 1)
    return value.astype(np.float32)


def fill(parts: nn.Cell, model: str, seed: int) -> None:
    """Give a model, or heads of its training, the recipe's weights."""
    for parameter in parts.get_parameters():
        parameter.set_data(Tensor(weight(theirs(model, parameter.name), parameter.shape, int(seed))))


def made_of(golden: Any, architecture: str) -> tuple[str, dict[str, int]]:
    """Our name and options of a file's network, which is of published size if the file has no config."""
    options: dict[str, int] = {"num_classes": golden["cls_score"].shape[1] if "cls_score" in golden.files else 0}
    if "cfg_json" not in golden.files:
        return f"{architecture}_r50", options
    config = json.loads(str(golden["cfg_json"]))
    backbone = config["backbone"]
    options["num_classes"] = config["cls_head"]["num_classes"]
    if "slow_pathway" in backbone:
        options["width"] = backbone["slow_pathway"]["base_channels"]
        options["fast_width"] = backbone["fast_pathway"]["base_channels"]
    elif "base_channels" in backbone:
        options["width"] = backbone["base_channels"]
    return f"{architecture}_r{backbone.get('depth', 50)}", options


def random_clips(seed: int, shape: tuple[int, ...], scale: float = 2.0) -> np.ndarray:
    """The recipe's input, float32."""
    return (scale * (2 * np.random.RandomState(int(seed)).random_sample(shape) - 1)).astype(np.float32)


def views(golden: Any) -> np.ndarray:
    """The file's input as `[videos * views, 3, T, H, W]`; TSM's files have the frames in place of the views."""
    if "imgs" in golden.files:
        clips = golden["imgs"]
    else:
        clips = random_clips(golden["input_seed"], golden["input_shape"].tolist(), float(golden["input_scale"]))
    if clips.ndim == 6:
        return clips.reshape(-1, *clips.shape[2:])
    segments = 8
    if "cfg_json" in golden.files:
        segments = json.loads(str(golden["cfg_json"]))["backbone"]["num_segments"]
    return np.ascontiguousarray(clips.reshape(-1, segments, *clips.shape[2:]).swapaxes(1, 2))
