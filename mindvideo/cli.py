# SPDX-License-Identifier: Apache-2.0
"""`mindvideo train|eval|prepare|attack|predict|serve|export|convert|models|doctor`, and `openset` of cli_openset.py:
parse, call what does the work, and turn mistakes of the user into one line and exit status 2.

MindSpore is imported only by the commands that need it, so that `--help` and mistakes in a config answer at once.
"""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mindvideo import __version__
from mindvideo.cli_openset import add_openset, finite_number
from mindvideo.config import REPOSITORY, Config, load_config
from mindvideo.convert.families import FAMILIES
from mindvideo.errors import InputError
from mindvideo.schema import SCHEMAS, TASK

if TYPE_CHECKING:
    from mindvideo.predict import Predictor

DEVICES = SCHEMAS["pose"]["device"].choices
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

    _add_prepare(commands)
    _add_attack(commands)
    _add_predict(commands)
    _add_serve(commands)
    _add_export(commands)

    _add_convert(commands)
    add_openset(commands)

    models = commands.add_parser(
        "models", help="list all models, or tell of one",
        description="List all models with their sizes and costs, or tell all that is known of one: options, cost by "
        "part, and its numbers, quoted and measured.",
        epilog="example: mindvideo models i3d_r50",
    )  # fmt: skip
    models.add_argument("name", nargs="?", default="", metavar="NAME", help="the model to tell of")
    models.set_defaults(command=_models)

    doctor = commands.add_parser(
        "doctor", help="say what works on this machine, and what to do about the rest",
        description="Look at versions, processor, GPU, decoders and speed. Exit status 1 if training cannot run.",
        epilog="example: mindvideo doctor --device gpu",
    )  # fmt: skip
    doctor.add_argument("--device", default="auto", choices=DEVICES, help="where to train (default: %(default)s)")
    doctor.add_argument("--json", action="store_true", help="print the same as JSON")
    doctor.set_defaults(command=_doctor)
    return parser


def _add_prepare(commands: Any) -> None:
    prepare = commands.add_parser(
        "prepare", help="decode a config's videos once, to train faster",
        description="Store the frames of all videos that training and tests of a config read as JPEG, in a folder for "
        "data.prepared to name (docs/input_pipeline.md). Stopped and called again, it goes on.",
        epilog="example: mindvideo prepare configs/arn/arn_ucf101_small.yaml data.root=/data/ucf101 --to /data/frames",
    )  # fmt: skip
    _add_config(prepare)
    prepare.add_argument("--to", required=True, type=Path, metavar="FOLDER", help="new folder, or one to go on with")
    prepare.add_argument("--check", action="store_true", help="read what FOLDER holds again, and prepare nothing")
    prepare.set_defaults(command=_prepare)


def _add_attack(commands: Any) -> None:
    attack = commands.add_parser(
        "attack", help="say what the defences of image classifiers are worth",
        description="Attack image classifiers, each behind the defence that it was trained with, and write the "
        "published table beside the one that counts. Exit status 1 where a check shows gradient masking.",
        epilog="example: mindvideo attack --checkpoint output/robust_sample_vanilla/last.ckpt "
        "--checkpoint output/robust_sample_gcm/last.ckpt attack.queries=5000",
    )  # fmt: skip
    _add_config(attack)
    attack.add_argument("--config", type=Path, metavar="FILE", help="the same as CONFIG")
    attack.add_argument(
        "--checkpoint", required=True, action="append", type=Path, metavar="FILE", help="a row of the table; repeat it"
    )
    attack.set_defaults(command=_attack)


