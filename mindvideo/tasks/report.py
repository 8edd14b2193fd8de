# SPDX-License-Identifier: Apache-2.0
"""What the reports of all tasks share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mindvideo.engine.log import read_log
from mindvideo.report import Figure, Figures, curves
from mindvideo.report.page import Section


def training_curves(folder: Path, step: str) -> list[Figure]:
    """Loss and accuracy over training from a run's log.jsonl, none without one; `step` is what a step is called."""
    rows = read_log(folder / "log.jsonl")

    def series(name: str, scale: float = 1.0) -> list[tuple[float, float]]:
        return [(row["step"], scale * row[name]) for row in rows if name in row]

    if not rows:
        return []
    loss = curves({"training loss": series("loss")}, title="Loss", x_label=step, y_label="loss")
    accuracies = {
        "training": series("accuracy", 100.0),
        "validation": series("val_accuracy", 100.0),
    }
    accuracy = curves(
        {name: points for name, points in accuracies.items() if points},
        title="Accuracy", x_label=step, y_label="accuracy (%)",
    )  # fmt: skip
    return [
        Figure(f"Loss, each training {step}'s.", loss, "image/png", "loss curve"),
        Figure(f"Accuracy of training {step}s, and on validation data.", accuracy, "image/png", "accuracy curve"),
    ]


def class_rows(confusion_CC: np.ndarray, classes: Sequence[str]) -> list[tuple[object, ...]]:
    """Name, accuracy and count of each class, from counts by true (row) and predicted class."""
    counts = confusion_CC.sum(axis=1)
    return [
        (name, f"{100 * confusion_CC[i, i] / max(1, counts[i]):.1f} %", int(counts[i]))
        for i, name in enumerate(classes)
    ]


def save_figures(folder: Path, sections: Sequence[Section]) -> None:
    """The pictures of a report as files of their own."""
    folder.mkdir(exist_ok=True)
    for section in sections:
        for number, figure in enumerate(section.figures if isinstance(section, Figures) else ()):
            stem = "-".join(section.heading.lower().split())
            suffix = figure.mime.removeprefix("image/")
            (folder / f"{stem}-{number}.{suffix}").write_bytes(figure.data)
