# SPDX-License-Identifier: Apache-2.0
"""The report of a recognition run: curves, accuracy by class, confusion, numbers and config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mindvideo.config import Config, to_yaml
from mindvideo.metrics.fewshot import confusion_matrix
from mindvideo.report import Figure, Figures, Preformatted, Table, Text, confusion, write_page
from mindvideo.report.page import Section
from mindvideo.tasks.openset_data import RecognitionData
from mindvideo.tasks.openset_scores import Scores
from mindvideo.tasks.report import class_rows, save_figures, training_curves


def write_report(
    folder: Path,
    config: Config,
    data: RecognitionData,
    scores: Scores,
    result: dict[str, Any],
    open_set: Sequence[Section] = (),
) -> None:
    """Write report.html, and its pictures as files of their own under figures/; `open_set` are the sections on unknown
    videos."""
    predicted = scores.probabilities.argmax(axis=1).tolist()
    matrix = confusion_matrix(scores.labels.tolist(), predicted, len(data.classes))
    picture = confusion(matrix, data.classes, "Confusion on test videos")
    sections: list[Section] = [
        *open_set,
        Figures("Known classes", [Figure("Which was taken for which.", picture, "image/png", "confusion matrix")]),
        Table("Metrics", ("metric", "value", "95 % interval"), _metric_rows(result)),
        Table("Classes", ("class", "accuracy", "videos"), class_rows(matrix, data.classes)),
        Text("How this was measured", _method(config, data)),
        Preformatted("Configuration", to_yaml(config)),
    ]
    training = training_curves(folder, "step")
    if training:
        sections.insert(len(open_set) + 1, Figures("Training", training))
    top1 = result["metrics"]["top1"]
    summary = {
        "top-1 accuracy": f"{100 * top1['value']:.2f} % of {top1['n']} videos",
        "chance": f"{100 * result['chance']:.1f} %",
        "method": f"{config.loss.name} on {config.model.name}",
        "training": f"{result['train_steps']} steps, {result['train_seconds'] / 60:.1f} min",
        "checkpoint": f"{result['checkpoint']}, step {result['checkpoint_step'] or 'unknown'}",
        "commit": result["commit"] or "unknown",
    }
    title = f"{config.name}: recognition on {config.data.dataset}"
    write_page(folder / "report.html", title=title, summary=summary, sections=sections)
    save_figures(folder / "figures", sections)


def _metric_rows(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    def percent(share: float) -> str:
        return f"{100 * share:.2f} %"

    return [
        (
            name,
            f"{of['value']:.4f}" if name == "vacuity" else percent(of["value"]),
            f"{percent(of['low_95'])} to {percent(of['high_95'])}" if "low_95" in of else "",
        )
        for name, of in result["metrics"].items()
    ]


def _method(config: Config, data: RecognitionData) -> str:
    shape = config.eval
    chosen = "the one that was named"
    if "val" in data.parts:
        chosen = "the best on training sources held out" if data.parts["val"] else "the last, no source being held out"
    parts = [
        f"{len(data.parts['test'])} test videos, each by {shape.clips} windows of {config.data.length} frames at "
        f"stride {config.data.stride} ({shape.sampling}), {shape.crops} crop of {shape.size} pixels; what is averaged "
        f"over them is the {shape.average}. The checkpoint is {chosen}. Intervals are Wilson's.",
        *(f"{note}." for note in data.notes),
    ]
    if data.excluded:
        parts.append(f"{len(data.excluded)} videos could not be decoded and were left out.")
    return "\n\n".join(parts)
