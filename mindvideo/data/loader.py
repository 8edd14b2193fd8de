# SPDX-License-Identifier: Apache-2.0
"""From samples to batches through mindspore.dataset: the only file that imports it.

Whatever the number of worker processes, item i is computed from the seed and i alone and items come in order,
so a run can be repeated, continued at any step, and dealt among processes. C channels, T frames, H height, W width;
N way, K shot, M queries; B batch, V views.
"""

from __future__ import annotations

import difflib
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection, cpu_count
from pathlib import Path
from threading import Thread
from time import sleep
from typing import Any, Generic, Protocol, TypeVar

import cv2
import mindspore.dataset as ds
import numpy as np

from mindvideo.data.episodes import EpisodeSampler
from mindvideo.data.manifest import Sample
from mindvideo.data.prepared import COLUMNS, Prepared, Rows
from mindvideo.data.sampling import dense, windows
from mindvideo.data.sampling import sample as sample_frames
from mindvideo.data.selfsupervision import Augmentation
from mindvideo.data.transforms import ClipTransform, TrainTransform, ViewTransform
from mindvideo.data.video import read_frames
from mindvideo.errors import InputError, VideoError

# Items waiting in each queue. A paper-sized episode takes 80 MB, augmented 160; what makes 30 views of I3D about 100.
_PREFETCH = 4

Transform = TypeVar("Transform", ClipTransform, TrainTransform)

VIEW_SAMPLERS = {"dense": dense, "windows": windows}


@dataclass(frozen=True)
class ClipReader(Generic[Transform]):
    """A video to a clip `[C, T, H, W]`: choose frames, decode them, transform them.

    `sampling` and `short` are those of `sampling.sample`; `num_frames` holds each video's true length. Frames come from
    `prepared` where it is given, and else from `decoder`.
    """

    transform: Transform
    sampling: str
    length: int
    num_frames: Mapping[Path, int]
    stride: int = 1
    short: str = "error"
    decoder: str = "pyav"
    prepared: Prepared | None = None

    def indices(self, sample: Sample, rng: np.random.Generator | None) -> np.ndarray:
        """The frames to read; VideoError, with the path, if the video is too short."""
        num_frames = self.num_frames[sample.path]
        try:
            return sample_frames(self.sampling, num_frames, self.length, stride=self.stride, rng=rng, short=self.short)
        except InputError as error:
            raise VideoError(f"{sample.path}: {error}") from error

    def check(self, sample: Sample) -> None:
        """VideoError, with the path, if the video is too short for a clip."""
        self.indices(sample, np.random.default_rng(0))

    def __call__(self, sample: Sample, rng: np.random.Generator | None = None) -> np.ndarray:
        return self.transform(_frames(self, sample, self.indices(sample, rng)), rng)


