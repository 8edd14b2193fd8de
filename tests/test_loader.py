# SPDX-License-Identifier: Apache-2.0
"""Loading through mindspore.dataset: the same arrays for any number of workers, and clear errors."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from mindvideo.data.datasets import READERS
from mindvideo.data.episodes import EpisodeSampler
from mindvideo.data.loader import ClipReader, load_clips, load_episodes
from mindvideo.data.manifest import Sample
from mindvideo.data.sampling import random_sorted, uniform
from mindvideo.data.selfsupervision import Rotation, make_augmentation
from mindvideo.data.transforms import ClipTransform
from mindvideo.data.video import read_frames
from mindvideo.errors import InputError, VideoError

WAY, SHOT, QUERY = 2, 2, 3
FRAMES = 6
RANDOM = ClipTransform((16, 24), flip=True, crop_scale=(0.5, 1.0), color=0.3)


@pytest.fixture
def samples(make_videos) -> list[Sample]:
    names = [f"{label}/{i}.avi" for label in "ABC" for i in range(6)]
    return READERS["folder"](make_videos(names, FRAMES))


@pytest.fixture
def sampler(samples) -> EpisodeSampler:
    return EpisodeSampler(samples, way=WAY, shot=SHOT, query=QUERY, seed=4)


def reader(samples: list[Sample], sampling: str = "random", transform: ClipTransform = RANDOM) -> ClipReader:
    return ClipReader(transform, sampling, 4, {sample.path: FRAMES for sample in samples})


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def test_a_clip_is_sampled_decoded_and_transformed(samples):
    plain = ClipTransform((16, 24))
    clip = reader(samples, "uniform", plain)(samples[0])
    assert clip.shape == (3, 4, 16, 24)
    assert clip.dtype == np.float32
    frames = read_frames(samples[0].path, uniform(FRAMES, 4))
    assert np.array_equal(clip, plain(frames, None))


def test_frames_and_augmentation_come_from_one_stream(samples):
    rng = np.random.default_rng(9)
    frames = read_frames(samples[0].path, random_sorted(FRAMES, 4, rng))
    expected = RANDOM(frames, rng)
    assert np.array_equal(reader(samples)(samples[0], np.random.default_rng(9)), expected)
    assert not np.array_equal(expected, RANDOM(frames, None))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_episodes_equal_direct_reading_for_any_number_of_workers(samples, sampler, workers):
    """Episode i is a function of seed and i alone: support, then queries by class, from one random stream."""
    read = reader(samples)
    loaded = list(load_episodes(sampler, samples, read, start=0, stop=5, workers=workers))
    assert len(loaded) == 5
    for number, (support, query) in enumerate(loaded):
        assert support.shape == (WAY, SHOT, 3, 4, 16, 24)
        assert query.shape == (WAY * QUERY, 3, 4, 16, 24)
        assert support.dtype == query.dtype == np.float32
        episode = sampler.episode(number)
        rng = np.random.default_rng((sampler.seed, number, 1))
        for n in range(WAY):
            for k in range(SHOT):
                assert np.array_equal(support[n, k], read(samples[episode.support_NK[n, k]], rng))
        for m in range(WAY * QUERY):
            sample = samples[episode.query_NQ[m // QUERY, m % QUERY]]
            assert sample.label == episode.classes[m // QUERY]
            assert np.array_equal(query[m], read(sample, rng))


@pytest.mark.parametrize("workers", [1, 2])
def test_starting_later_gives_the_same_episodes(samples, sampler, workers):
    read = reader(samples)
    whole = list(load_episodes(sampler, samples, read, start=0, stop=6, workers=1))
    later = list(load_episodes(sampler, samples, read, start=4, stop=6, workers=workers))
    assert len(later) == 2
    for (support, query), (expected_support, expected_query) in zip(later, whole[4:], strict=True):
        assert np.array_equal(support, expected_support)
        assert np.array_equal(query, expected_query)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("name", ["temporal_jigsaw", "spatial_jigsaw", "rotation"])
def test_an_augmentation_adds_disturbed_clips_and_labels(samples, sampler, name, workers):
    """And leaves the clips as they are without it, wherever loading starts."""
    read = reader(samples, transform=replace(RANDOM, size=(16, 16)))
    augmentation = make_augmentation(name, length=4, permutations=2, block=2)
    plain = list(load_episodes(sampler, samples, read, start=2, stop=5, workers=1))
    whole = list(load_episodes(sampler, samples, read, start=0, stop=5, workers=1, augmentation=augmentation))
    loaded = load_episodes(sampler, samples, read, start=2, stop=5, workers=workers, augmentation=augmentation)
    for row, expected, (support, query) in zip(loaded, whole[2:], plain, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(row, expected, strict=True))
        assert np.array_equal(row[0], support)
        assert np.array_equal(row[1], query)
        augmented, labels = row[2:]
        clips = [*support.reshape(-1, *support.shape[2:]), *query]
        assert augmented.dtype == np.float32
        assert labels.dtype == np.int32
        assert labels.shape == (WAY * (SHOT + QUERY),)
        for clip, out, label in zip(clips, augmented, labels, strict=True):
            assert np.array_equal(out, augmentation.apply(clip, label))
    drawn = np.concatenate([labels for *_, labels in whole])
    assert set(drawn) == set(range(augmentation.num_classes))
    assert len({labels.tobytes() for *_, labels in whole}) > 1


@pytest.mark.parametrize("workers", [1, 2])
def test_an_augmentation_that_does_not_fit_ends_loading(samples, sampler, workers):
    read = reader(samples)
    loading = load_episodes(sampler, samples, read, start=0, stop=2, workers=workers, augmentation=Rotation())
    with pytest.raises(InputError, match=r"^frames of 16 x 24 cannot be rotated; they must be square"):
        next(loading)


@pytest.mark.parametrize("workers", [1, 2])
def test_unknown_queries_follow_the_known(samples, sampler, workers):
    read = reader(samples)
    more = EpisodeSampler(samples, way=WAY, shot=SHOT, query=QUERY, seed=4, unknown=2)
    known = load_episodes(sampler, samples, read, start=0, stop=3, workers=1)
    loaded = load_episodes(more, samples, read, start=0, stop=3, workers=workers)
    for number, ((support, query), (expected_support, expected_query)) in enumerate(zip(loaded, known, strict=True)):
        assert np.array_equal(support, expected_support)
        assert np.array_equal(query[: WAY * QUERY], expected_query)
        assert len(query) == WAY * QUERY + 2
        rng = np.random.default_rng((4, number, 1))
        episode = more.episode(number)
        positions = [*episode.support_NK.ravel(), *episode.query_NQ.ravel(), *episode.unknown_U]
        clips = [read(samples[i], rng) for i in positions]
        assert np.array_equal(query[-2:], clips[-2:])


def test_stopping_early_leaves_the_next_loader_well(samples, sampler):
    read = reader(samples)
    first = list(islice(load_episodes(sampler, samples, read, start=0, stop=1000, workers=2), 2))
    again = list(load_episodes(sampler, samples, read, start=0, stop=2, workers=2))
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_clips_come_in_the_order_of_the_samples(samples, workers):
    read = reader(samples, "uniform", ClipTransform((16, 24)))
    shuffled = [samples[i] for i in np.random.default_rng(0).permutation(len(samples))]
    clips = list(load_clips(shuffled, read, workers=workers))
    assert len(clips) == len(shuffled)
    assert all(np.array_equal(clip, read(sample)) for clip, sample in zip(clips, shuffled, strict=True))
    assert len({clip.tobytes() for clip in clips}) == len(samples)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_broken_video_ends_loading_with_its_path(samples, workers):
    read = reader(samples, "uniform", ClipTransform((16, 24)))
    broken = samples[11].path
    truncate(broken)
    clips = load_clips(samples, read, workers=workers)
    assert len(list(islice(clips, 11))) == 11
    with pytest.raises(VideoError) as caught:
        next(clips)
    assert str(caught.value).startswith(f"{broken}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_broken_video_in_an_episode_ends_loading_with_its_path(samples, sampler, workers):
    episode = sampler.episode(3)
    broken = samples[episode.query_NQ[1, 2]].path
    truncate(broken)
    with pytest.raises(VideoError) as caught:
        list(load_episodes(sampler, samples, reader(samples), start=0, stop=8, workers=workers))
    assert str(caught.value).startswith(f"{broken}: ")


@pytest.mark.parametrize("workers", [1, 2])
def test_an_impossible_episode_ends_loading_with_its_number(samples, workers):
    """Each class alone could be dealt, both together cannot."""
    groups = {"A": "xxxxxy", "B": "xyyyyy"}
    entangled = [
        replace(sample, group=groups[sample.label][i % 6]) for i, sample in enumerate(samples) if sample.label in groups
    ]
    impossible = EpisodeSampler(entangled, way=2, shot=5, query=1, seed=0)
    with pytest.raises(InputError, match=r"^episode 7: the sources of .* cannot be dealt"):
        list(load_episodes(impossible, entangled, reader(samples), start=7, stop=9, workers=workers))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_short_video_ends_loading_with_its_path(samples, workers):
    counts = {sample.path: FRAMES for sample in samples} | {samples[7].path: 3}
    read = ClipReader(ClipTransform((16, 24)), "uniform", 4, counts)
    message = f"{samples[7].path}: the video has 3 frames, the clip needs 4"
    with pytest.raises(VideoError) as caught:
        list(load_clips(samples, read, workers=workers))
    assert str(caught.value) == message
    with pytest.raises(VideoError) as caught:
        read.check(samples[7])
    assert str(caught.value) == message
    read.check(samples[6])


def test_short_videos_may_repeat_their_last_frame(samples):
    counts = {sample.path: 3 for sample in samples}
    read = ClipReader(ClipTransform((16, 24)), "uniform", 4, counts, short="repeat")
    assert read.indices(samples[0], None).tolist() == [0, 1, 2, 2]
    assert np.array_equal(read(samples[0])[:, 2], read(samples[0])[:, 3])


@pytest.mark.parametrize("kind", ["uniform", "random", "consecutive", "segments"])
def test_check_serves_every_sampler(samples, kind):
    reader(samples, kind).check(samples[0])


def test_opencv_frames_reach_the_clip(samples):
    counts = {sample.path: FRAMES for sample in samples}
    plain = ClipTransform((16, 24))
    clips = [ClipReader(plain, "uniform", 4, counts, decoder=name)(samples[0]) for name in ("pyav", "opencv")]
    assert np.abs(clips[0] - clips[1]).max() < 0.2
