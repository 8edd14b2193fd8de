# SPDX-License-Identifier: Apache-2.0
"""Action recognition from poses: a network is trained and tested on each fold of a protocol, one after the other.

Steps are counted through all folds. Fold k leaves the model that is tested as `fold<k>.ckpt`, which says of itself
which fold it is of. N clips, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from mindvideo.config import Config, to_yaml
from mindvideo.data.pose import collate, padded_length
from mindvideo.engine.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from mindvideo.engine.device import use_device
from mindvideo.engine.distributed import gather_rows, is_first, shard
from mindvideo.engine.log import RunLog, progress_bar, say
from mindvideo.engine.loop import fit
from mindvideo.engine.optim import learning_rates, make_adamax
from mindvideo.engine.run import new_run
from mindvideo.errors import InputError
from mindvideo.losses.fewshot import classification_loss
from mindvideo.models import create_model
from mindvideo.models.actionnet import ActionNet
from mindvideo.tasks.pose_data import PoseData, load_batches, prepare_data, steps_per_epoch
from mindvideo.tasks.pose_report import FoldResult, finish
from mindvideo.tasks.setup import (
    begin,
    make_step,
    model_options,
    run_folder,
    starting_state,
)


def train(config: Config) -> Path:
    """Train and test every fold, and return the run's folder; `train.resume=auto` continues an unfinished run.

    With `data.validation` a fold's best checkpoint on validation clips is tested, otherwise its last one, as published.
    """
    device, unfinished = begin(config)
    data = prepare_data(config)
    model = make_model(config, len(data.classes))
    training = Training(config, data, model, device)
    state = starting_state(config, model, training.step, unfinished)
    state.classes = data.classes
    folder = run_folder(config, unfinished, state, device, training.ends[-1])
    with RunLog(folder, step=state.step, tensorboard=config.train.tensorboard) as log:
        training.run(state, folder, log)
    say(f"[End of training `{config.model.name}`] {state.seconds / 60:.1f} min")
    results = _test_all(config, data, training, folder)
    if is_first():
        finish(config, data, folder, results, steps=[0, *training.ends], trained=state)
    return folder


def evaluate(config: Config, checkpoint: Path) -> Path:
    """Test a checkpoint on the clips that its fold keeps from training, in a folder of its own; return that folder."""
    use_device(config.device)
    ms.set_seed(config.seed)
    data = prepare_data(config)
    model = make_model(config, len(data.classes))
    state = load_checkpoint(checkpoint, model, config.model.name)
    number = _fold_of(config, data, state, checkpoint)
    folder = new_run(Path(config.output), f"{config.name}-eval", to_yaml(config))
    result = _test(config, data, number, Classifier(model), str(checkpoint), state)
    if is_first():
        finish(config, data, folder, [result], steps=[], trained=state)
    return folder


def make_model(config: Config, num_classes: int) -> ActionNet:
    """The model with the options it has; InputError if another option is set, which would have no effect."""
    options = model_options(config)
    model = create_model(config.model.name, num_classes=num_classes, **options)
    if not isinstance(model, ActionNet):
        raise InputError(f"model.name: {config.model.name} is no model of poses; see `mindvideo models`.")
    model.initialize(config.seed)
    return model


class Classifier:
    """A network as graphs, compiled once for each length that clips are filled up to."""

    def __init__(self, model: ActionNet):
        self.model = model
        self._graph = ms.jit(model.construct)

    def logits(self, clips: Sequence[np.ndarray], batch: int) -> np.ndarray:
        """Logits `[N, K]` of clips `[T, 24, 6]` of any lengths, `batch` at a time, by all processes together."""
        own, logits = shard(clips), []
        with progress_bar("classify clips", len(own)) as progress:
            for start in range(0, len(own), batch):
                chosen = list(own[start : start + batch])
                # Always a full batch, for the graph's sake: the last is filled up with its first clip.
                filled = chosen + chosen[:1] * (batch - len(chosen))
                poses, lengths = collate(filled, padded_length(max(map(len, filled))))
                logits.append(self._graph(Tensor(poses), Tensor(lengths)).asnumpy()[: len(chosen)])
                progress(start + len(chosen))
        return gather_rows(np.concatenate(logits) if logits else np.zeros(0))


class Objective(nn.Cell):
    """The training loss of a batch: softmax cross-entropy."""

    def __init__(self, model: ActionNet):
        super().__init__(auto_prefix=False)  # the model's parameters keep their names
        self.model = model

    def construct(
        self, poses_BTJC: Tensor, lengths_B: Tensor, classes_B: Tensor, seed: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Loss, and logits `[B, K]`; `seed` is that of dropout."""
        logits_BK = self.model(poses_BTJC, lengths_B, seed)
        return classification_loss(logits_BK, classes_B), logits_BK


