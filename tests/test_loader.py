# SPDX-License-Identifier: Apache-2.0
"""Loading through mindspore.dataset: the same arrays for any number of workers, and clear errors."""

import subprocess
import sys
from dataclasses import replace
from itertools import islice
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest

from mindvideo.data.datasets import READERS, count_all_frames
from mindvideo.data.episodes import EpisodeSampler
from mindvideo.data.loader import ClipReader, ViewReader, load_batches, load_clips, load_episodes, load_views
from mindvideo.data.manifest import Sample
from mindvideo.data.sampling import dense, random_sorted, uniform, windows
from mindvideo.data.selfsupervision import Rotation, make_augmentation
from mindvideo.data.transforms import ClipTransform, TrainTransform, ViewTransform
from mindvideo.data.video import read_frames
from mindvideo.errors import InputError, VideoError
from tests.conftest import REPOSITORY

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
    loaded = list(load_episodes(sampler, samples, read, numbers=range(5), workers=workers))
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
    whole = list(load_episodes(sampler, samples, read, numbers=range(6), workers=1))
    later = list(load_episodes(sampler, samples, read, numbers=range(4, 6), workers=workers))
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
    plain = list(load_episodes(sampler, samples, read, numbers=range(2, 5), workers=1))
    whole = list(load_episodes(sampler, samples, read, numbers=range(5), workers=1, augmentation=augmentation))
    loaded = load_episodes(sampler, samples, read, numbers=range(2, 5), workers=workers, augmentation=augmentation)
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
    loading = load_episodes(sampler, samples, read, numbers=range(2), workers=workers, augmentation=Rotation())
    with pytest.raises(InputError, match=r"^frames of 16 x 24 cannot be rotated; they must be square"):
        next(loading)


@pytest.mark.parametrize("workers", [1, 2])
def test_unknown_queries_follow_the_known(samples, sampler, workers):
    read = reader(samples)
    more = EpisodeSampler(samples, way=WAY, shot=SHOT, query=QUERY, seed=4, unknown=2)
    known = load_episodes(sampler, samples, read, numbers=range(3), workers=1)
    loaded = load_episodes(more, samples, read, numbers=range(3), workers=workers)
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
    first = list(islice(load_episodes(sampler, samples, read, numbers=range(1000), workers=2), 2))
    again = list(load_episodes(sampler, samples, read, numbers=range(2), workers=2))
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
        list(load_episodes(sampler, samples, reader(samples), numbers=range(8), workers=workers))
    assert str(caught.value).startswith(f"{broken}: ")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_worker_process_that_is_killed_ends_loading(samples, sampler, victim):
    """MindSpore alone would end this whole process or, where something minds its signal, wait for ever."""
    before = set(active_children())
    loading = load_episodes(sampler, samples, reader(samples), numbers=range(1000), workers=2)
    next(loading)
    workers = sorted((p for p in set(active_children()) - before if "Clean" not in p.name), key=lambda p: str(p.pid))
    assert len(workers) == 2
    workers[victim].kill()
    with pytest.raises(InputError, match=rf"^data process {workers[victim].pid} was killed or crashed"):
        list(loading)
    assert len(list(load_episodes(sampler, samples, reader(samples), numbers=range(3), workers=2))) == 3


@pytest.mark.parametrize("workers", [1, 2])
def test_an_impossible_episode_ends_loading_with_its_number(samples, workers):
    """Each class alone could be dealt, both together cannot."""
    groups = {"A": "xxxxxy", "B": "xyyyyy"}
    entangled = [
        replace(sample, group=groups[sample.label][i % 6]) for i, sample in enumerate(samples) if sample.label in groups
    ]
    impossible = EpisodeSampler(entangled, way=2, shot=5, query=1, seed=0)
    with pytest.raises(InputError, match=r"^episode 7: the sources of .* cannot be dealt"):
        list(load_episodes(impossible, entangled, reader(samples), numbers=range(7, 9), workers=workers))


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


CLASSES = ["C", "A", "B"]  # a class's number is its place, not its rank in the alphabet
BATCH = 4


ONCE = {"numbers": range(1), "per_epoch": 1, "workers": 1}


