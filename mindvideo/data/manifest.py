# SPDX-License-Identifier: Apache-2.0
"""Samples (which video, class and source), their CSV files, and the check that no source is on two sides."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mindvideo.errors import InputError

COLUMNS = ("path", "label", "group")


@dataclass(frozen=True)
class Sample:
    """One video: its file or frame folder, its class name, and the source it was cut from.

    Clips of one source (a film, a UCF101 group) look alike, also across classes, so a source must never be on
    both sides of a comparison. Sources are one name space: videos of equal `group` come from one source.
    """

    path: Path
    label: str
    group: str


def read_csv(path: Path, root: Path | None = None) -> list[Sample]:
    """Samples of a CSV file with the columns `path,label,group`.

    Relative paths start at `root`, or else at the file's folder. An empty or missing `group` makes each video
    its own source. InputError names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such CSV file.")
    base = Path(root) if root else path.parent
    samples = []
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        missing = {"path", "label"} - set(rows.fieldnames or ())
        if missing:
            raise InputError(f"{path}: no column {', '.join(sorted(missing))}; the header must be {','.join(COLUMNS)}.")
        for row in rows:
            name, label = (row["path"] or "").strip(), (row["label"] or "").strip()
            if not name or not label:
                raise InputError(f"{path}, line {rows.line_num}: path and label must not be empty.")
            video = base / name
            samples.append(Sample(video, label, (row.get("group") or "").strip() or name))
    if not samples:
        raise InputError(f"{path}: the file lists no video.")
    return samples


def write_csv(path: Path, samples: Iterable[Sample]) -> None:
    """Write samples as `path,label,group`, one a line."""
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        rows.writerows((sample.path.as_posix(), sample.label, sample.group) for sample in samples)


def check_groups(parts: Mapping[str, Sequence[Sample]]) -> None:
    """InputError if a source is in two parts (train, val, test), with up to five of them."""
    seen: dict[str, str] = {}
    leaks: dict[str, tuple[str, str]] = {}
    for part, samples in parts.items():
        for sample in samples:
            if seen.setdefault(sample.group, part) != part:
                leaks[sample.group] = (seen[sample.group], part)
    if leaks:
        shown = "; ".join(f"{group} in {a} and {b}" for group, (a, b) in list(leaks.items())[:5])
        raise InputError(f"{len(leaks)} sources are in more than one part: {shown}. Split by source instead.")


def select_classes(samples: Sequence[Sample], classes: Sequence[str]) -> list[Sample]:
    """The samples of `classes`, in the order of `samples`."""
    wanted = set(classes)
    return [sample for sample in samples if sample.label in wanted]
