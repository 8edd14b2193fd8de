# SPDX-License-Identifier: Apache-2.0
"""What every task begins with: its videos, its model's options, and the run that it may continue."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mindspore as ms
from mindspore import nn

from mindvideo.config import REPOSITORY, Config, resolve, to_yaml
from mindvideo.data import stickfigures
from mindvideo.data.datasets import count_all_frames
from mindvideo.data.loader import open_shard
from mindvideo.data.manifest import Sample
from mindvideo.data.prepared import Prepared, Storage, video_names
from mindvideo.engine import distributed
from mindvideo.engine.checkpoint import TrainingState, load_checkpoint
from mindvideo.engine.device import use_device
from mindvideo.engine.distributed import after_first, exchange, from_first, shard
from mindvideo.engine.log import progress_bar, say
from mindvideo.engine.optim import LossScale
from mindvideo.engine.run import check_same_run, latest_run, new_run, read_settings
from mindvideo.engine.step import Average, Step
from mindvideo.errors import InputError, VideoError
from mindvideo.models import options_of
from mindvideo.models.layers import describe_operators, is_native
from mindvideo.schema import SCHEMAS

# What a run can be continued from, the newest first.
CHECKPOINTS = ("last.ckpt", "previous.ckpt")

_ROOTS = REPOSITORY / "data" / "data.json"


def dataset_root(config: Config, section: str = "data") -> Path:
    """`root` of a section of the config, or the entry of data/data.json for its `dataset`."""
    root = _find_root(config, section)
    if root is None:
        raise InputError(f"{section}.root is not set, and {_ROOTS} has no entry {config[section].dataset!r}.")
    return root


def _find_root(config: Config, section: str) -> Path | None:
    settings = config[section]
    if settings.root:
        return resolve(settings.root)
    roots = json.loads(_ROOTS.read_text(encoding="utf-8")) if _ROOTS.is_file() else {}
    return resolve(roots[settings.dataset]) if settings.dataset in roots else None


def sample_folder(scene_bias: float = 0.0) -> Path:
    """The embedded sample, filmed at the first call."""
    with progress_bar("make the sample", 1) as progress:
        return after_first(
            lambda: stickfigures.ensure_sample(
                scene_bias=scene_bias, progress=lambda done, total: progress(done / total)
            )
        )


def decode_check(config: Config, samples: Sequence[Sample]) -> tuple[dict[Path, int], list[str]]:
    """True frame counts; broken videos are an error, or with `data.broken: exclude` left out and told."""
    own = shard(samples)
    with progress_bar("check videos", len(own)) as progress:
        found = count_all_frames(own, config.data.decoder, progress=progress)
    counts, broken = _of_all(found[0]), _of_all(found[1])
    tell_broken(config, broken, len(samples))
    return counts, [str(path) for path in broken]


def frame_source(
    config: Config, samples: Sequence[Sample], wanted: Storage
) -> tuple[dict[Path, int], list[str], Prepared | None]:
    """The same, and where `data.prepared` is set the frames of these videos, which nothing is decoded for then.

    InputError if they are not stored as `wanted`, or not there.
    """
    if not config.data.prepared:
        return *decode_check(config, samples), None
    prepared = Prepared(resolve(config.data.prepared), open_shard)
    counts, broken = prepared.choose(names_of(config, samples), wanted)
    tell_broken(config, broken, len(samples))
    return counts, [str(path) for path in broken], prepared


def tell_broken(config: Config, broken: Mapping[Path, str], total: int) -> None:
    """Say what is wrong with videos that are left out; VideoError unless `data.broken` is exclude."""
    if not broken:
        return
    shown = "\n  ".join(list(broken.values())[:10]) + ("\n  ..." if len(broken) > 10 else "")
    told = f"{len(broken)} of {total} videos cannot be decoded:\n  {shown}"
    if config.data.broken == "error":
        raise VideoError(f"{told}\nRepair or remove them, or set data.broken=exclude to go on without them.")
    say(f"excluded: {told}")


def names_of(config: Config, samples: Iterable[Sample]) -> dict[Path, str]:
    """What an index of prepared videos calls those of the config."""
    roots: list[tuple[str, Path]] = []
    for section in ("data", "second", "unknown"):
        if section not in config or config[section].dataset == "none":
            continue
        is_sample = config[section].dataset == "stickfigures"
        root = sample_folder(config.data.get("scene_bias", 0.0)) if is_sample else _find_root(config, section)
        if root:
            roots.append((config[section].dataset, root.parent if root.is_file() else root))
    return video_names((sample.path for sample in samples), roots)


def _of_all(own: Mapping[Path, Any]) -> dict[Path, Any]:
    """What all processes found of paths."""
    told = exchange(json.dumps({str(path): value for path, value in own.items()}).encode())
    return {Path(path): value for data in told for path, value in json.loads(data).items()}


def known_options(config: Config) -> list[str]:
    """The options of the model that the config names; InputError if there is none of that name."""
    try:
        return options_of(config.model.name)
    except InputError as error:
        raise InputError(f"model.name: {error}") from None


def model_options(config: Config) -> dict[str, Any]:
    """The keys of `model` that the model has; InputError if another one is set, which would have no effect."""
    known = known_options(config)
    settings: Mapping[str, Any] = {key: value for key, value in config.model.items() if key != "name"}
    for key, value in settings.items():
        if key not in known and value != SCHEMAS[config.task]["model"][key].default:
            raise InputError(
                f"model.{key} is {value!r}, but {config.model.name} has no such option; it has {', '.join(known)}."
            )
    return {key: value for key, value in settings.items() if key in known}


def add_head(
    heads: nn.CellList, head: nn.Cell, prefix: str, initialize: Callable[[nn.Cell, int], None], seed: int
) -> nn.Cell:
    """A head that serves training alone, among `heads`: its parameters' names begin with `prefix`, and its weights are
    drawn from `seed`."""
    head.update_parameters_name(prefix)
    initialize(head, seed)
    heads.append(head)
    return head


def begin(config: Config) -> tuple[str, Path | None]:
    """Choose the device, seed MindSpore and settle `train.accumulate`; gives the device, and the folder of the run to
    continue or None to start anew. InputError for settings that cannot be."""
    device = use_device(config.device)
    ms.set_seed(config.seed)
    settle_accumulation(config)
    folder = from_first(lambda: str(_unfinished_run(config) or ""))
    return device, Path(folder) if folder else None


def settle_accumulation(config: Config) -> None:
    """Set `train.accumulate` where it is 1: to that of the run to be continued, or else to the number of processes.

    InputError if there are more processes than batches.
    """
    size, train = distributed.size(), config.train
    if train.accumulate == 1:
        unfinished = latest_run(Path(config.output), config.name) if train.resume == "auto" else None
        before = read_settings(unfinished)["train"].get("accumulate", 1) if unfinished else 1
        train.accumulate = before if before > 1 else size
        if train.accumulate > 1:
            say(f"train.accumulate={train.accumulate}: a step sees so many batches, dealt among {size} process(es)")
    if train.accumulate < size:
        raise InputError(
            f"train.accumulate is {train.accumulate}, and {size} processes are to share a step's batches: "
            "start no more of them than these, or raise it."
        )


def _unfinished_run(config: Config) -> Path | None:
    if config.train.resume == "never":
        return None
    output = Path(config.output)
    folder = latest_run(output, config.name)
    if folder is None or not any((folder / name).is_file() for name in CHECKPOINTS):
        say(f"train.resume=auto: no unfinished run {config.name!r} in {output}; starting anew.")
        return None
    if (folder / "result.json").is_file():
        raise InputError(f"{folder} is finished: see {folder / 'report.html'}. Nothing to resume.")
    check_same_run(folder, config.to_dict())
    return folder


def make_step(
    config: Config,
    device: str,
    objective: nn.Cell,
    model: nn.Cell,
    optimizer: nn.Optimizer,
    *,
    half: nn.Cell | None = None,
) -> Step:
    """The step of training `model` for an objective that the config's `train` and `optim` ask for; `half` is what of
    the model mixed precision may compute in float16, by default all."""
    scale = LossScale() if _use_half(config, device, half or model) else None
    average = Average(model, config.train.ema) if config.train.ema > 0 else None
    return Step(
        objective,
        optimizer,
        clip_norm=config.optim.clip_norm,
        accumulate=config.train.accumulate,
        average=average,
        scale=scale,
    )


def _use_half(config: Config, device: str, network: nn.Cell) -> bool:
    """As `train.amp` says, let a network compute in float16, but for its parts that stay in float32 (`layers.Float32`)
    and norms; whether it does.

    InputError on a CPU with native operators, which compute in float32.
    """
    if config.train.amp == "off" or (config.train.amp == "auto" and device == "cpu"):
        return False
    if is_native():
        raise InputError("train.amp is O2: a CPU's native operators compute in float32 alone; choose off or auto.")
    for part in network.cells():  # not itself: all its methods would take what they are given to float16
        part.to_float(ms.float16)
    for _, cell in network.cells_and_names():
        if isinstance(cell, (nn.BatchNorm2d, nn.LayerNorm)):  # MindCV's
            cell.to_float(ms.float32)
    return True


def starting_state(config: Config, model: nn.Cell, step: Step, unfinished: Path | None) -> TrainingState:
    """Where training starts: in the unfinished run, with `train.pretrained` weights, or anew."""
    name = config.model.name
    if unfinished:
        return _newest_state(unfinished, model, name, step)
    if config.train.pretrained:
        load_checkpoint(Path(config.train.pretrained), model, name)
    if step.average:
        step.average.restart()
    return TrainingState(model=name, config=config.to_dict())


def _newest_state(folder: Path, model: nn.Cell, name: str, step: Step) -> TrainingState:
    """That of the last checkpoint or, if it is damaged or missing, of the one before."""
    last, previous = (folder / file for file in CHECKPOINTS)
    try:
        return load_checkpoint(last, model, name, step.optimizer, step.kept)
    except InputError as error:
        if not previous.is_file():
            raise
        say(f"{error} Going on from {previous}.")
        return load_checkpoint(previous, model, name, step.optimizer, step.kept)


def run_folder(config: Config, unfinished: Path | None, state: TrainingState, device: str, num_steps: int) -> Path:
    """The run's folder, made last of all, so that a mistake in the input leaves no empty one behind; says where and
    from which step training goes."""
    folder = unfinished or new_run(Path(config.output), config.name, to_yaml(config))
    say(f"{device}, {describe_operators()}")
    say(f"[Start training `{config.model.name}`] {folder}, step {state.step}/{num_steps}")
    return folder
