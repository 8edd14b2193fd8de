# SPDX-License-Identifier: Apache-2.0
"""Augmentations against loops over single pixels, and the choice of permutations against brute force."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from mindvideo.data.selfsupervision import (
    AUGMENTATIONS,
    Rotation,
    SpatialJigsaw,
    TemporalJigsaw,
    distant_permutations,
    make_augmentation,
)
from mindvideo.errors import InputError


def numbered(*shape: int) -> np.ndarray:
    """Every pixel its own number."""
    return np.arange(np.prod(shape)).reshape(shape)


def test_temporal_jigsaw_moves_whole_blocks():
    orders = [(0, 1, 2), (2, 0, 1), (1, 2, 0)]
    clip = numbered(2, 11, 3, 2)
    jigsaw = TemporalJigsaw(orders, block=3)
    assert jigsaw.num_classes == 3
    for label, order in enumerate(orders):
        out = jigsaw.apply(clip, label)
        assert out.shape == clip.shape
        for t in range(11):
            source = 3 * order[t // 3] + t % 3 if t < 9 else t
            assert np.array_equal(out[:, t], clip[:, source])


def test_spatial_jigsaw_moves_quadrants_of_all_frames_alike():
    orders = list(permutations(range(4)))
    clip = numbered(2, 3, 4, 6)
    jigsaw = SpatialJigsaw(orders)
    assert jigsaw.num_classes == 24
    for label, order in enumerate(orders):
        out = jigsaw.apply(clip, label)
        assert out.shape == clip.shape
        for h in range(4):
            for w in range(6):
                source = order[2 * (h // 2) + w // 3]
                assert np.array_equal(out[..., h, w], clip[..., 2 * (source // 2) + h % 2, 3 * (source % 2) + w % 3])


def test_rotation_turns_counter_clockwise():
    clip = numbered(2, 3, 4, 4)
    rotation = Rotation()
    assert rotation.num_classes == 4
    expected = clip
    for label in range(4):
        assert np.array_equal(rotation.apply(clip, label), expected)
        turned = np.empty_like(expected)
        for h in range(4):
            for w in range(4):
                turned[..., 3 - w, h] = expected[..., h, w]  # the right edge becomes the top
        expected = turned


@pytest.mark.parametrize("augmentation", [SpatialJigsaw(distant_permutations(4, 24)), Rotation()])
def test_the_spatial_map_moves_with_the_clip(augmentation):
    """A map that averages each 3 x 3 patch of the clip, before or after the augmentation."""
    clip = np.random.default_rng(0).random((1, 2, 18, 18))
    pooled = [
        augmented.reshape(2, 6, 3, 6, 3).mean((0, 2, 4))
        for augmented in [clip[0], *(augmentation.apply(clip, k)[0] for k in range(augmentation.num_classes))]
    ]
    order = augmentation.map_order((5, 6, 6))
    assert order.shape == (augmentation.num_classes, 36)
    assert order.dtype == np.int32
    for label, expected in enumerate(pooled[1:]):
        np.testing.assert_allclose(pooled[0].ravel()[order[label]], expected.ravel(), rtol=1e-12)


@pytest.mark.parametrize(("frames", "block"), [(20, 4), (22, 4), (16, 8), (19, 8), (12, 4)])
def test_the_temporal_map_moves_with_the_clip(frames, block):
    """Each feature step is the mean of four frames."""
    jigsaw = make_augmentation("temporal_jigsaw", length=frames, permutations=2, block=block)
    clip = np.random.default_rng(0).random((1, frames, 2, 2))
    steps = frames // 4
    order = jigsaw.map_order((steps, 7, 9))
    assert order.shape == (2, steps)
    assert order.dtype == np.int32
    before, *after = (
        out[0, : 4 * steps].reshape(steps, -1).mean(1) for out in [clip, *(jigsaw.apply(clip, k) for k in range(2))]
    )
    for label, expected in enumerate(after):
        np.testing.assert_allclose(before[order[label]], expected, rtol=1e-12)


def test_the_temporal_map_by_hand():
    jigsaw = TemporalJigsaw([(0, 1, 2), (2, 0, 1)])
    assert jigsaw.map_order((3, 1, 1)).tolist() == [[0, 1, 2], [2, 0, 1]]
    assert jigsaw.map_order((7, 8, 8)).tolist() == [[0, 1, 2, 3, 4, 5, 6], [4, 5, 0, 1, 2, 3, 6]]


def chosen_by_brute_force(size: int, count: int) -> list[tuple[int, ...]]:
    chosen = [tuple(range(size))]
    while len(chosen) < count:
        left = [p for p in permutations(range(size)) if p not in chosen]
        chosen.append(max(left, key=lambda p: min(sum(a != b for a, b in zip(p, q, strict=True)) for q in chosen)))
    return chosen


@pytest.mark.parametrize(("size", "count"), [(2, 2), (3, 6), (4, 10), (4, 24), (5, 10)])
def test_permutations_are_chosen_by_distance(size, count):
    found = distant_permutations(size, count)
    assert found == chosen_by_brute_force(size, count)
    assert found == distant_permutations(size, count)
    assert len(set(found)) == count


def test_the_first_four_quadrant_orders_share_no_place():
    assert distant_permutations(4, 4) == [(0, 1, 2, 3), (1, 0, 3, 2), (2, 3, 0, 1), (3, 2, 1, 0)]


def test_the_factory_makes_what_the_paper_uses():
    temporal = make_augmentation("temporal_jigsaw", length=22)
    assert temporal == TemporalJigsaw(distant_permutations(5, 10), block=4)
    assert make_augmentation("spatial_jigsaw", length=22) == SpatialJigsaw(distant_permutations(4, 10))
    assert make_augmentation("rotation", length=22) == Rotation()
    assert [make_augmentation(name, length=20).num_classes for name in AUGMENTATIONS] == [10, 10, 4]
    assert make_augmentation("spatial_jigsaw", length=8, permutations=24).num_classes == 24


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_augmentation("jigsaw", length=20), "augmentation 'jigsaw': allowed are temporal_jigsaw, "),
        (lambda: make_augmentation("temporal_jigsaw", length=8), "10 permutations of 2 blocks: they have 2, and"),
        (lambda: make_augmentation("temporal_jigsaw", length=7, permutations=1), "of 1 blocks: they have 1, and"),
        (lambda: make_augmentation("spatial_jigsaw", length=4, permutations=25), "of 4 blocks: they have 24, and"),
        (lambda: make_augmentation("temporal_jigsaw", length=36), "9 blocks have too many orders; .* at most 8"),
        (lambda: TemporalJigsaw([(0, 1), (1, 1)]), r"\[1, 1\] is not a permutation of 0 to 1"),
        (lambda: SpatialJigsaw([(0, 1, 2)]), r"\[0, 1, 2\] is not a permutation of 0 to 3"),
        (lambda: TemporalJigsaw([(1, 0)]).apply(numbered(1, 7, 2, 2), 0), "7 time steps hold fewer than 2 blocks of 4"),
        (lambda: TemporalJigsaw([(1, 2, 0)]).map_order((2, 8, 8)), "2 time steps hold fewer than 3 blocks of 1"),
        (lambda: SpatialJigsaw([(1, 0, 3, 2)]).apply(numbered(1, 2, 4, 5), 0), "4 x 5 have no equal quadrants"),
        (lambda: SpatialJigsaw([(1, 0, 3, 2)]).map_order((5, 7, 8)), "7 x 8 have no equal quadrants"),
        (lambda: Rotation().apply(numbered(1, 2, 4, 6), 0), "4 x 6 cannot be rotated; they must be square"),
        (lambda: Rotation().map_order((5, 8, 4)), "8 x 4 cannot be rotated"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()
