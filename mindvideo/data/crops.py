# SPDX-License-Identifier: Apache-2.0
"""Where a frame is cropped: windows as (top, left, height, width) in pixels, fixed ones and random ones.

A box of fixed candidates is drawn as its number among them, so that the draws of published pipelines can be replayed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mindvideo.errors import InputError

Box = tuple[int, int, int, int]

# ARN's random crop is up to this much wider and lower than the frame's own shape, or narrower and higher.
_ASPECT_JITTER = 1.1
_RESIZED_TRIALS = 10


class RandomCrop(Protocol):
    """A random window of a frame."""

    def box(self, height: int, width: int, rng: np.random.Generator) -> Box: ...


@dataclass(frozen=True)
class MultiScaleCrop:
    """One of some sizes at one of some fixed places: the multi-scale crop of TSN (arXiv 1608.00859).

    Each side is the frame's shorter side times one of `scales`; the two are at most `gap` apart in that list. The first
    `places` of 13 places are used.
    """

    scales: tuple[float, ...]
    gap: int
    places: int

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """The (height, width) that a crop may have."""
        sides = [int(min(height, width) * scale) for scale in self.scales]
        return [(a, b) for i, a in enumerate(sides) for j, b in enumerate(sides) if abs(i - j) <= self.gap]

    def corners(self, free_rows: int, free_columns: int) -> list[tuple[int, int]]:
        """The (top, left) that a crop may have which leaves so many rows and columns free."""
        return [(free_rows // 4 * y, free_columns // 4 * x) for y, x in _PLACES[: self.places]]

    def box(self, height: int, width: int, rng: np.random.Generator) -> Box:
        sizes = self.sizes(height, width)
        rows, columns = sizes[rng.integers(len(sizes))]
        corners = self.corners(height - rows, width - columns)
        return *corners[rng.integers(len(corners))], rows, columns


# In quarters of the free rows and columns: the corners and the middle; the middles of the sides; between those.
_PLACES = (
    *((0, 0), (0, 4), (4, 0), (4, 4), (2, 2)),
    *((2, 0), (2, 4), (4, 2), (0, 2)),
    *((1, 1), (1, 3), (3, 1), (3, 3)),
)


@dataclass(frozen=True)
class ResizedCrop:
    """A window anywhere, with a share of the area drawn from `area`, and width / height, evenly in its logarithm, from
    `ratio`. If none of ten fits into the frame, the largest square in the middle: Inception's crop (arXiv 1409.4842).
    """

    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def box(self, height: int, width: int, rng: np.random.Generator) -> Box:
        ratios = np.exp(rng.uniform(*np.log(self.ratio), size=_RESIZED_TRIALS))
        areas = height * width * rng.uniform(*self.area, size=_RESIZED_TRIALS)
        trials = np.rint(np.sqrt([areas / ratios, areas * ratios])).astype(int)
        for rows, columns in trials.T.tolist():
            if rows <= height and columns <= width:
                left = int(rng.integers(width - columns + 1))
                return int(rng.integers(height - rows + 1)), left, rows, columns
        side = min(height, width)
        return center_box(height, width, side)


# As DEAR trains: I3D the first, TSM the second, SlowFast and TPN the third.
CROPS: dict[str, RandomCrop] = {
    "multiscale_5": MultiScaleCrop((1, 0.8), gap=0, places=5),
    "multiscale_13": MultiScaleCrop((1, 0.875, 0.75, 0.66), gap=1, places=13),
    "resized": ResizedCrop(),
}


def center_box(height: int, width: int, side: int) -> Box:
    """The square in the middle of the frame."""
    return (height - side) // 2, (width - side) // 2, side, side


def three_boxes(height: int, width: int, side: int) -> list[Box]:
    """Squares at the start, the end and the middle of the frame's longer side, in this order, as in MMAction2.

    The outer two are equally far from the middle, so the last may leave one row or column out.
    """
    top, left, *_ = center_box(height, width, side)
    if width >= height:
        return [(top, x, side, side) for x in (0, 2 * left, left)]
    return [(y, left, side, side) for y in (0, 2 * top, top)]


def random_crop_box(height: int, width: int, scale: tuple[float, float], rng: np.random.Generator) -> Box:
    """A window anywhere, near the frame's own shape, with a share of its area drawn from `scale`."""
    area = rng.uniform(*scale)
    widen = _ASPECT_JITTER ** rng.uniform(-1, 1)
    crop_height = max(1, min(height, round(height * area**0.5 / widen)))
    crop_width = max(1, min(width, round(width * area**0.5 * widen)))
    top = int(rng.integers(height - crop_height + 1))
    left = int(rng.integers(width - crop_width + 1))
    return top, left, crop_height, crop_width


def crop_frames(frames_THWC: np.ndarray, box: Box) -> np.ndarray:
    """The same window of every frame, as a view; InputError if it leaves the frame."""
    rows, columns = frames_THWC.shape[1:3]
    top, left, height, width = box
    if top < 0 or left < 0 or top + height > rows or left + width > columns:
        raise InputError(f"a crop of {height} x {width} at ({top}, {left}) leaves the frame {rows} x {columns}")
    return frames_THWC[:, top : top + height, left : left + width]
