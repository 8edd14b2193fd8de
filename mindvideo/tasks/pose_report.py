# SPDX-License-Identifier: Apache-2.0
"""What a pose run came to: result.json with every fold and the controls, and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindvideo.config import Config, to_yaml
from mindvideo.data.pose_sets import PROTOCOLS
from mindvideo.engine.checkpoint import TrainingState
from mindvideo.engine.log import read_log, say
from mindvideo.engine.run import write_result
from mindvideo.metrics.accuracy import share_interval
from mindvideo.metrics.fewshot import confusion_matrix
from mindvideo.metrics.pose import CONTROLS, nearest_neighbour
from mindvideo.models.layers import describe_operators
from mindvideo.report import Figure, Figures, Preformatted, Table, Text, bars, confusion, curves, write_page
from mindvideo.report.page import Section
from mindvideo.tasks.pose_data import PoseData
from mindvideo.tasks.report import class_rows, save_figures


@dataclass
class FoldResult:
    """What the tested model of a fold (counted from 0) takes its test clips for, in their order."""

    number: int
    checkpoint: str
    state: TrainingState
    predicted: np.ndarray
    seconds: float


def finish(
    config: Config,
    data: PoseData,
    folder: Path,
    results: Sequence[FoldResult],
    *,
    steps: Sequence[int],
    trained: TrainingState,
) -> None:
    """Write result.json and report.html.

    `steps` are those at which the folds begin, and the last; `trained` is where training ended.
    """
    hits = [_hits(data, result) for result in results]
    own = _numbers([by_method["model"] for by_method in hits])
    controls = {name: {"accuracy": _numbers([by_method[name] for by_method in hits])} for name in CONTROLS}
    written = write_result(
        folder,
        {
            "task": "pose", "model": config.model.name, "dataset": config.data.dataset,
            "protocol": config.data.protocol, "seed": config.seed, "metrics": {"accuracy": own}, "controls": controls,
            "strongest_control": max(controls, key=lambda name: controls[name]["accuracy"]["value"]),
            "chance": 1 / len(data.classes), "classes": data.classes,
            "folds": [_describe(data, result, own) for result, own in zip(results, hits, strict=True)],
            "train_steps": trained.step, "train_seconds": round(trained.seconds, 1),
            "operators": describe_operators(), "test_seconds": round(sum(result.seconds for result in results), 1),
        },
        to_yaml(config),
    )  # fmt: skip
    _write_report(folder, config, data, results, written, steps)
    strongest = written["strongest_control"]
    say(
        f"result: accuracy {_percent(own)} over {len(results)} folds of {config.data.protocol}, {own['n']} clips; "
        f"control {_percent(controls[strongest]['accuracy'])} ({strongest})"
    )
    say(f"report: {(folder / 'report.html').resolve()}")


def _hits(data: PoseData, result: FoldResult) -> dict[str, np.ndarray]:
    """Which test clips of a fold are right, by the model and by each control."""
    fold = data.folds[result.number]
    train, test = list(fold.train + fold.val), list(fold.test)
    hits = {"model": result.predicted == data.labels[test]}
    for name, descriptor in CONTROLS.items():
        train_ND, test_MD = (np.stack([descriptor(data.poses[i]) for i in places]) for places in (train, test))
        hits[name] = nearest_neighbour(train_ND, data.labels[train], test_MD) == data.labels[test]
    return hits


def _numbers(hits: Sequence[np.ndarray]) -> dict[str, float]:
    """The mean of the folds' accuracies, their standard deviation where there are two or more, and Wilson's interval
    for the share of all clips, as if they were independent of one another."""
    shares = np.array([own.mean() for own in hits])
    _, low, high = share_interval(np.concatenate(hits))
    spread = {"std_over_folds": float(shares.std(ddof=1))} if len(hits) > 1 else {}
    return {"value": float(shares.mean()), **spread, "low_95": low, "high_95": high, "n": sum(map(len, hits))}


def _describe(data: PoseData, result: FoldResult, hits: Mapping[str, np.ndarray]) -> dict[str, Any]:
    fold = data.folds[result.number]
    clips = {part: len(places) for part, places in (("train", fold.train), ("val", fold.val), ("test", fold.test))}
    return {
        "fold": result.number + 1, "tests": fold.name, "clips": clips, "accuracy": float(hits["model"].mean()),
        "controls": {name: float(hits[name].mean()) for name in CONTROLS},
        "checkpoint": result.checkpoint, "checkpoint_step": result.state.step,
    }  # fmt: skip


def _percent(numbers: Mapping[str, float]) -> str:
    spread = f" ± {100 * numbers['std_over_folds']:.2f}" if "std_over_folds" in numbers else ""
    return f"{100 * numbers['value']:.2f}{spread} %"


def _write_report(
    folder: Path,
    config: Config,
    data: PoseData,
    results: Sequence[FoldResult],
    written: dict[str, Any],
    steps: Sequence[int],
) -> None:
    true = np.concatenate([data.labels[list(data.folds[result.number].test)] for result in results])
    predicted = np.concatenate([result.predicted for result in results])
    matrix = confusion_matrix(true.tolist(), predicted.tolist(), len(data.classes))
    picture = confusion(matrix, data.classes, "Confusion on test clips")
    sections: list[Section] = [
        Figures(
            "Accuracy",
            [_bars(written), Figure("Which was taken for which.", picture, "image/png", "confusion matrix")],
        ),
        Table("Folds", *_fold_rows(written)),
        Table("Classes", ("class", "accuracy", "clips"), class_rows(matrix, data.classes)),
        Text("How this was measured", _method(config, data, written)),
        Preformatted("Configuration", to_yaml(config)),
    ]
    training = _curves(folder, written, steps)
    if training:
        sections.insert(1, Figures("Training", training))
    own, strongest = written["metrics"]["accuracy"], written["strongest_control"]
    summary = {
        "accuracy": f"{_percent(own)}, {own['n']} clips in {len(results)} folds",
        "strongest control": f"{_percent(written['controls'][strongest]['accuracy'])} ({strongest})",
        "chance": f"{100 * written['chance']:.1f} %",
        "protocol": config.data.protocol,
        "training": f"{written['train_steps']} steps, {written['train_seconds'] / 60:.1f} min",
        "commit": written["commit"] or "unknown",
    }
    title = f"{config.name}: poses of {config.data.dataset}"
    write_page(folder / "report.html", title=title, summary=summary, sections=sections)
    save_figures(folder / "figures", sections)


def _bars(written: dict[str, Any]) -> Figure:
    """Accuracy by fold and over all; intervals only where they are of all clips."""
    methods = {written["model"]: written["metrics"]["accuracy"]}
    methods |= {name: numbers["accuracy"] for name, numbers in written["controls"].items()}
    groups = {
        f"fold {fold['fold']}": {
            name: (100 * share,) * 3
            for name, share in {written["model"]: fold["accuracy"], **fold["controls"]}.items()
        }
        for fold in written["folds"]
    }  # fmt: skip
    groups["mean"] = {
        name: (100 * numbers["value"], 100 * numbers["low_95"], 100 * numbers["high_95"])
        for name, numbers in methods.items()
    }
    return Figure(
        "Share of test clips that are right. The controls learn nothing: they take the class of the training clip that "
        "moves its joints about as much (motion), or holds them in about the same place (posture). A model that does "
        "not beat them has learnt nothing more.",
        bars(groups, title="Accuracy by fold", y_label="accuracy (%)"), "image/png", "bars: model and controls",
    )  # fmt: skip


def _fold_rows(written: dict[str, Any]) -> tuple[Sequence[str], Sequence[Sequence[object]]]:
    """Header and rows."""
    rows = [
        (
            fold["fold"], fold["tests"], *fold["clips"].values(),
            *(f"{100 * share:.1f} %" for share in (fold["accuracy"], *fold["controls"].values())),
            f"{fold['checkpoint']}, step {fold['checkpoint_step'] or 'unknown'}",
        )
        for fold in written["folds"]
    ]  # fmt: skip
    methods = (written["model"], *written["controls"])
    return ("fold", "tests", "train", "validation", "test", *methods, "checkpoint"), rows


def _curves(folder: Path, written: dict[str, Any], steps: Sequence[int]) -> list[Figure]:
    """Loss and accuracies of each fold over its own steps, from log.jsonl."""
    rows, figures = read_log(folder / "log.jsonl"), []
    names = {"loss": "training loss", "accuracy": "training accuracy", "val_accuracy": "validation accuracy"}
    for key, name in names.items():
        scale = 1.0 if key == "loss" else 100.0
        series = {
            f"fold {fold['fold']}": [
                (row["step"] - first, scale * row[key]) for row in rows if key in row and first < row["step"] <= last
            ]
            for fold, first, last in zip(written["folds"], steps, steps[1:], strict=False)
        }
        if any(series.values()):
            label = name if key == "loss" else f"{name} (%)"
            picture = curves(
                {fold: points for fold, points in series.items() if points},
                title=name.capitalize(), x_label="step of the fold", y_label=label,
            )  # fmt: skip
            figures.append(Figure(f"{name.capitalize()}, fold by fold.", picture, "image/png", f"{name} curves"))
    return figures


def _method(config: Config, data: PoseData, written: dict[str, Any]) -> str:
    apart, _ = PROTOCOLS[config.data.protocol]
    chosen = "the best on the next fold's clips, which were kept from training"
    if not config.data.validation:
        chosen = "the last; no clip was used to choose it"
    n = written["metrics"]["accuracy"]["n"]
    return (
        f"{len(data.clips)} clips. In each fold no {apart} that is tested was trained on. A fold's checkpoint is "
        f"{chosen}.\n\nThe mean is over folds, ± the standard deviation over folds. The bars' intervals are Wilson's "
        f"for all {n} test clips, as if they were independent; clips of one performer are not, so the truth is less "
        "certain. The controls use the same folds, validation clips among the training ones."
    )
