# SPDX-License-Identifier: Apache-2.0
"""What open-set experiments show: every one has a table, a row for each method, and figures of its own.

`EXPERIMENTS` are the subcommands of `mindvideo openset`; `open_set_sections` is the part of a training run's report.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindvideo.engine.log import progress_bar
from mindvideo.metrics import calibration, openset
from mindvideo.report import Figure, Figures, Table, Text, bars, confusion
from mindvideo.report.openset_figures import Bins, Line, histograms, lines, reliability_diagram
from mindvideo.report.page import Section
from mindvideo.tasks.openset_experiments import (
    Measure,
    Number,
    Numbers,
    blocks,
    calibrations,
    closed_set,
    decisions,
    detection,
    openness,
    reliabilities,
)
from mindvideo.tasks.openset_methods import Method, by_protocol, load_methods

RESAMPLES = 1000

# Heading, unit and format of every number, in the order of columns.
COLUMNS = {
    "auroc": ("AUROC %", 100, ".2f"),
    "aupr": ("AUPR %", 100, ".2f"),
    "fpr95": ("FPR95 %", 100, ".2f"),
    "oscr": ("OSCR %", 100, ".2f"),
    "top1": ("top-1 %", 100, ".3f"),
    "top5": ("top-5 %", 100, ".3f"),
    "mean_class_accuracy": ("mean class %", 100, ".3f"),
    "threshold": ("threshold", 1, ".6g"),
    "train_kept": ("train kept %", 100, ".2f"),
    "val_kept": ("val. kept %", 100, ".2f"),
    "known_kept": ("known kept %", 100, ".2f"),
    "unknown_rejected": ("unknown rejected %", 100, ".2f"),
    "binary_auc": ("paper's AUC %", 100, ".2f"),
    "open_macro_f1": ("open maF1 %", 100, ".2f"),
    "ece_closed_uncertainty": ("ECE closed, 1 - u", 1, ".4f"),
    "ece_open_uncertainty": ("ECE open, 1 - u", 1, ".4f"),
    "ece_binary_uncertainty": ("ECE binary, 1 - u", 1, ".4f"),
    "ece_closed_max_probability": ("ECE closed, max p", 1, ".4f"),
    "ece_open_max_probability": ("ECE open, max p", 1, ".4f"),
    "ece_binary_max_probability": ("ECE binary, max p", 1, ".4f"),
    "eavuc": ("EAvUC", 1, ".2f"),
    "aurc": ("AURC", 1, ".4f"),
    "unknown_as_unknown": ("UUC", 1, ".1f"),
    "unknown_as_known": ("UKC", 1, ".1f"),
    "known_as_unknown": ("KUC", 1, ".1f"),
    "known_as_known": ("KKC", 1, ".1f"),
}
EXPLAINED = {
    "auroc": "Without a threshold, unknown being the positive class: AUROC is the area under the ROC curve; AUPR that "
    "under precision and recall; FPR95 the share of known videos rejected where 95 % of the unknown ones are; OSCR the "
    "area under the share of known videos right and accepted against that of unknown ones accepted. Intervals are the "
    "2.5th and 97.5th percentile over draws of the sources that videos were cut from, or of videos where no source is "
    "known.",
    "top1": "Top-1, top-5 and mean class accuracy are of the known classes, nothing being rejected. The intervals of "
    "shares are Wilson's.",
    "threshold": "The paper's protocol: a video is rejected if its uncertainty lies above the threshold. The paper's "
    "AUC is that of these decisions: the mean of the shares of known videos kept and of unknown ones rejected. What is "
    "kept of validation videos, whose sources were not trained on, tells whether the threshold holds elsewhere.",
    "open_macro_f1": "Open maF1 at the threshold: F1 is averaged over the known classes and the unknown as one more, "
    "then over 10 random subsets of i unknown classes, then over i, weighted by openness 1 - sqrt(2 K / (2 K + i)) "
    "with K known classes; after ± stands the standard deviation over the subsets, weighted likewise.",
    "ece_closed_max_probability": "Expected calibration error in 15 bins: of the known classes (closed), of these and "
    "the unknown as one more (open), of known or unknown (binary). Confidence is 1 - u, where the uncertainty u is a "
    "fraction, or the largest probability p. EAvUC is DEAR's sum over the known videos.",
    "aurc": "AURC is the area under the known videos' curve of risk and coverage, those of least uncertainty first.",
    "unknown_as_unknown": "Means of the blocks of DEAR's confusion matrix, whose cells count classes, not videos: "
    "unknown as unknown (UUC), unknown as known (UKC), known as unknown (KUC), known as known (KKC).",
}
UNCERTAINTIES = {
    "vacuity": "vacuity K / S",
    "max_probability": "1 - largest probability",
    "entropy": "entropy (nats)",
    "mutual_information": "mutual information (nats)",
    "total_evidence": "- total evidence",
    "max_logit": "- largest logit",
    "energy": "energy, - log sum exp of the logits",
    "openmax": "OpenMax probability of the unknown",
    "uncertainty": "uncertainty",
}
CONFIDENCES = {"uncertainty": "1 - u", "max_probability": "largest probability"}
VARIANTS = {"closed": "closed: known classes", "open": "open: and the unknown", "binary": "binary: known or unknown"}


@dataclass(frozen=True)
class Experiment:
    """A subcommand: the heading of its figures, what it measures of each method, what it draws of all, and whether its
    table shows intervals."""

    heading: str
    measures: Sequence[Measure]
    draw: Callable[[Sequence[Method], Sequence[Numbers]], list[Figure]]
    intervals: bool = False


def measure(name: str, methods: Sequence[Method], resamples: int) -> list[Numbers]:
    """The numbers of an experiment for each method."""
    numbers = []
    with progress_bar("measure", len(methods)) as progress:
        for done, method in enumerate(methods, start=1):
            numbers.append({k: v for of in EXPERIMENTS[name].measures for k, v in of(method, resamples).items()})
            progress(done, note=method.title)
    return numbers


def sections_of(name: str, methods: Sequence[Method], numbers: Sequence[Numbers]) -> list[Section]:
    """Table, figures and explanations of an experiment."""
    return [
        table(name, methods, numbers, "Numbers"), *_figures(name, methods, numbers), explanations(methods, numbers)
    ]  # fmt: skip


def open_set_sections(scores_folder: Path) -> tuple[list[Section], dict[str, Any]]:
    """The open-set part of a run's report, and its numbers for result.json; InputError if no unknown video was scored.

    All is of the method's own score, by both protocols; a second table and the numbers have the other scores too.
    """
    methods = by_protocol(load_methods(scores_folder, score="all"), "both")
    numbers = measure("compare", methods, RESAMPLES)
    own = [place for place, method in enumerate(methods) if method.score == methods[0].score]
    of_own = [methods[place] for place in own], [numbers[place] for place in own]
    sections = [table("compare", *of_own, "Known and unknown"), table("ood", methods, numbers, "Scores")]
    for name in ("ood", "openness", "confmat", "calibration"):
        sections += _figures(name, *of_own)
    return [*sections, explanations(*of_own)], {"methods": as_json(methods, numbers)}


def _figures(name: str, methods: Sequence[Method], numbers: Sequence[Numbers]) -> list[Section]:
    figures = EXPERIMENTS[name].draw(methods, numbers)
    return [Figures(EXPERIMENTS[name].heading, figures)] if figures else []


def explanations(methods: Sequence[Method], numbers: Sequence[Numbers]) -> Text:
    """What the numbers that there are mean, and what must be known of these methods."""
    explained = [text for key, text in EXPLAINED.items() if any(key in of for of in numbers)]
    return Text("What the open-set numbers are", "\n\n".join([*explained, *notes(methods)]))


def as_json(methods: Sequence[Method], numbers: Sequence[Numbers]) -> list[dict[str, Any]]:
    """A dict for each method: what it is, and its metrics."""
    return [
        {
            "name": method.name, "score": method.score, "unknown": method.unknown_set, "protocol": method.protocol,
            "known_classes": len(method.known_classes), "unknown_classes": len(method.unknown_classes),
            "known_videos": len(method.known.labels), "unknown_videos": len(method.unknown.labels),
            "also_known": list((method.also_known or {}).values()), "threshold_from": method.threshold_from,
            "metrics": of,
        }
        for method, of in zip(methods, numbers, strict=True)
    ]  # fmt: skip


def table(name: str, methods: Sequence[Method], numbers: Sequence[Numbers], heading: str) -> Table:
    """A row for each method, a column for each number that any has."""
    present = [key for key in COLUMNS if any(key in of for of in numbers)]
    intervals = EXPERIMENTS[name].intervals
    rows = [
        (
            method.name, method.score, method.unknown_title, method.protocol,
            *(_cell(key, of.get(key), intervals) for key in present),
        )
        for method, of in zip(methods, numbers, strict=True)
    ]  # fmt: skip
    return Table(heading, ("method", "score", "unknown", "protocol", *(COLUMNS[key][0] for key in present)), rows)


def _cell(key: str, number: Number | None, intervals: bool) -> str:
    if number is None:
        return ""
    _, unit, style = COLUMNS[key]
    value, spread, low, high = (
        f"{unit * number[field]:{style}}" if field in number else ""
        for field in ("value", "spread", "low_95", "high_95")
    )
    return value + (f" ± {spread}" if spread else "") + (f" ({low} to {high})" if low and intervals else "")


def notes(methods: Sequence[Method]) -> list[str]:
    """What a reader must know of these methods: their thresholds, and unknown classes that are known after all."""
    said: dict[str, dict[str, None]] = {}
    for method in methods:
        for text in _notes_of(method):
            said.setdefault(text, {})[method.name] = None
    return [f"{', '.join(names)}: {text}." for text, names in said.items()]


def _notes_of(method: Method) -> list[str]:
    unknown = f"unknown classes of {method.unknown_set}" if method.unknown_set else "unknown classes"
    if method.threshold is None:
        lines = [f"no threshold of {method.score}: {method.threshold_from}; what needs one is not measured"]
    else:
        lines = [f"threshold: {method.threshold_from}"]
    if method.also_known is None:
        lines.append(f"{unknown} that are known after all cannot be told, as classes have no names")
    elif method.also_known:
        lines.append(
            f"{unknown} that are known after all ({len(method.also_known)}): {', '.join(method.also_known.values())}; "
            "`published` takes them for unknown all the same, `clean` leaves them out"
        )
    if method.doubtful:
        lines.append(f"{unknown} that may be known, and are not left out: {', '.join(method.doubtful)}")
    return lines


# Figures


def _groups(methods: Sequence[Method]) -> dict[str, list[int]]:
    """Places of the methods that may stand in one figure, by the unknown classes that they are tested on."""
    groups: dict[str, list[int]] = {}
    for place, method in enumerate(methods):
        groups.setdefault(_unknown(method), []).append(place)
    return groups


def _unknown(method: Method) -> str:
    return f"unknown: {method.unknown_title} ({method.protocol})"


def _name(method: Method) -> str:
    return f"{method.title}\n{_unknown(method)}"


def _png(caption: str, data: bytes, alt: str) -> Figure:
    return Figure(caption, data, "image/png", alt)


def _chart(
    methods: Sequence[Method], line: Callable[[Method], Line], *, title: str, caption: str, x_label: str, y_label: str,
    diagonal: bool = False,
) -> list[Figure]:  # fmt: skip
    """A figure for each group of methods, with a line of each, in percent."""
    return [
        _png(
            f"{caption} ({group}.)",
            lines(
                {methods[place].title: line(methods[place]) for place in places},
                title=f"{title}\n{group}", x_label=x_label, y_label=y_label, diagonal=diagonal,
            ),
            f"{title} of {len(places)} methods",
        )
        for group, places in _groups(methods).items()
    ]  # fmt: skip


def _percent(curve: tuple[np.ndarray, np.ndarray]) -> Line:
    return Line(100 * curve[0], 100 * curve[1])


def _with_threshold(methods: Sequence[Method]) -> list[Method]:
    return [method for method in methods if method.threshold is not None]


def _draw_histograms(methods: Sequence[Method], numbers: Sequence[Numbers]) -> list[Figure]:
    return [
        _png(
            "Uncertainty of known and unknown videos over common bins, in percent of each.",
            histograms(
                method.known.uncertainty, method.unknown.uncertainty, title=_name(method),
                x_label=UNCERTAINTIES.get(method.score, method.score), threshold=method.threshold,
            ),
            f"histograms of {method.title}",
        )
        for method in methods
    ]  # fmt: skip


def _draw_detection(methods: Sequence[Method], numbers: Sequence[Numbers]) -> list[Figure]:
    roc = _chart(
        methods, lambda method: _percent(openset.roc_points(method.known.uncertainty, method.unknown.uncertainty)),
        title="ROC", caption="Unknown videos rejected against known ones rejected, over all thresholds.",
        x_label="known rejected (%)", y_label="unknown rejected (%)", diagonal=True,
    )  # fmt: skip
    precision = _chart(
        methods, lambda method: _percent(openset.pr_points(method.known.uncertainty, method.unknown.uncertainty)),
        title="Precision and recall", caption="How many of the rejected videos are unknown, over all thresholds.",
        x_label="recall: unknown rejected (%)", y_label="precision: rejected unknown (%)",
    )  # fmt: skip
    return [*_draw_histograms(methods, numbers), *roc, *precision]


def _draw_openness(methods: Sequence[Method], numbers: Sequence[Numbers]) -> list[Figure]:
    def line(method: Method) -> Line:
        curve = method.openness
        return Line(100 * curve.openness, 100 * curve.macro_f1, 100 * curve.spread)

    return _chart(
        _with_threshold(methods), line, title="Openness",
        caption="Macro-F1 as unknown classes come in; the band is one standard deviation over subsets of them.",
        x_label="openness (%)", y_label="macro-F1 (%)",
    )  # fmt: skip


def _draw_confusion(methods: Sequence[Method], numbers: Sequence[Numbers]) -> list[Figure]:
    return [
        _png(
            "Which class was taken for which: all unknown classes are one row, rejected videos one column.",
            confusion(openset.merge_unknown(method.counts), [*method.known_classes, "unknown"], _name(method)),
            f"confusion matrix of {method.title}",
        )
        for method in _with_threshold(methods)
    ]


def _draw_calibration(methods: Sequence[Method], numbers: Sequence[Numbers]) -> list[Figure]:
    diagrams = [
        _png(
            "Accuracy by confidence: on the diagonal a method is right as often as it says. The area of a point is the "
            "share of videos in its bin.",
            reliability_diagram(
                {VARIANTS[variant]: Bins(of.confidence, of.accuracy, of.count) for variant, of in variants.items()},
                title=_name(method), x_label=f"confidence: {CONFIDENCES[by]} (%)",
            ),
            f"reliability of {method.title} by {CONFIDENCES[by]}",
        )
        for method in methods
        for by, variants in reliabilities(method).items()
    ]  # fmt: skip
    known = {
        method.title: _percent(calibration.risk_coverage(-method.known.uncertainty, method.hits)) for method in methods
    }
    risk = lines(known, title="Risk and coverage", x_label="known videos covered (%)", y_label="errors among them (%)")
    caption = "Errors among the known videos of least uncertainty, as more of them are covered."
    return [*diagrams, _png(caption, risk, f"curves of risk and coverage of {len(known)} methods")]


def _draw_bars(methods: Sequence[Method], numbers: Sequence[Numbers]) -> list[Figure]:
    def bar(number: Number) -> tuple[float, float, float]:
        value = number["value"]
        # A percentile interval of few resamples may lie beside the value.
        low, high = min(value, number.get("low_95", value)), max(value, number.get("high_95", value))
        return 100 * value, 100 * low, 100 * high

    return [
        _png(
            f"Detection without a threshold, with 95 % intervals ({group}).",
            bars(
                {
                    key.upper(): {methods[place].title: bar(numbers[place][key]) for place in places}
                    for key in ("auroc", "aupr", "fpr95", "oscr")
                },
                title=f"Detection\n{group}", y_label="% (FPR95: the lower the better)",
            ),
            f"bars of AUROC, AUPR, FPR95 and OSCR of {len(places)} methods",
        )
        for group, places in _groups(methods).items()
    ]  # fmt: skip


EXPERIMENTS = {
    "threshold": Experiment("Thresholds", (decisions,), _draw_histograms),
    "ood": Experiment("Detection", (detection, closed_set), _draw_detection, intervals=True),
    "openness": Experiment("Openness", (closed_set, decisions, openness), _draw_openness),
    "confmat": Experiment("Confusion", (decisions, blocks), _draw_confusion),
    "calibration": Experiment("Calibration", (closed_set, calibrations), _draw_calibration),
    "compare": Experiment("Comparison", (detection, closed_set, decisions, openness, calibrations), _draw_bars),
}
