# SPDX-License-Identifier: Apache-2.0
"""Few-shot action recognition: train on episodes of some classes, choose on others, test on others still.

N classes of an episode (way), K support clips a class (shot), M queries, those of no class last.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindvideo.config import Config, to_yaml
from mindvideo.data.loader import load_episodes
from mindvideo.engine.checkpoint import TrainingState, load_checkpoint
from mindvideo.engine.device import use_device
from mindvideo.engine.distributed import is_first, own_batches
from mindvideo.engine.log import RunLog, say
from mindvideo.engine.loop import fit
from mindvideo.engine.optim import learning_rates, make_adam
from mindvideo.engine.run import new_run, write_result
from mindvideo.engine.step import Step
from mindvideo.errors import InputError
from mindvideo.losses.fewshot import annealing_weight
from mindvideo.metrics import fewshot as metrics
from mindvideo.models import create_model
from mindvideo.models.arn import ARN
from mindvideo.models.layers import describe_operators, initialize
from mindvideo.models.two_stream import TwoStream
from mindvideo.tasks.fewshot_data import FewShotData, prepare_data
from mindvideo.tasks.fewshot_episodes import EpisodeResults, encode_all, queries, run_episodes
from mindvideo.tasks.fewshot_objective import Objective, augmentation_of
from mindvideo.tasks.fewshot_report import write_report
from mindvideo.tasks.setup import (
    begin,
    make_step,
    model_options,
    run_folder,
    starting_state,
)


def train(config: Config) -> Path:
    """Train, test the best model, and return the run's folder; `train.resume=auto` continues an unfinished run."""
    device, unfinished = begin(config)
    model = make_model(config)
    num_steps = _steps(config)
    data = prepare_data(config)
    objective = Objective(model, config, len(data.samplers["train"].classes))
    rates = learning_rates(
        config.optim.schedule, config.optim.lr, num_steps,
        decay_every=per_step(config, config.optim.decay_every), decay_factor=config.optim.decay_factor,
    )  # fmt: skip
    optimizer = make_adam([model, *objective.heads], rates, weight_decay=config.optim.weight_decay)
    step = make_step(config, device, objective, model, optimizer)
    state = starting_state(config, model, step, unfinished)
    folder = run_folder(config, unfinished, state, device, num_steps)
    objective.set_train()
    with RunLog(folder, step=state.step, tensorboard=config.train.tensorboard) as log:
        if state.step < num_steps:
            _fit(config, data, model, step, state, folder, log)
    say(f"[End of training `{config.model.name}`] {state.seconds / 60:.1f} min")
    best = load_checkpoint(folder / "best.ckpt", model, config.model.name)
    finish(config, model, data, folder, checkpoint="best.ckpt", tested=best, trained=state)
    return folder


def evaluate(config: Config, checkpoint: Path) -> Path:
    """Test a checkpoint in a folder of its own, and return that folder."""
    use_device(config.device)
    ms.set_seed(config.seed)
    model = make_model(config)
    state = load_checkpoint(checkpoint, model, config.model.name)
    data = prepare_data(config, parts=("test",))
    folder = new_run(Path(config.output), f"{config.name}-eval", to_yaml(config))
    finish(config, model, data, folder, checkpoint=str(checkpoint), tested=state, trained=state)
    return folder


def make_model(config: Config) -> ARN:
    """The model with the options it has; InputError if another option is set, which would have no effect."""
    model = create_model(config.model.name, **model_options(config))
    if not isinstance(model, ARN):
        raise InputError(f"model.name: {config.model.name} is no few-shot model; see `mindvideo models`.")
    initialize(model, config.seed)
    return model


