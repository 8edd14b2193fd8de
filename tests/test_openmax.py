# SPDX-License-Identifier: Apache-2.0
"""OpenMax against scipy's distributions, loops, and what it is for."""

import numpy as np
import pytest
from scipy import stats
from scipy.spatial import distance as scipy_distance

from mindvideo.errors import InputError
from mindvideo.metrics.openmax import SHIFT, OpenMax, distances, fit_weibull


def world(classes: int = 4, videos: int = 30) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of training videos around one centre for each class, their logits, nearly all right, and labels."""
    rng = np.random.default_rng(classes)
    labels = np.repeat(np.arange(classes), videos)
    features = np.abs(6 * np.eye(classes, 10)[labels] + rng.normal(0, 1, (len(labels), 10))).astype(np.float32)
    logits = 4 * np.eye(classes)[labels] + rng.normal(0, 1, (len(labels), classes))
    return features, logits, labels


@pytest.mark.parametrize(("shape", "scale"), [(0.7, 2.0), (1.5, 0.3), (9.0, 1000.0)])
def test_the_weibull_fit_is_scipy_s(shape, scale):
    numbers = stats.weibull_min.rvs(shape, scale=scale, size=50, random_state=0)
    found_scale, found_shape = fit_weibull(numbers)
    expected_shape, _, expected_scale = stats.weibull_min.fit(numbers, floc=0)
    assert (found_scale, found_shape) == pytest.approx((expected_scale, expected_shape), rel=1e-3)


@pytest.mark.parametrize("shift", [0.5, SHIFT])
@pytest.mark.parametrize("size", [2, 3, 20, 300])
def test_no_neighbour_of_the_fit_is_likelier(shift, size):
    numbers = np.random.default_rng(size).gamma(2, 0.1, size) + shift
    scale, shape = fit_weibull(numbers)

    def likelihood(scale: float, shape: float) -> float:
        ratios = np.log1p((numbers - scale) / scale)  # ln(x / scale), with all its digits
        return size * np.log(shape) + np.sum(shape * ratios - np.exp(shape * ratios))  # but for sum(ln x)

    best = likelihood(scale, shape)
    for factor in (0.99, 1.01):
        assert likelihood(scale, shape * factor) < best
        assert likelihood(scale * factor ** (1 / shape), shape) < best


@pytest.mark.parametrize("kind", ["eu", "cos", "eucos"])
def test_distances_against_loops(kind):
    rng = np.random.default_rng(0)
    features, means = rng.uniform(0, 3, (7, 5)), rng.uniform(0, 3, (3, 5))
    for i in range(7):
        for k in range(3):
            euclidean = scipy_distance.euclidean(features[i], means[k]) / 200
            cosine = scipy_distance.cosine(features[i], means[k])
            expected = {"eu": euclidean, "cos": cosine, "eucos": euclidean + cosine}[kind]
            assert distances(features, means, kind)[i, k] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["eu", "cos", "eucos"])
@pytest.mark.parametrize("tail", [5, 20, 100])
def test_a_class_is_its_right_videos(kind, tail):
    features, logits, labels = world()
    wrong = [0, 7, 40]
    logits[wrong] = logits[wrong][:, ::-1]
    features[wrong] = 100.0  # would show in means and tails
    model = OpenMax.fit(features, logits, labels, tail=tail, distance=kind)
    for k in range(4):
        own = features[(labels == k) & (logits.argmax(axis=1) == labels)].astype(np.float64)
        assert len(own) == 30 - [2, 1, 0, 0][k]
        assert model.means[k] == pytest.approx(own.mean(axis=0), rel=1e-12)
        tails = sorted(distances(own, own.mean(axis=0)[None], kind)[:, 0].tolist())[-tail:]
        assert model.smallest[k] == pytest.approx(tails[0], rel=1e-9)
        assert (model.scale[k], model.shape[k]) == pytest.approx(
            fit_weibull(np.array(tails) - tails[0] + SHIFT), rel=1e-6
        )


def test_outlier_probabilities_are_the_distribution_s():
    features, logits, labels = world()
    model = OpenMax.fit(features, logits, labels)
    x = distances(features, model.means, "eucos") - model.smallest + SHIFT
    expected = stats.weibull_min.cdf(x, model.shape, scale=model.scale)
    found = model.outlier_probabilities(features)
    assert found == pytest.approx(expected, abs=1e-9)
    assert found[np.arange(len(labels)), labels].min() < 0.1 < 0.9 < found.max()


def test_the_far_is_an_outlier_of_every_class_without_overflow():
    features, logits, labels = world()
    model = OpenMax.fit(features, logits, labels)
    with np.errstate(all="raise", under="ignore"):
        far = model.outlier_probabilities(np.full((1, 10), 1e7))
    assert far.tolist() == [[1.0] * 4]


@pytest.mark.parametrize("rank", [1, 2, 4, 9])
def test_revised_scores_against_a_loop(rank):
    features, logits, labels = world()
    model = OpenMax.fit(features, logits, labels)
    rng = np.random.default_rng(1)
    features, logits = rng.uniform(0, 6, (25, 10)), rng.normal(0, 3, (25, 4))
    found = model.probabilities(features, logits, rank)
    assert found.shape == (25, 5)
    ranks = min(rank, 4)
    for row, outlier, v in zip(found, model.outlier_probabilities(features), logits, strict=True):
        revised, unknown = [], 0.0
        for k in range(4):
            place = sum(v > v[k])
            weight = (ranks - place) / ranks if place < ranks else 0
            revised.append(v[k] * (1 - weight * outlier[k]))
            unknown += v[k] - revised[-1]
        powers = np.exp([*revised, unknown])
        assert row == pytest.approx(powers / powers.sum(), rel=1e-9)


def test_unknown_videos_are_found():
    features, logits, labels = world()
    model = OpenMax.fit(features, logits, labels)
    known = model.probabilities(features, logits)
    between = model.probabilities(np.full((1, 10), 3.0, np.float32), np.array([[4.0, 0.0, 0.0, 0.0]]))
    assert (known[:, :4].argmax(axis=1) == logits.argmax(axis=1)).mean() > 0.6
    assert known[:, 4].mean() < 0.3 < 0.9 < between[0, 4]


def test_a_negative_logit_grows():
    """As published: nothing of it becomes the unknown's, which has less than at a logit of 0."""
    features, logits, labels = world()
    model = OpenMax.fit(features, logits, labels)
    found = model.probabilities(np.full((1, 10), 1e3), np.full((1, 4), -2.0) - np.arange(4))
    assert found[0] == pytest.approx(np.exp([0, -3, -4, -5, -2]) / np.exp([0, -3, -4, -5, -2]).sum())


