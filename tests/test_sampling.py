# SPDX-License-Identifier: Apache-2.0
"""Frame sampling against brute force and against exact small cases."""

from fractions import Fraction
from itertools import pairwise
from math import floor

import numpy as np
import pytest

from mindvideo.data import sampling
from mindvideo.errors import InputError

LENGTHS = [(1, 1), (5, 1), (5, 4), (5, 5), (17, 16), (30, 8), (158, 20), (1000, 16)]


def segments(num_frames: int, length: int) -> list[range]:
    """Equal segments in exact arithmetic."""
    edges = [floor(Fraction(i * num_frames, length)) for i in range(length + 1)]
    return [range(a, b) for a, b in pairwise(edges)]


@pytest.mark.parametrize(("num_frames", "length"), LENGTHS)
def test_uniform_is_the_middle_of_equal_segments(num_frames, length):
    indices = sampling.uniform(num_frames, length)
    assert indices.tolist() == [s[len(s) // 2] for s in segments(num_frames, length)]
    assert indices.dtype == np.int64


def test_uniform_on_a_known_case():
    assert sampling.uniform(16, 4).tolist() == [2, 6, 10, 14]
    assert sampling.uniform(10, 3).tolist() == [1, 4, 8]


@pytest.mark.parametrize(("num_frames", "length"), LENGTHS)
def test_random_frames_are_distinct_and_in_order(num_frames, length):
    for seed in range(20):
        indices = sampling.random_sorted(num_frames, length, np.random.default_rng(seed))
        assert indices.shape == (length,)
        assert (np.diff(indices) > 0).all()
        assert indices[0] >= 0
        assert indices[-1] < num_frames


def test_random_frames_are_equally_likely():
    rng = np.random.default_rng(0)
    draws = 4000
    counts = np.bincount(np.concatenate([sampling.random_sorted(10, 3, rng) for _ in range(draws)]), minlength=10)
    deviation = np.sqrt(draws * 0.3 * 0.7)
    assert np.abs(counts - 0.3 * draws).max() < 4 * deviation


@pytest.mark.parametrize(("num_frames", "length", "stride"), [(16, 16, 1), (20, 16, 1), (64, 8, 8), (70, 8, 8)])
def test_consecutive_windows(num_frames, length, stride):
    slack = num_frames - length * stride
    centred = sampling.consecutive(num_frames, length, stride)
    assert centred.tolist() == [slack // 2 + stride * i for i in range(length)]

    rng = np.random.default_rng(0)
    drawn = [sampling.consecutive(num_frames, length, stride, rng) for _ in range(40 * (slack + 1))]
    assert {tuple(np.diff(window)) for window in drawn} == {(stride,) * (length - 1)}
    assert {int(window[0]) for window in drawn} == set(range(slack + 1))


def test_dense_views_span_the_video():
    views = sampling.dense(100, 16, 2, 10)
    assert views.shape == (10, 16)
    assert views.dtype == np.int64
    # MMAction2's DenseSampleFrames in test mode: starts linearly spaced over the possible ones.
    assert views[:, 0].tolist() == np.linspace(0, 100 - 32, 10).astype(int).tolist()
    assert (np.diff(views, axis=1) == 2).all()
    assert sampling.dense(100, 16, 2, 1).tolist() == [sampling.consecutive(100, 16, 2).tolist()]
    assert sampling.dense(32, 16, 2, 3)[:, 0].tolist() == [0, 0, 0]


def test_dense_views_of_a_short_video_loop():
    assert sampling.dense(5, 4, 2, 3).tolist() == [[0, 2, 4, 1]] * 3
    assert sampling.dense(5, 4, 2, 1).tolist() == [[0, 2, 4, 1]]
    assert sampling.dense(1, 2, 1, 2).tolist() == [[0, 0]] * 2


def test_windows_start_in_the_middle_of_equal_parts():
    # 41 starts in 4 parts of 10.25, whose middles are 5.1, 15.4, 25.6 and 35.9
    windows = sampling.windows(50, 5, 2, 4)
    assert windows[:, 0].tolist() == [5, 15, 25, 35]
    assert (np.diff(windows, axis=1) == 2).all()
    assert windows.dtype == np.int64
    assert sampling.windows(50, 5, 2, 1)[0, 0] == 20
    assert sampling.windows(7, 5, 2, 2).tolist() == [[0, 2, 4, 6, 1]] * 2


def test_random_windows_start_anywhere_in_their_part():
    rng = np.random.default_rng(0)
    drawn = np.array([sampling.windows(50, 5, 2, 4, rng) for _ in range(400)])
    for part, starts in enumerate(drawn[:, :, 0].T):
        assert set(starts) == set(range(10 * part, 10 * part + 10))
    assert (np.diff(drawn, axis=2) == 2).all()
    single = np.array([sampling.windows(50, 5, 2, 1, rng)[0, 0] for _ in range(800)])
    assert set(single) == set(range(41))


def test_random_windows_of_few_starts():
    rng = np.random.default_rng(0)
    drawn = np.array([sampling.windows(12, 5, 2, 4, rng)[:, 0] for _ in range(100)])  # 3 starts for 4 windows
    assert set(drawn.ravel()) == {0, 1, 2}
    assert (np.diff(drawn, axis=1) >= 0).all()
    assert len({tuple(starts) for starts in drawn}) > 1
    # 5 frames for 8 windows of one: nothing to draw
    assert sampling.windows(5, 1, 1, 8, rng).ravel().tolist() == [0, 1, 1, 2, 2, 3, 4, 4]
    assert sampling.windows(3, 5, 2, 2, rng).tolist() == [[0, 2, 1, 0, 2]] * 2


@pytest.mark.parametrize(("num_frames", "length"), LENGTHS)
def test_segments_draw_one_frame_each(num_frames, length):
    rng = np.random.default_rng(1)
    drawn = np.array([sampling.tsn_segments(num_frames, length, rng) for _ in range(200)])
    for column, segment in zip(drawn.T, segments(num_frames, length), strict=True):
        assert set(column) <= set(segment)
        if len(segment) < 10:
            assert set(column) == set(segment)
    assert sampling.tsn_segments(num_frames, length).tolist() == sampling.uniform(num_frames, length).tolist()


@pytest.mark.parametrize("kind", sampling.SAMPLERS)
def test_short_videos_repeat_their_last_frame(kind):
    rng = np.random.default_rng(0)
    assert sampling.sample(kind, 3, 6, rng=rng, short="repeat").tolist() == [0, 1, 2, 2, 2, 2]
    assert sampling.sample(kind, 1, 2, rng=rng, short="repeat").tolist() == [0, 0]
    with pytest.raises(InputError, match="has 3 frames, the clip needs 6"):
        sampling.sample(kind, 3, 6, rng=rng)
    with pytest.raises(InputError, match="has 0 frames"):
        sampling.sample(kind, 0, 6, rng=rng, short="repeat")


@pytest.mark.parametrize("kind", sampling.SAMPLERS)
def test_short_videos_go_on_at_their_start(kind):
    rng = np.random.default_rng(0)
    assert sampling.sample(kind, 3, 7, rng=rng, short="loop").tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert sampling.sample(kind, 1, 2, rng=rng, short="loop").tolist() == [0, 0]


def test_short_videos_keep_the_stride():
    assert sampling.sample("consecutive", 5, 4, stride=2, short="loop").tolist() == [0, 2, 4, 1]
    assert sampling.sample("consecutive", 4, 5, stride=2, short="repeat").tolist() == [0, 2, 3, 3, 3]
    assert sampling.sample("consecutive", 10, 5, stride=2, short="repeat").tolist() == [0, 2, 4, 6, 8]


def test_sample_dispatches_by_name():
    def seeded():
        return np.random.default_rng(7)

    expected = {
        "uniform": sampling.uniform(90, 8),
        "random": sampling.random_sorted(90, 8, seeded()),
        "consecutive": sampling.consecutive(90, 8, rng=seeded()),
        "segments": sampling.tsn_segments(90, 8, seeded()),
    }
    assert tuple(expected) == sampling.SAMPLERS
    for kind, indices in expected.items():
        for short in ("error", "repeat", "loop"):
            assert sampling.sample(kind, 90, 8, rng=seeded(), short=short).tolist() == indices.tolist()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sampling.sample("center", 9, 3), "unknown sampler 'center', choose from uniform"),
        (lambda: sampling.sample("uniform", 9, 3, short="skip"), "short is 'skip'"),
        (lambda: sampling.sample("uniform", 9, 3, stride=2), "stride is 2"),
        (lambda: sampling.sample("random", 9, 3), "needs a random generator"),
        (lambda: sampling.sample("uniform", 9, 0), "at least 1"),
        (lambda: sampling.consecutive(31, 16, 2), "has 31 frames, the clip needs 32"),
        (lambda: sampling.dense(0, 16, 2, 3), "has 0 frames"),
        (lambda: sampling.windows(0, 16, 2, 3), "has 0 frames"),
        (lambda: sampling.windows(99, 16, 2, 0), "num_clips is 0"),
        (lambda: sampling.dense(99, 16, 2, 0), "num_clips is 0"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
