# SPDX-License-Identifier: Apache-2.0
"""The recipe that the golden arrays of DEAR's networks were made with; names are those of its state dicts."""

from __future__ import annotations

import json
import re
import zlib
from typing import Any

import numpy as np
from mindspore import Tensor, nn

_LEAVES = {
    ".norm.gamma": ".bn.weight",
    ".norm.beta": ".bn.bias",
    ".norm.moving_mean": ".bn.running_mean",
    ".norm.moving_variance": ".bn.running_var",
}


def theirs(name: str) -> str:
    """The reference name of one of our parameters."""
    for own, reference in _LEAVES.items():
        name = name.replace(own, reference)
    return re.sub(r"^fc\.", "cls_head.fc_cls.", name)


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


def fill(model: nn.Cell, seed: int) -> None:
    """Give a model the recipe's weights."""
    for name, parameter in model.parameters_and_names():
        parameter.set_data(Tensor(weight(theirs(name), parameter.shape, int(seed))))


def views(golden: Any) -> np.ndarray:
    """The file's input as `[videos * views, 3, T, H, W]`."""
    if "imgs" in golden.files:
        clips = golden["imgs"]
    else:
        q = np.random.RandomState(int(golden["input_seed"])).random_sample(golden["input_shape"].tolist())
        clips = float(golden["input_scale"]) * (2 * q - 1)
    return clips.reshape(-1, *clips.shape[2:]).astype(np.float32)


def backbone_options(golden: Any) -> dict[str, Any]:
    """What a thin network's file says of its backbone; nothing for one of published size."""
    return json.loads(str(golden["cfg_json"]))["backbone"] if "cfg_json" in golden.files else {}
