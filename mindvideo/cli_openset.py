# SPDX-License-Identifier: Apache-2.0
"""`mindvideo openset`: score the videos of a run, and compare methods by scores. Only the former loads MindSpore."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mindvideo.config import load_config
from mindvideo.errors import InputError

if TYPE_CHECKING:
    from mindvideo.report import Table
    from mindvideo.tasks.openset_methods import Method

ABOUT = {
    "threshold": "the uncertainty above which videos are rejected, and how many are",
    "ood": "detection of unknown videos: AUROC, AUPR, FPR95, OSCR, with intervals; histograms, ROC",
    "openness": "macro-F1 as unknown classes come in",
    "confmat": "which class is taken for which, with the unknown as one more",
    "calibration": "whether confidence is true: ECE, EAvUC, AURC; reliability diagrams",
    "compare": "everything in one table, and bars",
}


def add_openset(commands: Any) -> None:
    """Add `openset` and its own commands to the subparsers of the command line."""
    openset = commands.add_parser(
        "openset", help="open-set experiments", description="Open-set experiments: see docs/open_set.md."
    )
    experiments = openset.add_subparsers(required=True, metavar="EXPERIMENT")
    predict = experiments.add_parser(
        "predict", help="score all videos of a run, known and unknown",
        description="Score the training, test and unknown videos with a run's best (else last) checkpoint.",
        epilog="example: mindvideo openset predict output/dear_i3d unknown.dataset=hmdb51 unknown.root=/data/hmdb51",
    )  # fmt: skip
    predict.add_argument("run", metavar="RUN", type=Path, help="run folder, or a checkpoint beside its config.yaml")
    predict.add_argument("settings", nargs="*", metavar="KEY.SUB=VALUE", help="settings that win over the run's")
    predict.add_argument("--into", metavar="FOLDER", type=Path, help="scores go to FOLDER/scores (default: RUN/scores)")
    predict.set_defaults(command=_predict)
    for name, about in ABOUT.items():
        experiment = experiments.add_parser(
            name, help=about, description=about[0].upper() + about[1:] + ".",
            epilog=f"example: mindvideo openset {name} output/dear_i3d BALD=TSM_DNN_BALD_HMDB_result.npz",
        )  # fmt: skip
        _add_options(experiment)
        experiment.set_defaults(command=_run, experiment=name)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources", nargs="+", metavar="[NAME=]SOURCE",
        help="a run, a folder of scores, or a result file of DEAR's ood_detection.py",
    )  # fmt: skip
    parser.add_argument(
        "--score", default="", metavar="NAME", help="another uncertainty than its own: NAME, openmax or all"
    )
    parser.add_argument("--unknown", default="", metavar="NAME", help="of several unknown sets of a run this one alone")
    parser.add_argument(
        "--threshold", type=finite_number, metavar="X",
        help="reject videos of more uncertainty than X, as DEAR's softmax and RPL results of a confidence below 1 - X",
    )  # fmt: skip
    parser.add_argument(
        "--protocol", choices=("published", "clean", "both"), default="both",
        help="unknown classes that are also known: taken for unknown, left out, or both (default)",
    )  # fmt: skip
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="for result.json, report.html and figures/")
    parser.add_argument(
        "--resamples",
        type=whole_number,
        default=1000,
        metavar="N",
        help="for intervals (default: 1000; 0: no intervals)",
    )


def finite_number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return number


def whole_number(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is less than 0")
    return number


def _predict(parsed: argparse.Namespace) -> int:
    checkpoint = _checkpoint(parsed.run)
    config = load_config(checkpoint.with_name("config.yaml"), parsed.settings)
    if config.task != "openset":
        raise InputError(f"{parsed.run}: its task is {config.task}; open-set scores need a run of task openset.")
    from mindvideo.tasks.openset import predict

    predict(config, checkpoint, parsed.into or checkpoint.parent)
    return 0


def _checkpoint(run: Path) -> Path:
    """A run's best checkpoint, else its last; a file is taken as it is."""
    if run.is_file():
        return run
    if not run.is_dir():
        raise InputError(f"{run}: no such run folder or checkpoint.")
    for name in ("best.ckpt", "last.ckpt"):
        if (run / name).is_file():
            return run / name
    raise InputError(f"{run}: neither best.ckpt nor last.ckpt is there.")


