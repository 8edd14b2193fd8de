# SPDX-License-Identifier: Apache-2.0
"""Few-shot class splits: read from their folder, and matched with the videos of a data set.

A split is a folder with `train.txt`, `val.txt` and `test.txt`, one class a line. Where a benchmark is defined by its
videos, `train_videos.txt` (or `.txt.gz`) and so on stand beside them: lines `class/video`, the video without suffix.
Nothing that differs between the lists and the disk is dropped in silence: `Selection.notes` names it.
"""

from __future__ import annotations

import difflib
import gzip
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from mindvideo.data.datasets import video_name, without_times
from mindvideo.data.manifest import Sample, select_classes
from mindvideo.errors import InputError

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Class names by part, and (class, video) pairs of the parts that have a video list."""

    folder: Path
    classes: dict[str, list[str]]
    videos: dict[str, list[tuple[str, str]]]


@dataclass(frozen=True)
class Selection:
    """What a data set has of a split. Samples carry the split's class names, whatever their folders are called.

    `absent_classes` have no video at all; `absent_videos` are (class, video) pairs of the lists; `surplus` are the
    classes of the data set that are in no part.
    """

    split: Split
    samples: dict[str, list[Sample]]
    absent_classes: dict[str, list[str]]
    absent_videos: dict[str, list[tuple[str, str]]]
    surplus: list[str]

    def notes(self, parts: Sequence[str] = PARTS) -> list[str]:
        """One line for the size of each part, and one for each kind of difference to the disk."""
        lines = []
        for part in parts:
            absent, lost = self.absent_classes[part], self.absent_videos[part]
            total = len(self.split.classes[part])
            lines.append(f"{part}: {total - len(absent)} of {total} classes, {len(self.samples[part])} videos")
            if absent:
                lines.append(f"{part}: classes not on disk: {', '.join(map(self._with_closest, absent))}")
            if lost:
                shown = ", ".join("/".join(pair) for pair in lost[:5]) + (", ..." if len(lost) > 5 else "")
                listed = len(self.split.videos[part])
                lines.append(f"{part}: {len(lost)} of {listed} listed videos are not on disk: {shown}")
        if self.surplus:
            lines.append(f"classes on disk that are in no part: {', '.join(self.surplus)}")
        return lines

    def _with_closest(self, name: str) -> str:
        surplus = {_key(folder): folder for folder in self.surplus}
        close = difflib.get_close_matches(_key(name), surplus, n=1, cutoff=0.8)
        return f"{name} (closest: {surplus[close[0]]})" if close else name


def read_split(folder: Path) -> Split:
    """The lists of a split's folder; InputError if one is missing, or if a name stands twice or in two parts."""
    folder = Path(folder)
    classes = {part: read_classes(folder, part) for part in PARTS}
    for a, b in combinations(PARTS, 2):
        shared = sorted(set(classes[a]) & set(classes[b]))
        if shared:
            raise InputError(f"{folder}: {', '.join(shared)} stand in both {a}.txt and {b}.txt.")
    listed = {part: _read_videos(folder, part, classes[part]) for part in PARTS}
    return Split(folder, classes, {part: videos for part, videos in listed.items() if videos})


def read_classes(folder: Path, part: str) -> list[str]:
    """The class names of `<folder>/<part>.txt`."""
    path = Path(folder) / f"{part}.txt"
    if not path.is_file():
        raise InputError(f"data.split: {path} does not exist; a split is a folder with train.txt, val.txt, test.txt.")
    return _read_lines(path)


def select(split: Split, samples: Sequence[Sample]) -> Selection:
    """The videos of each part: all of its classes, or those of its video list."""
    folders = {sample.label for sample in samples} - {""}
    names = [name for part in PARTS for name in split.classes[part]]
    class_of = {folder: name for name, folder in match_classes(names, folders).items()}
    named = [replace(sample, label=class_of.get(sample.label, sample.label)) for sample in samples]
    chosen: dict[str, list[Sample]] = {}
    absent_videos: dict[str, list[tuple[str, str]]] = {}
    for part in PARTS:
        if part in split.videos:
            chosen[part], absent_videos[part] = _take_listed(named, split.videos[part])
        elif not folders:
            raise InputError(f"{split.folder}: the tree names no classes, so {part}_videos.txt must list the videos.")
        else:
            chosen[part], absent_videos[part] = select_classes(named, split.classes[part]), []
    _check_once(split, chosen)
    present = {part: {sample.label for sample in members} for part, members in chosen.items()}
    absent = {part: sorted(set(split.classes[part]) - present[part]) for part in PARTS}
    return Selection(split, chosen, absent, absent_videos, sorted(folders - set(class_of)))


