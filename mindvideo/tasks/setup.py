# SPDX-License-Identifier: Apache-2.0
"""What every task begins with: its videos, its model's options, and the run that it may continue."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mindspore import nn

from mindvideo.config import REPOSITORY, Config, resolve, to_yaml
from mindvideo.data import stickfigures
from mindvideo.data.datasets import count_all_frames
from mindvideo.data.manifest import Sample
from mindvideo.engine.checkpoint import TrainingState, load_checkpoint
from mindvideo.engine.log import progress_bar, say
from mindvideo.engine.run import check_same_run, latest_run, new_run
from mindvideo.errors import InputError, VideoError
from mindvideo.models import options_of
from mindvideo.models.layers import describe_operators
from mindvideo.schema import SCHEMAS


def dataset_root(config: Config, section: str = "data") -> Path:
    """`root` of a section of the config, or the entry of data/data.json for its `dataset`."""
    settings = config[section]
    if settings.root:
        return resolve(settings.root)
    listing = REPOSITORY / "data" / "data.json"
    roots = json.loads(listing.read_text(encoding="utf-8")) if listing.is_file() else {}
    if settings.dataset not in roots:
        raise InputError(f"{section}.root is not set, and {listing} has no entry {settings.dataset!r}.")
    return resolve(roots[settings.dataset])


def sample_folder(scene_bias: float = 0.0) -> Path:
    """The embedded sample, filmed at the first call."""
    with progress_bar("make the sample", 1) as progress:
        return stickfigures.ensure_sample(scene_bias=scene_bias, progress=lambda done, total: progress(done / total))


def decode_check(config: Config, samples: Sequence[Sample]) -> tuple[dict[Path, int], list[str]]:
    """True frame counts; broken videos are an error, or with `data.broken: exclude` left out and told."""
    with progress_bar("check videos", len(samples)) as progress:
        counts, broken = count_all_frames(samples, config.data.decoder, progress=progress)
    if broken:
        shown = "\n  ".join(list(broken.values())[:10]) + ("\n  ..." if len(broken) > 10 else "")
        told = f"{len(broken)} of {len(samples)} videos cannot be decoded:\n  {shown}"
        if config.data.broken == "error":
            raise VideoError(f"{told}\nRepair or remove them, or set data.broken=exclude to go on without them.")
        say(f"excluded: {told}")
    return counts, [str(path) for path in broken]


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


def unfinished_run(config: Config) -> Path | None:
    """The folder of the run to continue; None to start anew."""
    if config.train.resume == "never":
        return None
    output = Path(config.output)
    folder = latest_run(output, config.name)
    if folder is None or not (folder / "last.ckpt").is_file():
        say(f"train.resume=auto: no unfinished run {config.name!r} in {output}; starting anew.")
        return None
    if (folder / "result.json").is_file():
        raise InputError(f"{folder} is finished: see {folder / 'report.html'}. Nothing to resume.")
    check_same_run(folder, config.to_dict())
    return folder


def starting_state(config: Config, model: nn.Cell, optimizer: nn.Optimizer, unfinished: Path | None) -> TrainingState:
    """Where training starts: in the unfinished run, with `train.pretrained` weights, or anew."""
    name = config.model.name
    if unfinished:
        return load_checkpoint(unfinished / "last.ckpt", model, name, optimizer)
    if config.train.pretrained:
        load_checkpoint(Path(config.train.pretrained), model, name)
    return TrainingState(model=name, config=config.to_dict())


def run_folder(config: Config, unfinished: Path | None, state: TrainingState, device: str, num_steps: int) -> Path:
    """The run's folder, made last of all, so that a mistake in the input leaves no empty one behind; says where and
    from which step training goes."""
    folder = unfinished or new_run(Path(config.output), config.name, to_yaml(config))
    say(f"{device}, {describe_operators()}")
    say(f"[Start training `{config.model.name}`] {folder}, step {state.step}/{num_steps}")
    return folder
