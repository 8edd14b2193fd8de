# SPDX-License-Identifier: Apache-2.0
"""Calibration against loops and numbers by hand."""

import itertools
import math

import numpy as np
import pytest

from mindvideo.errors import InputError
from mindvideo.metrics.calibration import (
    aurc,
    eavuc,
    expected_calibration_error,
    open_set_hits,
    reliability,
    risk_coverage,
)


def made(size: int, dtype: type = np.float64) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(size)
    confidence = rng.uniform(0, 1, size).astype(dtype)
    return confidence, rng.uniform(0, 1, size) < confidence**2


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("size", [1, 7, 400])
def test_bins_and_ece_against_a_loop(bins, size):
    confidence, hits = made(size)
    found, ece = reliability(confidence, hits, bins), 0.0
    for m in range(bins):
        inside = [i for i in range(size) if m / bins < confidence[i] <= (m + 1) / bins]
        assert found.count[m] == len(inside)
        mean = sum(confidence[inside]) / len(inside) if inside else 0
        accuracy = sum(hits[inside]) / len(inside) if inside else 0
        assert (found.confidence[m], found.accuracy[m]) == pytest.approx((mean, accuracy), rel=1e-12)
        ece += len(inside) / size * abs(accuracy - mean)
    assert expected_calibration_error(found) == pytest.approx(ece, rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_edge_belongs_to_the_bin_below(dtype):
    for bins in (10, 15):
        edges = (np.arange(1, bins + 1) / bins).astype(dtype)
        assert reliability(edges, np.ones(bins), bins).count.tolist() == [1] * bins
        above = np.nextafter(edges[:-1], dtype(1))
        assert reliability(above, np.ones(bins - 1), bins).count.tolist() == [0] + [1] * (bins - 1)


def test_0_and_what_rounding_put_above_1_do_not_count():
    confidence = np.array([0.0, 0.5, 1.0, np.nextafter(np.float32(1), np.float32(2))], np.float32)
    found = reliability(confidence, np.array([True, True, False, True]), 2)
    assert found.count.tolist() == [1, 1]
    assert found.accuracy.tolist() == [1, 0]
    assert expected_calibration_error(found) == pytest.approx((0.5 + 1) / 2)


def test_ece_of_who_is_right_as_often_as_said_and_of_who_never_is():
    confidence = np.repeat([0.25, 0.75], 8)
    hits = np.array([True] * 2 + [False] * 6 + [True] * 6 + [False] * 2)
    assert expected_calibration_error(reliability(confidence, hits)) == pytest.approx(0)
    assert expected_calibration_error(reliability(np.ones(5), np.zeros(5))) == 1


@pytest.mark.parametrize("wrong", [-0.01, 1.5, np.nan, np.inf])
def test_confidence_is_between_0_and_1(wrong):
    with pytest.raises(InputError, match=r"confidence is .*between 0 and 1"):
        reliability(np.array([0.5, wrong]), np.array([True, False]))


@pytest.mark.parametrize("confidence", [np.zeros(3), np.zeros(0)])
def test_no_confidence_in_any_bin(confidence):
    with pytest.raises(InputError, match=f"of {len(confidence)} videos none"):
        reliability(confidence, np.zeros(len(confidence)))


def test_who_is_right_in_the_three_tasks():
    hits, rejected = [True, True, False, False], [False, True, False, True]
    found = open_set_hits(np.array(hits), np.array(rejected), np.array([True, False]))
    assert found["closed"].tolist() == hits
    assert found["open"].tolist() == [True, False, False, False, True, False]
    assert found["binary"].tolist() == [True, False, True, False, True, False]


def test_eavuc_by_hand():
    p, u = np.array([0.9, 0.6, 0.7]), np.array([0.2, 0.5, 0.1])
    expected = -0.9 * math.log(0.8) - 0.4 * math.log(0.5) - 0.3 * math.log(0.1)
    assert eavuc(p, u, np.array([True, False, False])) == pytest.approx(expected, rel=1e-12)


def test_eavuc_is_finite_where_u_is_0_or_1():
    p, u = np.array([0.5, 0.5]), np.array([1.0, 0.0])
    assert eavuc(p, u, np.array([True, False])) == pytest.approx(-math.log(1e-10))
    assert eavuc(p, u, np.array([False, True])) == 0
    assert math.isfinite(eavuc(p, np.array([-1e-7, 1 + 1e-7]), np.array([False, True])))  # float32's rounding


@pytest.mark.parametrize(("p", "u", "what"), [(1.2, 0.5, "probability is 1.2"), (0.5, 2.3, "uncertainty is 2.3")])
def test_eavuc_of_other_scores(p, u, what):
    with pytest.raises(InputError, match=what):
        eavuc(np.array([p]), np.array([u]), np.array([True]))


def test_risk_coverage_by_hand():
    confidence, hits = np.array([0.1, 0.9, 0.5, 0.7]), np.array([False, True, True, False])
    coverage, risk = risk_coverage(confidence, hits)
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1]
    assert risk == pytest.approx([0, 1 / 2, 1 / 3, 2 / 4])
    assert aurc(confidence, hits) == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)


def test_equal_confidences_in_all_orders():
    """The curve is the mean of those of all orders of the videos that are equally confident."""
    confidence, hits = np.array([0.5, 0.9, 0.5, 0.5, 0.2]), np.array([True, False, False, True, False])
    ties = [0, 2, 3]
    curves = []
    for order in itertools.permutations(ties):
        errors = [not hits[i] for i in (1, *order, 4)]
        curves.append([sum(errors[:n]) / n for n in range(1, 6)])
    assert risk_coverage(confidence, hits)[1] == pytest.approx(np.mean(curves, axis=0))
    assert aurc(np.zeros(8), np.arange(8) < 6) == pytest.approx(0.25)  # nothing known: the error rate


def test_aurc_rewards_confidence_in_the_right():
    hits = np.arange(100) < 80
    order = np.arange(100)
    best, worst = aurc(-order, hits), aurc(order, hits)
    assert best == pytest.approx(sum((n - 80) / n for n in range(81, 101)) / 100)
    assert best < 0.2 < worst
    assert aurc(order, np.ones(100)) == 0


def test_no_video_has_no_risk():
    with pytest.raises(InputError, match="at least one video"):
        risk_coverage(np.zeros(0), np.zeros(0))
