# SPDX-License-Identifier: Apache-2.0
"""ARN's self-supervised tasks (arXiv 2001.03905v3, eq. 9-11): disturb a clip in one of K ways, and have a network
tell which.

Each augmentation only moves pixels, so it also says how the attention map of a clip must move with it (eq. 14).
C channels, T frames or feature steps, H height, W width; K classes, L map entries, N blocks or quadrants.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from mindvideo.errors import InputError

AUGMENTATIONS = ("temporal_jigsaw", "spatial_jigsaw", "rotation")

_MOST_BLOCKS = 8  # of which all 40320 orders are compared


class Augmentation(Protocol):
    """One of `num_classes` disturbances of a clip; a label, from 0, says which."""

    @property
    def num_classes(self) -> int: ...

    def apply(self, clip_CTHW: np.ndarray, label: int) -> np.ndarray:
        """The disturbed clip, of the same shape; InputError where the shape does not allow it."""
        ...

    def map_order(self, features_THW: tuple[int, int, int]) -> np.ndarray:
        """Int32 `[K, L]`: entry l of a flat attention map comes from entry `order[label, l]`.

        The map has the T entries of the features for the temporal jigsaw, and for the others H * W, row by row.
        """
        ...


@dataclass(frozen=True)
class TemporalJigsaw:
    """Block k of the clip becomes its block `permutations[label][k]`.

    A block is `block` consecutive frames, their order kept; frames after the last block stay. In the attention map
    a block is T // N steps, which is right where the encoder's stride in time divides `block` and the frames that
    stay make fewer than N steps.
    """

    permutations: Sequence[Sequence[int]]
    block: int = 4

    def __post_init__(self) -> None:
        _check_permutations(self.permutations, len(self.permutations[0]))

    @property
    def num_classes(self) -> int:
        return len(self.permutations)

    def apply(self, clip_CTHW: np.ndarray, label: int) -> np.ndarray:
        blocks, steps = len(self.permutations[label]), clip_CTHW.shape[1]
        moved = blocks * self.block
        if moved > steps:
            raise InputError(f"{steps} time steps hold fewer than {blocks} blocks of {self.block}.")
        source = np.arange(steps)
        source[:moved] = source[:moved].reshape(blocks, self.block)[list(self.permutations[label])].ravel()
        return clip_CTHW[:, source]

    def map_order(self, features_THW: tuple[int, int, int]) -> np.ndarray:
        steps = features_THW[0]
        block = max(1, steps // len(self.permutations[0]))  # too few steps for that are refused by `apply`
        return _order(replace(self, block=block), (steps, 1, 1))


@dataclass(frozen=True)
class SpatialJigsaw:
    """Quadrant k of every frame becomes its quadrant `permutations[label][k]`; even heights and widths only.

    Quadrants: 0 top left, 1 top right, 2 bottom left, 3 bottom right.
    """

    permutations: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        _check_permutations(self.permutations, 4)

    @property
    def num_classes(self) -> int:
        return len(self.permutations)

    def apply(self, clip_CTHW: np.ndarray, label: int) -> np.ndarray:
        height, width = clip_CTHW.shape[2:]
        if height % 2 or width % 2:
            raise InputError(f"frames of {height} x {width} have no equal quadrants; both sides must be even.")
        quadrants = [part for half in np.split(clip_CTHW, 2, axis=2) for part in np.split(half, 2, axis=3)]
        top_left, top_right, bottom_left, bottom_right = (quadrants[k] for k in self.permutations[label])
        return np.block([[top_left, top_right], [bottom_left, bottom_right]])

    def map_order(self, features_THW: tuple[int, int, int]) -> np.ndarray:
        return _order(self, (1, *features_THW[1:]))


@dataclass(frozen=True)
class Rotation:
    """All frames turned by label * 90 degrees counter-clockwise; square frames only."""

    @property
    def num_classes(self) -> int:
        return 4

    def apply(self, clip_CTHW: np.ndarray, label: int) -> np.ndarray:
        height, width = clip_CTHW.shape[2:]
        if height != width:
            raise InputError(f"frames of {height} x {width} cannot be rotated; they must be square.")
        return np.rot90(clip_CTHW, label, axes=(2, 3))

    def map_order(self, features_THW: tuple[int, int, int]) -> np.ndarray:
        return _order(self, (1, *features_THW[1:]))


def make_augmentation(name: str, *, length: int, permutations: int = 10, block: int = 4) -> Augmentation:
    """The augmentation of this name for clips of `length` frames.

    `permutations` is the number of classes of a jigsaw, `block` the frames in a block of the temporal one: a clip
    has length // block blocks. InputError for an unknown name, or more permutations than there are.
    """
    if name == "temporal_jigsaw":
        return TemporalJigsaw(distant_permutations(length // block, permutations), block)
    if name == "spatial_jigsaw":
        return SpatialJigsaw(distant_permutations(4, permutations))
    if name == "rotation":
        return Rotation()
    raise InputError(f"augmentation {name!r}: allowed are {', '.join(AUGMENTATIONS)}.")


def distant_permutations(size: int, count: int) -> list[tuple[int, ...]]:
    """`count` permutations of 0 to `size` - 1, always the same: the identity, then the one least like those before.

    That is the one whose smallest Hamming distance to them is largest; of several the first in dictionary order.
    """
    if size > _MOST_BLOCKS:
        raise InputError(f"{size} blocks have too many orders; take longer blocks, at most {_MOST_BLOCKS}.")
    orders = math.factorial(size)
    if not 2 <= count <= orders:
        raise InputError(f"{count} permutations of {size} blocks: they have {orders}, and a jigsaw needs 2 or more.")
    everything = np.array(list(itertools.permutations(range(size))))
    nearest = np.full(len(everything), size + 1)  # distance to the chosen
    chosen: list[int] = []
    for _ in range(count):
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, (everything != everything[chosen[-1]]).sum(axis=1))
    return [tuple(row) for row in everything[chosen].tolist()]


def _check_permutations(permutations: Sequence[Sequence[int]], size: int) -> None:
    for permutation in permutations:
        if sorted(permutation) != list(range(size)):
            raise InputError(f"{list(permutation)} is not a permutation of 0 to {size - 1}.")


def _order(augmentation: Augmentation, shape_THW: tuple[int, int, int]) -> np.ndarray:
    """What the augmentation does to a map, as seen when it moves the entries' own positions."""
    positions_CTHW = np.arange(math.prod(shape_THW), dtype=np.int32).reshape(1, *shape_THW)
    return np.stack([augmentation.apply(positions_CTHW, label).ravel() for label in range(augmentation.num_classes)])
