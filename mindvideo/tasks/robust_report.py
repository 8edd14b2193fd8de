# SPDX-License-Identifier: Apache-2.0
"""What a training of a robust classifier came to on images as they are: result.json and the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mindvideo.config import Config, to_yaml
from mindvideo.engine.checkpoint import TrainingState
from mindvideo.engine.log import say
from mindvideo.engine.run import write_result
from mindvideo.metrics import accuracy as metrics
from mindvideo.metrics.fewshot import confusion_matrix
from mindvideo.models.layers import describe_operators
from mindvideo.report import Figure, Figures, Preformatted, Table, Text, confusion, write_page
from mindvideo.report.page import Section
from mindvideo.tasks.report import class_rows, save_figures, training_curves
from mindvideo.tasks.robust_data import ImageData


def finish(
    config: Config,
    data: ImageData,
    folder: Path,
    logits_NK: np.ndarray,
    *,
    checkpoint: str,
    tested: TrainingState,
    trained: TrainingState,
    seconds: float,
) -> None:
    """Write result.json and report.html of the test images' logits.

    `tested` is the state of `checkpoint`, and `trained` where training ended; `seconds` is what testing took.
    """
    labels_N = data.labels(data.parts["test"])
    share, low, high = metrics.share_interval(metrics.top_k_hits(logits_NK, labels_N, 1))
    result = write_result(
        folder,
        {
            "task": "robust", "model": config.model.name, "dataset": config.data.dataset, "seed": config.seed,
            "defence": dict(config.defence), "trained_against": config.loss.attack,
            "metrics": {"accuracy": {"value": share, "low_95": low, "high_95": high, "n": len(labels_N)}},
            "chance": 1 / len(data.classes), "classes": data.classes,
            "images": {part: len(samples) for part, samples in data.parts.items()},
            "excluded_videos": sorted(data.excluded), "checkpoint": checkpoint, "checkpoint_step": tested.step,
            "train_steps": trained.step, "train_seconds": round(trained.seconds, 1),
            "operators": describe_operators(), "test_seconds": round(seconds, 1),
        },
        to_yaml(config),
    )  # fmt: skip
    matrix = confusion_matrix(labels_N.tolist(), logits_NK.argmax(axis=1).tolist(), len(data.classes))
    _write_report(folder, config, data, matrix, result)
    interval = f"95 % interval {100 * low:.2f} to {100 * high:.2f}"
    say(f"result: accuracy {100 * share:.2f} % ({interval}), {len(labels_N)} images")
    say(f"report: {(folder / 'report.html').resolve()}")


def _write_report(folder: Path, config: Config, data: ImageData, matrix: np.ndarray, result: dict[str, Any]) -> None:
    picture = confusion(matrix, data.classes, "Confusion on test images")
    sections: list[Section] = [
        Figures("Accuracy", [Figure("Which was taken for which.", picture, "image/png", "confusion matrix")]),
        Table("Classes", ("class", "accuracy", "images"), class_rows(matrix, data.classes)),
        Text("How this was measured", _method(data)),
        Preformatted("Configuration", to_yaml(config)),
    ]
    training = training_curves(folder, "step")
    if training:
        sections.insert(1, Figures("Training", training))
    accuracy = result["metrics"]["accuracy"]
    summary = {
        "accuracy": f"{100 * accuracy['value']:.2f} % of {accuracy['n']} images, not attacked",
        "chance": f"{100 * result['chance']:.1f} %",
        "training": f"{result['train_steps']} steps, {result['train_seconds'] / 60:.1f} min",
        "checkpoint": f"{result['checkpoint']}, step {result['checkpoint_step'] or 'unknown'}",
        "commit": result["commit"] or "unknown",
    }
    title = f"{config.name}: images of {config.data.dataset}"
    write_page(folder / "report.html", title=title, summary=summary, sections=sections)
    save_figures(folder / "figures", sections)


def _method(data: ImageData) -> str:
    chosen = "the best on training sources held out" if data.parts["val"] else "the last, no source being held out"
    text = (
        f"{len(data.parts['test'])} test images as they are; `mindvideo attack` tells how the classifier fares under "
        f"attack. The checkpoint is {chosen}. The interval is Wilson's, as if images were independent; frames of one "
        "video are not, so the truth is less certain."
    )
    return text + (f"\n\n{len(data.excluded)} videos could not be decoded." if data.excluded else "")