def train_reader(samples: list[Sample]) -> ClipReader:
    counts = {sample.path: FRAMES for sample in samples}
    return ClipReader(TrainTransform(16, 20, color=True), "consecutive", 4, counts, stride=2, short="loop")


def batches(samples: list[Sample], start: int, stop: int, workers: int = 1, seed: int = 7) -> list:
    read = train_reader(samples)
    dealt = {"numbers": range(start, stop), "per_epoch": len(samples) // BATCH, "workers": workers}
    return list(load_batches(samples, CLASSES, read, batch=BATCH, seed=seed, **dealt))


def test_a_batch_is_read_from_its_step_alone(samples):
    """18 samples make 4 batches of 4: the order is drawn for each epoch, the clips for each step."""
    read = train_reader(samples)
    for step, (clips, labels) in enumerate(batches(samples, 0, 9)):
        order = np.random.default_rng((7, step // 4)).permutation(len(samples))
        chosen = [samples[i] for i in order[step % 4 * BATCH :][:BATCH]]
        rng = np.random.default_rng((7, step, 1))
        assert np.array_equal(clips, [read(sample, rng) for sample in chosen])
        assert labels.tolist() == [CLASSES.index(sample.label) for sample in chosen]
        assert clips.shape == (BATCH, 3, 4, 16, 16)
        assert clips.dtype == np.float32
        assert labels.dtype == np.int32


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_batches_are_the_same_for_any_number_of_workers_from_any_step(samples, workers):
    whole = batches(samples, 0, 7)
    later = batches(samples, 3, 7, workers)
    assert len(later) == 4
    for (clips, labels), (expected_clips, expected_labels) in zip(later, whole[3:], strict=True):
        assert np.array_equal(clips, expected_clips)
        assert np.array_equal(labels, expected_labels)


def test_no_sample_comes_twice_in_an_epoch(samples):
    """A reader that tells the samples apart: their number among the samples is the clip."""
    number_of = {sample.path: number for number, sample in enumerate(samples)}

    def read(sample: Sample, _: np.random.Generator) -> np.ndarray:
        return np.array([number_of[sample.path]])

    settings = {"batch": BATCH, "seed": 0, "numbers": range(80), "per_epoch": 4, "workers": 1}
    steps = [clips[:, 0] for clips, _ in load_batches(samples, CLASSES, read, **settings)]
    epochs = [tuple(np.concatenate(steps[i : i + 4])) for i in range(0, 80, 4)]
    assert all(len(set(epoch)) == 16 for epoch in epochs)
    assert len(set(epochs)) == 20
    assert set().union(*epochs) == set(range(18))  # none is left out for good


def test_seeds_give_other_batches(samples):
    (one, _), (other, _) = batches(samples, 0, 1)[0], batches(samples, 0, 1, seed=8)[0]
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("batch", "classes", "message"),
    [
        (19, CLASSES, r"batch is 19, it must be in \[1, 18\], the number of training videos"),
        (0, CLASSES, "batch is 0"),
        (4, ["AA", "B", "C"], r"A/0\.avi: 'A' is none of the 3 classes \(closest: AA\)"),
    ],
)
def test_mistakes_in_batches_are_named(samples, batch, classes, message):
    loading = load_batches(samples, classes, train_reader(samples), batch=batch, seed=0, **ONCE)
    with pytest.raises(InputError, match=message):
        next(loading)


def view_reader(samples: list[Sample], **changes) -> ViewReader:
    counts = {sample.path: FRAMES for sample in samples}
    settings = {"transform": ViewTransform(16, 16, "three"), "sampling": "dense", "length": 2, "num_frames": counts}
    return ViewReader(**settings | {"stride": 2, "num_clips": 2} | changes)


@pytest.mark.parametrize(("sampling", "place"), [("dense", dense), ("windows", windows)])
def test_views_are_all_windows_of_the_first_crop_then_of_the_next(samples, sampling, place):
    read = view_reader(samples, sampling=sampling)
    views_VCTHW = read(samples[0])
    assert views_VCTHW.shape == (6, 3, 2, 16, 16)
    assert views_VCTHW.dtype == np.float32
    expected = []
    for left in (0, 8, 4):
        for indices in place(FRAMES, 2, 2, 2):
            frames = read_frames(samples[0].path, indices)  # 16 x 24: no resizing
            expected.append(read.transform.normalize(frames[:, :, left : left + 16]))
    assert np.array_equal(views_VCTHW, expected)
    assert len({view.tobytes() for view in expected}) == 6


def test_a_short_video_loops_in_its_views(samples):
    views_VCTHW = view_reader(samples, length=5, num_clips=1, transform=ViewTransform(16, 16))(samples[0])
    assert views_VCTHW.shape == (1, 3, 5, 16, 16)
    assert np.array_equal(views_VCTHW[:, :, 0], views_VCTHW[:, :, 3])  # frames 0 2 4 0 2


def test_frames_that_views_share_are_cropped_once(samples):
    crops_KFHWC, places_VT = view_reader(samples, num_clips=3).crops(samples[0])
    assert places_VT.tolist() == [[0, 2], [1, 3], [2, 4]]
    assert crops_KFHWC.shape == (3, 5, 16, 16, 3)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_views_come_in_the_order_of_the_samples(samples, workers):
    read = view_reader(samples)
    shuffled = [samples[i] for i in np.random.default_rng(0).permutation(len(samples))]
    loaded = list(load_views(shuffled, read, workers=workers))
    assert len(loaded) == len(shuffled)
    assert all(np.array_equal(views, read(sample)) for views, sample in zip(loaded, shuffled, strict=True))


def test_an_unknown_sampler_of_views(samples):
    with pytest.raises(InputError, match="unknown sampler of views 'uniform', choose from dense, windows"):
        view_reader(samples, sampling="uniform")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_broken_video_ends_the_loading_of_views(samples, workers):
    truncate(samples[11].path)
    views = load_views(samples, view_reader(samples), workers=workers)
    assert len(list(islice(views, 11))) == 11
    with pytest.raises(VideoError) as caught:
        next(views)
    assert str(caught.value).startswith(f"{samples[11].path}: ")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_broken_video_ends_the_loading_of_batches(samples, workers):
    truncate(samples[2].path)
    with pytest.raises(VideoError) as caught:
        batches(samples, 0, 8, workers)
    assert str(caught.value).startswith(f"{samples[2].path}: ")


def test_a_real_video_through_dears_pipelines(real_data):
    """Sizes as published: I3D trains on 32 frames of 224 x 224 and is tested on ten windows by three crops of 256."""
    samples = READERS["ucf101"](real_data / "ucf101")[:1]
    counts, _ = count_all_frames(samples)
    train = ClipReader(TrainTransform(), "consecutive", 32, counts, stride=2, short="loop")
    clip = train(samples[0], np.random.default_rng(0))
    assert clip.shape == (3, 32, 224, 224)
    test = ViewReader(ViewTransform(256, 256, "three"), "dense", 32, counts, stride=2, num_clips=2)
    views = test(samples[0])
    assert views.shape == (6, 3, 32, 256, 256)
    assert np.isfinite(clip).all()
    assert -2.2 < views.min() < views.max() < 2.7


GARBAGE = """
import gc, os
import numpy as np
from pathlib import Path
from mindvideo.data.loader import load_clips
from mindvideo.data.manifest import Sample
from mindvideo.errors import InputError

parent = os.getpid()
samples = [Sample(Path(str(number)), "a", "") for number in range(8)]

def read(sample):
    if os.getpid() != parent:
        gc.collect()
    if sample.label == "broken":
        raise InputError("broken")
    return np.zeros(4, np.float32)

gc.disable()  # so that only the workers collect garbage
for round in range(2):
    try:
        list(load_clips([*samples, Sample(Path("x"), "broken", "")], read, workers=2))
    except InputError as error:
        error.itself = error  # with its traceback, and so all that the loader held, it is garbage now
    print(len(list(load_clips(samples, read, workers=2))), flush=True)
"""


def test_workers_may_collect_the_garbage_of_the_loader_before():
    """MindSpore's iterator is gone by then: its destructor would never end in another process."""
    command = [sys.executable, "-c", GARBAGE]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=60)
    assert [line for line in done.stdout.splitlines() if line == "8"] == ["8", "8"]  # MindSpore has words of its own
