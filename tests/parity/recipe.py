# SPDX-License-Identifier: Apache-2.0
"""The recipe that the golden arrays were made with: weights and inputs from names and seeds alone.

Tensor names are those of the reference implementation (`<module>.<state dict name>`); `ours` and `theirs` translate.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from mindspore import Tensor, nn

from tests.conftest import outside_folder

_PARTS = ("conv", "norm")  # a reference layer is a pair: convolution 0, batch norm 1
_UNIT = {0: "conv1", 1: "norm1", 4: "conv2", 5: "norm2", 8: "conv3"}  # of an attention unit, by place in its sequence
_STEMS = {  # of reference tensors -> of ours
    **{f"feature_encoder.layer{i}.{j}": f"encoder.block{i}.{_PARTS[j]}" for i in range(1, 5) for j in (0, 1)},
    **{f"relation_network.layer{i}.{j}": f"comparator.{_PARTS[j]}{i}" for i in range(1, 5) for j in (0, 1)},
    **{f"jigsaw_discriminator.layer{i}.{j}": f"discriminator.{_PARTS[j]}{i}" for i in (1, 2) for j in (0, 1)},
    **{f"relation_network.fc{i}": f"comparator.fc{i}" for i in (1, 2)},
    **{f"jigsaw_discriminator.fc{i}": f"discriminator.fc{i}" for i in (1, 2)},
    **{f"spatial_detector.sd1.{i}": f"spatial_attention.{layer}" for i, layer in _UNIT.items()},
    **{f"temporal_detector.td1.{i}": f"temporal_attention.{layer}" for i, layer in _UNIT.items()},
}
_NORM_LEAVES = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
_THEIR_STEMS = {own: reference for reference, own in _STEMS.items()}
_THEIR_NORM_LEAVES = {own: reference for reference, own in _NORM_LEAVES.items()}


def golden_files(family: str, pattern: str) -> list[Path]:
    """The files of one family, or an empty list where the golden folder is absent (its tests then skip)."""
    folder = outside_folder("MINDVIDEO_GOLDEN", "golden")
    return sorted((folder / family).glob(pattern)) if folder else []


def ours(name: str) -> str:
    """Our name of a reference tensor."""
    stem, leaf = name.rsplit(".", 1)
    own = _STEMS[stem]
    return f"{own}.{_NORM_LEAVES[leaf] if is_norm(own) else leaf}"


def theirs(name: str) -> str:
    """The reference name of one of our parameters."""
    stem, leaf = name.rsplit(".", 1)
    return f"{_THEIR_STEMS[stem]}.{_THEIR_NORM_LEAVES[leaf] if is_norm(stem) else leaf}"


def is_norm(stem: str) -> bool:
    """Whether a layer of ours is a batch norm."""
    return stem.rsplit(".", 1)[1].startswith("norm")


def feeds_a_norm(reference: str) -> bool:
    """Whether a reference tensor is the bias of a convolution in front of a batch norm.

    In training its true gradient is zero: what is left is rounding, of which Adam makes whole steps.
    """
    return reference.endswith((".0.bias", "sd1.4.bias", "td1.4.bias"))


def weight(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The recipe's value of the reference tensor `name`, float32."""
    r = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32).random_sample(shape)
    stem, leaf = name.rsplit(".", 1)
    if leaf == "running_mean":
        value = 0.2 * (2 * r - 1)
    elif leaf == "running_var":
        value = 0.5 + r
    elif leaf == "weight" and is_norm(_STEMS[stem]):
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