def test_large_logits_do_not_overflow():
    features, logits, labels = world()
    found = OpenMax.fit(features, logits, labels).probabilities(features, 1e4 * logits)
    assert np.isfinite(found).all()
    assert found.sum(axis=1) == pytest.approx(1)


def test_a_class_of_too_few_right_videos():
    features, logits, labels = world()
    logits[labels == 2] = np.eye(4)[1]
    logits[60:62] = np.eye(4)[2]
    with pytest.raises(InputError, match="2 of 30 training videos of class 2 are predicted right; it needs at least 3"):
        OpenMax.fit(features, logits, labels)
    features, logits, labels = world()
    with pytest.raises(InputError, match="0 of 0 training videos of class 4"):
        OpenMax.fit(features, np.pad(logits, ((0, 0), (0, 1)), constant_values=-9), labels)


def test_videos_that_are_all_the_same():
    features, logits, labels = world()
    features[labels == 1] = features[30]
    with pytest.raises(InputError, match="class 1 are all equally far"):
        OpenMax.fit(features, logits, labels)


def test_features_without_a_direction():
    features, logits, labels = world()
    model = OpenMax.fit(features, logits, labels)
    with pytest.raises(InputError, match="all 0 or not finite"):
        model.probabilities(np.zeros((1, 10)), logits[:1])


def test_settings_out_of_range():
    features, logits, labels = world()
    with pytest.raises(InputError, match="tail is 2"):
        OpenMax.fit(features, logits, labels, tail=2)
    with pytest.raises(InputError, match="'euclid'; it must be one of eucos, eu, cos"):
        OpenMax.fit(features, logits, labels, distance="euclid")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="rank is 0"):
        OpenMax.fit(features, logits, labels).probabilities(features, logits, 0)
