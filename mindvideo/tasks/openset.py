# SPDX-License-Identifier: Apache-2.0
"""Open-set recognition: train a classifier of known classes whose scores also tell when a video shows none of them.

B clips a batch, K known classes, V views of a video, N videos.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from mindvideo.config import Config, to_yaml
from mindvideo.data.loader import load_batches
from mindvideo.engine.checkpoint import TrainingState, load_checkpoint, load_part
from mindvideo.engine.device import use_device
from mindvideo.engine.distributed import from_first, is_first, own_batches
from mindvideo.engine.log import RunLog, say
from mindvideo.engine.loop import fit
from mindvideo.engine.optim import learning_rates, make_sgd, same_scale, tsm_scale
from mindvideo.engine.run import new_run, write_result
from mindvideo.errors import InputError
from mindvideo.metrics import accuracy as metrics
from mindvideo.metrics.uncertainty import vacuity
from mindvideo.models.layers import describe_operators
from mindvideo.tasks.openset_data import PARTS, RecognitionData, check_videos, find_videos
from mindvideo.tasks.openset_objective import Objective, TrainingInputs, check_fit, evidence_of, look_once, make_model
from mindvideo.tasks.openset_report import write_report
from mindvideo.tasks.openset_scores import Scores, load_scores
from mindvideo.tasks.openset_sections import open_set_sections
from mindvideo.tasks.openset_views import (
    Scorer,
    alpha_of,
    hash_of_videos,
    hash_of_weights,
    how_seen,
    score_videos,
    score_views,
)
from mindvideo.tasks.setup import begin, make_step, run_folder, starting_state


def train(config: Config) -> Path:
    """Train, test, and return the run's folder; `train.resume=auto` continues an unfinished run.

    The best checkpoint on validation sources is tested, or the last one where `data.validation` is 0, as published.
    """
    device, unfinished = begin(config)
    found = find_videos(config)
    model = make_model(config, len(found.classes))
    scorer = Scorer(model)
    objective = Objective(model, config, len(found.classes))
    map_frames = check_fit(config, objective)
    data = check_videos(config, found)
    steps_per_epoch = _steps_per_epoch(config, data)
    num_steps = config.train.epochs * steps_per_epoch
    optimizer = _make_optimizer(config, objective, steps_per_epoch)
    step = make_step(config, device, objective, model, optimizer, half=model.backbone)
    state = starting_state(config, model, step, unfinished)
    state.classes = found.classes
    if config.train.backbone and not unfinished:
        load_part(Path(config.train.backbone), model, config.model.name, "backbone.")
        if step.average:
            step.average.restart()
    inputs = TrainingInputs(objective, config, steps_per_epoch, map_frames)
    folder = run_folder(config, unfinished, state, device, num_steps)
    objective.set_train()
    with RunLog(folder, step=state.step, tensorboard=config.train.tensorboard) as log:
        if state.step < num_steps:
            fit(
                step, _batches(config, data, inputs, state.step, num_steps), model=model, state=state,
                num_steps=num_steps, folder=folder, log=log,
                measure=_measure(config), validate=_validation(config, data, scorer),
                validate_every=config.train.validate_every * steps_per_epoch,
                save_every=config.train.save_every, log_every=config.train.log_every,
            )  # fmt: skip
    say(f"[End of training `{config.model.name}`] {state.seconds / 60:.1f} min")
    tested, name = state, "last.ckpt"
    if data.parts["val"] or step.average:
        name = "best.ckpt"
        tested = load_checkpoint(folder / name, model, config.model.name)
    finish(config, scorer, data, folder, checkpoint=name, tested=tested, trained=state)
    return folder


def evaluate(config: Config, checkpoint: Path) -> Path:
    """Test a checkpoint in a folder of its own, and return that folder."""
    scorer, data, state = _load(config, checkpoint)
    folder = new_run(Path(config.output), f"{config.name}-eval", to_yaml(config))
    finish(config, scorer, data, folder, checkpoint=str(checkpoint), tested=state, trained=state)
    return folder


def predict(config: Config, checkpoint: Path, folder: Path) -> Path:
    """Score what the experiments need, in `folder`/scores, and return that folder; a file there of the same weights,
    videos and settings is kept."""
    scorer, data, _ = _load(config, checkpoint)
    write_scores(config, scorer, data, folder / "scores")
    return folder / "scores"


def _load(config: Config, checkpoint: Path) -> tuple[Scorer, RecognitionData, TrainingState]:
    """A checkpoint's classifier and the videos that it is tested on."""
    use_device(config.device)
    ms.set_seed(config.seed)
    found = find_videos(config)
    model = make_model(config, len(found.classes))
    state = load_checkpoint(checkpoint, model, config.model.name)
    look_once(config, model)
    scorer = Scorer(model)
    # Of training videos only what thresholds are taken from, where there are videos to reject.
    parts = PARTS if config.unknown.dataset != "none" else ("test",)
    return scorer, check_videos(config, found, parts), state


