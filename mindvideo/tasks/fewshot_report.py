# SPDX-License-Identifier: Apache-2.0
"""The report of a few-shot run: curves, bars, confusion, GIFs of test episodes, numbers and config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mindvideo.config import Config, to_yaml
from mindvideo.data.video import read_frames
from mindvideo.report import (
    Figure,
    Figures,
    Preformatted,
    Table,
    Text,
    bars,
    confusion,
    episode_gif,
    write_page,
)
from mindvideo.tasks.fewshot_data import FewShotData
from mindvideo.tasks.report import class_rows, save_figures, training_curves

if TYPE_CHECKING:
    from mindvideo.tasks.fewshot_episodes import EpisodeResults


def write_report(
    folder: Path, config: Config, data: FewShotData, results: EpisodeResults, result: dict[str, Any]
) -> None:
    """Write report.html, and its pictures as files of their own under figures/."""
    accuracy, strongest = result["metrics"]["accuracy"], result["strongest_control"]
    control = result["controls"][strongest]["accuracy"]
    sections = [
        Figures("Accuracy on unseen classes", [_bars(result), _confusion(results)]),
        Table("Methods", *_methods(result)),
        Table(
            "Test classes", ("class", "accuracy", "queries"), class_rows(results.confusion(), results.sampler.classes)
        ),
        Preformatted("Configuration", to_yaml(config)),
    ]
    for heading, figures in (
        ("Test episodes", _episodes(config, data, results)),
        ("Training", training_curves(folder, "episode" if config.train.accumulate == 1 else "step")),
    ):
        if figures:
            sections.insert(1, Figures(heading, figures))
    sections.append(Text("How this was measured", _method(config, data)))
    summary = {
        "accuracy": f"{_percent(accuracy)} over {accuracy['n']} episodes",
        "strongest control": f"{_percent(control)} on the same episodes ({strongest})",
        "chance": f"{100 * result['chance']:.1f} %",
        "episode": f"{result['way']}-way {result['shot']}-shot, {result['query']} queries a class",
        "training": f"{result['train_episodes']} episodes, {result['train_seconds'] / 60:.1f} min",
        "checkpoint": f"{result['checkpoint']}, episode {result['checkpoint_episode'] or 'unknown'}",
        "commit": result["commit"] or "unknown",
    }
    write_page(
        folder / "report.html", title=f"{config.name}: few-shot on {config.data.dataset}",
        summary=summary, sections=sections,
    )  # fmt: skip
    save_figures(folder / "figures", sections)


def _percent(value: dict[str, float]) -> str:
    return f"{100 * value['value']:.2f} ± {100 * value['half_width_95']:.2f} %"


def _bars(result: dict[str, Any]) -> Figure:
    def interval(value: dict[str, float]) -> tuple[float, float, float]:
        mean, half = 100 * value["value"], 100 * value["half_width_95"]
        return mean, mean - half, mean + half

    chance = 100 * result["chance"]
    methods = {result["model"]: interval(result["metrics"]["accuracy"])}
    methods |= {name: interval(numbers["accuracy"]) for name, numbers in result["controls"].items()}
    methods["chance"] = (chance, chance, chance)
    title = f"{result['way']}-way {result['shot']}-shot"
    return Figure(
        "Mean accuracy over test episodes with 95 % intervals. The controls learn nothing: they take the class whose "
        "support is nearest in tiny thumbnails, in where these change, or in colours. A model must beat them all.",
        bars({title: methods}, title="Accuracy on unseen classes", y_label="accuracy (%)"),
        "image/png",
        "bars of accuracy: model, controls, chance",
    )  # fmt: skip


def _methods(result: dict[str, Any]) -> tuple[Sequence[str], Sequence[Sequence[object]]]:
    """Header and rows: every metric of the model and of the controls."""
    names = {"accuracy": "accuracy", "rejection_auroc": "AUROC of rejecting unknown queries"}
    present = [name for name in names if name in result["metrics"]]
    methods = {result["model"]: result["metrics"], **result["controls"]}
    rows = [(method, *(_percent(numbers[name]) for name in present)) for method, numbers in methods.items()]
    return ("method", *(names[name] for name in present)), rows


def _confusion(results: EpisodeResults) -> Figure:
    return Figure(
        "Which class was taken for which, over all test episodes. Only classes of one episode can be confused.",
        confusion(results.confusion(), results.sampler.classes, "Confusion over test episodes"),
        "image/png",
        "confusion matrix",
    )


def _episodes(config: Config, data: FewShotData, results: EpisodeResults) -> list[Figure]:
    """The first test episodes, one query each, going round the classes."""
    samples, reader = data.parts["test"], data.eval_reader
    count = min(config.eval.gifs, len(results.classes))
    figures = []
    for number in range(count):
        episode = results.sampler.episode(number)
        query = (number % results.sampler.way) * results.sampler.query

        def clip(position: int) -> np.ndarray:
            sample = samples[position]
            return read_frames(sample.path, reader.indices(sample, None), reader.decoder)

        scores = results.scores["model"][number, query]
        true = episode.classes[results.labels_M[query]]
        predicted = episode.classes[int(scores.argmax())]
        gif = episode_gif(
            [(name, [clip(i) for i in row]) for name, row in zip(episode.classes, episode.support_NK, strict=True)],
            clip(episode.query_NQ.ravel()[query]), true, predicted,
            scores=dict(zip(episode.classes, map(float, scores), strict=True)),
        )  # fmt: skip
        verdict = "right" if true == predicted else "wrong"
        figures.append(Figure(f"Episode {number}: {verdict}.", gif, "image/gif", f"{true}, predicted {predicted}"))
    return figures


def _method(config: Config, data: FewShotData) -> str:
    shape = config.eval
    statistics = "its running statistics"
    if shape.batch_norm == "episode":
        statistics = "the statistics of each episode, so the queries of an episode see one another"
    parts = [
        f"{shape.episodes} episodes of {shape.way} test classes, drawn with seed {config.seed + 2}; support and query "
        f"clips never come from one source. {config.data.length} frames a clip, {config.data.eval_sampling} sampling, "
        f"{config.data.width}x{config.data.height} pixels. The checkpoint was chosen on validation classes; the test "
        f"classes were used once. The interval is Student's t over episodes. BatchNorm uses {statistics}.",
    ]
    parts += [f"{note}." for note in data.notes]
    if data.excluded:
        parts.append(f"{len(data.excluded)} videos could not be decoded and were left out.")
    return "\n\n".join(parts)
