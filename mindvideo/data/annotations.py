# SPDX-License-Identifier: Apache-2.0
"""Annotation lists of recognition: which videos train and which test, and the number of each class.

The official lists of UCF101, HMDB51, Moments in Time and Kinetics, and the lists of MMAction2, which DEAR has too. A
video is found by its name whatever its suffix, in a folder whose name may differ in case, blanks and punctuation. What
a list names and the disk lacks is not dropped in silence: `Listing.notes` tells it.
"""

from __future__ import annotations

import csv
import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from mindvideo.data.datasets import (
    folder_group,
    hmdb51_group,
    is_video,
    kinetics_group,
    mit_group,
    ucf101_group,
    video_name,
    visible,
    without_times,
)
from mindvideo.data.manifest import Sample
from mindvideo.data.splits import match_classes
from mindvideo.data.video import VIDEO_SUFFIXES
from mindvideo.errors import InputError

Part = Literal["train", "test"]

# UCF101's testlist01 has the groups 1 to 7 of every class, trainlist01 all others.
UCF101_TEST_GROUPS = range(1, 8)

_SHOWN = 10  # missing videos named in a note


@dataclass(frozen=True)
class Entry:
    """A line of a list: where it stands, the video's path below the root, and its class."""

    place: str
    name: str
    label: str


@dataclass(frozen=True)
class Listing:
    """The videos of a list that are below the root, in its order, and the entries that are not.

    A class's number is its place in `classes`.
    """

    path: Path
    root: Path
    classes: list[str]
    samples: list[Sample]
    missing: list[Entry]

    def notes(self) -> list[str]:
        """A line for what was found, and one for each kind of gap, which names at most ten videos, each with the file
        of the closest name that is not listed."""
        present = {sample.label for sample in self.samples}
        found = f"{len(self.samples)} of {len(self.samples) + len(self.missing)} videos"
        lines = [f"{self.path.name}: {found}, {len(present)} of {len(self.classes)} classes"]
        absent = sorted({entry.label for entry in self.missing} - present)
        if absent:
            lines.append(f"{self.path.name}: classes without a video on disk: {', '.join(absent)}")
        gaps = [entry for entry in self.missing if entry.label in present]
        if gaps:
            told = f"{self.path.name}: {len(gaps)} videos of the classes on disk are missing:"
            lines.append("\n  ".join([told, *map(self._describe, gaps[:_SHOWN]), *["..."][: len(gaps) > _SHOWN]]))
        return lines

    def _describe(self, entry: Entry) -> str:
        folder = _folder(self.root, str(PurePosixPath(entry.name).parent))
        listed = {sample.path for sample in self.samples}
        others = {path.stem: path.name for path in visible(folder) if path not in listed} if folder.is_dir() else {}
        close = difflib.get_close_matches(PurePosixPath(entry.name).stem, others, n=1)
        return f"{entry.place}: {entry.name}" + (f" (closest: {others[close[0]]})" if close else "")


def ucf101_list(
    root: Path, part: Part, number: int = 1, *, group_of: Callable[[str, str], str] = ucf101_group
) -> Listing:
    """The `part` (train or test) of split 1, 2 or 3 in `<root>/ucfTrainTestlist/`."""
    lists = Path(root) / "ucfTrainTestlist"
    path = lists / f"{part}list{number:02d}.txt"
    named = [(line, text.partition(" ")[0]) for line, text in _lines(path)]  # trainlists have class numbers too
    entries = [Entry(f"{path.name}, line {line}", name, name.partition("/")[0]) for line, name in named]
    return _listing(path, Path(root), read_class_names(lists / "classInd.txt"), entries, group_of)


def hmdb51_list(root: Path, part: Part, number: int = 1, *, lists: Path | None = None) -> Listing:
    """The `part` (train or test) of split 1, 2 or 3: `<lists>/<class>_test_split<number>.txt`, whose lines are
    `<video> 1` for train, `2` for test and `0` for unused. Classes are numbered by the alphabet.

    `lists` defaults to `<root>/testTrainMulti_7030_splits`.
    """
    lists = Path(lists) if lists else Path(root) / "testTrainMulti_7030_splits"
    tail = f"_test_split{number}.txt"
    paths = {path.name.removesuffix(tail): path for path in sorted(lists.glob(f"*{tail}"))}
    if not paths:
        raise InputError(f"{lists}: no <class>{tail} there; the splits of HMDB51 are 1, 2 and 3.")
    use = {"train": 1, "test": 2}[part]
    entries = [
        Entry(f"{path.name}, line {line}", f"{label}/{name}", label)
        for label, path in paths.items()
        for line, name, used in _names_and_numbers(path, 3)
        if used == use
    ]
    return _listing(lists, Path(root), list(paths), entries, hmdb51_group)