def _add_predict(commands: Any) -> None:
    predict = commands.add_parser(
        "predict", help="classify files and folders",
        description="Classify poses (.npy) or videos, and say how unsure that is. Exit status 2 if any of them is "
        "broken; the others are classified all the same.",
        epilog="example: mindvideo predict --checkpoint output/dear_i3d/best.ckpt videos/ --every 2 --csv found.csv",
    )  # fmt: skip
    _add_network(predict)
    predict.add_argument(
        "inputs", nargs="+", metavar="INPUT", type=Path,
        help="an .npy file of poses, a video, a folder of frames, or a folder to search for these; webcam (webcam:N, "
        "the camera of number N) watches a camera until Ctrl-C",
    )  # fmt: skip
    predict.add_argument(
        "--support", type=Path, metavar="FOLDER",
        help="for few-shot networks: a folder of example videos for each class, named after it",
    )  # fmt: skip
    predict.add_argument(
        "--top", default=1, type=_positive, metavar="K", help="how many of the likeliest classes (default: %(default)s)"
    )
    predict.add_argument(
        "--threshold", type=finite_number, metavar="X",
        help="clips of more uncertainty than X are unknown (default: as `mindvideo openset threshold` of the run)",
    )  # fmt: skip
    predict.add_argument(
        "--every", type=_seconds, metavar="SECONDS",
        help="a verdict every so many seconds of a long video (of a webcam: 1)",
    )  # fmt: skip
    predict.add_argument("--json", type=Path, metavar="FILE", help="new file, with all that is found")
    predict.add_argument("--csv", type=Path, metavar="FILE", help="new file, a line a verdict")
    predict.add_argument(
        "--annotate", type=Path, metavar="FOLDER", help="for each clip, as .mp4, with what is said of it below"
    )
    predict.add_argument(
        "--cam", type=Path, metavar="FOLDER",
        help="for each video, as .mp4, what the network saw of it, with the evidence for its class (Grad-CAM) over it",
    )  # fmt: skip
    predict.add_argument("--gif", action="store_true", help="these as .gif; of poses they always are")
    predict.set_defaults(command=_predict)


def _add_serve(commands: Any) -> None:
    serve = commands.add_parser(
        "serve", help="answer requests over HTTP",
        description="Answer requests over HTTP, and show a page to try it on: see docs/serving.md.",
        epilog="example: mindvideo serve --model actionnet --ckpt output/actionnet_sample/best.ckpt --port 8080",
    )  # fmt: skip
    _add_network(serve)
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    serve.add_argument("--port", default=8080, type=_port, help="0 takes any that is free (default: %(default)s)")
    serve.add_argument(
        "--max-batch", default=16, type=int, choices=(1, 4, 16), help="clips seen at once (default: %(default)s)"
    )
    serve.add_argument(
        "--queue", default=64, type=_positive, metavar="N",
        help="requests at work at once, the next ones are turned away (default: %(default)s)",
    )  # fmt: skip
    serve.add_argument(
        "--max-seconds", default=30, type=_positive, metavar="N",
        help="for a request to come, and to be answered (default: %(default)s)",
    )  # fmt: skip
    serve.set_defaults(command=_serve)


def _add_export(commands: Any) -> None:
    export = commands.add_parser(
        "export", help="make a file or a package that another platform runs",
        description="Write the network of a checkpoint as a MINDIR or ONNX file, which is then compared with it "
        "(docs/export.md), or make a model package of Huawei Cloud's ModelArts (docs/serving.md).",
        epilog="example: mindvideo export --format onnx --ckpt output/dear_i3d/best.ckpt i3d.onnx --batch 4",
    )  # fmt: skip
    export.add_argument("--format", required=True, choices=("mindir", "onnx", "modelarts"), help="what runs it")
    _add_network(export)
    export.add_argument("destination", metavar="DST", type=Path, help="new file (mindir, onnx) or folder (modelarts)")
    export.add_argument(
        "--batch", type=_positive, metavar="N", help="clips, poses, images or queries at once, in a file (default: 1)"
    )
    export.add_argument(
        "--frames", type=_positive, metavar="N", help="frames of a clip of poses, in a file (default: 256)"
    )
    export.set_defaults(command=_export)


def _add_convert(commands: Any) -> None:
    convert = commands.add_parser(
        "convert", help="take over another program's checkpoint, or write ours for PyTorch",
        description="Turn a checkpoint of PyTorch or of the older MindSpore repository into ours, or ours into one for "
        "PyTorch: the suffix of DST decides.",
        epilog="example: mindvideo convert tsm_kinetics.pth kinetics.ckpt --model tsm_r50 (more: docs/checkpoints.md)",
    )  # fmt: skip
    convert.add_argument(
        "source", metavar="SRC", type=Path, help=".pth, .pt, .tar or .bin (PyTorch), .safetensors, .npz or .ckpt"
    )
    convert.add_argument(
        "destination", metavar="DST", type=Path,
        help="new file: .ckpt or .safetensors, of which both are written; .pth, .pt or .npz with PyTorch's names",
    )  # fmt: skip
    convert.add_argument("--model", required=True, choices=FAMILIES, help="whose weights SRC holds")
    convert.set_defaults(command=_convert)


