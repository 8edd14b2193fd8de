# SPDX-License-Identifier: Apache-2.0
"""ActionNet's golden arrays as our parameters, and the recipe that their weights were made with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from mindspore import Tensor, nn

from mindvideo.convert.families import FAMILIES
from mindvideo.convert.files import from_layout
from tests.conftest import outside_folder
from tests.parity import recipe
from tests.parity.checks import ABSENT

_LAYOUT = FAMILIES["actionnet"].layouts[0]


def _placed(name: str, model: nn.Cell) -> tuple[str, str]:
    """A parameter's name within ActionNet, of which the model is all or its ML-Decoder, and the reference's of it."""
    whole = any(own.startswith("decoder.") for own, _ in model.parameters_and_names())
    prefix = "" if whole else "decoder."
    return prefix + name, _LAYOUT.theirs(prefix + name).removeprefix(prefix)


def ours(arrays: Mapping[str, np.ndarray], model: nn.Cell) -> dict[str, np.ndarray]:
    """The arrays under reference names by our names, those that are there."""
    found = {}
    for name, parameter in model.parameters_and_names():
        placed, reference = _placed(name, model)
        if reference in arrays:
            found[name] = from_layout(np.asarray(arrays[reference]), _LAYOUT, placed, tuple(parameter.shape))
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
        placed, reference = _placed(name, model)
        shape = tuple(parameter.shape)
        shapes[reference] = shape if _LAYOUT.third(placed) is None else (3 * shape[0], *shape[1:])
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
