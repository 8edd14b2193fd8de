# SPDX-License-Identifier: Apache-2.0
"""Norms against brute force: projections, steepest steps, random points."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import kstest

from mindvideo.attacks import NORMS
from tests.attacked import samples

ORDERS = {"linf": np.inf, "l2": 2, "l1": 1, "l1_dense": 1}


@pytest.mark.parametrize("name", NORMS)
def test_size(name):
    delta = samples(3, 2, 3, 4) - 0.5
    expected = [np.linalg.norm(d.ravel(), ORDERS[name]) for d in delta]
    np.testing.assert_allclose(NORMS[name].size(delta), expected, rtol=1e-6)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("epsilon", [0.0, 0.03, 0.4, 5.0])
def test_projections_end_in_ball_and_box_and_leave_what_is_there(name, epsilon):
    ball, x = NORMS[name], samples(20, 3, 4)
    x[0], x[1] = 0.0, 1.0
    moved = x + np.random.default_rng(0).normal(scale=0.3, size=x.shape).astype(np.float32)
    near = ball.project(x, moved, epsilon)
    assert near.dtype == np.float32
    assert near.min() >= 0.0
    assert near.max() <= 1.0
    assert (ball.size(near - x) <= epsilon * (1 + 1e-6) + 1e-6).all()
    np.testing.assert_allclose(ball.project(x, near, epsilon), near, atol=1e-6)


@pytest.mark.parametrize("name", ["linf", "l1"])
def test_projections_are_the_nearest_points(name):
    """No point that a general solver finds in ball and box is nearer."""
    rng, ball = np.random.default_rng(0), NORMS[name]
    for _ in range(8):
        x = rng.uniform(size=(1, 4)).astype(np.float32)
        moved, epsilon = x + rng.normal(scale=0.6, size=x.shape).astype(np.float32), float(rng.uniform(0.1, 0.9))
        near = ball.project(x, moved, epsilon)[0].astype(np.float64)
        # In the lengths a, b of what is added and taken away, the L1 ball has smooth borders.
        signs = np.concatenate([np.eye(4), -np.eye(4)])
        limits = [(0, min(1 - v, epsilon)) for v in x[0]] + [(0, min(v, epsilon)) for v in x[0]]
        within = {"type": "ineq", "fun": lambda ab, most=epsilon: most - ab.sum()}
        found = minimize(
            lambda ab, x=x, moved=moved, signs=signs: np.square(x[0] + ab @ signs - moved[0]).sum(),
            np.full(8, 0.01), bounds=limits, constraints=[within] if name == "l1" else [],
            method="SLSQP", options={"ftol": 1e-14, "maxiter": 500},
        )  # fmt: skip
        np.testing.assert_allclose(near, x[0] + found.x @ signs, atol=1e-4)


def test_l1_projection_by_bisection():
    """The threshold of each sample to double precision, on many values with ties and without room."""
    rng = np.random.default_rng(1)
    x = np.round(rng.uniform(size=(6, 300)), 1).astype(np.float32)
    moved = x + np.round(rng.normal(scale=0.5, size=x.shape), 1).astype(np.float32)
    near = NORMS["l1"].project(x, moved, 7.0)
    for a, b, c in zip(x.astype(float), moved.astype(float), near, strict=True):
        low, high = 0.0, 2.0
        for _ in range(60):
            t = (low + high) / 2
            found = np.clip(a + np.sign(b - a) * np.maximum(np.abs(b - a) - t, 0), 0, 1)
            low, high = (t, high) if np.abs(found - a).sum() > 7.0 else (low, t)
        np.testing.assert_allclose(c, found, atol=2e-6)
        assert np.abs(c - a).sum() == pytest.approx(7.0, abs=1e-4)


@pytest.mark.parametrize("name", ["linf", "l2", "l1", "l1_dense"])
def test_steps_have_size_1_and_gain_what_they_can(name):
    """For values far from the box's ends: the dual norm of the gradient, in L1 that of its largest hundredth."""
    gradient = np.random.default_rng(2).standard_normal((4, 250)).astype(np.float32)
    step = NORMS[name].direction(gradient, np.full_like(gradient, 0.5))
    np.testing.assert_allclose(NORMS[name].size(step), 1.0, rtol=1e-5)
    largest = np.sort(np.abs(gradient), axis=1)[:, -2:]
    best = {
        "linf": np.abs(gradient).sum(axis=1), "l2": np.linalg.norm(gradient, axis=1), "l1": largest.mean(axis=1),
        "l1_dense": np.square(gradient).sum(axis=1) / np.abs(gradient).sum(axis=1),
    }  # fmt: skip
    np.testing.assert_allclose((gradient * step).sum(axis=1), best[name], rtol=1e-5)


def test_l1_steps_go_where_the_box_lets_them():
    x = np.array([[1.0, 0.0, 0.5, 0.0]], np.float32)
    step = NORMS["l1"].direction(np.array([[9.0, -8.0, 1.0, 2.0]], np.float32), x)
    np.testing.assert_array_equal(step, [[0.0, 0.0, 0.0, 1.0]])


@pytest.mark.parametrize("name", NORMS)
def test_no_gradient_no_step(name):
    x = samples(2, 5)
    np.testing.assert_array_equal(NORMS[name].direction(np.zeros_like(x), x), 0.0)


@pytest.mark.parametrize("name", NORMS)
def test_random_points_are_uniform_in_the_ball(name):
    """The size of a point of a ball in D dimensions, to the power of D, is uniform; and so is every direction alike."""
    delta = NORMS[name].draw(np.random.default_rng(0), (4000, 3))
    sizes = NORMS[name].size(delta)
    assert sizes.max() <= 1 + 1e-6
    assert kstest(sizes**3, "uniform").pvalue > 0.01
    np.testing.assert_allclose(delta.mean(axis=0), 0.0, atol=0.05)
    first = np.abs(delta[:, 0])
    marginal = {"linf": lambda t: t, "l2": lambda t: (3 * t - t**3) / 2, "l1": lambda t: 1 - (1 - t) ** 3}
    assert kstest(first, marginal[name.split("_")[0]]).pvalue > 0.01