def _run(parsed: argparse.Namespace) -> int:
    from mindvideo.engine.log import say
    from mindvideo.engine.run import write_result
    from mindvideo.report import Table, write_page
    from mindvideo.tasks import openset_sections as task
    from mindvideo.tasks.report import save_figures

    methods = _methods(parsed)
    folder = _output_folder(parsed)
    for note in task.notes(methods):
        say(note)
    numbers = task.measure(parsed.experiment, methods, parsed.resamples)
    sections = task.sections_of(parsed.experiment, methods, numbers)
    for section in sections:
        if isinstance(section, Table):
            _print_table(section)
    options = {
        key: getattr(parsed, key)
        for key in ("experiment", "sources", "score", "unknown", "threshold", "protocol", "resamples")
    }
    result = {"task": "openset", **options, "methods": task.as_json(methods, numbers)}
    result = write_result(folder, result, yaml.safe_dump(options))
    summary = {
        "methods": len({method.title for method in methods}),
        "known": f"{len(methods[0].known.labels)} videos of {len(methods[0].known_classes)} classes",
        "intervals": f"95 %, {parsed.resamples} resamples of sources" if parsed.resamples else "none",
        "commit": result["commit"] or "unknown",
    }
    heading = task.EXPERIMENTS[parsed.experiment].heading.lower()
    write_page(folder / "report.html", title=f"Open-set {heading}", summary=summary, sections=sections)
    for old in (folder / "figures").glob(f"{heading}-*.png"):
        old.unlink()
    save_figures(folder / "figures", sections)
    say(f"report: {(folder / 'report.html').resolve()}")
    return 0


def _methods(parsed: argparse.Namespace) -> list[Method]:
    """All methods of all sources, by the protocols asked for."""
    from mindvideo.tasks.openset_methods import by_protocol, load_methods

    loaded = []
    for word in parsed.sources:
        name, path = _named(word)
        loaded.append(load_methods(
            path, name=name, score=parsed.score, unknown=parsed.unknown, threshold=parsed.threshold
        ))  # fmt: skip
    for name, count in Counter(methods[0].name for methods in loaded).items():
        if count > 1:
            raise InputError(f"{count} sources are called {name!r}: write NAME=SOURCE to tell them apart.")
    first = loaded[0][0]
    for methods in loaded:
        if len(methods[0].known_classes) != len(first.known_classes):
            raise InputError(
                f"{methods[0].name} has {len(methods[0].known_classes)} known classes, {first.name} "
                f"{len(first.known_classes)}: they cannot be compared."
            )
    return by_protocol([method for methods in loaded for method in methods], parsed.protocol)


def _named(word: str) -> tuple[str, Path]:
    """NAME=SOURCE, unless it is a path as a whole."""
    name, separator, path = word.partition("=")
    return (name, Path(path)) if separator and not Path(word).exists() else ("", Path(word))


def _output_folder(parsed: argparse.Namespace) -> Path:
    """The one asked for; without, one inside the run if that is the only source. InputError where it cannot be."""
    source = _named(parsed.sources[0])[1]
    folder = Path("output") / f"openset_{parsed.experiment}"
    if len(parsed.sources) == 1 and (source / "scores").is_dir():
        folder = source / "openset" / parsed.experiment
    folder = parsed.output or folder
    if (folder / "config.yaml").is_file():
        raise InputError(f"--output: {folder} is a run, whose report would be overwritten; name another folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output: cannot make the folder {folder} ({error}).") from error
    return folder


def _print_table(table: Table) -> None:
    """In columns; on a terminal that is too narrow for all of them, some at a time, each time behind the first four."""
    from mindvideo.engine.log import console, say

    columns = [[str(cell) for cell in column] for column in zip(table.columns, *table.rows, strict=True)]
    padded = [
        [cell.ljust(max(map(len, column))) if place < 4 else cell.rjust(max(map(len, column))) for cell in column]
        for place, column in enumerate(columns)
    ]
    first, rest = padded[:4], padded[4:]
    while rest:
        room = console.width - sum(2 + len(column[0]) for column in first)
        shown = [rest.pop(0)]
        while rest and (not console.is_terminal or sum(2 + len(column[0]) for column in [*shown, rest[0]]) <= room):
            shown.append(rest.pop(0))
        for row in zip(*first, *shown, strict=True):
            say("  ".join(row).rstrip())
        say("")