@dataclass(frozen=True)
class ViewReader:
    """A video to its test views `[V, C, T, H, W]`: all windows through the first crop of the transform, then all
    through the next; there are `num_clips` windows of `length` frames at `stride`. A short video loops.

    `sampling` is one of VIEW_SAMPLERS; `num_frames` holds each video's true length. Frames come from `prepared` where
    it is given, and else from `decoder`.
    """

    transform: ViewTransform
    sampling: str
    length: int
    num_frames: Mapping[Path, int]
    stride: int = 1
    num_clips: int = 10
    decoder: str = "pyav"
    prepared: Prepared | None = None

    def __post_init__(self) -> None:
        if self.sampling not in VIEW_SAMPLERS:
            raise InputError(f"unknown sampler of views {self.sampling!r}, choose from {', '.join(VIEW_SAMPLERS)}")

    def crops(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """The crops of every frame that is needed, uint8 `[K, F, H, W, C]`, and where among the F are those of the
        windows `[num_clips, T]`: the views before they grow tenfold, by overlap and as floats."""
        sampler = VIEW_SAMPLERS[self.sampling]
        indices_VT = sampler(self.num_frames[sample.path], self.length, self.stride, self.num_clips)
        wanted_F, places = np.unique(indices_VT, return_inverse=True)
        return self.transform.crop(_frames(self, sample, wanted_F)), places.reshape(indices_VT.shape)

    def views(self, crops_KFHWC: np.ndarray, places_VT: np.ndarray) -> np.ndarray:
        """Float32 `[V, C, T, H, W]` of what `crops` gave."""
        num_crops, _, *size, channels = crops_KFHWC.shape
        num_clips, length = places_VT.shape
        views_KVCTHW = np.empty((num_crops, num_clips, channels, length, *size), np.float32)
        for frames_FHWC, clips_VCTHW in zip(crops_KFHWC, views_KVCTHW, strict=True):
            normal_CFHW = self.transform.normalize(frames_FHWC)
            for places, clip_CTHW in zip(places_VT, clips_VCTHW, strict=True):
                np.take(normal_CFHW, places, axis=1, out=clip_CTHW, mode="clip")  # other modes buffer
        return views_KVCTHW.reshape(-1, *views_KVCTHW.shape[2:])

    def __call__(self, sample: Sample) -> np.ndarray:
        return self.views(*self.crops(sample))


def _frames(reader: ClipReader | ViewReader, sample: Sample, indices: np.ndarray) -> np.ndarray:
    """uint8 RGB `[T, H, W, 3]`."""
    if reader.prepared:
        return reader.prepared.frames(sample.path, indices)
    return read_frames(sample.path, indices, reader.decoder)


def open_shard(path: Path) -> Rows:
    """The rows of a MindRecord file, by MindSpore's own reader."""
    dataset = ds.MindDataset([str(path)], columns_list=list(COLUMNS), shuffle=False, num_parallel_workers=1)

    def row(number: int) -> tuple[int, np.ndarray]:
        video, data = dataset[number]
        return int(video), data.reshape(1).view(np.uint8)

    return row


class Reader(Protocol):
    """A sample to the array that networks see, at random only if given `rng`."""

    def __call__(self, sample: Sample, rng: np.random.Generator | None = None) -> np.ndarray: ...


class _Source(Protocol):
    """What GeneratorDataset reads: rows of `columns` arrays by number."""

    columns: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]: ...


class _Episodes:
    """Row i: what `load_episodes` tells of episode `numbers[i]`."""

    def __init__(
        self,
        sampler: EpisodeSampler,
        samples: Sequence[Sample],
        reader: ClipReader,
        numbers: Sequence[int],
        augmentation: Augmentation | None,
        is_random: bool,
    ):
        self.is_random = is_random
        self.sampler, self.samples, self.reader = sampler, samples, reader
        self.numbers, self.augmentation = numbers, augmentation
        self.columns = 4 if augmentation else 2

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        number = self.numbers[int(index)]
        episode = self.sampler.episode(number)
        # 1: another stream than the sampler's
        rng = np.random.default_rng((self.sampler.seed, number, 1)) if self.is_random else None
        way, shot = episode.support_NK.shape
        positions = np.concatenate([episode.support_NK.ravel(), episode.query_NQ.ravel(), episode.unknown_U])
        clips = _stack((self.reader(self.samples[i], rng) for i in positions), len(positions))
        support, query = clips[: way * shot], clips[way * shot :]
        row = support.reshape(way, shot, *clips.shape[1:]), query
        if self.augmentation is None:
            return row
        rng = np.random.default_rng((self.sampler.seed, number, 2))  # 2: one of its own, to leave the clips alone
        return *row, *_augment(clips, self.augmentation, rng)


def _stack(clips: Iterable[np.ndarray], count: int) -> np.ndarray:
    """As np.stack does, but for holding one clip at a time: the memory of all of them would take longer to get."""
    clips = iter(clips)
    first = next(clips)
    stacked = np.empty((count, *first.shape), first.dtype)
    stacked[0] = first
    for place, clip in enumerate(clips, start=1):
        stacked[place] = clip
    return stacked