class Training:
    """The training of one fold after another by one network, optimizer and graph, which is compiled once."""

    def __init__(self, config: Config, data: PoseData, model: ActionNet, device: str):
        self.config, self.data, self.model = config, data, model
        self.classifier = Classifier(model)
        self.numbers = data.numbers(config)
        epochs, settings = config.train.epochs, config.optim
        per_epoch = [steps_per_epoch(config, data.folds[number]) for number in self.numbers]
        self.ends = [epochs * steps for steps in accumulate(per_epoch)]
        rates = [
            learning_rates(
                settings.schedule, settings.lr, epochs * steps, decay_every=settings.decay_every * steps,
                decay_factor=settings.decay_factor, hold=steps,
            )
            for steps in per_epoch
        ]  # fmt: skip
        self.optimizer = make_adamax([model], np.concatenate(rates), weight_decay=settings.weight_decay)
        self.step = make_step(config, device, Objective(model), model, self.optimizer)

    def run(self, state: TrainingState, folder: Path, log: RunLog) -> None:
        """Train from `state.step` to the end of the last fold and store each fold's tested model."""
        for number, first, stop in zip(self.numbers, [0, *self.ends], self.ends, strict=False):
            if state.step > stop:
                continue
            if state.step == first:
                self._begin(state, number)
            # Where a run was stopped at the end of a fold, that fold may not be stored yet.
            if state.step < stop:
                self._fit(state, number, first, stop, folder, log)
            tested = state
            if self.config.data.validation or self.step.average:
                tested = load_checkpoint(folder / "best.ckpt", self.model, self.config.model.name)
            save_checkpoint(folder / checkpoint_of(number), self.model, tested)

    def _begin(self, state: TrainingState, number: int) -> None:
        """Start a fold anew: weights, optimizer, and what counts as best."""
        fold, pretrained = self.data.folds[number], self.config.train.pretrained
        say(f"fold {number + 1} of {len(self.data.folds)}: {fold.name}, by {len(fold.train)} clips of others")
        self.model.initialize(self.config.seed)
        if pretrained:
            load_checkpoint(Path(pretrained), self.model, self.config.model.name)
        self.optimizer.restart()
        if self.step.average:
            self.step.average.restart()
        state.best, state.best_step = float("-inf"), 0
        state.config["data"]["fold"] = number + 1

    def _fit(self, state: TrainingState, number: int, first: int, stop: int, folder: Path, log: RunLog) -> None:
        per_epoch = steps_per_epoch(self.config, self.data.folds[number])
        fit(
            self.step, load_batches(self.config, self.data, number, first=first, start=state.step, stop=stop),
            model=self.model, state=state, num_steps=stop,
            folder=folder, log=log, measure=_measure, validate=self._validation(number),
            validate_every=self.config.train.validate_every * per_epoch,
            save_every=self.config.train.save_every, log_every=self.config.train.log_every,
        )  # fmt: skip

    def _validation(self, number: int) -> Callable[[], float] | None:
        """Accuracy on the fold's validation clips; None where there are none."""
        places = list(self.data.folds[number].val)
        if not places:
            return None

        def validate() -> float:
            logits_NK = self.classifier.logits([self.data.poses[i] for i in places], self.config.eval.batch)
            return float((logits_NK.argmax(axis=1) == self.data.labels[places]).mean())

        return validate


def checkpoint_of(number: int) -> str:
    """The file of a fold's tested model, the fold being counted from 0 and the file from 1."""
    return f"fold{number + 1}.ckpt"


def _measure(logits_BK: Tensor, batch: tuple[Tensor, ...]) -> dict[str, float]:
    """Accuracy on a training batch, whose third input is the classes."""
    return {"accuracy": float((logits_BK.asnumpy().argmax(axis=1) == batch[2].asnumpy()).mean())}


def _test_all(config: Config, data: PoseData, training: Training, folder: Path) -> list[FoldResult]:
    """Test the folds' models, and keep the one of best validation as best.ckpt too, without validation the first."""
    model, name = training.model, config.model.name
    results = []
    for number in training.numbers:
        state = load_checkpoint(folder / checkpoint_of(number), model, name)
        results.append(_test(config, data, number, training.classifier, checkpoint_of(number), state))
    best = max(results, key=lambda result: result.state.best)
    save_checkpoint(folder / "best.ckpt", model, load_checkpoint(folder / best.checkpoint, model, name))
    return results


def _test(
    config: Config, data: PoseData, number: int, classifier: Classifier, checkpoint: str, state: TrainingState
) -> FoldResult:
    started, places = time.monotonic(), data.folds[number].test
    logits_NK = classifier.logits([data.poses[i] for i in places], config.eval.batch)
    return FoldResult(number, checkpoint, state, logits_NK.argmax(axis=1), time.monotonic() - started)


def _fold_of(config: Config, data: PoseData, state: TrainingState, checkpoint: Path) -> int:
    """The number, from 0, of the fold that a checkpoint is of: what it says itself, or else `data.fold`, which it
    becomes.

    InputError if it does not fit these data, or was trained in another fold, whose training clips would be tested.
    """
    if state.classes and state.classes != data.classes:
        raise InputError(f"{checkpoint}: its classes are {', '.join(state.classes)}; these clips show others.")
    own = state.config.get("data", {})
    for key in ("protocol", "folds", "validation"):
        if own.get(key, config.data[key]) != config.data[key]:
            raise InputError(f"{checkpoint} was trained with data.{key}={own[key]}; with another it has seen its test.")
    chosen = own.get("fold") or config.data.fold
    if not chosen:
        raise InputError(f"{checkpoint} does not say which fold it is of: set data.fold, 1 to {len(data.folds)}.")
    if config.data.fold not in (0, chosen):
        raise InputError(f"{checkpoint} is of fold {chosen}: it was trained on the clips that data.fold would test.")
    config.data.fold = chosen
    return data.numbers(config)[0]
