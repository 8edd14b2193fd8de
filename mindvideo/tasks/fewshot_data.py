# SPDX-License-Identifier: Apache-2.0
"""The videos of a few-shot experiment: found, checked, and parted by class into train, val and test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mindvideo.config import Config, resolve
from mindvideo.data.datasets import READERS
from mindvideo.data.episodes import EpisodeSampler
from mindvideo.data.loader import ClipReader
from mindvideo.data.manifest import Sample
from mindvideo.data.prepared import Prepared, Storage
from mindvideo.data.splits import PARTS, read_split, select
from mindvideo.data.transforms import ClipTransform
from mindvideo.engine.log import say
from mindvideo.errors import InputError, VideoError
from mindvideo.tasks.setup import dataset_root, frame_source, sample_folder


@dataclass
class FewShotData:
    """Samples and episodes by part, how to read clips, how split and disk differ, and videos left out.

    `second` are the training videos of the second data set, which training episodes draw on too.
    """

    parts: dict[str, list[Sample]]
    second: list[Sample]
    samplers: dict[str, EpisodeSampler]
    train_reader: ClipReader
    eval_reader: ClipReader
    notes: list[str]
    excluded: list[str]

    @property
    def training(self) -> list[Sample]:
        """All that is trained on."""
        return self.parts["train"] + self.second

    def describe(self) -> dict[str, list[str]]:
        """The class names of each part."""
        own = {part: sorted({s.label for s in samples}) for part, samples in self.parts.items()}
        return own | ({"second": sorted({s.label for s in self.second})} if self.second else {})


def prepare_data(config: Config, parts: Sequence[str] = PARTS) -> FewShotData:
    """Find and decode-check every video of `parts`.

    InputError if anything is missing, broken or too short, or too little for an episode.
    """
    found, notes = find_videos(config, parts)
    for note in notes:
        say(note)
    everything = [sample for members in found.values() for sample in members]
    counts, excluded, prepared = frame_source(config, everything, storage(config))
    whole = {part: [s for s in members if s.path in counts] for part, members in found.items()}
    train_reader, eval_reader = make_readers(config, counts, prepared)
    _check_lengths(whole, train_reader, eval_reader)
    second = whole.pop("second", [])
    samplers = {
        part: _sampler(config, part, members + second if part == "train" else members)
        for part, members in whole.items()
    }
    return FewShotData(whole, second, samplers, train_reader, eval_reader, notes, excluded)


def find_videos(config: Config, parts: Sequence[str] = PARTS) -> tuple[dict[str, list[Sample]], list[str]]:
    """The videos of `parts`, and as `second` those of the second data set, before they are looked into; and notes."""
    samples, split = _find_samples(config)
    selection = select(read_split(split), samples)
    notes = selection.notes(parts)
    found = {part: selection.samples[part] for part in parts}
    if "train" in parts and config.second.dataset != "none":
        found["second"], told = _second(config)
        notes += told
    return found, notes


def storage(config: Config) -> Storage:
    """How `mindvideo prepare` stores frames for this config."""
    return Storage(config.data.decoder, max(config.data.height, config.data.width), "area")


def _second(config: Config) -> tuple[list[Sample], list[str]]:
    """The training videos of the second data set, whose classes and sources bear its name, and notes on them."""
    settings = config.second
    if settings.dataset == "stickfigures" or not settings.split:
        raise InputError(
            f"second.dataset is {settings.dataset}; it needs second.split, a folder of class names, and its own videos."
        )
    selection = select(read_split(resolve(settings.split)), READERS[settings.dataset](dataset_root(config, "second")))
    named = [
        replace(sample, label=f"{settings.dataset}/{sample.label}", group=f"{settings.dataset}/{sample.group}")
        for sample in selection.samples["train"]
    ]
    return named, [f"{settings.dataset}: {note}" for note in selection.notes(("train",))]


def _find_samples(config: Config) -> tuple[list[Sample], Path]:
    """All samples and the folder of the class split."""
    if config.data.dataset == "stickfigures":
        root = sample_folder()
        return READERS["stickfigures"](root / "videos"), root / "fewshot"
    if not config.data.split:
        raise InputError("data.split is not set: a folder with train.txt, val.txt and test.txt of class names.")
    return READERS[config.data.dataset](dataset_root(config)), resolve(config.data.split)


def _sampler(config: Config, part: str, samples: list[Sample]) -> EpisodeSampler:
    """The episodes of a part. Validation has as many ways as there are classes, if fewer than `eval.way`."""
    shape = config.episode if part == "train" else config.eval
    way = shape.way if part != "val" else max(2, min(shape.way, len({s.label for s in samples})))
    unknown = shape.unknown if part != "val" else 0
    seed = config.seed + PARTS.index(part)
    try:
        return EpisodeSampler(samples, way=way, shot=shape.shot, query=shape.query, seed=seed, unknown=unknown)
    except InputError as error:
        raise InputError(f"{part} part: {error}") from error


def make_readers(
    config: Config, counts: dict[Path, int], prepared: Prepared | None = None
) -> tuple[ClipReader, ClipReader]:
    """How training and how tests look at videos, whose true lengths are `counts`; frames are decoded, or `prepared`."""
    data = config.data
    size = (data.height, data.width)
    crop = (data.crop_scale, 1.0) if data.crop_scale < 1 else None
    plain = ClipTransform(size, mean=data.mean, std=data.std)
    augmented = replace(plain, flip=data.flip, crop_scale=crop, color=data.color)

    def reader(transform: ClipTransform, sampling: str) -> ClipReader:
        stride = data.stride if sampling == "consecutive" else 1
        return ClipReader(
            transform, sampling, data.length, counts,
            stride=stride, short=data.short, decoder=data.decoder, prepared=prepared,
        )  # fmt: skip

    return reader(augmented, data.train_sampling), reader(plain, data.eval_sampling)


def _check_lengths(parts: dict[str, list[Sample]], train_reader: ClipReader, eval_reader: ClipReader) -> None:
    """Every video must be long enough before any work is done."""
    problems = []
    for part, samples in parts.items():
        reader = train_reader if part in ("train", "second") else eval_reader
        for sample in samples:
            try:
                reader.check(sample)
            except VideoError as error:
                problems.append(str(error))
    if problems:
        shown = "\n  ".join(problems[:10]) + ("\n  ..." if len(problems) > 10 else "")
        raise VideoError(
            f"{len(problems)} videos are shorter than a clip:\n  {shown}\nLower data.length, or set data.short=repeat."
        )