def mit_list(root: Path, part: Part) -> Listing:
    """Moments in Time: `<root>/trainingSet.csv` for the `part` train, whose videos are in `<root>/training`, or
    `validationSet.csv` for test, in `validation`; `moments_categories.txt` numbers the classes."""
    name = {"train": "training", "test": "validation"}[part]
    path = Path(root) / f"{name}Set.csv"
    named = [(line, next(csv.reader([text]))[0]) for line, text in _lines(path)]
    entries = [Entry(f"{path.name}, line {line}", video, video.partition("/")[0]) for line, video in named]
    classes = read_class_names(Path(root) / "moments_categories.txt")
    return _listing(path, Path(root) / name, classes, entries, mit_group)


def kinetics_list(path: Path, root: Path) -> Listing:
    """A Kinetics CSV file `label,youtube_id,time_start,time_end,split`, and its videos in `<root>/<class>/`, named with
    the seconds or without. Classes are numbered by the alphabet."""
    rows = csv.DictReader(_text(path))
    lacking = {"label", "youtube_id", "time_start", "time_end"} - set(rows.fieldnames or ())
    if lacking:
        raise InputError(f"{path}: no column {', '.join(sorted(lacking))}; the header of a Kinetics list has it.")
    entries = []
    for row in rows:
        times = row["time_start"], row["time_end"]
        if not all(time and time.isdecimal() for time in times):
            raise InputError(f"{path}, line {rows.line_num}: the times {times} must be whole seconds.")
        name = f"{row['label']}/{row['youtube_id']}_{times[0]:0>6}_{times[1]:0>6}"
        entries.append(Entry(f"{Path(path).name}, line {rows.line_num}", name, row["label"]))
    return _listing(Path(path), Path(root), sorted({entry.label for entry in entries}), entries, kinetics_group)


def read_list(
    path: Path,
    root: Path | None = None,
    *,
    classes: Sequence[str] | None = None,
    group_of: Callable[[str, str], str] = folder_group,
) -> Listing:
    """An MMAction2 list: lines `path label`, or for folders of frames `path number label`, the label a class's number.

    Paths start at `root`, or else at the folder `videos` beside the list, and may hold blanks. Without `classes` a
    class is named by its number. InputError names a line whose label is none of theirs.
    """
    path = Path(path)
    root = Path(root) if root else path.parent / "videos"
    rows = _names_and_numbers(path, len(classes) if classes else None)
    names = list(classes) if classes else [str(i) for i in range(1 + max((label for *_, label in rows), default=0))]
    entries = []
    for line, name, label in rows:
        frames = re.sub(r"\s+\d+$", "", name)  # the path of a folder of frames stands before their number
        is_folder = frames != name and (root / frames).is_dir()
        entries.append(Entry(f"{path.name}, line {line}", frames if is_folder else name, names[label]))
    return _listing(path, root, names, entries, group_of)


def read_class_names(path: Path) -> list[str]:
    """Class names by number: one a line, or `number name` as in UCF101, or `name,number` as in Moments in Time."""
    lines = [text for _, text in _lines(path)]
    for form in (r"(?P<number>\d+)\s+(?P<name>.+)", r"(?P<name>.+),\s*(?P<number>\d+)"):
        found = [match for text in lines if (match := re.fullmatch(form, text))]
        if len(found) < len(lines):
            continue
        found.sort(key=lambda match: int(match["number"]))
        numbers = [int(match["number"]) for match in found]
        if numbers[0] > 1 or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            raise InputError(f"{path}: the class numbers must be all from 0 or 1 to the last, without a gap.")
        lines = [match["name"] for match in found]
        break
    twice = [name for name, count in Counter(lines).items() if count > 1]
    if twice:
        raise InputError(f"{path}: {', '.join(twice[:5])} stand twice.")
    return lines


