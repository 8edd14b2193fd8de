# SPDX-License-Identifier: Apache-2.0
"""Episodes: right classes, sources never on both sides, the same for everyone, and fair."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mindvideo.data.episodes import Episode, EpisodeSampler, _divisible
from mindvideo.data.manifest import Sample
from mindvideo.errors import InputError

repeatable = settings(derandomize=True, database=None, deadline=None)


def make_samples(classes: dict[str, dict[str, int]]) -> list[Sample]:
    """`{class: {source: number of clips}}` as samples, the classes interleaved."""
    samples = [
        Sample(Path(f"{label}_{group}_{i}"), label, group)
        for label, sources in classes.items()
        for group, clips in sources.items()
        for i in range(clips)
    ]
    order = np.random.default_rng(0).permutation(len(samples))
    return [samples[i] for i in order]


def own_sources(sizes_by_class: list[list[int]]) -> list[Sample]:
    """Classes c0, c1, ... whose sources belong to them alone."""
    return make_samples(
        {f"c{c}": {f"c{c}g{g}": n for g, n in enumerate(sizes)} for c, sizes in enumerate(sizes_by_class)}
    )


def check(episode: Episode, samples: list[Sample], way: int, shot: int, query: int, unknown: int = 0) -> None:
    assert episode.support_NK.shape == (way, shot)
    assert episode.query_NQ.shape == (way, query)
    assert len(set(episode.classes)) == way
    for name, support, queries in zip(episode.classes, episode.support_NK, episode.query_NQ, strict=True):
        clips = [*support, *queries]
        assert {samples[i].label for i in clips} == {name}
        assert len(set(clips)) == shot + query
    assert episode.unknown_U.shape == (unknown,)
    assert len(set(episode.unknown_U)) == unknown
    assert not {samples[i].label for i in episode.unknown_U} & set(episode.classes)
    queries = np.concatenate([episode.query_NQ.ravel(), episode.unknown_U])
    sides = [{samples[i].group for i in part} for part in (episode.support_NK.ravel(), queries)]
    assert not sides[0] & sides[1]


def same(a: Episode, b: Episode) -> bool:
    return (
        a.classes == b.classes and np.array_equal(a.support_NK, b.support_NK) and np.array_equal(a.query_NQ, b.query_NQ)
    )


@pytest.mark.parametrize(("way", "shot", "query"), [(2, 1, 1), (5, 1, 3), (5, 5, 5), (3, 2, 7), (8, 10, 2)])
@pytest.mark.parametrize("shared", [False, True])
def test_episodes_are_what_they_must_be(way, shot, query, shared):
    samples = make_samples({f"c{c}": {f"g{g}" if shared else f"c{c}g{g}": 3 for g in range(8)} for c in range(8)})
    sampler = EpisodeSampler(samples, way=way, shot=shot, query=query, seed=3)
    for index in range(50):
        check(sampler.episode(index), samples, way, shot, query)


def test_sources_shared_by_some_classes_stay_on_one_side():
    """Films of uneven size, each in some of the classes, as in HMDB51."""
    rng = np.random.default_rng(5)
    classes = {
        f"c{c}": {f"film{f}": int(rng.integers(1, 6)) for f in rng.choice(30, 12, replace=False)} for c in range(9)
    }
    samples = make_samples(classes)
    sampler = EpisodeSampler(samples, way=5, shot=5, query=5, seed=0)
    for index in range(100):
        check(sampler.episode(index), samples, 5, 5, 5)


@pytest.mark.parametrize(("shot", "query"), [(1, 5), (5, 1), (3, 3)])
def test_half_of_the_sources_are_on_each_side_where_there_are_enough(shot, query):
    sampler = EpisodeSampler(own_sources([[2] * 12] * 2), way=2, shot=shot, query=query, seed=0)
    for seed in range(10):
        sides = sampler._deal(["c0", "c1"], np.random.default_rng(seed))
        for name in ("c0", "c1"):
            assert sum(on_support for group, on_support in sides.items() if group.startswith(name)) == 6


def test_sources_dealt_for_one_class_count_for_the_next():
    """Once a has x and y on either side, b has its support clip, so z must be a query source."""
    samples = make_samples({"a": {"x": 2, "y": 2}, "b": {"x": 1, "y": 1, "z": 1}})
    sampler = EpisodeSampler(samples, way=2, shot=1, query=2, seed=0)
    for seed in range(20):
        on_support = sampler._deal(["a", "b"], np.random.default_rng(seed))
        assert on_support["x"] != on_support["y"]
        assert not on_support["z"]


def test_an_episode_depends_on_seed_and_number_alone():
    samples = own_sources([[2] * 6] * 6)
    sampler = EpisodeSampler(samples, way=3, shot=2, query=2, seed=1)
    forward = [sampler.episode(i) for i in range(20)]
    backward = [sampler.episode(i) for i in reversed(range(20))][::-1]
    fresh = EpisodeSampler(samples, way=3, shot=2, query=2, seed=1)
    assert all(same(a, b) for a, b in zip(forward, backward, strict=True))
    assert same(fresh.episode(13), forward[13])
    other = EpisodeSampler(samples, way=3, shot=2, query=2, seed=2)
    assert not any(same(other.episode(i), forward[i]) for i in range(20))
    assert not any(same(forward[i], forward[j]) for i in range(20) for j in range(i))


def test_every_clip_is_drawn_on_both_sides():
    samples = own_sources([[1, 2, 3, 4], [3, 3, 3], [1] * 9, [4, 4]])
    sampler = EpisodeSampler(samples, way=3, shot=1, query=3, seed=0)
    episodes = [sampler.episode(i) for i in range(600)]
    assert {int(i) for e in episodes for i in e.support_NK.ravel()} == set(range(len(samples)))
    assert {int(i) for e in episodes for i in e.query_NQ.ravel()} == set(range(len(samples)))


def test_classes_and_places_are_drawn_evenly():
    way, num_classes, count = 4, 10, 3000
    sampler = EpisodeSampler(own_sources([[1] * 4] * num_classes), way=way, shot=1, query=1, seed=7)
    table = np.zeros((num_classes, way), int)
    for index in range(count):
        for place, name in enumerate(sampler.episode(index).classes):
            table[int(name[1:]), place] += 1
    assert stats.chisquare(table.sum(axis=1)).pvalue > 0.001
    assert stats.chisquare(table.ravel()).pvalue > 0.001


def test_equal_clips_are_drawn_evenly_as_support():
    samples = own_sources([[1] * 8, [1] * 8])
    sampler = EpisodeSampler(samples, way=2, shot=1, query=5, seed=7)
    drawn = [sampler.episode(i) for i in range(2000)]
    for part in ("support_NK", "query_NQ"):
        clips = np.concatenate([getattr(e, part).ravel() for e in drawn])
        assert stats.chisquare(np.bincount(clips, minlength=16)).pvalue > 0.001


@pytest.mark.parametrize(
    ("sizes", "shot", "query"),
    [
        ([5, 1], 5, 1),
        ([1, 5], 1, 5),
        ([1] * 8, 5, 3),
        ([1] * 6, 1, 5),
        ([1] * 20, 10, 10),
        ([1, 1, 1, 1, 1, 6], 5, 6),
        ([7, 2, 2, 2], 6, 7),
        ([100] + [1] * 10, 10, 5),
    ],
)
def test_classes_with_just_enough_serve_every_episode(sizes, shot, query):
    samples = own_sources([sizes] * 3)
    sampler = EpisodeSampler(samples, way=2, shot=shot, query=query, seed=0)
    for index in range(30):
        check(sampler.episode(index), samples, 2, shot, query)


@pytest.mark.parametrize(
    ("sizes", "shot", "query"), [([6], 1, 1), ([5, 1], 5, 2), ([3, 3], 4, 2), ([1, 1], 2, 1), ([10, 4], 5, 5)]
)
def test_a_class_without_enough_is_named_with_its_numbers(sizes, shot, query):
    samples = own_sources([[20, 20, 20], sizes])
    with pytest.raises(InputError) as caught:
        EpisodeSampler(samples, way=2, shot=shot, query=query, seed=0)
    message = str(caught.value)
    assert f"class 'c1' has {sum(sizes)} clips of {len(sizes)} sources" in message
    assert f"a {shot}-shot episode with {query} queries a class needs {shot} + {query} clips" in message


def test_more_ways_than_classes_is_an_error():
    with pytest.raises(InputError, match=r"5-way episodes need 5 classes; there are 2: c0, c1\."):
        EpisodeSampler(own_sources([[2, 2]] * 2), way=5, shot=1, query=1, seed=0)


def test_an_episode_is_what_it_always_was():
    """Drawn by the first version of the sampler; a run that is continued relies on it."""
    sampler = EpisodeSampler(own_sources([[2] * 6] * 6), way=2, shot=2, query=3, seed=1)
    episode = sampler.episode(7)
    assert episode.classes == ("c3", "c2")
    assert episode.support_NK.tolist() == [[17, 35], [68, 36]]
    assert episode.query_NQ.tolist() == [[28, 60, 52], [50, 71, 7]]
    assert episode.unknown_U.tolist() == []


@pytest.mark.parametrize("unknown", [1, 4, 30])
def test_unknown_queries_leave_the_known_ones_alone(unknown):
    samples = own_sources([[1, 2, 3, 4]] * 6)
    known = EpisodeSampler(samples, way=3, shot=2, query=3, seed=1)
    more = EpisodeSampler(samples, way=3, shot=2, query=3, seed=1, unknown=unknown)
    for index in range(50):
        check(more.episode(index), samples, 3, 2, 3, unknown)
        assert same(known.episode(index), more.episode(index))
    fresh = EpisodeSampler(samples, way=3, shot=2, query=3, seed=1, unknown=unknown)
    assert np.array_equal(fresh.episode(13).unknown_U, more.episode(13).unknown_U)


@pytest.mark.parametrize("unknown", [1, 6, 40])
def test_unknown_queries_come_from_no_support_source(unknown):
    """All classes share all sources, so half of the other classes' clips are out of the question."""
    samples = make_samples({f"c{c}": {f"g{g}": 3 for g in range(8)} for c in range(8)})
    sampler = EpisodeSampler(samples, way=4, shot=2, query=3, seed=0, unknown=unknown)
    for index in range(50):
        check(sampler.episode(index), samples, 4, 2, 3, unknown)