def match_classes(names: Sequence[str], folders: Collection[str]) -> dict[str, str]:
    """The folder of each class name: the one so called, or else the one that differs only in case, blanks and
    punctuation. Names without a folder are left out; InputError if two folders fit a name, or two names a folder.
    """
    exact = set(names) & set(folders)
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for folder in sorted(set(folders) - exact):
        alike[_key(folder)].append(folder)
    folder_of = {name: name for name in exact}
    name_of: dict[str, str] = {}
    for name in sorted(set(names) - exact):
        fitting = alike.get(_key(name), [])
        if len(fitting) > 1:
            raise InputError(f"class {name!r}: the folders {_quoted(fitting)} fit; merge or rename them.")
        for folder in fitting:
            if name_of.setdefault(folder, name) != name:
                raise InputError(f"folder {folder!r}: the classes {_quoted([name_of[folder], name])} fit; keep one.")
            folder_of[name] = folder
    return folder_of


def _key(name: str) -> str:
    """What is left of a class name without case, blanks and punctuation."""
    return re.sub(r"[\W_]+", "", name.casefold()) or name


def _quoted(names: Sequence[str]) -> str:
    return " and ".join(map(repr, names))


def _take_listed(
    samples: Sequence[Sample], listed: Sequence[tuple[str, str]]
) -> tuple[list[Sample], list[tuple[str, str]]]:
    """The listed videos that are there, and the pairs that are not."""
    by_name: defaultdict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        by_name[sample.label, video_name(sample.path)].append(sample)
    found: list[Sample] = []
    missing: list[tuple[str, str]] = []
    for label, video in listed:
        # In the folder of its class, in a tree without classes, or named by its YouTube id alone.
        names = ((label, video), ("", video), (label, without_times(video)))
        fitting = next((by_name[name] for name in names if name in by_name), [])
        if len(fitting) > 1:
            raise InputError(f"{label}/{video}: both {fitting[0].path} and {fitting[1].path} fit; remove one.")
        if fitting:
            found.append(replace(fitting[0], label=label))
        else:
            missing.append((label, video))
    return found, missing


def _check_once(split: Split, chosen: dict[str, list[Sample]]) -> None:
    """A tree without classes would give one file to two classes if a list did."""
    seen: dict[Path, str] = {}
    for sample in (sample for members in chosen.values() for sample in members):
        if seen.setdefault(sample.path, sample.label) != sample.label:
            raise InputError(f"{split.folder}: {sample.path} is in {seen[sample.path]!r} and {sample.label!r}.")


def _read_videos(folder: Path, part: str, classes: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of a part's video list, or none if there is no list."""
    plain = folder / f"{part}_videos.txt"
    path = next((p for p in (plain, plain.with_suffix(".txt.gz")) if p.is_file()), None)
    if path is None:
        return []
    known = set(classes)
    videos: list[tuple[str, str]] = []
    for line in _read_lines(path):
        label, _, video = line.rpartition("/")
        if label not in known or not video:
            raise InputError(f"{path}: {line!r} is not `class/video` with a class of {part}.txt.")
        videos.append((label, video))
    if not videos:
        raise InputError(f"{path}: lists no video; remove it to take all videos of the classes.")
    return videos


def _read_lines(path: Path) -> list[str]:
    """The lines of a text file, gzipped or not; InputError if one stands twice."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            lines = [line.strip() for line in file if line.strip()]
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}.") from error
    twice = [line for line, count in Counter(lines).items() if count > 1]
    if twice:
        raise InputError(f"{path}: {', '.join(twice[:5])} stand twice.")
    return lines
