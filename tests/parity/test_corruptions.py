# SPDX-License-Identifier: Apache-2.0
"""Operations on images against golden arrays made with the authors' code, all of every file found.

Without randomness they must agree. What is random was drawn there by two global generators: there, the same facts are
asked of the golden array and of ours, or the golden array's statistics must lie among those of ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mindvideo.data.corruptions import OPERATIONS, SEVERITIES, Operation, random_cut
from mindvideo.data.corruptions.weather import plasma
from tests.parity import recipe
from tests.parity.recipe_actionnet import each

BY_NAME: dict[str, Operation] = {
    name.replace("_", ""): operation for name, operation in (OPERATIONS | {"random_cut": random_cut}).items()
}
SEEDS = range(8)
# Nothing is random in these; the numbers are the largest difference, 1 where the authors round down.
FIXED = {"blur": 0, "hflip": 0, "vflip": 0, "pixelate": 0, "contrast": 1.01, "brightness": 2, "compress": 3}


def ours(name: str, image: np.ndarray, seed: int, severity: int) -> np.ndarray:
    return BY_NAME[name](image, np.random.default_rng(seed), severity)


def changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return after[(before != after).any(axis=2)]


def count_near(number: int, pixels: int, share: float) -> None:
    assert abs(number - pixels * share) <= 4 * np.sqrt(pixels * share)


def is_pepper_and_salt(before: np.ndarray, after: np.ndarray) -> None:
    spoilt, pixels = changed(before, after), before[..., 0].size
    for color in (0, 255):
        count_near(np.count_nonzero((spoilt == color).all(axis=1)), pixels, 0.005)
    assert ((spoilt == 0).all(axis=1) | (spoilt == 255).all(axis=1)).all()


def is_color_points(before: np.ndarray, after: np.ndarray) -> None:
    spoilt, pixels = changed(before, after), before[..., 0].size
    count_near(len(spoilt), pixels, 0.01)
    for color in ((0, 255, 0), (255, 0, 0), (0, 0, 255)):
        count_near(np.count_nonzero((spoilt == color).all(axis=1)), pixels, 0.0025)


def is_one_square(before: np.ndarray, after: np.ndarray) -> None:
    rows, columns = np.nonzero((before != after).any(axis=2))
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    # A pixel of the square may have had its colour before.
    assert abs(height - width) <= 2
    assert 11 <= max(height, width) <= 26


def is_channel_order(before: np.ndarray, after: np.ndarray) -> None:
    orders = {tuple(order) for order in np.array(np.meshgrid(*[range(3)] * 3)).reshape(3, -1).T if len(set(order)) == 3}
    assert any(np.array_equal(before[..., order], after) for order in orders)


def is_window(before: np.ndarray, after: np.ndarray) -> None:
    (height, width), (rows, columns) = before.shape[:2], after.shape[:2]
    scale = (rows + 0.5) / height
    assert 0.395 < scale < 0.91
    assert abs(columns - width * scale) < 1.5
    windows = np.lib.stride_tricks.sliding_window_view(before, after.shape)[..., 0, :, :, :]
    assert any((windows[row] == after).all(axis=(1, 2, 3)).any() for row in range(len(windows)))


def is_extended(before: np.ndarray, after: np.ndarray) -> None:
    """Every pixel comes from a square of side 9 below and to the right, over which the offsets are spread alike."""
    height, width = before.shape[:2]
    padded = np.pad(before, ((0, 8), (0, 8), (0, 0)), mode="edge")
    found = np.array(
        [[(padded[i : i + height, j : j + width] == after).all(axis=2) for j in range(9)] for i in range(9)]
    )
    assert found.any(axis=(0, 1)).all()
    alone = found[:, :, found.sum(axis=(0, 1)) == 1].sum(axis=2)
    reach = int(np.flatnonzero(alone.sum(axis=1) > 0.02 * alone.sum())[-1]) + 1
    assert 3 <= reach <= 9
    spread = alone[:reach, :reach]
    assert spread.sum() > 0.97 * alone.sum()
    assert np.abs(spread - spread.mean()).max() < 5 * np.sqrt(spread.mean())


def is_swapped_blocks(before: np.ndarray, after: np.ndarray) -> None:
    shifts = [(axis, shift) for axis in (0, 1) for shift in range(before.shape[axis])]
    axis, shift = next((axis, shift) for axis, shift in shifts if np.array_equal(np.roll(before, shift, axis), after))
    assert 0.38 <= shift / before.shape[axis] <= 0.62


def is_fog(before: np.ndarray, after: np.ndarray) -> None:
    """One cloud in [0, 1] on all channels, for one of the amounts."""
    brightest = int(before.max())
    spreads = []
    for amount in (1.5, 2, 2.5, 3):
        clouds = (after * (brightest / 255 + amount) / brightest - before / 255) / amount
        rounding = (brightest / 255 + amount) / brightest / amount
        if -rounding <= clouds.min() and clouds.max() <= 1 + rounding:
            spreads.append(np.ptp(clouds, axis=2).max() / rounding)
    assert min(spreads) <= 1.01


def is_impulses(before: np.ndarray, after: np.ndarray) -> None:
    spoilt = after[before != after]
    assert np.isin(spoilt, (0, 255)).all()
    share = len(spoilt) / before.size
    assert min(abs(share - expected) for expected in (0.03, 0.06, 0.09, 0.17, 0.27)) < 0.015
    assert np.mean(spoilt == 0) == pytest.approx(0.5, abs=0.05)


def is_speckled(before: np.ndarray, after: np.ndarray) -> None:
    """The quantiles of after / before are a normal distribution's, of one of the deviations."""
    middle = (before > 60) & (before < 110)
    ratio = after[middle] / before[middle] - 1
    low, median = np.quantile(ratio, (0.1587, 0.5))
    assert abs(median) < 0.03
    assert min(abs(-low - std) for std in (0.15, 0.2, 0.35, 0.45, 0.6)) < 0.03


