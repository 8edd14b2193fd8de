# SPDX-License-Identifier: Apache-2.0
"""Square attack (Andriushchenko et al., ECCV 2020): random search with nothing but logits, which no hidden gradient
stops.

A sample is an image `[C, H, W]` or a clip `[C, T, H, W]`; a square covers all frames of a clip alike. Within this file
images are clips of one frame. n samples are still unbroken.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mindvideo.attacks.inputs import checked, is_broken, margins
from mindvideo.attacks.norms import norm_named, random_signs
from mindvideo.attacks.target import Target
from mindvideo.errors import InputError

# The share of the image that a square covers is halved after so many of 10,000 queries (section 3 there).
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_TILES = 5  # of the start in L2, along each side

Area = tuple[slice, slice]


def square(
    target: Target,
    x: np.ndarray,
    labels: np.ndarray,
    *,
    epsilon: float,
    rng: np.random.Generator,
    norm: str = "linf",
    queries: int = 5000,
    share: float = 0.8,
) -> np.ndarray:
    """Samples like `x`, float32 in [0, 1], whose margin is the least that was found; an unlucky sample is as close to
    being broken as it came.

    A sample is asked for no more once it is broken; a misclassified one is returned as it is.

    Args:
        norm: "linf" or "l2".
        queries: predictions of each sample, the first (of the sample itself) not counted.
        share: of the image, that squares cover at first.
    """
    x, labels = checked(x, labels, epsilon, queries)
    if x.ndim not in (4, 5):
        raise InputError(f"samples of shape {list(x.shape)}: the square attack needs images or clips.")
    if norm not in _MOVES:
        raise InputError(f"norm {norm!r}: the square attack works in linf and l2.")
    begin, move = _MOVES[norm]
    clips = x if x.ndim == 5 else x[:, :, None]
    best, logits_NK = clips.copy(), target.logits(x)
    left, gaps_N = np.flatnonzero(~is_broken(logits_NK, labels)), margins(logits_NK, labels)
    for query in range(queries):
        if not len(left):
            break
        if query == 0:
            tried = np.stack([begin(clips[i], epsilon, rng) for i in left])
            gaps_N[left] = -np.inf  # the start need not be better than the sample
        else:
            size = _square_size(clips.shape[3:], share * 0.5 ** _halvings(query, queries))
            tried = np.stack([move(clips[i], best[i], size, epsilon, rng) for i in left])
        tried = norm_named(norm).project(clips[left], tried, epsilon)
        logits = target.logits(tried.reshape(-1, *x.shape[1:]))
        gaps = margins(logits, labels[left])
        better = gaps > gaps_N[left]
        best[left[better]], gaps_N[left[better]] = tried[better], gaps[better]
        left = left[~is_broken(logits, labels[left])]
    return best.reshape(x.shape)


def _halvings(query: int, queries: int) -> int:
    """How often the share has been halved by this query."""
    return sum(query * 10_000 // queries > after for after in _HALVINGS)


def _square_size(sides: tuple[int, ...], share: float) -> tuple[int, int]:
    """Height and width that cover this share of an image, in its proportions."""
    height, width = (max(1, round(side * share**0.5)) for side in sides)
    return height, width


def _somewhere(sides: tuple[int, ...], size: tuple[int, int], rng: np.random.Generator) -> Area:
    """An area of this size, uniform in the image."""
    top, left = (int(rng.integers(side - extent + 1)) for side, extent in zip(sides, size, strict=True))
    return slice(top, top + size[0]), slice(left, left + size[1])


def _stripes(x_CTHW: np.ndarray, epsilon: float, rng: np.random.Generator) -> np.ndarray:
    """The start in L-infinity: columns, each of one random sign in each colour."""
    channels, _, _, width = x_CTHW.shape
    return x_CTHW + np.float32(epsilon) * random_signs(rng, (channels, 1, 1, width))


def _repaint(
    x_CTHW: np.ndarray, best_CTHW: np.ndarray, size: tuple[int, int], epsilon: float, rng: np.random.Generator
) -> np.ndarray:
    """A square set to the budget's ends, of one random sign in each colour (algorithm 2)."""
    tried = best_CTHW.copy()
    rows, columns = _somewhere(x_CTHW.shape[2:], size, rng)
    inside = (..., rows, columns)
    tried[inside] = x_CTHW[inside] + np.float32(epsilon) * random_signs(rng, (len(x_CTHW), 1, 1, 1))
    return tried