def test_deals_are_repeated_until_the_unknown_queries_are_served():
    """Class c has only sources of a and b: some of the deals put all of those on the support side."""
    samples = make_samples({"a": {"a0": 1, "s": 1}, "b": {"b0": 1, "t": 1}, "c": {"s": 1, "t": 1}})
    sampler = EpisodeSampler(samples, way=2, shot=1, query=1, seed=0, unknown=1)
    episodes = [sampler.episode(index) for index in range(60)]
    assert any(set(episode.classes) == {"a", "b"} for episode in episodes)
    for episode in episodes:
        check(episode, samples, 2, 1, 1, 1)


@pytest.mark.parametrize(("unknown", "counts"), [(2, {1}), (5, {1}), (8, {1, 2}), (15, {3})])
def test_unknown_queries_are_of_as_many_classes_as_possible(unknown, counts):
    sampler = EpisodeSampler(own_sources([[1] * 9] * 8), way=3, shot=1, query=1, seed=0, unknown=unknown)
    samples = own_sources([[1] * 9] * 8)
    for index in range(20):
        labels = [samples[i].label for i in sampler.episode(index).unknown_U]
        assert len(set(labels)) == min(unknown, 5)
        assert {labels.count(label) for label in labels} == counts


def test_unknown_classes_and_their_clips_are_drawn_evenly():
    samples = own_sources([[1] * 4] * 3 + [[8] * 4] * 3)
    sampler = EpisodeSampler(samples, way=2, shot=1, query=1, seed=7, unknown=1)
    drawn = [samples[i] for n in range(3000) for i in sampler.episode(n).unknown_U]
    labels = [int(sample.label[1:]) for sample in drawn]
    assert stats.chisquare(np.bincount(labels, minlength=6)).pvalue > 0.001
    clips = [samples.index(sample) for sample in drawn if sample.label == "c3"]
    assert stats.chisquare(np.unique(clips, return_counts=True)[1]).pvalue > 0.001
    assert len(set(clips)) == 32