def _augment(
    clips_BCTHW: np.ndarray, augmentation: Augmentation, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Each clip under a label of its own, and the labels."""
    labels_B = rng.integers(augmentation.num_classes, size=len(clips_BCTHW), dtype=np.int32)
    pairs = zip(clips_BCTHW, labels_B, strict=True)
    return np.stack([augmentation.apply(clip, label) for clip, label in pairs]), labels_B


class _Clips:
    """Row i: the clip of sample i, without randomness."""

    columns = 1

    def __init__(self, samples: Sequence[Sample], reader: Reader):
        self.samples, self.reader = samples, reader

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        return (self.reader(self.samples[int(index)]),)


class _Batches:
    """Row i: clips and labels of training batch `numbers[i]`."""

    columns = 2

    def __init__(
        self,
        samples: Sequence[Sample],
        classes: Sequence[str],
        reader: Reader,
        batch: int,
        seed: int,
        numbers: Sequence[int],
        per_epoch: int,
    ):
        number_of = {name: number for number, name in enumerate(classes)}
        for sample in samples:
            if sample.label not in number_of:
                close = difflib.get_close_matches(sample.label, classes, n=1)
                hint = f" (closest: {close[0]})" if close else ""
                raise InputError(f"{sample.path}: {sample.label!r} is none of the {len(classes)} classes{hint}.")
        if not 1 <= batch <= len(samples):
            raise InputError(f"batch is {batch}, it must be in [1, {len(samples)}], the number of training videos.")
        self.labels = np.array([number_of[sample.label] for sample in samples], np.int32)
        self.samples, self.reader, self.batch, self.seed = samples, reader, batch, seed
        self.numbers, self.per_epoch = numbers, per_epoch
        self.drawn = -1, np.zeros(0, np.int64)  # the last epoch asked for, and its order

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        number = self.numbers[int(index)]
        epoch, place = divmod(number, self.per_epoch)
        chosen = self._order(epoch)[place * self.batch : (place + 1) * self.batch]
        rng = np.random.default_rng((self.seed, number, 1))  # 1: another stream than the order's
        return _stack((self.reader(self.samples[i], rng) for i in chosen), len(chosen)), self.labels[chosen]

    def _order(self, epoch: int) -> np.ndarray:
        """All samples' positions in the order of an epoch."""
        if self.drawn[0] != epoch:
            self.drawn = epoch, np.random.default_rng((self.seed, epoch)).permutation(len(self.samples))
        return self.drawn[1]


class _Views:
    """Row i: what makes the views of sample i."""

    columns = 2

    def __init__(self, samples: Sequence[Sample], reader: ViewReader):
        self.samples, self.reader = samples, reader

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        return self.reader.crops(self.samples[int(index)])


class _Guarded:
    """Adds a last column that holds the message of a bad video or episode.

    A worker process cannot raise across to us without burying the message in MindSpore's own traceback.
    """

    def __init__(self, source: _Source):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        try:
            return (*self.source[index], np.zeros(0, np.uint8))
        except InputError as error:
            empty = np.zeros(1, np.float32)
            message = np.frombuffer(f"{type(error).__name__}:{error}".encode(), np.uint8)
            return (*(empty,) * self.source.columns, message)


def _rows(source: _Source, workers: int) -> Iterator[tuple[Any, ...]]:
    """The rows of `source` in order, made by `workers` processes; raises an InputError that a worker met."""
    if not len(source):
        return
    names = [f"column{i}" for i in range(source.columns)] + ["error"]
    ds.config.set_prefetch_size(_PREFETCH)
    cv2.setNumThreads(0)  # workers share the cores with training
    workers = min(workers, cpu_count())  # MindSpore refuses more
    ds.config.set_enable_watchdog(False)  # it ends this process without a word where a worker is lost; see _Watch
    dataset = ds.GeneratorDataset(
        _Guarded(source),
        names,
        shuffle=False,
        num_parallel_workers=workers,
        python_multiprocessing=workers > 1,
    )
    iterator = dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)
    watch = _Watch(iterator.dataset.sample_fn) if workers > 1 else None
    try:
        for *arrays, error in iterator:
            if error.size:
                kind, _, message = error.tobytes().decode().partition(":")
                raise (VideoError if kind == "VideoError" else InputError)(message)
            yield tuple(arrays)
    except RuntimeError:  # also where a row was being handed over
        if not (watch and watch.found()):
            raise
    finally:
        # At once, not by the garbage collector: that may run in a worker of the next iterator, where MindSpore's
        # destructor waits for ever for threads that only this process has.
        iterator.stop()
    if watch and watch.lost:
        raise InputError(
            f"data process {watch.lost} was killed or crashed. If memory was short, lower data.workers; "
            "train.resume=auto continues from the last checkpoint."
        )