def _bumps(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Two adjacent bumps of opposite signs, of L2 norm 1; side by side or one above the other.

    Each rises in rings towards its middle, the k-th of n rings by 1 / k^2 seen from there (eq. 2 there).
    """
    is_tall = rng.random() < 0.5
    length, breadth = size if is_tall else size[::-1]
    half = length // 2
    both = np.concatenate([_bump(half, breadth), -_bump(length - half, breadth)])
    both = (both if is_tall else both.T).astype(np.float32)
    return both / max(float(np.linalg.norm(both)), 1e-12)


def _bump(height: int, width: int) -> np.ndarray:
    """Rings of a pyramid on `[height, width]`, 0 rows allowed."""
    from_edge = np.minimum.outer(*(np.minimum(np.arange(n), np.arange(n)[::-1]) for n in (height, width)))
    rings = (min(height, width) + 1) // 2
    heights = np.cumsum(1.0 / np.arange(rings, 0, -1.0) ** 2)
    return heights[from_edge] if rings else np.zeros((height, width))


def _tiles(x_CTHW: np.ndarray, epsilon: float, rng: np.random.Generator) -> np.ndarray:
    """The start in L2: bumps all over, each of one random sign in each colour, that use up the budget."""
    channels, _, *sides = x_CTHW.shape
    delta = np.zeros_like(x_CTHW)
    height, width = (max(1, side // _TILES) for side in sides)
    for top in range(0, sides[0], height):
        for left in range(0, sides[1], width):
            inside = delta[..., top : top + height, left : left + width]
            inside += _bumps((inside.shape[2], inside.shape[3]), rng) * random_signs(rng, (channels, 1, 1, 1))
    return x_CTHW + delta * np.float32(epsilon / max(float(np.linalg.norm(delta)), 1e-12))


def _shift(
    x_CTHW: np.ndarray, best_CTHW: np.ndarray, size: tuple[int, int], epsilon: float, rng: np.random.Generator
) -> np.ndarray:
    """What two squares have of the budget, and what is unused, goes to one of them (algorithm 3)."""
    channels, frames, *sides = x_CTHW.shape
    size = min(max(size[0], 3), sides[0]), min(max(size[1], 3), sides[1])
    delta = (best_CTHW - x_CTHW).astype(np.float64)
    taken, given = ((..., *_somewhere(x_CTHW.shape[2:], size, rng)) for _ in range(2))
    unused = max(epsilon**2 - float(np.square(delta).sum()), 0.0)
    before_C = np.square(delta).sum(axis=(1, 2, 3))
    own = delta[given].copy()
    delta[taken], delta[given] = 0.0, 0.0
    available_C = np.sqrt(before_C - np.square(delta).sum(axis=(1, 2, 3)) + unused / channels)
    lengths_C = np.sqrt(np.square(own).sum(axis=(1, 2, 3), keepdims=True))
    fresh = random_signs(rng, (channels, 1, 1, 1)) * (_bumps(size, rng) / frames**0.5)
    fresh = fresh + own / np.maximum(lengths_C, 1e-12)
    fresh /= np.maximum(np.sqrt(np.square(fresh).sum(axis=(1, 2, 3), keepdims=True)), 1e-12)
    delta[given] = fresh * available_C.reshape(-1, 1, 1, 1)
    return (x_CTHW + delta).astype(np.float32)


_MOVES: dict[str, tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]] = {
    "linf": (_stripes, _repaint), "l2": (_tiles, _shift),
}  # fmt: skip
