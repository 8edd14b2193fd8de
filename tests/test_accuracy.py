# SPDX-License-Identifier: Apache-2.0
"""Accuracy by brute force, against golden arrays, and its interval against the formula."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from mindvideo.metrics.accuracy import mean_class_accuracy, share_interval, top_k_hits
from tests.parity.checks import ABSENT
from tests.parity.recipe import golden_files

CLOSED_SET = golden_files("dear", "closedset*.npz")


def made(classes: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Scores of 60 clips, many of them equal, and labels of which the last class has none."""
    rng = np.random.default_rng(classes)
    return rng.integers(4, size=(60, classes)) / 4, rng.integers(classes - 1, size=60)


@pytest.mark.parametrize("k", [1, 2, 5, 7, 9])
def test_top_k_is_the_rank_of_the_label(k):
    scores, labels = made()
    expected = []
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        higher = sum(score > row[label] or (score == row[label] and i > label) for i, score in enumerate(row))
        expected.append(higher < k)
    assert top_k_hits(scores, labels, k).tolist() == expected
    assert (0 < sum(expected) < 60) == (k < 7)


@pytest.mark.parametrize("classes", [6, 7])
def test_every_class_counts_the_same_and_one_that_is_only_predicted_as_0(classes):
    """Class 6 has no clip and wins all ties; class 5 is predicted for none of the clips."""
    scores, labels = made()
    scores[:, 5] = -1
    if classes == 6:  # then class 5 has no clip either, and is none at all
        scores, labels = scores[labels != 5], labels[labels != 5]
    shares = {6: [False]}
    for row, label in zip(scores, labels.tolist(), strict=True):
        best = max(range(len(row)), key=lambda i: (row[i], i))
        shares.setdefault(label, []).append(best == label)
    assert len(shares) == classes
    expected = sum(sum(hits) / len(hits) for hits in shares.values()) / len(shares)
    assert mean_class_accuracy(scores, labels) == pytest.approx(expected)
    assert mean_class_accuracy(scores, labels) != pytest.approx(top_k_hits(scores, labels, 1).mean(), abs=1e-3)


@pytest.mark.parametrize("path", CLOSED_SET or [pytest.param(None, marks=ABSENT)], ids=lambda path: path and path.stem)
def test_the_golden_closed_set(path: Path):
    golden = np.load(path)
    scores, labels = golden["scores"], golden["labels"]
    shares = [top_k_hits(scores, labels, k).mean() for k in (1, 5)]
    assert shares == pytest.approx(golden["top1_top5"].tolist(), rel=1e-12)
    assert mean_class_accuracy(scores, labels) == pytest.approx(float(golden["mean_class_accuracy"]), rel=1e-12)


@pytest.mark.parametrize(("hits", "n"), [(0, 9), (3, 10), (170, 200), (12, 12)])
def test_wilson_s_interval(hits, n):
    share, low, high = share_interval(np.arange(n) < hits)
    z, p = 1.959963984540054, hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (share, low, high) == pytest.approx((p, middle - half, middle + half), rel=1e-9, abs=1e-12)


def test_a_wider_interval_for_more_confidence():
    hits = np.arange(50) < 40
    assert share_interval(hits, 0.99)[1] < share_interval(hits)[1] < share_interval(hits, 0.5)[1] < 0.8