def per_step(config: Config, episodes: int) -> int:
    """A number of training episodes as one of steps, at least 1."""
    return max(1, episodes // config.train.accumulate)


def _steps(config: Config) -> int:
    episodes, accumulate = config.train.episodes, config.train.accumulate
    if episodes < accumulate:
        raise InputError(f"train.episodes is {episodes}, less than the {accumulate} of a step (train.accumulate).")
    return per_step(config, episodes)


def _fit(
    config: Config,
    data: FewShotData,
    model: ARN,
    step: Step,
    state: TrainingState,
    folder: Path,
    log: RunLog,
) -> None:
    settings = config.train
    known = config.episode.way * config.episode.query
    labels_M = np.repeat(np.arange(config.episode.way), config.episode.query)
    fit(
        step, _batches(config, data, state.step), model=model, state=state, num_steps=_steps(config), folder=folder,
        log=log,
        measure=lambda scores, _: {"accuracy": metrics.episode_accuracy(scores.asnumpy()[:known], labels_M)},
        validate=_validation(config, data, model),
        validate_every=per_step(config, settings.validate_every),
        save_every=per_step(config, settings.save_every), log_every=per_step(config, settings.log_every),
    )  # fmt: skip


def _batches(config: Config, data: FewShotData, start: int) -> Iterator[tuple[Tensor, ...]]:
    """The inputs of `Objective`, of this process's episodes from step `start` on."""
    samples, sampler, total = data.training, data.samplers["train"], config.train.episodes
    numbers = own_batches(start, _steps(config), config.train.accumulate)
    episodes = load_episodes(
        sampler, samples, data.train_reader, numbers=numbers, workers=config.data.workers,
        augmentation=augmentation_of(config),
    )  # fmt: skip
    for number, (support, query, *augmented) in zip(numbers, episodes, strict=True):
        episode = sampler.episode(number)
        clips = np.concatenate([episode.support_NK.ravel(), queries(episode)])
        classes = [sampler.classes.index(samples[clip].label) for clip in clips]
        arrays = support, query, np.array(classes, np.int32), np.float32(annealing_weight(number / total)), *augmented
        yield tuple(Tensor(array) for array in arrays)


def _validation(config: Config, data: FewShotData, model: ARN) -> Callable[[], float]:
    """Accuracy over fixed episodes of the validation classes."""
    sampler = data.samplers["val"]
    if sampler.way < config.eval.way:
        say(f"validation is {sampler.way}-way: there are no more validation classes on disk.")

    def validate() -> float:
        if isinstance(model, TwoStream):
            _recentre(config, data, model)
        results = _run(config, data, model, "val", config.train.validate_episodes)
        return float(results.accuracies().mean())

    return validate


def _recentre(config: Config, data: FewShotData, model: TwoStream) -> None:
    """By the training videos of the data set that is tested, as they are read in test."""
    embeddings, _ = encode_all(
        model, {}, data.parts["train"], data.eval_reader, batch=config.eval.batch, workers=config.data.workers
    )
    model.recentre(embeddings)


def _run(config: Config, data: FewShotData, model: ARN, part: str, num_episodes: int) -> EpisodeResults:
    return run_episodes(
        model, data.samplers[part], data.parts[part], data.eval_reader, num_episodes=num_episodes,
        batch=config.eval.batch, workers=config.data.workers, batch_norm=config.eval.batch_norm,
        controls=metrics.CONTROLS if part == "test" else {},
    )  # fmt: skip


def finish(
    config: Config,
    model: ARN,
    data: FewShotData,
    folder: Path,
    *,
    checkpoint: str,
    tested: TrainingState,
    trained: TrainingState,
) -> None:
    """Test on the test classes and write result.json and report.html.

    `tested` is the state of `checkpoint`, whose weights `model` holds, and `trained` where the training ended.
    """
    started = time.monotonic()
    shape = config.eval
    results = _run(config, data, model, "test", shape.episodes)
    if not is_first():
        return
    controls = {name: _numbers(results, name) for name in metrics.CONTROLS}
    result = write_result(
        folder,
        {
            "task": "fewshot", "model": config.model.name, "dataset": config.data.dataset,
            "split": config.data.split or config.data.dataset, "seed": config.seed,
            "way": shape.way, "shot": shape.shot, "query": shape.query, "unknown": shape.unknown,
            "batch_norm": shape.batch_norm, "metrics": _numbers(results, "model"), "controls": controls,
            "strongest_control": max(controls, key=lambda name: controls[name]["accuracy"]["value"]),
            "chance": 1 / shape.way, "classes": data.describe(), "excluded_videos": sorted(data.excluded),
            "checkpoint": checkpoint, "checkpoint_episode": tested.step * config.train.accumulate,
            "train_episodes": trained.step * config.train.accumulate, "train_seconds": round(trained.seconds, 1),
            "operators": describe_operators(), "test_seconds": round(time.monotonic() - started, 1),
        },
        to_yaml(config),
    )  # fmt: skip
    write_report(folder, config, data, results, result)
    _say_result(result, len(results.sampler.classes))
    say(f"report: {(folder / 'report.html').resolve()}")


def _numbers(results: EpisodeResults, method: str) -> dict[str, dict[str, float]]:
    """Each metric of a method with its interval over episodes."""
    values = {"accuracy": results.accuracies(method)}
    if results.sampler.unknown:
        values["rejection_auroc"] = results.rejection(method)
    numbers = {}
    for name, per_episode in values.items():
        mean, half = metrics.mean_interval(per_episode)
        numbers[name] = {"value": mean, "half_width_95": half, "n": len(per_episode)}
    return numbers


def _say_result(result: dict[str, Any], num_classes: int) -> None:
    def told(numbers: dict[str, dict[str, float]], name: str) -> str:
        return f"{100 * numbers[name]['value']:.2f} +- {100 * numbers[name]['half_width_95']:.2f} %"

    own, strongest = result["metrics"], result["strongest_control"]
    say(
        f"result: {result['way']}-way {result['shot']}-shot accuracy {told(own, 'accuracy')} over "
        f"{own['accuracy']['n']} episodes of {num_classes} unseen classes; "
        f"control {told(result['controls'][strongest], 'accuracy')} ({strongest})"
    )
    if "rejection_auroc" in own:
        say(f"rejection of {result['unknown']} unknown queries an episode: AUROC {told(own, 'rejection_auroc')}")
