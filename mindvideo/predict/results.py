# SPDX-License-Identifier: Apache-2.0
"""What is printed and written of predictions: lines to read, a JSON file, a CSV file."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from mindvideo.engine.run import write_whole
from mindvideo.errors import InputError
from mindvideo.predict.predictors import Prediction


@dataclass(frozen=True)
class Row:
    """One verdict: the likeliest classes with their probabilities, and whether the clip is taken for a known class,
    None where no threshold tells. `start` and `end` are seconds, None for a whole clip."""

    path: Path
    top: list[tuple[str, float]]
    uncertainty_name: str
    uncertainty: float
    is_known: bool | None
    start: float | None = None
    end: float | None = None

    @property
    def verdict(self) -> str:
        """The class, or `unknown`."""
        return "unknown" if self.is_known is False else self.top[0][0]

    def as_json(self) -> dict[str, Any]:
        times = {} if self.start is None else {"start": self.start, "end": self.end}
        return {
            "input": str(self.path), **times,
            "top": [{"label": label, "probability": share} for label, share in self.top],
            "uncertainty": {"name": self.uncertainty_name, "value": self.uncertainty}, "known": self.is_known,
        }  # fmt: skip


def make_row(
    path: Path,
    found: Prediction,
    *,
    top: int,
    threshold: float | None,
    start: float | None = None,
    end: float | None = None,
) -> Row:
    """A row of a prediction, of which uncertainties above the threshold mean that the class is unknown."""
    is_known = None if threshold is None else found.uncertainty <= threshold
    return Row(path, found.top(top), found.uncertainty_name, found.uncertainty, is_known, start, end)


def line_of(row: Row) -> str:
    """A row of a whole clip, to read."""
    classes = ", ".join(f"{label} {share:.3f}" for label, share in row.top)
    known = {None: "", True: ", known", False: ", unknown"}[row.is_known]
    return f"{row.path}: {classes}, uncertainty ({row.uncertainty_name} {row.uncertainty:.3f}){known}"


def lines_of_runs(rows: Sequence[Row]) -> list[str]:
    """The rows of one video's pieces, to read: pieces in succession with the same verdict are one line, with means."""
    runs: list[list[Row]] = []
    for row in rows:
        if runs and runs[-1][-1].verdict == row.verdict:
            runs[-1].append(row)
        else:
            runs.append([row])
    return [_line_of_run(run) for run in runs]


def _line_of_run(run: Sequence[Row]) -> str:
    first, last = run[0], run[-1]
    share = sum(row.top[0][1] for row in run) / len(run)
    unsure = sum(row.uncertainty for row in run) / len(run)
    probability = "" if first.is_known is False else f" {share:.3f}"
    pieces = f"{len(run)} piece{'s' if len(run) > 1 else ''}"
    return (
        f"{first.path}: {first.start:.2f} to {last.end:.2f} s: {first.verdict}{probability}, "
        f"uncertainty ({first.uncertainty_name} {unsure:.3f}), {pieces}"
    )


def to_json(rows: Sequence[Row], failures: dict[Path, str], about: dict[str, Any]) -> str:
    """`about` the network, the rows as `predictions`, and what could not be read, with the reasons, as `failures`."""
    failed = [{"input": str(path), "error": message} for path, message in failures.items()]
    whole = about | {"predictions": [row.as_json() for row in rows], "failures": failed}
    return json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_csv(rows: Sequence[Row], top: int) -> str:
    """A line a row; columns that do not apply stay empty."""
    ranks = [name for k in range(1, top + 1) for name in (f"label_{k}", f"probability_{k}")]
    text = StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["input", "start", "end", *ranks, "uncertainty_name", "uncertainty", "known"])
    for row in rows:
        classes = [value for pair in row.top for value in pair]
        times = [row.start, row.end]
        classes += [None] * (len(ranks) - len(classes))
        table.writerow([row.path, *times, *classes, row.uncertainty_name, row.uncertainty, row.is_known])
    return text.getvalue()


def refuse_existing(path: Path) -> None:
    """InputError if something is there already, or its folder is not."""
    if path.exists():
        raise InputError(f"{path}: it is there already, and is not overwritten; name another file.")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent} to write it to.")


def write_new(path: Path, text: str) -> None:
    """Write a file whole or not at all; InputError if it has come to be there."""
    refuse_existing(path)
    write_whole(path, text)
