# SPDX-License-Identifier: Apache-2.0
"""Pictures that tests of image operations look at."""

from __future__ import annotations

import numpy as np


def scene(height: int, width: int) -> np.ndarray:
    """Slopes of colour, a bright disk, dark bars and some texture; neither black nor white, uint8 `[H, W, 3]`."""
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    picture = np.stack([60 + 120 * rows, 150 - 60 * columns, 80 + 60 * np.sin(9 * (rows + columns))], axis=2)
    picture[np.hypot(rows - 0.3, columns - 0.4) < 0.15] = (220, 190, 60)
    picture[(12 * columns + 5 * rows).astype(int) % 5 == 4] *= 0.5
    picture += np.random.default_rng(0).uniform(-12, 12, picture.shape)
    return np.clip(picture, 5, 240).astype(np.uint8)


def slopes(height: int, width: int) -> np.ndarray:
    """Slow waves of colour alone, on which ways to interpolate agree."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / 9), np.cos(columns / 11), np.sin((rows + columns) / 13)]
    return np.rint(128 + 90 * np.stack(waves, axis=2)).astype(np.uint8)


def flat(height: int, width: int, color: int | tuple[int, int, int]) -> np.ndarray:
    return np.full((height, width, 3), color, np.uint8)


def places(height: int, width: int) -> np.ndarray:
    """Each pixel says where it is, `(row, column, 7)`: for sides up to 256."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full_like(rows, 7)], axis=2).astype(np.uint8)