class _Watch(Thread):
    """Waits for the first of `maker`'s worker processes to end. If it was killed or crashed, `lost` becomes its number
    and the rows end: MindSpore would wait for that worker's for ever."""

    def __init__(self, maker: Any):
        super().__init__(daemon=True)
        self._maker, self.lost = weakref.ref(maker), 0  # it ends its workers when the last one lets go of it
        self.start()

    def run(self) -> None:
        while (maker := self._maker()) and len(getattr(maker, "pids", ())) < maker.num_worker:
            sleep(0.1)  # the first row asked for starts them
        if not maker:
            return
        workers, over = list(maker.workers or ()), maker.eof
        del maker
        if not workers:  # stopped already
            return
        ended = connection.wait([worker.sentinel for worker in workers])
        worker = next(worker for worker in workers if worker.sentinel in ended)
        worker.join()
        if worker.exitcode:
            self.lost = worker.pid
            over.set()

    def found(self) -> bool:
        """Whether one is lost, or will be found so at once."""
        self.join(1)
        return self.lost > 0


def load_episodes(
    sampler: EpisodeSampler,
    samples: Sequence[Sample],
    reader: ClipReader,
    *,
    numbers: Sequence[int],
    workers: int,
    augmentation: Augmentation | None = None,
    is_random: bool = True,
) -> Iterator[tuple[np.ndarray, ...]]:
    """Support `[N, K, C, T, H, W]` and query `[M, C, T, H, W]` of the episodes of these `numbers`.

    Queries are ordered by class: query m is of class m // Q; unknown ones come last. With an augmentation also all
    clips augmented, support before query, `[N * K + M, C, T, H, W]`, and the labels drawn, int32 `[N * K + M]`.
    Unless `is_random`, a video gives the same clip in every episode, as in `load_clips`.
    """
    yield from _rows(_Episodes(sampler, samples, reader, numbers, augmentation, is_random), workers)


def load_clips(samples: Sequence[Sample], reader: Reader, *, workers: int) -> Iterator[np.ndarray]:
    """The clip `[C, T, H, W]` of each sample in order, without randomness."""
    for (clip,) in _rows(_Clips(samples, reader), workers):
        yield clip


def load_batches(
    samples: Sequence[Sample],
    classes: Sequence[str],
    reader: Reader,
    *,
    batch: int,
    seed: int,
    numbers: Sequence[int],
    per_epoch: int,
    workers: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Clips `[B, C, T, H, W]` and labels, int32 `[B]`, of the training batches of these `numbers`.

    A label is a class's place in `classes`. An epoch has `per_epoch` batches, at most `len(samples) // batch`, in which
    no sample comes twice, in an order of its own; the samples left over are others in each epoch. Fewer than a batch
    are none: batch normalisation and a dependence criterion say nothing of a few clips (UCF101's 9537 training videos
    leave one of 1192 batches of 8).
    InputError if a sample's label is none of `classes`, or `batch` more than there are samples.
    """
    yield from _rows(_Batches(samples, classes, reader, batch, seed, numbers, per_epoch), workers)


def load_views(samples: Sequence[Sample], reader: ViewReader, *, workers: int) -> Iterator[np.ndarray]:
    """The views `[V, C, T, H, W]` of each sample in order."""
    for crops_KFHWC, places_VT in _rows(_Views(samples, reader), workers):
        yield reader.views(crops_KFHWC, places_VT)
