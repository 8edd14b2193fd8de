# SPDX-License-Identifier: Apache-2.0
"""What a run tells while it works: console lines or a progress bar, log.csv, log.jsonl, TensorBoard.

Of several processes the first alone tells anything: the console of the others is quiet.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mindvideo.errors import InputError

console = Console(highlight=False, soft_wrap=True, emoji=False)


def say(message: str) -> None:
    """One line to the person watching; never interpreted as markup."""
    console.print(message, markup=False)


@contextmanager
def progress_bar(title: str, total: int, start: int = 0) -> Iterator[Any]:
    """A bar with ETA on a terminal, elsewhere nothing: plain lines tell. Yields `update(done, note="")`."""
    if not console.is_terminal or console.quiet:
        yield lambda done, note="": None
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("ETA"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(title, total=total, completed=start, note="")
        yield lambda done, note="": bars.update(task, completed=done, note=note)


class RunLog:
    """Rows of numbers by step, in log.jsonl as they come and in log.csv with one column a name.

    A run continued from `step` drops the rows behind it, so nothing is logged twice.
    """

    def __init__(self, folder: Path, *, step: int = 0, tensorboard: bool = False):
        """InputError if TensorBoard is asked for and not installed."""
        self.folder = folder
        self._jsonl = folder / "log.jsonl"
        self._writer = _summary_writer(folder) if tensorboard and not console.quiet else None
        if not console.quiet:
            self.rows = [row for row in read_log(self._jsonl) if row["step"] <= step]
            text = "".join(json.dumps(row) + "\n" for row in self.rows)
            self._jsonl.write_text(text, encoding="utf-8")

    def add(self, step: int, **values: float) -> None:
        """Log `values` at `step`."""
        if console.quiet:
            return
        row = {"step": step} | values
        self.rows.append(row)
        with self._jsonl.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if console.quiet:
            return
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        with (self.folder / "log.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, names)
            table.writeheader()
            table.writerows(self.rows)
        if self._writer is not None:
            self._writer.close()


def read_log(path: Path) -> list[dict[str, float]]:
    """The rows of a log.jsonl; a last line cut short by a crash is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _summary_writer(folder: Path) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise InputError(
            "train.tensorboard: tensorboardX is not installed; `pip install mindvideo[tensorboard]`."
        ) from None
    return SummaryWriter(str(folder / "tensorboard"))