@pytest.mark.parametrize(
    ("sizes", "unknown", "message"),
    [
        ([[2, 2]] * 2, 1, "2-way episodes leave 0 of 2 classes, with as few as 0 clips in all: too few for 1 unknown"),
        ([[9, 9], [9, 9], [1, 2], [2, 2]], 8, "leave 2 of 4 classes, with as few as 7 clips in all: too few for 8"),
    ],
)
def test_too_few_clips_outside_an_episode_are_an_error(sizes, unknown, message):
    with pytest.raises(InputError, match=message):
        EpisodeSampler(own_sources(sizes), way=2, shot=1, query=1, seed=0, unknown=unknown)
    EpisodeSampler(own_sources(sizes), way=2, shot=1, query=1, seed=0, unknown=unknown - 1)


def test_unknown_queries_that_no_deal_serves_are_told():
    """Whichever source of a is on the support side, it takes half of b's clips."""
    samples = make_samples({"a": {"x": 2, "y": 2}, "b": {"x": 2, "y": 2}})
    sampler = EpisodeSampler(samples, way=1, shot=1, query=1, seed=0, unknown=3)
    with pytest.raises(InputError, match=r"1 query clips a class and 3 unknown queries \(1000 deals tried\)"):
        sampler.episode(0)


def test_classes_that_exclude_each_other_are_named():
    """Each class could do alone, but the support source of one is the query source of the other."""
    samples = make_samples({"a": {"x": 5, "y": 1}, "b": {"x": 1, "y": 5}})
    message = r"episode 4: the sources of (a, b|b, a) cannot be dealt into 5 support and 1"
    with pytest.raises(InputError, match=message):
        EpisodeSampler(samples, way=2, shot=5, query=1, seed=0).episode(4)


