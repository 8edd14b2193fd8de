# SPDX-License-Identifier: Apache-2.0
"""The recipe that the golden arrays were made with: weights and inputs from names and seeds alone.

Tensor names are those of the reference implementation (`<module>.<state dict name>`); `ARN_NAMES` says which
of our parameters each one is.
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import numpy as np
from mindspore import Tensor, nn

from tests.conftest import outside_folder

_LEAVES = {"running_mean": "moving_mean", "running_var": "moving_variance"}
_ARN_RULES = [  # reference pattern -> ours; {i} conv/norm/fc numbers
    (r"feature_encoder\.layer(\d)\.0\.(\w+)", r"encoder.block\1.conv.\2"),
    (r"feature_encoder\.layer(\d)\.1\.(\w+)", r"encoder.block\1.norm.\2"),
    (r"relation_network\.layer(\d)\.0\.(\w+)", r"comparator.conv\1.\2"),
    (r"relation_network\.layer(\d)\.1\.(\w+)", r"comparator.norm\1.\2"),
    (r"relation_network\.(fc\d)\.(\w+)", r"comparator.\1.\2"),
    (r"spatial_detector\.sd1\.0\.(\w+)", r"spatial_attention.conv1.\1"),
    (r"spatial_detector\.sd1\.1\.(\w+)", r"spatial_attention.norm1.\1"),
    (r"spatial_detector\.sd1\.4\.(\w+)", r"spatial_attention.conv2.\1"),
    (r"spatial_detector\.sd1\.5\.(\w+)", r"spatial_attention.norm2.\1"),
    (r"spatial_detector\.sd1\.8\.(\w+)", r"spatial_attention.conv3.\1"),
]


def golden_files(family: str, pattern: str) -> list[Path]:
    """The files of one family, or an empty list where the golden folder is absent (its tests then skip)."""
    folder = outside_folder("MINDVIDEO_GOLDEN", "golden")
    return sorted((folder / family).glob(pattern)) if folder else []


def ours(name: str) -> str:
    """Our name of a reference tensor."""
    for pattern, target in _ARN_RULES:
        if re.fullmatch(pattern, name):
            renamed = re.sub(pattern, target, name)
            stem, leaf = renamed.rsplit(".", 1)
            if ".norm" in stem:
                leaf = {"weight": "gamma", "bias": "beta"}.get(leaf, _LEAVES.get(leaf, leaf))
            return f"{stem}.{leaf}"
    raise KeyError(name)


def theirs(name: str) -> str:
    """The reference name of one of our parameters."""
    stem, leaf = name.rsplit(".", 1)
    leaf = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean"}.get(leaf, leaf)
    leaf = "running_var" if leaf == "moving_variance" else leaf
    stem = re.sub(r"encoder\.block(\d)\.conv", r"feature_encoder.layer\1.0", stem)
    stem = re.sub(r"encoder\.block(\d)\.norm", r"feature_encoder.layer\1.1", stem)
    stem = re.sub(r"comparator\.conv(\d)", r"relation_network.layer\1.0", stem)
    stem = re.sub(r"comparator\.norm(\d)", r"relation_network.layer\1.1", stem)
    stem = stem.replace("comparator.", "relation_network.")
    for unit, index in {"conv1": 0, "norm1": 1, "conv2": 4, "norm2": 5, "conv3": 8}.items():
        stem = stem.replace(f"spatial_attention.{unit}", f"spatial_detector.sd1.{index}")
    return f"{stem}.{leaf}"


def weight(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The recipe's value of the reference tensor `name`, float32."""
    r = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32).random_sample(shape)
    leaf = name.rsplit(".", 1)[1]
    is_norm = bool(re.search(r"(layer\d\.1|sd1\.[15])\.\w+$", name))
    if leaf == "running_mean":
        value = 0.2 * (2 * r - 1)
    elif leaf == "running_var":
        value = 0.5 + r
    elif leaf == "weight" and is_norm:
        value = 0.6 + 0.6 * r
    elif leaf == "bias":
        value = 0.1 * (2 * r - 1)
    else:
        value = np.sqrt(6 / np.prod(shape[1:])) * (2 * r - 1)
    return value.astype(np.float32)


def fill(model: nn.Cell, seed: int, relation_seed: int | None = None, prefix: str = "") -> None:
    """Give every parameter of `model` the recipe's value; `prefix` places a part inside ARN."""
    for name, parameter in model.parameters_and_names():
        reference = theirs(prefix + name)
        assert ours(reference) == prefix + name
        own_seed = relation_seed if relation_seed is not None and "relation" in reference else seed
        parameter.set_data(Tensor(weight(reference, parameter.shape, int(own_seed))))


def clips(seed: int, n: int, frames: int, height: int, width: int) -> np.ndarray:
    """The recipe's clips `[n, 3, T, H, W]`."""
    coarse = np.random.RandomState(seed).random_sample((n, 3, -(-frames // 4), 4, 4))
    fine = np.random.RandomState(seed + 1).random_sample((n, 3, frames, height, width))
    t, h, w = (np.arange(frames) // 4, 4 * np.arange(height) // height, 4 * np.arange(width) // width)
    return (2 * (2 * coarse[:, :, t][:, :, :, h][..., w] - 1) + 0.5 * (2 * fine - 1)).astype(np.float32)


def features(seed: int, n: int, channels: int, frames: int, height: int, width: int) -> np.ndarray:
    """The recipe's non-negative features `[n, C, T, H, W]`."""
    coarse = np.random.RandomState(seed).random_sample((n, channels, frames, 4, 4))
    fine = np.random.RandomState(seed + 1).random_sample((n, channels, frames, height, width))
    h, w = 4 * np.arange(height) // height, 4 * np.arange(width) // width
    x = 1.5 * (2 * coarse[:, :, :, h][..., w] - 1) + (2 * fine - 1)
    return np.maximum(0, x).astype(np.float32)


def probe(input_seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """The random weights R of the probe loss mean(y * R)."""
    return 2 * np.random.RandomState(int(input_seed) + 7).random_sample(shape) - 1


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over the largest expected magnitude."""
    return float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-12))