FACTS: dict[str, Callable[[np.ndarray, np.ndarray], None]] = {
    "peppersaltnoise": is_pepper_and_salt, "colorpointnoise": is_color_points, "mosaic": is_one_square,
    "rgbshuffle": is_channel_order, "randomcut": is_window, "extend": is_extended, "blockshuffle": is_swapped_blocks,
    "fog": is_fog, "impulsenoise": is_impulses, "specklenoise": is_speckled,
}  # fmt: skip


def statistics(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    difference = after.astype(float) - before
    return np.array([after.mean(), after.std(), np.abs(difference).mean(), difference.std()])


def operation_key(golden: np.lib.npyio.NpzFile) -> list[str]:
    return [key for key in golden.files if key.replace("_", "").lower() in BY_NAME]


@each("data_aug_ops*.npz")
def test_operations(path: Path):
    golden = np.load(path)
    before = golden["input"]
    keys = operation_key(golden)
    assert keys
    for key in keys:
        name, expected = key.replace("_", "").lower(), golden[key]
        if name in FIXED:
            differences = [np.abs(ours(name, before, 0, s).astype(int) - expected).max() for s in SEVERITIES]
            assert min(differences) <= FIXED[name], key
            continue
        made = [(seed, s, ours(name, before, seed, s)) for seed in SEEDS for s in SEVERITIES]
        if name in FACTS:
            for image in (expected, *(image for seed, _, image in made if seed < 2)):
                FACTS[name](before, image)
        if expected.shape == before.shape:
            mine = np.array([statistics(before, image) for *_, image in made])
            slack = 1.5 + 0.15 * np.ptp(mine, axis=0)
            found = statistics(before, expected)
            assert (mine.min(axis=0) - slack <= found).all(), (key, found, mine.min(axis=0))
            assert (found <= mine.max(axis=0) + slack).all(), (key, found, mine.max(axis=0))
        if f"{key}_attr_std" in golden.files:
            middle = (before > 120) & (before < 140)
            noise = expected[middle].astype(float) - before[middle]
            assert noise.std() == pytest.approx(255 * float(golden[f"{key}_attr_std"]), rel=0.1, abs=0.5), key


@each("data_aug_severity_index*.npz")
def test_severities(path: Path):
    """Their 0 is level 5; pixels as numbers in [0, 1] must agree with ours before rounding."""
    golden = np.load(path)
    found = 0
    for key in golden.files:
        match = re.fullmatch(r"(\w+)_sev([0-5])", key)
        if match is None:
            continue
        name = match[1].replace("_", "").lower()
        result, expected = ours(name, golden["input"], 0, int(match[2]) or 5), golden[key]
        if expected.dtype == np.uint8:
            np.testing.assert_array_equal(result, expected, err_msg=key)
        else:
            assert np.abs(result - 255 * expected.astype(np.float64)).max() <= 0.5 + 1e-4, key
        found += 1
    assert found


@each("plasma_fractal*.npz")
def test_plasma(path: Path):
    golden = np.load(path)
    rng = np.random.RandomState(int(golden["np_seed"]))
    cloud = plasma(int(golden["mapsize"]), float(golden["wibbledecay"]), rng)
    np.testing.assert_allclose(cloud, golden["map"], atol=1e-6, rtol=0)


def test_there_are_files_of_each_family():
    if not recipe.golden_files("actionnet", "*.npz"):
        pytest.skip("no golden arrays")
    for pattern in ("data_aug_ops*", "data_aug_severity_index*", "plasma_fractal*"):
        assert recipe.golden_files("actionnet", f"{pattern}.npz"), pattern
