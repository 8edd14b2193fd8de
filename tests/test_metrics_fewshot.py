# SPDX-License-Identifier: Apache-2.0
"""Few-shot numbers against scipy, scikit-learn's definitions and loops."""

import numpy as np
import pytest
from scipy import stats

from mindvideo.metrics.fewshot import (
    color_descriptor,
    confusion_matrix,
    episode_accuracy,
    mean_interval,
    motion_descriptor,
    nearest_mean_scores,
    rejection_auroc,
    thumbnail_descriptor,
)


@pytest.mark.parametrize("size", [2, 3, 30, 600])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_interval_is_students(size, confidence):
    values = np.random.default_rng(size).uniform(0, 1, size)
    mean, half = mean_interval(values, confidence)
    low, high = stats.t.interval(confidence, size - 1, loc=values.mean(), scale=stats.sem(values))
    assert mean - half == pytest.approx(low, rel=1e-12)
    assert mean + half == pytest.approx(high, rel=1e-12)


def test_interval_of_known_values():
    mean, half = mean_interval([0.2, 0.4, 0.6])
    assert mean == pytest.approx(0.4)
    assert half == pytest.approx(4.302652729911275 * 0.2 / 3**0.5)  # t(0.975, 2), from a table
    assert mean_interval([1, 1, 1, 1]) == (1.0, 0.0)


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for values in rng.normal(3.0, 2.0, (4000, 5)):
        mean, half = mean_interval(values)
        covered += abs(mean - 3.0) <= half
    assert 0.94 < covered / 4000 < 0.96


def test_one_value_has_no_interval():
    mean, half = mean_interval([0.25])
    assert mean == 0.25
    assert np.isnan(half)


def test_accuracy_against_a_loop():
    rng = np.random.default_rng(1)
    scores, labels = rng.normal(size=(40, 5)), rng.integers(0, 5, 40)
    right = sum(max(range(5), key=list(row).__getitem__) == label for row, label in zip(scores, labels, strict=True))
    assert episode_accuracy(scores, labels) == right / 40


def test_confusion_against_a_loop():
    rng = np.random.default_rng(2)
    true, predicted = rng.integers(0, 6, 500), rng.integers(0, 5, 500)
    expected = [[sum((true == t) & (predicted == p)) for p in range(7)] for t in range(7)]
    matrix = confusion_matrix(true.tolist(), predicted.tolist(), 7)
    assert np.array_equal(matrix, expected)
    assert np.array_equal(confusion_matrix([], [], 2), np.zeros((2, 2)))


def test_thumbnail_is_block_means_over_time():
    """36 x 64 pixels: each thumbnail pixel is the mean of a block of 3 x 4, rounded to a whole grey level."""
    frames = np.random.default_rng(3).integers(0, 256, (7, 36, 64, 3), dtype=np.uint8)
    blocks = frames.reshape(7, 12, 3, 16, 4, 3).mean(axis=(2, 4))
    small = np.rint(blocks) / 255
    descriptor = thumbnail_descriptor(frames)
    assert descriptor.shape == (2 * 12 * 16 * 3,)
    mean, std = descriptor[:576].reshape(12, 16, 3), descriptor[576:].reshape(12, 16, 3)
    assert np.allclose(mean, small.mean(axis=0), atol=1e-6)
    assert np.allclose(std, np.sqrt(((small - small.mean(axis=0)) ** 2).mean(axis=0)), atol=1e-6)


def test_thumbnail_of_a_still_has_no_deviation():
    frames = np.full((4, 12, 16, 3), (0, 51, 255), np.uint8)
    descriptor = thumbnail_descriptor(frames).reshape(2, 12, 16, 3)
    assert np.allclose(descriptor[0], (0.0, 0.2, 1.0))
    assert np.allclose(descriptor[1], 0.0, atol=1e-6)


def test_nearest_mean_against_a_loop():
    rng = np.random.default_rng(4)
    support, query = rng.normal(size=(5, 3, 8)), rng.normal(size=(11, 8))
    scores = nearest_mean_scores(support, query)
    assert scores.shape == (11, 5)
    for m in range(11):
        for n in range(5):
            mean = sum(support[n, k] for k in range(3)) / 3
            assert scores[m, n] == pytest.approx(-(sum((query[m] - mean) ** 2) ** 0.5), rel=1e-12)


def test_motion_is_the_second_half_of_the_thumbnails():
    frames = np.random.default_rng(5).integers(0, 256, (6, 24, 32, 3), dtype=np.uint8)
    assert np.array_equal(motion_descriptor(frames), thumbnail_descriptor(frames)[576:])


def test_colours_are_counted_wherever_they_are():
    frames = np.random.default_rng(6).integers(0, 256, (3, 5, 7, 3), dtype=np.uint8)
    shares = np.zeros((8, 8, 8))
    for red, green, blue in frames.reshape(-1, 3) // 32:
        shares[red, green, blue] += 1 / (3 * 5 * 7)
    assert np.allclose(color_descriptor(frames), np.sqrt(shares).ravel(), atol=1e-6)
    shuffled = np.random.default_rng(7).permutation(frames.reshape(-1, 3)).reshape(frames.shape)
    assert np.array_equal(color_descriptor(shuffled), color_descriptor(frames))


def test_auroc_is_the_share_of_pairs_in_order():
    knownness = np.array([0.9, 0.4, 0.4, 0.7, 0.4, 0.1])
    is_known = np.array([1, 1, 1, 0, 0, 0], bool)
    pairs = [(a > b) + 0.5 * (a == b) for a in knownness[:3] for b in knownness[3:]]
    assert rejection_auroc(knownness, is_known) == pytest.approx(np.mean(pairs))
