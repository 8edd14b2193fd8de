# SPDX-License-Identifier: Apache-2.0
"""What the attacks came to: result.json, the tables on the screen and the report, the published columns beside those
that count."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mindvideo.config import Config, to_yaml
from mindvideo.engine.log import say
from mindvideo.engine.run import write_result
from mindvideo.metrics.robustness import Rate, attack_ratio, robust_accuracy, worst_case
from mindvideo.models.layers import describe_operators
from mindvideo.report import Figure, Figures, Preformatted, Table, Text, bars, write_page
from mindvideo.report.openset_figures import Line, lines
from mindvideo.report.page import Section
from mindvideo.report.sheet import picture_sheet
from mindvideo.tasks.report import save_figures

if TYPE_CHECKING:
    from mindvideo.tasks.robust_attack import Row

NAIVE = ("FGSM Linf", "PGD Linf", "PGD L2", "PGD L1", "C&W L2")  # the published columns
ADAPTIVE = ("BPDA", "EOT", "transfer", "Square", "APGD-CE", "APGD-DLR")
# Attacks of one L-infinity budget, so that a worst case over them means something.
SAME_BUDGET = ("FGSM Linf", "PGD Linf", *ADAPTIVE, "noise")
WORST = "worst case"
SWEEP = (0.5, 1.0, 2.0, 4.0, 16.0)  # of the L-infinity budget
SHOWN = "APGD-CE"  # the attack whose images are shown
_MOST_SHOWN = 7  # images of the picture of attacked ones


def finish(
    config: Config, folder: Path, rows: Sequence[Row], images: np.ndarray, labels: np.ndarray, classes: Sequence[str]
) -> None:
    """Write result.json and report.html, and say the tables."""
    result = write_result(
        folder,
        {
            "task": "robust", "dataset": config.data.dataset, "seed": config.seed, "n": len(labels),
            "classes": list(classes), "attack": dict(config.attack), "rows": {row.name: _describe(row) for row in rows},
            "operators": describe_operators(),
        },
        to_yaml(config),
    )  # fmt: skip
    published, honest = _ratio_table(result), _accuracy_table(result)
    for table in (published, honest):
        say(f"\n{table.heading}\n{_as_text(table)}")
    sections = [
        honest, Figures("Naive and adaptive", [_bars(result), _sweep(rows, config)]), published,
        Figures("Attacked images", [_pictures(row, images, labels, classes) for row in rows]),
        Table("Checks", ("row", "check", "passed", "what was seen"), _check_rows(rows)),
        Text("How this was measured", _method(config, rows, len(labels))),
        Preformatted("Configuration", to_yaml(config)),
    ]  # fmt: skip
    _write_report(folder, config, result, rows, sections)
    say(f"report: {(folder / 'report.html').resolve()}")


def _describe(row: Row) -> dict[str, Any]:
    """A row's numbers by attack: robust accuracy and AR with their intervals; the sweep; the checks."""
    worst = worst_case(row.clean, {name: row.right[name] for name in SAME_BUDGET if name in row.right})
    right = {**row.right, WORST: worst}
    return {
        "model": row.config.model.name, "defence": dict(row.config.defence), "trained_against": row.config.loss.attack,
        "clean": vars(robust_accuracy(row.clean, row.clean)),
        "robust_accuracy": {name: vars(robust_accuracy(row.clean, hits)) for name, hits in right.items()},
        "attack_ratio": {name: vars(attack_ratio(row.clean, hits)) for name, hits in right.items()},
        "sweep": {f"{factor:g}": float(hits.mean()) for factor, hits in zip(SWEEP, row.sweep, strict=True)},
        "mean_losses": [float(losses.mean()) for losses in row.losses],
        "checks": [vars(finding) for finding in row.findings], "seconds": round(row.seconds, 1),
    }  # fmt: skip


def _ratio_table(result: dict[str, Any]) -> Table:
    rows = [
        (name, _percent(row["clean"]), *(_percent(row["attack_ratio"][column]) for column in NAIVE))
        for name, row in result["rows"].items()
    ]
    heading = "As published: AR (of what is right, what stays right) under attacks that know of no defence, in %"
    return Table(heading, ("row", "accuracy", *NAIVE), rows)


def _accuracy_table(result: dict[str, Any]) -> Table:
    columns = ("PGD Linf", *ADAPTIVE, "noise", WORST)
    heads = {"PGD Linf": "naive PGD"}
    rows = [
        (
            name, _percent(row["clean"]),
            *(_percent(row["robust_accuracy"].get(column)) for column in columns),
            _interval(row["robust_accuracy"][WORST]),
        )
        for name, row in result["rows"].items()
    ]  # fmt: skip
    heading = f"Robust accuracy: right as it is and under attack, of {result['n']} images, in %"
    return Table(heading, ("row", "accuracy", *(heads.get(c, c) for c in columns), "95 % interval"), rows)


def _percent(rate: dict[str, float] | None) -> str:
    return "" if rate is None else f"{100 * rate['value']:.1f}"


def _interval(rate: dict[str, float]) -> str:
    return f"{100 * rate['low']:.1f} to {100 * rate['high']:.1f}"


def _as_text(table: Table) -> str:
    cells = [list(table.columns), *([str(cell) for cell in row] for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) if place == 0 else cell.rjust(width) for place, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in cells)
    )