def _steps_per_epoch(config: Config, data: RecognitionData) -> int:
    num_videos, batch, accumulate = len(data.parts["train"]), config.train.batch, config.train.accumulate
    if num_videos < batch * accumulate:
        times = f" and train.accumulate {accumulate}" if accumulate > 1 else ""
        raise InputError(f"train.batch is {batch}{times}, but there are {num_videos} training videos.")
    return num_videos // batch // accumulate


def _make_optimizer(config: Config, objective: Objective, steps_per_epoch: int) -> nn.Optimizer:
    settings = config.optim
    rates = learning_rates(
        settings.schedule, settings.lr, config.train.epochs * steps_per_epoch,
        decay_every=settings.decay_every * steps_per_epoch, decay_factor=settings.decay_factor,
        hold=steps_per_epoch, warmup=settings.warmup * steps_per_epoch,
    )  # fmt: skip
    return make_sgd(
        [objective.model, *objective.heads], rates, momentum=settings.momentum, nesterov=settings.nesterov,
        weight_decay=settings.weight_decay, scale=tsm_scale if settings.groups == "tsm" else same_scale,
    )  # fmt: skip


def _batches(
    config: Config, data: RecognitionData, inputs: TrainingInputs, start: int, stop: int
) -> Iterator[tuple[Tensor, ...]]:
    """The inputs of `Objective`, of this process's batches from step `start` on."""
    accumulate = config.train.accumulate
    numbers = own_batches(start, stop, accumulate)
    batches = load_batches(
        data.parts["train"], data.classes, data.train_reader, batch=config.train.batch, seed=config.seed,
        numbers=numbers, per_epoch=inputs.steps_per_epoch * accumulate, workers=config.data.workers,
    )  # fmt: skip
    for number, (clips, labels) in zip(numbers, batches, strict=True):
        yield tuple(Tensor(array) for array in (clips, labels, *inputs(number)))


def _validation(config: Config, data: RecognitionData, scorer: Scorer) -> Callable[[], float] | None:
    """Top-1 accuracy on the sources held out, by one view of the middle; None where there are none."""
    samples = data.parts["val"]
    if not samples:
        return None
    reader = replace(data.view_reader, num_clips=1, transform=replace(data.view_reader.transform, views="center"))
    labels_N = np.array([data.classes.index(sample.label) for sample in samples])

    def validate() -> float:
        views = score_views(scorer, samples, reader, batch=config.eval.batch, workers=config.data.workers)
        return float(metrics.top_k_hits(views.logits[:, 0], labels_N, 1).mean())

    return validate


def _measure(config: Config) -> Callable[[Tensor, tuple[Tensor, ...]], dict[str, float]]:
    """What is logged of a training batch, whose second input is the classes: top-1 accuracy, and of evidential methods
    the mean vacuity and the mean total evidence of the clips that are right and of those that are wrong, 0 without any.
    """
    evidence = evidence_of(config)

    def measure(scores: Tensor, batch: tuple[Tensor, ...]) -> dict[str, float]:
        logits_BK = scores.asnumpy()
        hits_B = logits_BK.argmax(axis=1) == batch[1].asnumpy()
        numbers = {"accuracy": float(hits_B.mean())}
        if evidence:
            alpha_BK = alpha_of(logits_BK, evidence)
            total_B = alpha_BK.sum(axis=1) - alpha_BK.shape[1]
            numbers["vacuity"] = float(vacuity(alpha_BK).mean())
            for name, chosen in (("evidence_right", hits_B), ("evidence_wrong", ~hits_B)):
                numbers[name] = float(total_B[chosen].mean()) if chosen.any() else 0.0
        return numbers

    return measure


