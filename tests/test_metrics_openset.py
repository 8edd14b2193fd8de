# SPDX-License-Identifier: Apache-2.0
"""Open-set numbers against scikit-learn, loops over pairs and DEAR's way of counting, and their intervals."""

import numpy as np
import pytest
from sklearn import metrics

from mindvideo.errors import InputError
from mindvideo.metrics import openset
from mindvideo.metrics.bootstrap import bootstrap_intervals

# Known and unknown videos, and how many different uncertainties there can be.
WORLDS = [(1, 1, 9), (1, 30, 4), (30, 1, 4), (50, 40, 1), (60, 25, 2), (200, 300, 12), (300, 100, 10**6)]


def made(num_known: int, num_unknown: int, values: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Uncertainties of known videos, which of them are right, and uncertainties of unknown videos, mostly larger."""
    rng = np.random.default_rng(num_known + values)
    known = np.floor(rng.beta(2, 4, num_known) * values) / values
    unknown = np.floor(rng.beta(3, 3, num_unknown) * values) / values
    return known, rng.uniform(0, 1, num_known) < 0.8, unknown


@pytest.mark.parametrize("world", WORLDS)
def test_detection_is_scikit_learn_s(world):
    known, hits, unknown = made(*world)
    is_unknown, scores = np.repeat([0, 1], [len(known), len(unknown)]), np.concatenate([known, unknown])
    false_positive, true_positive, _ = metrics.roc_curve(is_unknown, scores)
    precision, recall, _ = metrics.precision_recall_curve(is_unknown, scores)
    expected = {
        "auroc": metrics.roc_auc_score(is_unknown, scores),
        "aupr": metrics.auc(recall, precision),
        "fpr95": false_positive[np.abs(true_positive - 0.95).argmin()],
    }
    found = openset.Ranking(known, hits, unknown).detection()
    for name, value in expected.items():
        assert getattr(openset, name)(known, unknown) == pytest.approx(value, rel=1e-12)
        assert found[name] == pytest.approx(value, rel=1e-12)
    assert np.allclose(openset.roc_points(known, unknown), (false_positive, true_positive), atol=1e-15)
    assert np.allclose(openset.pr_points(known, unknown), (recall[::-1], precision[::-1]), atol=1e-15)


@pytest.mark.parametrize("world", WORLDS)
def test_auroc_and_oscr_are_shares_of_pairs(world):
    known, hits, unknown = made(*world)
    in_order = (unknown > known[:, None]) + 0.5 * (unknown == known[:, None])
    assert openset.auroc(known, unknown) == pytest.approx(in_order.mean())
    expected = (in_order * hits[:, None]).mean()
    assert openset.oscr(known, hits, unknown) == pytest.approx(expected)
    assert openset.Ranking(known, hits, unknown).detection()["oscr"] == pytest.approx(expected)


@pytest.mark.parametrize("world", WORLDS)
def test_oscr_is_the_area_of_its_definition(world):
    """Right and accepted known videos against accepted unknown ones, at every threshold (Dhamija et al. 2018)."""
    known, hits, unknown = made(*world)
    thresholds = [-1, *np.unique(np.concatenate([known, unknown]))]
    right = [np.mean(hits & (known <= t)) for t in thresholds]
    accepted = [np.mean(unknown <= t) for t in thresholds]
    assert openset.oscr(known, hits, unknown) == pytest.approx(metrics.auc(accepted, right))
    assert openset.oscr(known, hits, unknown) <= hits.mean() + 1e-12


def test_the_perfect_and_the_useless():
    low, high, hits = np.arange(10) / 100, 1 - np.arange(20) / 100, np.arange(10) < 7
    assert openset.Ranking(low, hits, high).detection() == {"auroc": 1, "aupr": 1, "fpr95": 0, "oscr": 0.7}
    reversed_ = openset.Ranking(high, np.arange(20) < 14, low).detection()
    assert reversed_["auroc"] == reversed_["oscr"] == 0
    assert reversed_["fpr95"] == 1
    same = openset.Ranking(np.zeros(10), hits, np.zeros(30)).detection()
    assert same == pytest.approx({"auroc": 0.5, "aupr": (1 + 0.75) / 2, "fpr95": 1, "oscr": 0.35})
    assert openset.oscr(low, np.zeros(10), high) == 0


def test_the_nearest_corner_is_taken_for_fpr95():
    """Rates (0, .5), (.25, .9), (.75, .9), (.75, 1): 0.9 is as near to 0.95 as 1, and comes first."""
    unknown = np.array([9] * 5 + [7] * 4 + [3])
    known = np.array([8, 5, 5, 1])
    assert openset.fpr95(known, unknown) == pytest.approx(0.25)
    assert openset.fpr95(known, np.append(unknown, [7] * 20)) == pytest.approx(0.25)  # 29 / 30
    assert openset.fpr95(known, np.append(unknown, [3] * 20)) == pytest.approx(0.75)  # 9 / 30, then 1


@pytest.mark.parametrize("world", WORLDS)
def test_resamples_are_counted_as_often_as_they_are_drawn(world):
    known, hits, unknown = made(*world)
    ranking = openset.Ranking(known, hits, unknown)
    rng = np.random.default_rng(0)
    for _ in range(5):
        i, j = rng.integers(len(known), size=len(known)), rng.integers(len(unknown), size=2 * len(unknown))
        found = ranking.detection(i, j)
        assert found["oscr"] == pytest.approx(openset.oscr(known[i], hits[i], unknown[j]))
        for name in ("auroc", "aupr", "fpr95"):
            assert found[name] == pytest.approx(getattr(openset, name)(known[i], unknown[j]), rel=1e-12)


def test_detection_needs_both_and_finite_numbers():
    some, none = np.ones(3), np.zeros(0)
    for function in (openset.auroc, openset.aupr, openset.fpr95, openset.roc_points, openset.pr_points):
        with pytest.raises(InputError, match="there are 3 known and 0 unknown"):
            function(some, none)
        with pytest.raises(InputError, match="there are 0 known and 3 unknown"):
            function(none, some)
        with pytest.raises(InputError, match="one is nan"):
            function(some, np.array([0.1, np.nan]))
    with pytest.raises(InputError, match="there are 0 known"):
        openset.oscr(none, none, some)


def test_what_lies_on_the_threshold_is_known():
    uncertainty = np.array([0.1, 0.2, 0.3], np.float32)
    assert openset.rejects(uncertainty, 0.2).tolist() == [False, False, True]
    assert openset.rejects(uncertainty.astype(np.float64), 0.2).tolist() == [
        False,
        True,
        True,
    ]  # float32 has 0.2 + 3e-9
    assert openset.rejects(np.array([0, 1]), 0.5).tolist() == [False, True]
    assert openset.rejects(uncertainty, float(uncertainty[1])).tolist() == [False, False, True]


def test_the_auc_of_a_decision():
    known, unknown = np.array([0.1, 0.2, 0.3, 0.8]), np.array([0.3, 0.5, 0.9])
    assert openset.binary_auc(known, unknown, 0.3) == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert openset.binary_auc(known, unknown, 0.05) == openset.binary_auc(known, unknown, 2.0) == 0.5
    assert openset.binary_auc(known, unknown, 0.3) == pytest.approx(
        metrics.roc_auc_score([0] * 4 + [1] * 3, np.concatenate([known, unknown]) > 0.3)
    )


@pytest.mark.parametrize("size", [1, 2, 19, 20, 21, 100, 997])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.95])
def test_the_threshold_keeps_its_share(size, share):
    uncertainty = np.random.default_rng(size).permutation(size) / size
    threshold = openset.threshold_keeping(uncertainty, share)
    assert np.count_nonzero(~openset.rejects(uncertainty, threshold)) == int(size * share) + 1
    assert threshold == sorted(uncertainty, reverse=True)[size - int(size * share) - 1]


def test_a_threshold_among_equals_and_float32():
    uncertainty = np.repeat([0.2, 0.7], [90, 10]).astype(np.float32)
    threshold = openset.threshold_keeping(uncertainty)
    assert threshold == float(np.float32(0.7))
    assert not openset.rejects(uncertainty, threshold).any()
    assert openset.threshold_keeping(uncertainty, 0.5) == float(np.float32(0.2))


@pytest.mark.parametrize("share", [0, 1, 95, -0.1])
def test_a_share_is_between_0_and_1(share):
    with pytest.raises(InputError, match=f"is {share}; it must lie between 0 and 1"):
        openset.threshold_keeping(np.ones(5), share)


def test_a_threshold_needs_videos():
    with pytest.raises(InputError, match="at least one training video"):
        openset.threshold_keeping(np.zeros(0))


def decided(known: int, unknown: int, seed: int = 0, videos: int = 150) -> list[np.ndarray]:
    """Labels, predictions and rejections of known and of unknown videos; the last class of each side has no video."""
    rng = np.random.default_rng(seed)
    arrays = []
    for classes, rejected in ((known, 0.2), (unknown, 0.6)):
        labels = rng.integers(max(classes - 1, 1), size=videos)
        predicted = np.where(rng.uniform(size=videos) < 0.7, labels % known, rng.integers(known, size=videos))
        arrays += [labels, predicted, rng.uniform(size=videos) < rejected]
    return arrays


def counted(known: int, unknown: int, seed: int = 0) -> np.ndarray:
    return openset.open_set_counts(*decided(known, unknown, seed), num_known=known, num_unknown=unknown)


@pytest.mark.parametrize(("known", "unknown"), [(2, 1), (5, 3), (7, 12)])
def test_counts_against_a_loop(known, unknown):
    arrays = decided(known, unknown)
    expected = np.zeros((known + unknown, known + 1), int)
    for first, side in ((0, arrays[:3]), (known, arrays[3:])):
        for label, predicted, rejected in zip(*side, strict=True):
            expected[first + label, known if rejected else predicted] += 1
    counts = counted(known, unknown)
    assert np.array_equal(counts, expected)
    merged = openset.merge_unknown(counts)
    assert merged.shape == (known + 1, known + 1)
    assert np.array_equal(merged[:known], expected[:known])
    assert np.array_equal(merged[known], expected[known:].sum(axis=0))
    arrays[1][arrays[2]] = known  # OpenMax predicts the class "unknown" itself
    arrays[2][:] = False
    again = openset.open_set_counts(*arrays, num_known=known, num_unknown=unknown)
    assert np.array_equal(again, counts)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, 5, "label of a video of known classes is 5; it must be 0 to 4"),
        (1, 6, "prediction for a video of known classes is 6; it must be 0 to 5"),
        (3, -1, "label of a video of unknown classes is -1; it must be 0 to 2"),
        (4, -2, "prediction for a video of unknown classes is -2; it must be 0 to 5"),
    ],
)
def test_classes_out_of_range(place, value, message):
    arrays = decided(5, 3)
    arrays[place][7] = value
    with pytest.raises(InputError, match=message):
        openset.open_set_counts(*arrays, num_known=5, num_unknown=3)


def test_arrays_of_unequal_length():
    arrays = decided(5, 3)
    arrays[5] = arrays[5][:-1]
    with pytest.raises(InputError, match="150 labels, 150 predictions and 149 decisions of unknown videos"):
        openset.open_set_counts(*arrays, num_known=5, num_unknown=3)


@pytest.mark.parametrize(("known", "unknown"), [(2, 1), (5, 3), (7, 12)])
@pytest.mark.parametrize("seed", [123, 5])
def test_openness_is_scikit_learn_s_f1_of_every_subset(known, unknown, seed):
    labels, predicted, rejected, unknown_labels, unknown_predicted, unknown_rejected = decided(known, unknown)
    predicted, unknown_predicted = (
        np.where(rejected, known, predicted),
        np.where(unknown_rejected, known, unknown_predicted),
    )
    np.random.seed(seed)
    means = [metrics.f1_score(labels, predicted, average="macro")]
    spreads, openness = [0.0], [0.0]
    for size in range(1, unknown + 1):
        scores = []
        for _ in range(4):
            drawn = np.isin(unknown_labels, np.random.choice(unknown, size, replace=False))
            truth = np.append(labels, np.full(drawn.sum(), known))
            scores.append(metrics.f1_score(truth, np.append(predicted, unknown_predicted[drawn]), average="macro"))
        means.append(np.mean(scores))
        spreads.append(np.std(scores))
        openness.append(1 - np.sqrt(2 * known / (2 * known + size)))
    curve = openset.openness_curve(counted(known, unknown), subsets=4, seed=seed)
    assert curve.openness == pytest.approx(openness)
    assert curve.macro_f1 == pytest.approx(means)
    assert curve.spread == pytest.approx(spreads)
    assert curve.open_macro_f1 == pytest.approx(np.dot(openness, means) / sum(openness))
    assert curve.open_macro_f1_spread == pytest.approx(np.dot(openness, spreads) / sum(openness))


def test_a_class_without_video_and_prediction_is_none():
    """Three known classes, the last of which never occurs; "unknown" does only with the unknown class."""
    curve = openset.openness_curve(np.array([[3, 1, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0], [1, 0, 0, 2]]))
    assert curve.macro_f1 == pytest.approx([(6 / 7 + 4 / 5) / 2, (6 / 8 + 4 / 5 + 4 / 5) / 3])
    assert curve.spread.tolist() == [0, 0]
    assert curve.open_macro_f1 == curve.macro_f1[1]  # no openness, no weight


def test_openness_leaves_the_state_of_numpy_alone():
    np.random.seed(1)
    expected = np.random.random()
    np.random.seed(1)
    openset.openness_curve(counted(3, 4))
    assert np.random.random() == expected


def test_subsets_have_their_sizes_and_no_class_twice():
    drawn = openset.draw_subsets(6, subsets=3, seed=0)
    assert drawn.shape == (6, 3, 6)
    assert drawn.sum(axis=2).tolist() == [[size] * 3 for size in range(1, 7)]


def test_openness_needs_known_videos_and_unknown_classes():
    with pytest.raises(InputError, match="there are 0 and 2"):
        openset.openness_curve(np.zeros((5, 4), int))
    with pytest.raises(InputError, match="there are 6 and 0"):
        openset.openness_curve(np.ones((2, 3), int))


@pytest.mark.parametrize("by_class", [False, True])
def test_the_published_confusion_against_its_loop(by_class):
    known, unknown = 5, 3
    expected = np.zeros((8, 8))
    labels, predicted, rejected, unknown_labels, unknown_predicted, unknown_rejected = decided(known, unknown)
    for label, guess, reject in zip(labels, predicted, rejected, strict=True):
        if reject:
            expected[known:, label] += unknown
        else:
            expected[guess, label] += known
    for label, guess, reject in zip(unknown_labels, unknown_predicted, unknown_rejected, strict=True):
        columns = known + label if by_class else slice(known, None)
        if reject:
            expected[known:, columns] += 1
        else:
            expected[guess, columns] += unknown
    found = openset.published_confusion(counted(known, unknown), by_class=by_class)
    assert np.array_equal(found, expected)
    drawn, smallest = openset.normalise_confusion(found), expected[expected > 0].min()
    assert drawn == pytest.approx((expected - smallest) / (expected.max() - smallest + 1e-6))
    means = openset.block_means(expected, known)
    assert means["unknown_as_unknown"] == pytest.approx(
        sum(expected[i, j] for i in range(5, 8) for j in range(5, 8)) / 9
    )
    assert means["unknown_as_known"] == pytest.approx(sum(expected[i, j] for i in range(5) for j in range(5, 8)) / 15)
    assert means["known_as_unknown"] == pytest.approx(sum(expected[i, j] for i in range(5, 8) for j in range(5)) / 15)
    assert means["known_as_known"] == pytest.approx(sum(expected[i, i] for i in range(5)) / 5)


def test_whole_sources_are_drawn_known_and_unknown_apart():
    known, unknown = np.array(["b", "a", "b", "c", "a", "b"]), np.array([7, 7, 3, 3])
    seen = []

    def statistic(i, j):
        seen.append((i, j))
        return {"one": 1.0}

    assert bootstrap_intervals(statistic, known, unknown, resamples=50) == {"one": (1.0, 1.0)}
    assert len(seen) == 50
    for groups, draws in ((known, [i for i, _ in seen]), (unknown, [j for _, j in seen])):
        members = {group: np.flatnonzero(groups == group).tolist() for group in set(groups.tolist())}
        drawn = []
        for places in (draw.tolist() for draw in draws):
            times = {group: places.count(own[0]) for group, own in members.items()}
            assert sorted(places) == sorted(place for group, own in members.items() for place in own * times[group])
            assert sum(times.values()) == len(members)
            drawn.append(times)
        assert max(times[group] for times in drawn for group in times) == len(members)
        assert min(times[group] for times in drawn for group in times) == 0
    assert len({(len(i), tuple(j)) for i, j in seen}) > 5  # not the same draw for both


def test_the_interval_of_a_mean_is_as_wide_as_theory_says():
    values = np.random.default_rng(0).normal(0, 1, 400)
    mean = lambda known, unknown: {"known": values[known].mean(), "unknown": values[unknown].mean()}  # noqa: E731
    found = bootstrap_intervals(mean, np.arange(400), np.arange(100), resamples=2000)
    for (low, high), size in ((found["known"], 400), (found["unknown"], 100)):
        error = values[:size].std() / size**0.5
        assert (low, high) == pytest.approx(
            (values[:size].mean() - 1.96 * error, values[:size].mean() + 1.96 * error), abs=0.2 * error
        )
    narrow = bootstrap_intervals(mean, np.arange(400), np.arange(100), resamples=2000, share=0.5)
    assert np.ptp(narrow["known"]) == pytest.approx(0.6745 / 1.96 * np.ptp(found["known"]), rel=0.15)


def test_videos_of_one_source_say_less_than_as_many_sources():
    values = np.repeat(np.random.default_rng(1).normal(0, 1, 40), 9)
    mean = lambda known, unknown: {"mean": values[known].mean()}  # noqa: E731
    by_video = bootstrap_intervals(mean, np.arange(360), np.arange(2), resamples=600)["mean"]
    by_source = bootstrap_intervals(mean, np.repeat(np.arange(40), 9), np.arange(2), resamples=600)["mean"]
    assert np.ptp(by_source) == pytest.approx(3 * np.ptp(by_video), rel=0.2)


def test_the_seed_repeats_the_interval():
    known, hits, unknown = made(60, 40, 50)
    arguments = openset.Ranking(known, hits, unknown).detection, np.arange(60) // 3, np.arange(40) // 2
    first = bootstrap_intervals(*arguments, resamples=100)
    assert first == bootstrap_intervals(*arguments, resamples=100)
    assert first != bootstrap_intervals(*arguments, resamples=100, seed=1)
    point = openset.Ranking(known, hits, unknown).detection()
    assert list(first) == list(point)
    for name, (low, high) in first.items():
        assert low < point[name] < high


def test_one_source_has_no_interval():
    found = bootstrap_intervals(lambda i, j: {"size": len(i) + len(j)}, ["same"] * 5, np.arange(4))
    assert np.isnan(found["size"]).all()
