# SPDX-License-Identifier: Apache-2.0
"""Balls of perturbations in the L-infinity, L2 and L1 norms: their sizes, steepest steps, projections, random points.

N samples of D values in [0, 1]; the box is what a sample can be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mindvideo.errors import InputError

_SPARSE_SHARE = 0.01  # of the values that a step in L1 changes


@dataclass(frozen=True)
class Norm:
    """What attacks need to know of a norm.

    size: perturbations to their norms, float64 `[N]`.
    direction: a gradient and the samples it was taken at, to the steps of size 1 that gain most, 0 for no gradient.
    project: samples, moved ones and epsilon, to points in the box and in the ball of radius epsilon around the samples.
    draw: random numbers and a shape, to perturbations uniform in the ball of radius 1.
    """

    size: Callable[[np.ndarray], np.ndarray]
    direction: Callable[[np.ndarray, np.ndarray], np.ndarray]
    project: Callable[[np.ndarray, np.ndarray, float], np.ndarray]
    draw: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]

    def start(self, x: np.ndarray, epsilon: float, rng: np.random.Generator | None) -> np.ndarray:
        """A random point of ball and box, or without random numbers the samples themselves."""
        return x if rng is None else self.project(x, x + epsilon * self.draw(rng, x.shape), epsilon)


def norm_named(name: str) -> Norm:
    """One of `NORMS`; InputError for another name."""
    if name not in NORMS:
        raise InputError(f"norm {name!r}: allowed are {', '.join(NORMS)}.")
    return NORMS[name]


def linf_size(delta: np.ndarray) -> np.ndarray:
    return np.abs(_rows(delta)).max(axis=1).astype(np.float64)


def l2_size(delta: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(_rows(delta), dtype=np.float64).sum(axis=1))


def l1_size(delta: np.ndarray) -> np.ndarray:
    return np.abs(_rows(delta)).sum(axis=1, dtype=np.float64)


def times(delta: np.ndarray, factors_N: np.ndarray) -> np.ndarray:
    """Each sample's values times its own factor, float32."""
    return delta * factors_N.astype(np.float32).reshape(-1, *[1] * (delta.ndim - 1))


def random_signs(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """-1 or 1 with equal probabilities, float32."""
    return rng.choice(np.array([-1.0, 1.0], np.float32), shape)


def _rows(delta: np.ndarray) -> np.ndarray:
    return delta.reshape(len(delta), -1)


def _of_size_one(delta: np.ndarray, sizes_N: np.ndarray) -> np.ndarray:
    return times(delta, 1.0 / np.where(sizes_N > 0, sizes_N, 1.0))


def _linf_direction(gradient: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.sign(gradient)


def _l2_direction(gradient: np.ndarray, x: np.ndarray) -> np.ndarray:
    return _of_size_one(gradient, l2_size(gradient))


def _l1_dense_direction(gradient: np.ndarray, x: np.ndarray) -> np.ndarray:
    return _of_size_one(gradient, l1_size(gradient))


def _l1_direction(gradient: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Equal steps of the values with the largest slopes, of those that the box lets go there.

    The steepest step in L1 changes one value alone; changing one in a hundred gets there in fewer (Tramèr & Boneh,
    NeurIPS 2019, "sparse l1 descent").
    """
    is_free = np.where(gradient > 0, x < 1.0, x > 0.0)
    slopes_ND = np.abs(_rows(np.where(is_free, gradient, 0.0)))
    count = max(1, round(_SPARSE_SHARE * slopes_ND.shape[1]))
    steepest_Nk = np.argpartition(slopes_ND, -count, axis=1)[:, -count:]
    steps_ND = np.zeros_like(slopes_ND)
    np.put_along_axis(steps_ND, steepest_Nk, np.take_along_axis(slopes_ND, steepest_Nk, axis=1) > 0, axis=1)
    step = steps_ND.reshape(gradient.shape) * np.sign(gradient)
    return _of_size_one(step, l1_size(step))


def _linf_project(x: np.ndarray, moved: np.ndarray, epsilon: float) -> np.ndarray:
    return np.clip(np.clip(moved, x - epsilon, x + epsilon), 0.0, 1.0)


def _scale(size: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray, np.ndarray, float], np.ndarray]:
    """Shorten what is too long, then cut to the box, which makes it shorter still."""

    def project(x: np.ndarray, moved: np.ndarray, epsilon: float) -> np.ndarray:
        delta = moved - x
        sizes_N = size(delta)
        return np.clip(x + times(delta, epsilon / np.maximum(sizes_N, max(epsilon, 1e-30))), 0.0, 1.0)

    return project


def _l1_project(x: np.ndarray, moved: np.ndarray, epsilon: float) -> np.ndarray:
    """The nearest points in ball and box at once (Croce & Hein, ICML 2021, proposition 2.1).

    Cutting to the box after the ball would leave much of an L1 budget unused.
    """
    near = np.empty_like(x)
    for i in range(len(x)):
        delta_D = (moved[i] - x[i]).ravel().astype(np.float64)
        room_D = np.where(delta_D > 0, 1.0 - x[i].ravel(), x[i].ravel())
        near[i] = x[i] + (np.sign(delta_D) * _shortened(np.abs(delta_D), room_D, epsilon)).reshape(x[i].shape)
    return np.clip(near, 0.0, 1.0)


def _shortened(lengths_D: np.ndarray, room_D: np.ndarray, total: float) -> np.ndarray:
    """min(max(lengths - t, 0), room) with the least t >= 0 for which the sum is at most `total`.

    The sum falls with t in straight pieces: more steeply after each length - room, less after each length.
    """
    if np.minimum(lengths_D, room_D).sum() <= total:
        return np.minimum(lengths_D, room_D)
    corners = np.concatenate([lengths_D - room_D, lengths_D])
    order = np.argsort(corners)
    corners = corners[order]
    slopes = np.cumsum(np.repeat([-1.0, 1.0], len(lengths_D))[order])
    sums = room_D.sum() + np.concatenate([[0.0], np.cumsum(slopes[:-1] * np.diff(corners))])
    t = np.interp(total, sums[::-1], corners[::-1])
    return np.minimum(np.maximum(lengths_D - t, 0.0), room_D)


def _linf_draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(-1.0, 1.0, shape).astype(np.float32)


def _l2_draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    direction = rng.standard_normal(shape, np.float32)
    return times(direction, _radii(rng, shape) / l2_size(direction))


def _l1_draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Exponential lengths with random signs, brought to size 1, are uniform on the sphere."""
    lengths = rng.standard_exponential(shape, np.float32) * random_signs(rng, shape)
    return times(lengths, _radii(rng, shape) / l1_size(lengths))


def _radii(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Distances from the centre of points uniform in a ball of as many dimensions as a sample has."""
    return rng.uniform(size=shape[0]) ** (1.0 / np.prod(shape[1:]))


NORMS: dict[str, Norm] = {
    "linf": Norm(linf_size, _linf_direction, _linf_project, _linf_draw),
    "l2": Norm(l2_size, _l2_direction, _scale(l2_size), _l2_draw),
    "l1": Norm(l1_size, _l1_direction, _l1_project, _l1_draw),
    # Steps along the gradient and scaling, as published tables have it: in the ball too, but a much weaker attack.
    "l1_dense": Norm(l1_size, _l1_dense_direction, _scale(l1_size), _l1_draw),
}