def _add_network(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", "--ckpt", required=True, type=Path, metavar="FILE", help=".ckpt or .safetensors of a run"
    )
    parser.add_argument("--model", default="", metavar="NAME", help="refuse a checkpoint of another model")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file, wins over what the checkpoint says")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="names of the classes, one a line, likewise")
    parser.add_argument("--device", default="auto", choices=DEVICES, help="where to run (default: %(default)s)")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def _seconds(text: str) -> float:
    number = finite_number(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not more than 0")
    return number


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number < 2**16:
        raise argparse.ArgumentTypeError(f"{number} is none of 0 to 65535")
    return number


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


def _prepare(parsed: argparse.Namespace) -> int:
    config = _config(parsed)
    from mindvideo.tasks.prepare import check, prepare

    if parsed.check:
        check(parsed.to)
    else:
        prepare(config, parsed.to)
    return 0


def _attack(parsed: argparse.Namespace) -> int:
    beside = parsed.checkpoint[0].with_name("config.yaml")
    config = _config(parsed, default=parsed.config or beside)
    if config.task != "robust":
        raise InputError(f"mindvideo attack is for task robust; this config is of task {config.task}.")
    failed = import_module("mindvideo.tasks.robust_attack").attack(config, parsed.checkpoint)[1]
    for row, finding in failed:
        print(f"mindvideo: check failed, {row}: {finding.name}. {finding.sentence}", file=sys.stderr)
    return 1 if failed else 0


def _task(config: Config) -> ModuleType:
    """The module of the config's task."""
    return import_module(f"mindvideo.tasks.{config.task}")


def _predictor(parsed: argparse.Namespace) -> Predictor:
    from mindvideo.predict import load_predictor

    return load_predictor(parsed.checkpoint, parsed.model, parsed.config, parsed.device, parsed.labels)


def _predict(parsed: argparse.Namespace) -> int:
    from mindvideo.predict.command import Wishes, run

    wishes = Wishes(
        parsed.top, parsed.threshold, parsed.every, parsed.json, parsed.csv, parsed.annotate, parsed.cam, parsed.gif
    )
    if parsed.support:
        if parsed.labels:
            raise InputError("--labels does not go with --support, whose folders name the classes.")
        if parsed.cam:
            raise InputError("--cam does not go with --support: it is for networks that know classes of their own.")
        from mindvideo.predict import load_few_shot

        predictor = load_few_shot(parsed.checkpoint, parsed.support, parsed.model, parsed.config, parsed.device)
    else:
        predictor = _predictor(parsed)
    return run(predictor, parsed.checkpoint, parsed.inputs, wishes)


def _serve(parsed: argparse.Namespace) -> int:
    for name in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
        if find_spec(name) is None:
            raise InputError(f"mindvideo serve needs {name}, which is not installed; `pip install mindvideo[serve]`.")
    from mindvideo.serve.server import bind, serve

    with bind(parsed.host, parsed.port) as listener:
        serve(
            _predictor(parsed), listener, max_batch=parsed.max_batch, queue=parsed.queue, max_seconds=parsed.max_seconds
        )
    return 0


def _export(parsed: argparse.Namespace) -> int:
    from mindvideo.export import check_destination, export_graph, export_modelarts, load_trained

    if parsed.format == "modelarts":
        if parsed.batch or parsed.frames:
            raise InputError("--batch and --frames are for files; a ModelArts package takes clips of any length.")
        export_modelarts(_predictor(parsed), parsed.destination)
        print(f"written: {parsed.destination / 'model'}")
        return 0
    check_destination(parsed.destination, parsed.format)
    trained = load_trained(parsed.checkpoint, parsed.model, parsed.config, parsed.device, parsed.labels)
    difference = export_graph(trained, parsed.destination, batch=parsed.batch or 1, frames=parsed.frames or 0)
    print(f"written: {parsed.destination} (largest difference from the network {difference:.1e})")
    return 0


def _convert(parsed: argparse.Namespace) -> int:
    from mindvideo.convert.files import convert

    report = convert(parsed.source, parsed.destination, parsed.model)
    path = parsed.destination
    twins = path.suffix in (".ckpt", ".safetensors")
    written = f"{path.with_suffix('.ckpt')} and .safetensors beside it" if twins else path
    print(f"{parsed.source}: {report}\nwritten: {written}")
    return 0


def _models(parsed: argparse.Namespace) -> int:
    from mindvideo.engine.device import use_device
    from mindvideo.zoo_pages import list_zoo, tell_model

    use_device("cpu")
    print(tell_model(parsed.name) if parsed.name else list_zoo())
    return 0


def _doctor(parsed: argparse.Namespace) -> int:
    from mindvideo.doctor import run

    return run(parsed.device, parsed.json)
