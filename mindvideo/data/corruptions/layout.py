# SPDX-License-Identifier: Apache-2.0
"""Pixels moved about: squares, flips, shuffles, turns, cuts, padding. "No severity": all five are alike."""

from __future__ import annotations

import cv2
import numpy as np

from mindvideo.data.corruptions.levels import whole_within, within

MOST_ANGLE = 5.0  # degrees
MOSAIC_SIDES = (13, 26)
MOSAIC_COLORS = (0, 255, 127)
MOSAIC_NOISE = 0.7  # probability of colour noise; the colours share the rest
EXTEND_REACHES = (3, 9)
BLOCK_CUTS = (0.4, 0.6)
TILE_SIDES = (100, 80)
PADDED_SCALES = (0.95, 0.65)
CUT_SCALES = (0.9, 0.4)


def mosaic(image_HWC: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """One square, of side 13 to 26 but at most a fifth of the image, covered by colour noise, or black, white or grey.

    It keeps two of its sides' lengths from the border.
    """
    height, width = image_HWC.shape[:2]
    side = min(whole_within(*MOSAIC_SIDES, severity, rng), height // 5, width // 5)
    top, left = (rng.integers(2 * side, size - 3 * side + 1) for size in (height, width))
    covered = image_HWC.copy()
    is_noise = rng.random() < MOSAIC_NOISE
    color = rng.integers(256, size=(side, side, 3)) if is_noise else MOSAIC_COLORS[rng.integers(3)]
    covered[top : top + side, left : left + side] = color
    return covered


def rgb_shuffle(image_HWC: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """The channels in any order, one time in six their own. No severity."""
    return image_HWC[..., rng.permutation(3)]


def rotate(image_HWC: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """Turned about the middle, to either side, by an angle in the severity's fifth of 0 to 5 degrees; corners black."""
    height, width = image_HWC.shape[:2]
    angle = within(0, MOST_ANGLE, severity, rng) * rng.choice((-1, 1))
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1)
    return cv2.warpAffine(image_HWC, turn, (width, height), flags=cv2.INTER_LINEAR)


def hflip(image_HWC: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """Left and right swapped. No severity, nothing is random."""
    return image_HWC[:, ::-1].copy()


def vflip(image_HWC: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """Top and bottom swapped. No severity, nothing is random."""
    return image_HWC[::-1].copy()


def random_cut(image_HWC: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """A window anywhere with 0.9 to 0.4 of the sides: unlike all others, this changes the size."""
    scale = within(*CUT_SCALES, severity, rng)
    height, width = (max(1, int(size * scale)) for size in image_HWC.shape[:2])
    top = rng.integers(image_HWC.shape[0] - height + 1)
    left = rng.integers(image_HWC.shape[1] - width + 1)
    return image_HWC[top : top + height, left : left + width].copy()


def extend(image_HWC: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """Each pixel copied from one up to 2 (mild) to 8 (strong) further down and right."""
    height, width = image_HWC.shape[:2]
    reach = whole_within(*EXTEND_REACHES, severity, rng)
    down, right = rng.integers(reach, size=(2, height, width))
    rows, columns = np.mgrid[:height, :width]
    return image_HWC[np.minimum(rows + down, height - 1), np.minimum(columns + right, width - 1)]


def block_shuffle(image_HWC: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """Cut in two at 0.4 to 0.6 of its height or width, the parts swapped. No severity."""
    axis = int(rng.integers(2))
    return np.roll(image_HWC, round(image_HWC.shape[axis] * rng.uniform(*BLOCK_CUTS)), axis)


def local_shuffle(image_HWC: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """Tiles of side 100 (mild) to 80 (strong), but at most half the image's, in any order; the last ones overlap."""
    side = whole_within(*TILE_SIDES, severity, rng)
    height, width = (max(1, min(side, size // 2)) for size in image_HWC.shape[:2])
    places = [
        (top, left)
        for top in _tile_starts(image_HWC.shape[0], height)
        for left in _tile_starts(image_HWC.shape[1], width)
    ]
    shuffled = np.empty_like(image_HWC)
    for (top, left), other in zip(places, rng.permutation(len(places)), strict=True):
        from_top, from_left = places[other]
        tile = image_HWC[from_top : from_top + height, from_left : from_left + width]
        shuffled[top : top + height, left : left + width] = tile
    return shuffled


def _tile_starts(size: int, side: int) -> list[int]:
    return [*range(0, size - side, side), size - side]


def random_padding(image_HWC: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """Shrunk to 0.95 (mild) to 0.65 (strong) of its sides, anywhere on a canvas of one grey or of colour noise."""
    height, width = image_HWC.shape[:2]
    scale = within(*PADDED_SCALES, severity, rng)
    rows, columns = (max(1, int(size * scale)) for size in (height, width))
    top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
    is_noise = rng.random() < 0.5
    canvas = np.full_like(image_HWC, rng.integers(256))
    if is_noise:
        canvas[:] = rng.integers(256, size=canvas.shape)
    small_HWC = cv2.resize(image_HWC, (columns, rows), interpolation=cv2.INTER_AREA)
    canvas[top : top + rows, left : left + columns] = small_HWC
    return canvas
