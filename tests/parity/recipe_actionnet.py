# SPDX-License-Identifier: Apache-2.0
"""What ActionNet's golden arrays call our parameters, and the recipe that their weights were made with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from mindspore import Tensor, nn

from tests.conftest import outside_folder
from tests.parity import recipe
from tests.parity.checks import ABSENT

_LAYER = "layers.0."
_DECODER = {  # of our stems -> of the reference's, within ML-Decoder
    "embed": "embed_standart", "attention.output": f"{_LAYER}multihead_attn.out_proj",
    "fc1": f"{_LAYER}linear1", "fc2": f"{_LAYER}linear2",
    **{f"norm{i}": f"{_LAYER}norm{i}" for i in (1, 2, 3)},
}  # fmt: skip
_ACTIONNET = {"embed": "map", "attention.output": "lstm.fc.0"} | {
    f"attention.{name}": f"lstm.{name[0].upper()}" for name in ("query", "key", "value")
}
_STACKED = ("query", "key", "value")  # rows of one array
_ALONE = {"queries": "query_embed.weight", "pooling": "duplicate_pooling", "bias": "duplicate_pooling_bias"}
_LEAVES = {"gamma": "weight", "beta": "bias"}


def theirs(name: str) -> tuple[str, int | None]:
    """The reference's name of one of our parameters, and which third of that array it is, if not the whole."""
    if name.startswith("decoder.decoder."):
        inner = name.removeprefix("decoder.decoder.")
        if inner in _ALONE:
            return f"decoder.decoder.{_ALONE[inner]}", None
        stem, leaf = inner.rsplit(".", 1)
        if stem.startswith("attention.") and stem.removeprefix("attention.") in _STACKED:
            third = _STACKED.index(stem.removeprefix("attention."))
            return f"decoder.decoder.{_LAYER}multihead_attn.in_proj_{leaf}", third
        return f"decoder.decoder.{_DECODER[stem]}.{_LEAVES.get(leaf, leaf)}", None
    stem, leaf = name.rsplit(".", 1)
    return f"{_ACTIONNET[stem]}.{leaf}", None


def reference_names(model: nn.Cell) -> dict[str, tuple[str, int | None]]:
    """`theirs` of every parameter of an ActionNet or an ML-Decoder."""
    names = [name for name, _ in model.parameters_and_names()]
    if any(name.startswith("decoder.") for name in names):
        return {name: theirs(name.replace("decoder.", "decoder.decoder.", 1)) for name in names}
    inner = {name: theirs(f"decoder.decoder.{name}") for name in names}
    return {name: (reference.removeprefix("decoder."), third) for name, (reference, third) in inner.items()}


def ours(arrays: Mapping[str, np.ndarray], model: nn.Cell) -> dict[str, np.ndarray]:
    """The arrays under reference names by our names, those that are there."""
    found = {}
    for name, (reference, third) in reference_names(model).items():
        if reference in arrays:
            array = np.asarray(arrays[reference])
            found[name] = array if third is None else np.split(array, 3)[third]
    return found


def fill(model: nn.Cell, arrays: Mapping[str, np.ndarray]) -> None:
    """Give every parameter its value from arrays under reference names."""
    values = ours(arrays, model)
    for name, parameter in model.parameters_and_names():
        assert parameter.shape == values[name].shape, name
        parameter.set_data(Tensor(values[name]))


def made(model: nn.Cell, seed: int) -> dict[str, np.ndarray]:
    """The recipe's weights by reference names: of standard normal numbers drawn name by name in order."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, parameter in model.parameters_and_names():
        reference, third = reference_names(model)[name]
        shape = tuple(parameter.shape)
        shapes[reference] = shape if third is None else (3 * shape[0], *shape[1:])
    rs = np.random.RandomState(seed)
    arrays = {}
    for name in sorted(shapes):
        shape = shapes[name]
        z = rs.standard_normal(shape)
        if name.endswith("query_embed.weight"):
            value = z
        elif name.endswith("duplicate_pooling"):
            value = z / np.sqrt(shape[1])
        elif len(shape) == 1:
            value = 1 + 0.1 * z if name.endswith("weight") else 0.1 * z
        else:
            value = z / np.sqrt(np.prod(shape[1:]))
        arrays[name] = value.astype(np.float32)
    return arrays


def each(pattern: str, holding: str = "") -> pytest.MarkDecorator:
    """Run a test on every golden file of this pattern that has an array `holding`; without golden arrays, skip it."""
    files = recipe.golden_files("actionnet", pattern)
    files = [path for path in files if not holding or holding in np.load(path).files]
    return pytest.mark.parametrize("path", files or [pytest.param(None, marks=ABSENT)], ids=lambda p: p and p.stem)


def stored(golden: Any, prefix: str) -> dict[str, np.ndarray]:
    """The arrays of a file whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): golden[name] for name in golden.files if name.startswith(prefix)}


def real_clip(name: str) -> np.ndarray:
    """A clip of the real data, by its file name; skips the test where there are none."""
    folder = outside_folder("MINDVIDEO_DATA", "data")
    if folder is None:
        pytest.skip("no real data: set MINDVIDEO_DATA to run these tests")
    return np.load(folder / "csig_angles" / "npy_data_6d" / name, allow_pickle=False)
