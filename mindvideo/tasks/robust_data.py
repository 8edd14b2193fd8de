# SPDX-License-Identifier: Apache-2.0
"""The images of a robust-classification experiment: found, of videos taken out, and parted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from mindvideo.config import Config, resolve
from mindvideo.data import annotations, datasets
from mindvideo.data.annotations import Part, part_by_group
from mindvideo.data.corruptions import Augmentation
from mindvideo.data.images import ImageReader, extract_frames, image_folder, image_list
from mindvideo.data.loader import load_clips
from mindvideo.data.manifest import Sample
from mindvideo.data.stickfigures import PAIRS
from mindvideo.engine.distributed import after_first
from mindvideo.engine.log import progress_bar
from mindvideo.errors import InputError
from mindvideo.tasks.openset_data import hold_out
from mindvideo.tasks.setup import dataset_root, decode_check, sample_folder

PARTS: tuple[Part, Part] = ("train", "test")


@dataclass
class ImageData:
    """Class names by number; images by part (`train`, `val`, `test`); how they are read; videos left out."""

    classes: list[str]
    parts: dict[str, list[Sample]]
    reader: ImageReader
    excluded: list[str]

    def labels(self, samples: Sequence[Sample]) -> np.ndarray:
        """Class numbers, int32 `[N]`."""
        number_of = {name: number for number, name in enumerate(self.classes)}
        return np.array([number_of[sample.label] for sample in samples], np.int32)


def find_images(config: Config) -> ImageData:
    """All images of the config; InputError if a list, a tree or a video is not as it should be."""
    settings = config.data
    if settings.short_side < settings.size:
        raise InputError(f"data.short_side is {settings.short_side}, it must be at least data.size, {settings.size}.")
    excluded: list[str] = []
    if settings.dataset in ("folder", "list"):
        train, test = _images(config)
    else:
        train, test, excluded = _frames(config)
    train, val = hold_out(train, settings.validation, config.seed)
    classes = sorted({sample.label for sample in train})
    strange = sorted({sample.label for sample in (*val, *test)} - set(classes))
    if strange:
        raise InputError(f"test images show {', '.join(strange[:5])}, which no training image shows.")
    augment = Augmentation(settings.augmentation) if settings.augmentation > 0 else None
    reader = ImageReader(settings.size, settings.short_side, (settings.crop_scale, 1.0), settings.flip, augment)
    return ImageData(classes, {"train": train, "val": val, "test": test}, reader, excluded)


def _images(config: Config) -> tuple[list[Sample], list[Sample]]:
    root = dataset_root(config)
    if config.data.dataset == "folder":
        return image_folder(root)
    for key in ("train_list", "test_list"):
        if not config.data[key]:
            raise InputError(f"data.{key} is not set; data.dataset list needs data.train_list and data.test_list.")
    train, test = (image_list(resolve(config.data[key]), root) for key in ("train_list", "test_list"))
    return train, test


def _frames(config: Config) -> tuple[list[Sample], list[Sample], list[str]]:
    """Frames of the training and of the test videos, and the videos left out."""
    parts = _videos(config)
    counts, excluded = decode_check(config, [video for videos in parts for video in videos])
    videos = [[video for video in part if video.path in counts] for part in parts]
    with progress_bar("take frames", sum(map(len, videos))) as progress:
        done = 0
        frames = []
        for part in videos:
            frames.append(
                after_first(
                    partial(
                        extract_frames, part, counts, per_video=config.data.frames, short_side=config.data.short_side,
                        decoder=config.data.decoder, progress=lambda number, done=done: progress(done + number),
                    )
                )
            )  # fmt: skip
            done += len(part)
    train, test = frames
    return train, test, excluded


def _videos(config: Config) -> tuple[list[Sample], list[Sample]]:
    """Training and test videos, no source on both sides.

    A still does not tell the sample's pairs of classes apart, which differ in their order alone: each pair is a class.
    """
    if config.data.dataset != "stickfigures":
        return part_by_group(datasets.READERS[config.data.dataset](dataset_root(config)))
    root = sample_folder() / "videos"
    pair_of = {name: " or ".join(pair) for pair in PAIRS for name in pair}
    train, test = (
        [Sample(video.path, pair_of[video.label], video.group) for video in listing.samples]
        for listing in (annotations.ucf101_list(root, part, group_of=datasets.stickfigures_group) for part in PARTS)
    )
    return train, test


def read_images(data: ImageData, samples: Sequence[Sample], workers: int) -> np.ndarray:
    """Images as tests see them, float32 `[N, 3, S, S]`, at once in memory."""
    images = np.empty((len(samples), 3, data.reader.size, data.reader.size), np.float32)
    with progress_bar("read images", len(samples)) as progress:
        for place, image in enumerate(load_clips(samples, data.reader, workers=workers)):
            images[place] = image
            progress(place + 1)
    return images
