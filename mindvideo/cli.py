# SPDX-License-Identifier: Apache-2.0
"""`mindvideo train|eval|convert|models`, and `openset` of cli_openset.py: parse, call what does the work, and turn
mistakes of the user into one line and exit status 2.

MindSpore is imported only by the commands that need it, so that `--help` and mistakes in a config answer at once.
"""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from mindvideo import __version__
from mindvideo.cli_openset import add_openset
from mindvideo.config import REPOSITORY, Config, load_config
from mindvideo.convert.families import FAMILIES
from mindvideo.errors import InputError
from mindvideo.schema import TASK

SAMPLE_CONFIG = REPOSITORY / "configs" / "arn" / "arn_sample.yaml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0, 2 for a mistake in the input or a full disk, 130 after Ctrl-C."""
    parser = _parser()
    parsed, later = parser.parse_known_args(arguments)
    # argparse takes all positionals before the first option; settings and sources may also stand after it.
    if later:
        words = getattr(parsed, "settings", getattr(parsed, "sources", None))
        if words is None or any(word.startswith("-") for word in later):
            parser.error(f"unrecognized arguments: {' '.join(later)}")
        words += later
    try:
        return parsed.command(parsed)
    except InputError as error:
        print(f"mindvideo: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"mindvideo: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mindvideo: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mindvideo", description="Action recognition for MindSpore, from video file to report."
    )
    parser.add_argument("--version", action="version", version=f"mindvideo {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train", help="train, test the best model, write the report",
        description="Train on a config, keep the model that is best on validation data, test it, write report.html.",
        epilog="example: mindvideo train configs/arn/arn_hmdb51_small.yaml data.root=/data/hmdb51 train.resume=auto",
    )  # fmt: skip
    _add_config(train)
    train.set_defaults(command=_train)

    evaluate = commands.add_parser(
        "eval", help="test a checkpoint",
        description="Test a checkpoint and write report.html. Without CONFIG, the config.yaml beside it counts.",
        epilog="example: mindvideo eval --checkpoint output/arn_sample/best.ckpt eval.shot=5 eval.unknown=10",
    )  # fmt: skip
    _add_config(evaluate)
    evaluate.add_argument("--checkpoint", required=True, type=Path, help=".ckpt or .safetensors of the config's model")
    evaluate.add_argument("--task", choices=TASK.choices, help="the same as task=...")
    evaluate.set_defaults(command=_evaluate)

    convert = commands.add_parser(
        "convert", help="turn another program's checkpoint into ours",
        description="Turn a checkpoint of the older MindSpore repository, or of the paper's authors, into ours.",
        epilog="example: mindvideo convert ./ARN_ucf_MSE.ckpt arn_ucf101.ckpt --model arn (more: docs/migration.md)",
    )  # fmt: skip
    convert.add_argument("source", metavar="SRC", type=Path, help=".ckpt (MindSpore), .safetensors or .npz")
    convert.add_argument("destination", metavar="DST", type=Path, help="new .ckpt; a .safetensors is written beside it")
    convert.add_argument("--model", required=True, choices=FAMILIES, help="whose weights SRC holds")
    convert.set_defaults(command=_convert)

    add_openset(commands)

    models = commands.add_parser("models", help="list all models", description="List all models.")
    models.set_defaults(command=_models)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "settings", nargs="*", metavar="[CONFIG] KEY.SUB=VALUE",
        help="a YAML file under configs/ (default: the embedded sample's), then settings that win over the file's",
    )  # fmt: skip


def _config(parsed: argparse.Namespace, default: Path = SAMPLE_CONFIG) -> Config:
    settings = list(parsed.settings)
    path = settings.pop(0) if settings and "=" not in settings[0] else default
    return load_config(path, settings)


def _train(parsed: argparse.Namespace) -> int:
    config = _config(parsed)
    from mindvideo.engine.loop import Interrupted

    try:
        _task(config).train(config)
    except Interrupted as stop:
        print(f"mindvideo: interrupted; {stop}", file=sys.stderr)
        return 130
    return 0


def _evaluate(parsed: argparse.Namespace) -> int:
    if parsed.task:
        parsed.settings.append(f"task={parsed.task}")
    beside = parsed.checkpoint.with_name("config.yaml")
    config = _config(parsed, default=beside if beside.is_file() else SAMPLE_CONFIG)
    _task(config).evaluate(config, parsed.checkpoint)
    return 0


def _task(config: Config) -> ModuleType:
    """The module of the config's task."""
    return import_module(f"mindvideo.tasks.{config.task}")


def _convert(parsed: argparse.Namespace) -> int:
    from mindvideo.convert.files import convert

    report = convert(parsed.source, parsed.destination, parsed.model)
    print(f"{parsed.source}: {report}\nwritten: {parsed.destination.with_suffix('.ckpt')} and .safetensors beside it")
    return 0


def _models(parsed: argparse.Namespace) -> int:
    from mindvideo.models import describe, list_models

    for name in list_models():
        print(f"{name:12s} {describe(name)}")
    return 0