def divisible_by_trying(sizes: list[int], shot: int, query: int) -> bool:
    """All 2^n divisions."""
    sides = product([True, False], repeat=len(sizes))
    totals = [sum(size for size, left in zip(sizes, side, strict=True) if left) for side in sides]
    return any(total >= shot and sum(sizes) - total >= query for total in totals)


@repeatable
@given(st.lists(st.integers(1, 9), max_size=8), st.integers(1, 20), st.integers(1, 20))
def test_divisible_agrees_with_trying_all_divisions(sizes, shot, query):
    assert _divisible(sizes, shot, query) == divisible_by_trying(sizes, shot, query)


@settings(repeatable, max_examples=60)
@given(
    st.lists(st.lists(st.integers(1, 6), min_size=2, max_size=6), min_size=2, max_size=4),
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(0, 10**6),
)
def test_whatever_can_be_divided_is_dealt(sizes_by_class, shot, query, index):
    samples = own_sources(sizes_by_class)
    if not all(divisible_by_trying(sizes, shot, query) for sizes in sizes_by_class):
        with pytest.raises(InputError, match="no source on both sides"):
            EpisodeSampler(samples, way=2, shot=shot, query=query, seed=0)
        return
    sampler = EpisodeSampler(samples, way=2, shot=shot, query=query, seed=0)
    check(sampler.episode(index), samples, 2, shot, query)
