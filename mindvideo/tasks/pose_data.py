# SPDX-License-Identifier: Apache-2.0
"""The clips of a pose experiment: found, read, checked, parted into folds, and made into training batches.

B clips a batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from mindspore import Tensor

from mindvideo.config import Config
from mindvideo.data.pose import Augmentation, collate, read_pose
from mindvideo.data.pose_sets import READERS, Fold, PoseClip, make_folds
from mindvideo.engine.distributed import own_batches
from mindvideo.engine.log import progress_bar
from mindvideo.errors import InputError
from mindvideo.tasks.setup import dataset_root, sample_folder


@dataclass
class PoseData:
    """All clips with their poses, rotation-6D, and class numbers; the folds; `longest` is the most frames of a clip."""

    classes: list[str]
    clips: list[PoseClip]
    poses: list[np.ndarray]
    labels: np.ndarray
    folds: list[Fold]

    @property
    def longest(self) -> int:
        return max(map(len, self.poses))

    def numbers(self, config: Config) -> list[int]:
        """Which folds are trained and tested, counted from 0; InputError if `data.fold` is none of them."""
        chosen = config.data.fold
        if chosen > len(self.folds):
            raise InputError(f"data.fold is {chosen}; data.protocol {config.data.protocol} has {len(self.folds)} here.")
        return [chosen - 1] if chosen else list(range(len(self.folds)))


def prepare_data(config: Config) -> PoseData:
    """Find, read and check every clip; InputError if one is missing, broken, or twice on different sides of a fold."""
    settings = config.data
    root = sample_folder() if settings.dataset == "stickfigures" else dataset_root(config)
    clips = READERS[settings.dataset](root)
    folds = make_folds(clips, settings.protocol, num_folds=settings.folds, validation=settings.validation)
    poses = []
    with progress_bar("read poses", len(clips)) as progress:
        for done, clip in enumerate(clips, start=1):
            poses.append(read_pose(clip.path))
            progress(done)
    _check_twins(clips, poses, folds)
    classes = sorted({clip.label for clip in clips})
    return PoseData(classes, clips, poses, np.array([classes.index(clip.label) for clip in clips], np.int32), folds)


def _check_twins(clips: Sequence[PoseClip], poses: Sequence[np.ndarray], folds: Sequence[Fold]) -> None:
    """InputError if a clip that is tested or validated on is also, under whatever name, trained on."""
    same: dict[bytes, list[int]] = defaultdict(list)
    for place, clip in enumerate(poses):
        same[sha256(clip.tobytes()).digest()].append(place)
    for twins in filter(lambda places: len(places) > 1, same.values()):
        for fold in folds:
            trained = set(twins) & set(fold.train)
            tested = set(twins) - trained
            if trained and tested:
                one, other = clips[min(trained)].path, clips[min(tested)].path
                raise InputError(f"{one} and {other} hold the same poses: fold of {fold.name} would train on its test.")


def steps_per_epoch(config: Config, fold: Fold) -> int:
    """Steps of `train.accumulate` whole batches of the fold's training clips; InputError if there is none."""
    batch, accumulate = config.train.batch, config.train.accumulate
    if len(fold.train) < batch * accumulate:
        times = f" and train.accumulate {accumulate}" if accumulate > 1 else ""
        raise InputError(f"train.batch is {batch}{times}, but fold of {fold.name} trains on {len(fold.train)}.")
    return len(fold.train) // batch // accumulate


def load_batches(
    config: Config, data: PoseData, number: int, *, first: int, start: int, stop: int
) -> Iterator[tuple[Tensor, ...]]:
    """The inputs of `Objective`, of this process's batches in the steps `start` to `stop - 1` of a run whose fold
    `number` begins at step `first`: poses `[B, T, 24, 6]` filled up to the longest clip, lengths, classes, and the seed
    of the masks.

    All that is random depends on the config's seed and the batch's number alone. An epoch leaves out less than a step.
    """
    fold, batch, accumulate = data.folds[number], config.train.batch, config.train.accumulate
    augment = Augmentation(config.data.cropped, config.data.mirrored)
    per_epoch, longest = steps_per_epoch(config, fold) * accumulate, data.longest
    for counted in own_batches(start, stop, accumulate):
        epoch, place = divmod(counted - first * accumulate, per_epoch)
        order = np.random.default_rng((config.seed, number, epoch)).permutation(fold.train)
        chosen = order[place * batch : (place + 1) * batch]
        rng = np.random.default_rng((config.seed, counted, 1))  # 1: another stream than the order's
        poses, lengths = collate([augment(data.poses[i], rng) for i in chosen], longest)
        seed = rng.integers(2**32, dtype=np.uint32)
        yield Tensor(poses), Tensor(lengths), Tensor(data.labels[chosen]), Tensor(seed)
