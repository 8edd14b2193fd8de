# SPDX-License-Identifier: Apache-2.0
"""The videos of a recognition experiment: of known classes, parted into train, validation and test, and of unknown."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindvideo.config import Config, resolve
from mindvideo.data import annotations, datasets
from mindvideo.data.annotations import Listing, Part, part_by_group
from mindvideo.data.datasets import READERS
from mindvideo.data.loader import ClipReader, ViewReader
from mindvideo.data.manifest import Sample
from mindvideo.data.prepared import Prepared, Storage
from mindvideo.data.transforms import TrainTransform, ViewTransform
from mindvideo.engine.log import say
from mindvideo.errors import InputError
from mindvideo.tasks.setup import dataset_root, frame_source, sample_folder

PARTS = ("train", "val", "test", "unknown")

GROUPS = {
    "stickfigures": datasets.stickfigures_group,
    "ucf101": datasets.ucf101_group,
    "hmdb51": datasets.hmdb51_group,
    "kinetics": datasets.kinetics_group,
    "mit": datasets.mit_group,
}

# The official lists: of a root, `train` or `test`, and the number of the split, which Moments in Time has one of.
OFFICIAL: dict[str, Callable[[Path, Part, int], Listing]] = {
    "ucf101": annotations.ucf101_list,
    "hmdb51": annotations.hmdb51_list,
    "mit": lambda root, part, number: annotations.mit_list(root, part),
}


@dataclass
class Found:
    """Videos on disk, before they are looked into: names of the known classes by number, samples by part (`train`,
    `val`, `test`, and `unknown` if the config names such videos), and notes on what the disk lacks."""

    classes: list[str]
    parts: dict[str, list[Sample]]
    notes: list[str]


@dataclass
class RecognitionData:
    """The same, decode-checked; how clips and views are read, and videos left out."""

    classes: list[str]
    parts: dict[str, list[Sample]]
    train_reader: ClipReader
    view_reader: ViewReader
    notes: list[str]
    excluded: list[str]


def find_videos(config: Config) -> Found:
    """All videos of the config; InputError if the lists, the tree or the split do not fit one another."""
    classes, parts, notes = _find_known(config)
    train, val = hold_out(parts["train"], config.data.validation, config.seed)
    parts = {"train": train, "val": val, "test": parts["test"]}
    if config.unknown.dataset != "none":
        parts["unknown"], more = find_unknown(config, classes)
        notes = notes + more
    return Found(classes, parts, notes)


def check_videos(config: Config, found: Found, parts: Sequence[str] = PARTS) -> RecognitionData:
    """Decode-check every video of those of `parts` that the config has; InputError if anything is missing or broken."""
    chosen = {part: found.parts[part] for part in parts if part in found.parts}
    for note in found.notes:
        say(note)
    everything = [sample for samples in chosen.values() for sample in samples]
    counts, excluded, prepared = frame_source(config, everything, storage(config))
    whole = {part: [s for s in samples if s.path in counts] for part, samples in chosen.items()}
    _check(config, found.classes, whole)
    train, views = _train_reader(config, counts, prepared), view_reader(config, counts, prepared)
    return RecognitionData(found.classes, whole, train, views, found.notes, excluded)


def storage(config: Config) -> Storage:
    """How `mindvideo prepare` stores frames for this config: as large as training or tests need them."""
    side = max(config.data.short_side, config.eval.size) if config.data.short_side else 0
    return Storage(config.data.decoder, side, "bilinear" if side else "none")


def _find_known(config: Config) -> tuple[list[str], dict[str, list[Sample]], list[str]]:
    """The known classes, the samples of train and test, and notes on what the disk lacks."""
    data = config.data
    if data.train_list.endswith(".csv") and data.test_list.endswith(".csv"):
        return _join(*_kinetics_lists(config))
    if data.train_list or data.test_list:
        return _join(*_own_lists(config))
    if data.dataset == "stickfigures":
        root = sample_folder(data.scene_bias)
        train, test = (
            annotations.ucf101_list(root / "videos", part, group_of=datasets.stickfigures_group)
            for part in ("train", "test")
        )
        known = sorted((root / "fewshot" / "train.txt").read_text(encoding="utf-8").split())
        parts = {"train": train.samples, "test": test.samples}
        return known, {name: [s for s in samples if s.label in known] for name, samples in parts.items()}, []
    root = dataset_root(config)
    if data.split == "groups":
        train, test = part_by_group(READERS[data.dataset](root))
        classes = sorted({sample.label for sample in train})
        return classes, {"train": train, "test": [s for s in test if s.label in classes]}, []
    if data.dataset in OFFICIAL:
        official = OFFICIAL[data.dataset]
        return _join(official(root, "train", int(data.split)), official(root, "test", int(data.split)))
    raise InputError(f"data.dataset {data.dataset} has no official lists here: set data.train_list and data.test_list.")


def _own_lists(config: Config) -> tuple[Listing, Listing]:
    data = config.data
    names = ("train_list", "test_list", "class_names")
    lacking = [name for name in names if not data[name]]
    if lacking:
        raise InputError(f"data.{lacking[0]} is not set; lists go together: {', '.join(f'data.{n}' for n in names)}.")
    classes = annotations.read_class_names(resolve(data.class_names))
    root = resolve(data.root) if data.root else None
    group_of = GROUPS.get(data.dataset, datasets.folder_group)
    train, test = (
        annotations.read_list(resolve(data[name]), root, classes=classes, group_of=group_of) for name in names[:2]
    )
    return train, test


def _kinetics_lists(config: Config) -> tuple[Listing, Listing]:
    """CSV files of Kinetics, which name the classes themselves."""
    root = dataset_root(config)
    train, test = (annotations.kinetics_list(resolve(config.data[name]), root) for name in ("train_list", "test_list"))
    return train, test


def _join(train: Listing, test: Listing) -> tuple[list[str], dict[str, list[Sample]], list[str]]:
    parts = {"train": train.samples, "test": test.samples}
    return train.classes, parts, train.notes() + test.notes()


def _check(config: Config, classes: list[str], parts: dict[str, list[Sample]]) -> None:
    """InputError where a part is empty or has a class that is not among the known ones."""
    for part, samples in parts.items():
        if not samples and (part != "val" or config.data.validation > 0):
            section = config.unknown if part == "unknown" else config.data
            raise InputError(f"{section.dataset}, split {section.split}: no {part} video is on disk.")
        strange = sorted({sample.label for sample in samples} - set(classes)) if part != "unknown" else []
        if strange:
            raise InputError(f"{part} videos show {', '.join(strange[:5])}, which no training video shows.")


def find_unknown(config: Config, classes: Sequence[str]) -> tuple[list[Sample], list[str]]:
    """Videos of what `unknown` names, whatever their classes but for those of `leave_out`, and notes.

    InputError if one of these is not there, or a list is named without its class names.
    """
    samples, notes = _unknown_samples(config, classes)
    shown = {sample.label for sample in samples}
    left_out = {name.strip() for name in config.unknown.leave_out.split(",")} - {""}
    if left_out - shown:
        strange = sorted(left_out - shown)[0]
        close = difflib.get_close_matches(strange, shown, n=1)
        hint = f"; the closest is {close[0]!r}" if close else ""
        raise InputError(f"unknown.leave_out: no unknown video shows {strange!r}{hint}.")
    return [sample for sample in samples if sample.label not in left_out], notes


def _unknown_samples(config: Config, classes: Sequence[str]) -> tuple[list[Sample], list[str]]:
    """All of them; of the embedded sample those of classes that are not known."""
    settings = config.unknown
    if settings.list:
        if not settings.class_names:
            raise InputError("unknown.class_names is not set; it goes with unknown.list.")
        names = annotations.read_class_names(resolve(settings.class_names))
        root = resolve(settings.root) if settings.root else None
        group_of = GROUPS.get(settings.dataset, datasets.folder_group)
        listing = annotations.read_list(resolve(settings.list), root, classes=names, group_of=group_of)
        return listing.samples, listing.notes()
    if settings.dataset == "stickfigures":
        samples = READERS["stickfigures"](sample_folder(config.data.scene_bias) / "videos")
        return [sample for sample in samples if sample.label not in classes], []
    root = dataset_root(config, "unknown")
    if settings.split == "all":
        return READERS[settings.dataset](root), []
    if settings.dataset not in OFFICIAL:
        raise InputError(f"unknown.dataset {settings.dataset} has no official lists: set unknown.split=all.")
    listing = OFFICIAL[settings.dataset](root, "test", int(settings.split))
    return listing.samples, listing.notes()


def hold_out(samples: Sequence[Sample], share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Samples to train on, and those of about this share of every class's sources, at least one unless it is 0.

    A source that several classes share is held out for all. InputError where a class would be left without.
    """
    if share == 0:
        return list(samples), []
    sources: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        sources[sample.label].add(sample.group)
    rng = np.random.default_rng(seed)
    held: set[str] = set()
    for _, groups in sorted(sources.items()):
        lacking = max(1, round(share * len(groups))) - len(groups & held)
        held |= {str(group) for group in rng.permutation(sorted(groups - held))[: max(0, lacking)]}
    bare = [label for label, groups in sorted(sources.items()) if groups <= held]
    if bare:
        raise InputError(f"data.validation is {share}: no source of class {bare[0]!r} is left to train on.")
    return [s for s in samples if s.group not in held], [s for s in samples if s.group in held]


def _train_reader(config: Config, counts: dict[Path, int], prepared: Prepared | None) -> ClipReader:
    data = config.data
    transform = TrainTransform(data.size, data.short_side, data.crop, flip=data.flip, color=data.color)
    return ClipReader(
        transform, "consecutive", data.length, counts,
        stride=data.stride, short="loop", decoder=data.decoder, prepared=prepared,
    )  # fmt: skip


def view_reader(config: Config, counts: Mapping[Path, int], prepared: Prepared | None = None) -> ViewReader:
    """How tests look at videos, whose true lengths are `counts`; frames are decoded, or `prepared`."""
    data, shape = config.data, config.eval
    transform = ViewTransform(shape.size, max(shape.size, data.short_side), shape.crops)
    return ViewReader(
        transform, shape.sampling, data.length, counts,
        stride=data.stride, num_clips=shape.clips, decoder=data.decoder, prepared=prepared,
    )  # fmt: skip
