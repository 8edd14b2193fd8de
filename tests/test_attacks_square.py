# SPDX-License-Identifier: Apache-2.0
"""The square attack: what it must reach, how it spends queries and budget."""

from __future__ import annotations

import numpy as np
import pytest

from mindvideo import attacks
from mindvideo.attacks.square import _bumps, _halvings, _shift, _square_size, _tiles
from mindvideo.errors import InputError
from tests.attacked import Linear, predictions, samples


def striped(shape: tuple[int, ...], share: float, epsilon: float) -> tuple[Linear, np.ndarray, np.ndarray]:
    """Two classes whose weights are one number in each colour, and samples that a share of the best attack in
    L-infinity just breaks."""
    by_colour = np.array([2.0, -1.0, 0.5]).reshape(3, *[1] * (len(shape) - 1))
    weights_D = np.broadcast_to(by_colour, shape).ravel()
    x = 0.3 + 0.4 * samples(6, *shape)
    target = Linear(np.stack([np.zeros_like(weights_D), weights_D], axis=1))
    rows_ND = x.reshape(len(x), -1)
    middle = 0.5 * weights_D.sum()
    rows_ND = rows_ND - ((rows_ND @ weights_D - middle) / np.square(weights_D).sum())[:, None] * weights_D
    x = rows_ND.reshape(-1, *shape).astype(np.float32)
    # Class 0 everywhere, by `share` of what the best attack makes up for.
    target.bias = np.array([middle + share * epsilon * np.abs(weights_D).sum(), 0.0])
    return target, x, np.zeros(len(x), int)


@pytest.mark.parametrize("shape", [(3, 8, 12), (3, 4, 8, 12), (3, 1, 1)], ids=["image", "clip", "pixel"])
def test_it_breaks_what_can_be_broken_and_nothing_else(shape):
    rng = np.random.default_rng(0)
    target, x, labels = striped(shape, 0.95, 0.05)
    assert (predictions(target, x) == labels).all()
    moved = attacks.square(target, x, labels, epsilon=0.05, queries=2000, rng=rng)
    assert attacks.is_broken(target.logits(moved), labels).all()
    target, x, labels = striped(shape, 1.05, 0.05)
    moved = attacks.square(target, x, labels, epsilon=0.05, queries=2000, rng=rng)
    assert not attacks.is_broken(target.logits(moved), labels).any()
    # It is as near as can be: every value at its colour's end of the budget.
    np.testing.assert_allclose(np.abs(moved - x), 0.05, atol=1e-6)


def test_in_a_clip_squares_cover_all_frames():
    target, x, labels = striped((3, 4, 8, 12), 1.5, 0.05)
    moved = attacks.square(target, x, labels, epsilon=0.05, queries=5, rng=np.random.default_rng(0))
    delta = moved - x
    np.testing.assert_allclose(delta, np.broadcast_to(delta[:, :, :1], delta.shape), atol=1e-6)
    assert np.unique(np.round(delta, 4)).tolist() == [pytest.approx(-0.05), pytest.approx(0.05)]


def test_broken_samples_are_asked_for_no_more():
    target, x, labels = striped((3, 8, 12), 0.6, 0.05)
    labels[0] = 1  # misclassified from the start
    target.seen.clear()
    moved = attacks.square(target, x, labels, epsilon=0.05, queries=300, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(moved[0], x[0])
    assert target.seen[:2] == [6, 5]
    assert target.seen == sorted(target.seen, reverse=True)
    assert len(target.seen) < 300
    seen = len(target.seen)
    assert attacks.is_broken(target.logits(moved), labels).all()
    attacks.square(target, moved, labels, epsilon=0.05, queries=300, rng=np.random.default_rng(0))
    assert len(target.seen) == seen + 2


def test_margins_never_fall():
    target = Linear(np.random.default_rng(2).standard_normal((3 * 8 * 12, 4)))
    x = samples(5, 3, 8, 12)
    labels = predictions(target, x)
    for norm, epsilon in (("linf", 0.001), ("l2", 0.02)):
        gaps = [
            attacks.margins(
                target.logits(
                    attacks.square(
                        target, x, labels, epsilon=epsilon, norm=norm, queries=queries, rng=np.random.default_rng(0)
                    )
                ),
                labels,
            )
            for queries in (1, 400)
        ]
        assert (gaps[1] > gaps[0]).all()


def test_l2_gets_a_share_of_the_best_attack():
    weights = np.repeat(np.random.default_rng(4).standard_normal((3, 4, 6)), 2, axis=1).repeat(2, axis=2)
    target = Linear(np.stack([np.zeros(weights.size), weights.ravel()], axis=1))
    x = 0.4 + 0.2 * samples(4, 3, 8, 12)
    labels = predictions(target, x)
    moved = attacks.square(
        target, x, labels, epsilon=0.3, norm="l2", queries=1500, share=0.3, rng=np.random.default_rng(0)
    )  # fmt: skip
    gained = attacks.margins(target.logits(moved), labels) - attacks.margins(target.logits(x), labels)
    broken = attacks.is_broken(target.logits(moved), labels)
    assert (broken | (gained > 0.4 * 0.3 * np.linalg.norm(weights))).all()


@pytest.mark.parametrize("shape", [(3, 1, 8, 12), (2, 4, 7, 5), (1, 1, 3, 3)])
def test_l2_moves_spend_the_whole_budget(shape):
    rng, x = np.random.default_rng(0), 0.5 + np.zeros(shape, np.float32)
    moved = _tiles(x, 0.2, rng)
    for share in (0.8, 0.3, 0.01):
        for _ in range(5):
            assert np.linalg.norm(moved - x) == pytest.approx(0.2, rel=1e-4)
            moved = _shift(x, moved, _square_size(shape[2:], share), 0.2, rng)


def test_bumps():
    """Of opposite signs, rising to the middle, of size 1: the 3 x 6 one by hand."""
    found = next(b for b in (_bumps((6, 3), np.random.default_rng(seed)) for seed in range(9)) if b[0, 0] == b[2, 2])
    outer, middle = 1 / 4, 1 + 1 / 4
    one = np.full((3, 3), outer)
    one[1, 1] = middle
    expected = np.concatenate([one, -one])
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-6)


def test_squares_shrink_as_published():
    after = {0: 0, 10: 0, 11: 1, 51: 2, 201: 3, 501: 4, 1001: 5, 2001: 6, 4001: 7, 6001: 8, 8001: 9}
    assert {query: _halvings(query, 10_000) for query in after} == after
    assert _halvings(999, 1000) == 9
    assert _square_size((224, 224), 0.8) == (200, 200)
    assert _square_size((120, 160), 0.25) == (60, 80)
    assert _square_size((4, 4), 0.001) == (1, 1)


def test_mistakes():
    target, rng = Linear(np.zeros((12, 2))), np.random.default_rng(0)
    with pytest.raises(InputError, match="needs images or clips"):
        attacks.square(target, samples(2, 12), np.array([0, 0]), epsilon=0.1, rng=rng)
    with pytest.raises(InputError, match="works in linf and l2"):
        attacks.square(target, samples(2, 3, 2, 2), np.array([0, 0]), epsilon=0.1, norm="l1", rng=rng)
