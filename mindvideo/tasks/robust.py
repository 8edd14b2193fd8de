# SPDX-License-Identifier: Apache-2.0
"""Robust image classification: train a classifier with or without defences, and test it on images as they are.

`mindvideo attack` (robust_attack.py) then says what the defences are worth.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from mindvideo.config import Config, to_yaml
from mindvideo.data.loader import load_batches
from mindvideo.engine.checkpoint import TrainingState, load_checkpoint
from mindvideo.engine.device import use_device
from mindvideo.engine.distributed import gather_rows, is_first, own_batches, shard
from mindvideo.engine.log import RunLog, say
from mindvideo.engine.loop import fit
from mindvideo.engine.optim import learning_rates, make_adamax
from mindvideo.engine.run import new_run
from mindvideo.errors import InputError
from mindvideo.tasks.robust_data import ImageData, find_images, read_images
from mindvideo.tasks.robust_objective import (
    Objective,
    TrainingInputs,
    check_loss,
    defend,
    make_network,
    make_target,
)
from mindvideo.tasks.robust_report import finish
from mindvideo.tasks.setup import begin, make_step, run_folder, starting_state


def train(config: Config) -> Path:
    """Train and test, and return the run's folder; `train.resume=auto` continues an unfinished run.

    The best checkpoint on validation images is tested, or the last one where `data.validation` is 0.
    """
    check_loss(config)
    if config.train.padded_epochs and not config.defence.padding:
        raise InputError(f"train.padded_epochs is {config.train.padded_epochs}, but defence.padding is 0.")
    device, unfinished = begin(config)
    data = find_images(config)
    training = Training(config, data, device)
    state = starting_state(config, training.network, training.step, unfinished)
    state.classes = data.classes
    folder = run_folder(config, unfinished, state, device, training.ends[-1])
    with RunLog(folder, step=state.step, tensorboard=config.train.tensorboard) as log:
        training.run(state, folder, log)
    say(f"[End of training `{config.model.name}`] {state.seconds / 60:.1f} min")
    tested, name = state, "last.ckpt"
    if data.parts["val"] or training.step.average:
        name = "best.ckpt"
        tested = load_checkpoint(folder / name, training.network, config.model.name)
    _test(config, data, training.network, folder, checkpoint=name, tested=tested, trained=state)
    return folder


def evaluate(config: Config, checkpoint: Path) -> Path:
    """Test a checkpoint on images as they are, in a folder of its own, and return that folder."""
    use_device(config.device)
    ms.set_seed(config.seed)
    data = find_images(config)
    network = make_network(config, len(data.classes))
    state = load_checkpoint(checkpoint, network, config.model.name)
    folder = new_run(Path(config.output), f"{config.name}-eval", to_yaml(config))
    _test(config, data, network, folder, checkpoint=str(checkpoint), tested=state, trained=state)
    return folder


class Training:
    """Training without the random padding, and then, for `train.padded_epochs`, with it, by one optimizer."""

    def __init__(self, config: Config, data: ImageData, device: str):
        self.config, self.data = config, data
        num_classes = len(data.classes)
        self.network = make_network(config, num_classes)
        self.models = {padded: defend(config, self.network, padded=padded) for padded in (False, True)}
        found, batch, accumulate = len(data.parts["train"]), config.train.batch, config.train.accumulate
        self.per_epoch = found // batch // accumulate
        if not self.per_epoch:
            times = f" and train.accumulate {accumulate}" if accumulate > 1 else ""
            raise InputError(f"train.batch is {batch}{times}, but there are {found} training images.")
        stages = config.train.epochs, config.train.epochs + config.train.padded_epochs
        self.ends = [epochs * self.per_epoch for epochs in stages]
        settings = config.optim
        rates = learning_rates(
            settings.schedule, settings.lr, self.ends[-1], decay_every=settings.decay_every * self.per_epoch,
            decay_factor=settings.decay_factor, hold=self.per_epoch,
        )  # fmt: skip

        def scale(name: str) -> tuple[float, float]:
            return (1.0 if name.startswith("head.") else settings.backbone), 1.0

        optimizer = make_adamax([self.network], rates, weight_decay=settings.weight_decay, scale=scale)
        self.step = make_step(config, device, self._objective(padded=False), self.network, optimizer)

    def run(self, state: TrainingState, folder: Path, log: RunLog) -> None:
        """Train from `state.step` to the end."""
        for stop, padded in zip(self.ends, (False, True), strict=True):
            if state.step < stop:
                if padded and state.step == self.ends[0]:
                    state.best, state.best_step = float("-inf"), 0  # of the first stage, which is not what is tested
                self._fit(state, stop, padded, folder, log)

    def _fit(self, state: TrainingState, stop: int, padded: bool, folder: Path, log: RunLog) -> None:
        config = self.config
        model = self.models[padded]
        # Attacks in training know of the defence: they look past the concealment.
        target = make_target(
            config, defend(config, self.network, padded=padded, identity_gradient=True), config.train.batch
        )
        inputs = TrainingInputs(config, len(self.data.classes), target)
        fit(
            self.step.towards(self._objective(padded=True)) if padded else self.step,
            self._batches(inputs, state.step, stop),
            model=self.network, state=state, num_steps=stop,
            folder=folder, log=log, measure=_measure, validate=self._validation(model),
            validate_every=config.train.validate_every * self.per_epoch,
            save_every=config.train.save_every, log_every=config.train.log_every,
        )  # fmt: skip

    def _objective(self, *, padded: bool) -> Objective:
        loss = self.config.loss
        beta = loss.adversarial if loss.attack == "trades" else 0.0
        return Objective(self.models[padded], self.config.train.batch, beta)

    def _batches(self, inputs: TrainingInputs, start: int, stop: int) -> Iterator[tuple[Tensor, ...]]:
        """The inputs of `Objective`, of this process's batches in these steps."""
        accumulate = self.config.train.accumulate
        numbers = own_batches(start, stop, accumulate)
        batches = load_batches(
            self.data.parts["train"], self.data.classes, self.data.reader, batch=self.config.train.batch,
            seed=self.config.seed, numbers=numbers, per_epoch=self.per_epoch * accumulate,
            workers=self.config.data.workers,
        )  # fmt: skip
        for number, (images, labels) in zip(numbers, batches, strict=True):
            yield inputs(number, images, labels)

    def _validation(self, model: nn.Cell) -> Callable[[], float] | None:
        samples = self.data.parts["val"]
        if not samples:
            return None
        images = read_images(self.data, shard(samples), self.config.data.workers)
        labels = self.data.labels(samples)
        target = make_target(self.config, model, self.config.eval.batch)

        def validate() -> float:
            return float((gather_rows(target.logits(images)).argmax(axis=1) == labels).mean())

        return validate


def _measure(logits_NK: Tensor, batch: tuple[Tensor, ...]) -> dict[str, float]:
    """Accuracy on all images of a step, mixed ones as of their first class."""
    return {"accuracy": float((logits_NK.asnumpy().argmax(axis=1) == batch[1].asnumpy()).mean())}


def _test(
    config: Config,
    data: ImageData,
    network: nn.Cell,
    folder: Path,
    *,
    checkpoint: str,
    tested: TrainingState,
    trained: TrainingState,
) -> None:
    """Test on images as they are, and write result.json and report.html."""
    started = time.monotonic()
    samples = data.parts["test"]
    target = make_target(config, defend(config, network), config.eval.batch)
    logits_NK = gather_rows(target.logits(read_images(data, shard(samples), config.data.workers)))
    if not is_first():
        return
    finish(
        config, data, folder, np.asarray(logits_NK), checkpoint=checkpoint, tested=tested, trained=trained,
        seconds=time.monotonic() - started,
    )  # fmt: skip