def _bars(result: dict[str, Any]) -> Figure:
    """For each row, accuracy as it is, under naive PGD, and in the worst case."""
    short = _short(list(result["rows"]))
    groups = {
        short[name]: {
            label: tuple(100 * rate[key] for key in ("value", "low", "high"))
            for label, rate in (
                ("not attacked", row["clean"]), ("naive PGD", row["robust_accuracy"]["PGD Linf"]),
                ("worst case", row["robust_accuracy"][WORST]),
            )
        }
        for name, row in result["rows"].items()
    }  # fmt: skip
    return Figure(
        "Where naive PGD leaves much right that the worst case does not, the gradient was hidden: the "
        "classifier was not protected.",
        bars(groups, title="What a defence seems to be worth, and what it is", y_label="accuracy (%)"),
        "image/png", "bars: accuracy not attacked, under naive PGD, and in the worst case",
    )  # fmt: skip


def _short(names: Sequence[str]) -> dict[str, str]:
    """The names without the words that all begin with, for charts."""
    common = 0
    for words in zip(*(name.split("_")[:-1] for name in names), strict=False):
        if len(set(words)) > 1:
            break
        common += len(words[0]) + 1
    return {name: name[common:] for name in names}


def _sweep(rows: Sequence[Row], config: Config) -> Figure:
    budgets = np.array(SWEEP) * config.attack.linf * 255
    short = _short([row.name for row in rows])
    named = {short[row.name]: Line(budgets, 100 * np.array([hits.mean() for hits in row.sweep])) for row in rows}
    return Figure(
        "Accuracy under PGD that looks past the defence, as its budget grows: it must fall to chance.",
        lines(named, title="Accuracy against budget", x_label="largest change of a pixel, of 255", y_label="right (%)"),
        "image/png", "lines: accuracy against budget",
    )  # fmt: skip


def _pictures(row: Row, images: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> Figure:
    """Images that APGD broke, attacked, and what was changed, tenfold."""
    broken = np.flatnonzero(row.clean & ~row.right[SHOWN])[:_MOST_SHOWN]
    chosen = broken if len(broken) else np.arange(min(_MOST_SHOWN, len(images)))
    moved = row.shown
    pictures = {}
    for kind, stack in (
        ("", images), ("attacked ", moved), ("change x 10 ", 0.5 + 10.0 * (moved - images)),
    ):  # fmt: skip
        for place in chosen:
            pixels_HWC = np.clip(255 * stack[place].transpose(1, 2, 0), 0, 255).astype(np.uint8)
            pictures[f"{kind}{classes[labels[place]] if not kind else ''} #{place}"[:24]] = pixels_HWC
    what = "broken by" if len(broken) else "not broken by"
    return Figure(
        f"{row.name}: images {what} APGD, as they are, attacked, and the change, ten times as large.",
        picture_sheet(pictures, columns=len(chosen)), "image/png", "images and their attacked versions",
    )  # fmt: skip


def _check_rows(rows: Sequence[Row]) -> list[tuple[str, str, str, str]]:
    return [
        (row.name, finding.name, "yes" if finding.passed else "NO", finding.sentence)
        for row in rows
        for finding in row.findings
    ]


def _method(config: Config, rows: Sequence[Row], count: int) -> str:
    settings = config.attack
    parts = [
        f"{count} test images, evenly spaced. Budgets: L-infinity {255 * settings.linf:.3g}/255; L2 {settings.l2:g} "
        f"and L1 {settings.l1:g} at 224 x 224 pixels, in proportion at {config.data.size}. PGD: {settings.steps} steps "
        f"from a random start; APGD: {settings.apgd_steps} steps on each of two losses; Square: {settings.queries} "
        "queries.",
        "Naive attacks take the gradient that the defended classifier hands them. BPDA lets it through the concealment "
        f"as if that were not there, EOT is its mean over {settings.draws} random draws, and APGD and the sweep use "
        "both. Transfer attacks the same weights without their defence; an undefended row is attacked with another "
        "row's images, if there is one. The worst case counts an image as right only if no attack of the L-infinity "
        "budget breaks it.",
        "Intervals are Wilson's, as if images were independent. Checks compare attacks image by image (exact sign "
        "test, 1 %).",
    ]
    if any(row.config.defence.padding for row in rows):
        parts.append(
            f"Behind random padding, an image is right where its mean prediction over {settings.draws} draws is."
        )
    return "\n\n".join(parts)


def _write_report(
    folder: Path, config: Config, result: dict[str, Any], rows: Sequence[Row], sections: Sequence[Section]
) -> None:
    worst = {name: Rate(**row["robust_accuracy"][WORST]) for name, row in result["rows"].items()}
    failed = sorted({row.name for row in rows for finding in row.findings if not finding.passed})
    summary = {name: f"{100 * rate.value:.1f} % right in the worst case, of {rate.n}" for name, rate in worst.items()}
    summary["gradient masking"] = ", ".join(failed) if failed else "no sign of it"
    summary["commit"] = result["commit"] or "unknown"
    title = f"{config.name}: attacks on images of {config.data.dataset}"
    write_page(folder / "report.html", title=title, summary=summary, sections=sections)
    save_figures(folder / "figures", sections)