def part_by_group(
    samples: Sequence[Sample], numbers: Collection[int] = UCF101_TEST_GROUPS
) -> tuple[list[Sample], list[Sample]]:
    """The samples whose source gXX is not of these numbers, and those whose is; InputError if it is not called gXX.

    This is UCF101's first official split where there are no lists; it also takes validation videos out of training.
    """
    outside: list[Sample] = []
    inside: list[Sample] = []
    for sample in samples:
        found = re.search(r"(?:^|/)g(\d+)$", sample.group)
        if found is None:
            raise InputError(f"{sample.path}: the source {sample.group!r} is not numbered gXX; give lists instead.")
        (inside if int(found[1]) in numbers else outside).append(sample)
    return outside, inside


def _listing(
    path: Path, root: Path, classes: list[str], entries: Sequence[Entry], group_of: Callable[[str, str], str]
) -> Listing:
    """Look the entries up below `root`; InputError if their classes are unknown or none is there."""
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; the videos of {path} should be in it.")
    known = set(classes)
    unknown = next((entry for entry in entries if entry.label not in known), None)
    if unknown:
        close = difflib.get_close_matches(unknown.label, classes, n=1)
        hint = f"; the closest is {close[0]!r}" if close else ""
        raise InputError(f"{path}: {unknown.place}: {unknown.label!r} is none of the {len(classes)} classes{hint}.")
    videos = _Videos(root)
    samples: list[Sample] = []
    missing: list[Entry] = []
    for entry in entries:
        found = videos.find(entry.name)
        if found is None:
            missing.append(entry)
        else:
            samples.append(Sample(found, entry.label, group_of(entry.label, video_name(found))))
    if not samples:
        first = f"; the first is {entries[0].name}" if entries else ""
        raise InputError(f"{path}: none of its {len(entries)} videos is below {root}{first}.")
    return Listing(path, root, classes, samples, missing)


class _Videos:
    """The videos below a root, found by the path that a list gives."""

    def __init__(self, root: Path):
        self.root = root
        self.by_folder: dict[str, dict[str, list[Path]]] = {}

    def find(self, name: str) -> Path | None:
        """The video of this name, or else of this name with another suffix, or without the seconds of Kinetics."""
        return self._named(name) or self._named(without_times(name))

    def _named(self, name: str) -> Path | None:
        path = PurePosixPath(name)
        known = self._folder(str(path.parent))
        fitting = known.get(path.name, [])
        if not fitting and path.suffix.lower() in VIDEO_SUFFIXES:
            fitting = known.get(path.stem, [])
        exact = [found for found in fitting if found.name == path.name]
        if len(fitting) > 1 and not exact:
            raise InputError(f"{name}: both {fitting[0]} and {fitting[1]} fit; remove one.")
        return (exact or fitting or [None])[0]

    def _folder(self, relative: str) -> dict[str, list[Path]]:
        """The videos of a folder by their names, without suffix."""
        if relative not in self.by_folder:
            folder = _folder(self.root, relative)
            named: defaultdict[str, list[Path]] = defaultdict(list)
            for path in visible(folder) if folder.is_dir() else []:
                if is_video(path):
                    named[video_name(path)].append(path)
            self.by_folder[relative] = dict(named)
        return self.by_folder[relative]


def _folder(root: Path, relative: str) -> Path:
    """A folder below the root, or else the one beside it with a name alike."""
    folder = root / relative
    if folder.is_dir() or not folder.parent.is_dir():
        return folder
    siblings = [path.name for path in visible(folder.parent) if path.is_dir()]
    return folder.parent / match_classes([folder.name], siblings).get(folder.name, folder.name)


def _names_and_numbers(path: Path, below: int | None) -> list[tuple[int, str, int]]:
    """Lines `name number` with their numbers from 1; names may hold blanks, and the number must be below `below`."""
    rows = []
    for line, text in _lines(path):
        found = re.fullmatch(r"(.*\S)\s+(\d+)", text)
        if found is None or (below is not None and int(found[2]) >= below):
            allowed = "0 or more" if below is None else f"0 to {below - 1}"
            raise InputError(f"{path}, line {line}: {text!r} must end with a number, {allowed}.")
        rows.append((line, found[1], int(found[2])))
    return rows


def _lines(path: Path) -> list[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1."""
    return [(number, line.strip()) for number, line in enumerate(_text(path), start=1) if line.strip()]


def _text(path: Path) -> list[str]:
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such list.")
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read: {error}.") from error
