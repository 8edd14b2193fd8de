# SPDX-License-Identifier: Apache-2.0
"""Two images as one: mixup (Zhang et al., ICLR 2018) and CutMix (Yun et al., ICCV 2019).

B images `[B, C, H, W]`; `partners_B` says which image of the batch each is mixed with. Of the result, a share shows the
image itself, and so counts for its label, and the rest its partner.
"""

from __future__ import annotations

import numpy as np

Box = tuple[int, int, int, int]  # first row, row after the last, first column, column after the last


def mixup(images_BCHW: np.ndarray, partners_B: np.ndarray, share: float) -> np.ndarray:
    """share x + (1 - share) x'."""
    mixed = np.float32(share) * images_BCHW + np.float32(1 - share) * images_BCHW[partners_B]
    return mixed.astype(np.float32)


def cutmix(images_BCHW: np.ndarray, partners_B: np.ndarray, box: Box) -> tuple[np.ndarray, float]:
    """x with the partner's pixels in the box, and the share of the pixels that are left of x."""
    first_row, last_row, first_column, last_column = box
    mixed = images_BCHW.copy()
    inside = (..., slice(first_row, last_row), slice(first_column, last_column))
    mixed[inside] = images_BCHW[partners_B][inside]
    height, width = images_BCHW.shape[2:]
    return mixed, 1.0 - (last_row - first_row) * (last_column - first_column) / (height * width)


def draw_box(height: int, width: int, share: float, rng: np.random.Generator) -> Box:
    """A box of a share 1 - `share` of the image, with its shape, around a place drawn anywhere; what would lie outside
    is cut off."""
    side = (1.0 - share) ** 0.5
    row, column = int(rng.integers(height)), int(rng.integers(width))
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    rows = np.clip((row - half_height, row + half_height), 0, height)
    columns = np.clip((column - half_width, column + half_width), 0, width)
    return int(rows[0]), int(rows[1]), int(columns[0]), int(columns[1])