def write_scores(config: Config, scorer: Scorer, data: RecognitionData, folder: Path) -> dict[str, Scores]:
    """Scores of the known classes' test videos, `known.npz`; where there are unknown videos also theirs,
    `unknown_DATASET.npz`, and for thresholds those of training and validation, `train.npz` and `val.npz`. By part.

    A file of the same weights, videos and settings is read instead of made anew.
    """
    names = {"test": "known"}
    if "unknown" in data.parts:
        names |= {"unknown": f"unknown_{config.unknown.dataset}", "train": "train"}
        names |= {"val": "val"} if data.parts.get("val") else {}
    weights, settings = hash_of_weights(scorer.model), how_seen(config)
    scores: dict[str, Scores] = {}
    for part, name in names.items():
        path, samples = folder / f"{name}.npz", data.parts[part]
        if from_first(lambda: _is_kept(path, weights, hash_of_videos(samples), settings)):  # noqa: B023 (called at once)
            scores[part] = load_scores(path)
            continue
        shown = sorted({sample.label for sample in samples}) if part == "unknown" else data.classes
        scores[part] = score_videos(
            scorer, samples, data.view_reader, config,
            classes=data.classes, label_names=shown, what=f"{name} videos",
        )  # fmt: skip
        if is_first():
            scores[part].save(path)
    return scores


def _is_kept(path: Path, weights: str, videos: str, settings: dict[str, Any]) -> bool:
    """Whether a file of scores is there, and of these."""
    if not path.is_file():
        return False
    old = load_scores(path)
    kept = (old.model_hash, old.data_hash, old.settings) == (weights, videos, settings)
    verdict = "kept, of the same weights, videos and settings"
    say(f"{path}: {verdict if kept else 'made anew, as weights, videos or settings are others'}")
    return kept


def finish(
    config: Config,
    scorer: Scorer,
    data: RecognitionData,
    folder: Path,
    *,
    checkpoint: str,
    tested: TrainingState,
    trained: TrainingState,
) -> None:
    """Test on the known classes' test videos, and on unknown ones if the config names any, and write scores/,
    result.json and report.html.

    `tested` is the state of `checkpoint`, whose weights the scorer's model holds, and `trained` where training ended.
    """
    started = time.monotonic()
    scores = write_scores(config, scorer, data, folder / "scores")
    if not is_first():
        return
    sections, open_set = open_set_sections(folder / "scores") if "unknown" in scores else ([], {})
    result = write_result(
        folder,
        {
            "task": "openset", "model": config.model.name, "method": config.loss.name, "dataset": config.data.dataset,
            "split": config.data.test_list or config.data.split, "seed": config.seed,
            "views": f"{config.eval.clips} x {config.eval.crops}",
            "metrics": _numbers(scores["test"]), "open_set": open_set,
            "chance": 1 / len(data.classes), "classes": data.classes,
            "videos": {part: len(members) for part, members in data.parts.items()},
            "excluded_videos": sorted(data.excluded), "checkpoint": checkpoint, "checkpoint_step": tested.step,
            "train_steps": trained.step, "train_seconds": round(trained.seconds, 1),
            "operators": describe_operators(), "test_seconds": round(time.monotonic() - started, 1),
        },
        to_yaml(config),
    )  # fmt: skip
    write_report(folder, config, data, scores["test"], result, sections)
    top1 = result["metrics"]["top1"]
    say(
        f"result: top-1 accuracy {100 * top1['value']:.2f} % (95 % interval {100 * top1['low_95']:.2f} to "
        f"{100 * top1['high_95']:.2f}) on {top1['n']} videos of {len(data.classes)} known classes"
    )
    say(f"report: {(folder / 'report.html').resolve()}")


def _numbers(scores: Scores) -> dict[str, dict[str, float]]:
    """The metrics of the closed set, with their intervals where they are shares."""
    numbers: dict[str, dict[str, float]] = {}
    for k in (1, 5):
        share, low, high = metrics.share_interval(metrics.top_k_hits(scores.probabilities, scores.labels, k))
        numbers[f"top{k}"] = {"value": share, "low_95": low, "high_95": high, "n": len(scores.labels)}
    mean = metrics.mean_class_accuracy(scores.probabilities, scores.labels)
    numbers["mean_class_accuracy"] = {"value": mean, "n": len(scores.labels)}
    if "vacuity" in scores.uncertainties:
        numbers["vacuity"] = {"value": float(scores.uncertainties["vacuity"].mean()), "n": len(scores.labels)}
    return numbers
