# SPDX-License-Identifier: Apache-2.0
"""Few-shot action recognition: train on episodes of some classes, choose on others, test on others still.

N classes of an episode (way), K support clips a class (shot), M queries, C matrix size, D descriptor size.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindvideo.config import Config, to_yaml
from mindvideo.data.episodes import EpisodeSampler
from mindvideo.data.loader import ClipReader, load_clips, load_episodes
from mindvideo.data.manifest import Sample
from mindvideo.engine.checkpoint import TrainingState, load_checkpoint
from mindvideo.engine.device import use_device
from mindvideo.engine.log import RunLog, progress_bar, say
from mindvideo.engine.loop import fit
from mindvideo.engine.optim import learning_rates, make_adam, make_step
from mindvideo.engine.run import check_same_run, latest_run, new_run, write_result
from mindvideo.errors import InputError
from mindvideo.losses.fewshot import classification_loss, relation_loss
from mindvideo.metrics import fewshot as metrics
from mindvideo.models import create_model
from mindvideo.models.arn import ARN
from mindvideo.models.layers import describe_operators, initialize
from mindvideo.tasks.fewshot_data import FewShotData, prepare_data
from mindvideo.tasks.fewshot_report import write_report


@dataclass
class EpisodeResults:
    """What the episodes of one evaluation gave; `scores` `[E, M, N]`, class lists `[E, N]`."""

    sampler: EpisodeSampler
    classes: list[tuple[str, ...]]
    scores: np.ndarray
    control_scores: np.ndarray

    @property
    def labels_M(self) -> np.ndarray:
        """The class number of each query, the same in all episodes."""
        return np.repeat(np.arange(self.sampler.way), self.sampler.query)

    def accuracies(self, scores: np.ndarray) -> np.ndarray:
        """Accuracy of each episode."""
        return np.array([metrics.episode_accuracy(s, self.labels_M) for s in scores])

    def confusion(self) -> np.ndarray:
        """Counts over all episodes, by class of the whole set: row true, column predicted."""
        number = {name: i for i, name in enumerate(self.sampler.classes)}
        of_episode = np.array([[number[name] for name in names] for names in self.classes])
        true = of_episode[:, self.labels_M]
        predicted = np.take_along_axis(of_episode, self.scores.argmax(axis=2), axis=1)
        return metrics.confusion_matrix(true.ravel().tolist(), predicted.ravel().tolist(), len(number))


def train(config: Config) -> Path:
    """Train, test the best model, and return the run's folder; `train.resume=auto` continues an unfinished run."""
    device = use_device(config.device)
    ms.set_seed(config.seed)
    unfinished = _unfinished_run(config)
    data = prepare_data(config)
    model = _make_model(config)
    classifier = _make_classifier(config, model, len(data.samplers["train"].classes))
    rates = learning_rates(
        config.optim.schedule, config.optim.lr, config.train.episodes,
        decay_every=config.optim.decay_every, decay_factor=config.optim.decay_factor,
    )  # fmt: skip
    optimizer = make_adam([model, classifier], rates, weight_decay=config.optim.weight_decay)
    state = TrainingState(model=config.model.name, config=config.to_dict())
    if unfinished:
        state = load_checkpoint(unfinished / "last.ckpt", model, config.model.name, optimizer)
    elif config.train.pretrained:
        load_checkpoint(Path(config.train.pretrained), model, config.model.name)
    # Made last, so that a mistake in the input leaves no empty folder behind.
    folder = unfinished or new_run(Path(config.output), config.name, to_yaml(config))
    say(f"{device}, {describe_operators()}")
    say(f"[Start training `{config.model.name}`] {folder}, episode {state.step}/{config.train.episodes}")
    model.set_train()
    with RunLog(folder, step=state.step, tensorboard=config.train.tensorboard) as log:
        if state.step < config.train.episodes:
            _fit(config, data, model, classifier, optimizer, state, folder, log)
    say(f"[End of training `{config.model.name}`] {state.seconds / 60:.1f} min")
    best = load_checkpoint(folder / "best.ckpt", model, config.model.name)
    finish(config, model, data, folder, checkpoint="best.ckpt", tested=best, trained=state)
    return folder


def evaluate(config: Config, checkpoint: Path) -> Path:
    """Test a checkpoint in a folder of its own, and return that folder."""
    use_device(config.device)
    ms.set_seed(config.seed)
    model = _make_model(config)
    state = load_checkpoint(checkpoint, model, config.model.name)
    data = prepare_data(config, parts=("test",))
    folder = new_run(Path(config.output), f"{config.name}-eval", to_yaml(config))
    finish(config, model, data, folder, checkpoint=str(checkpoint), tested=state, trained=state)
    return folder


def _unfinished_run(config: Config) -> Path | None:
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


def _make_model(config: Config) -> ARN:
    options = {key: value for key, value in config.model.items() if key != "name"}
    model = create_model(config.model.name, **options)
    initialize(model, config.seed)
    assert isinstance(model, ARN)
    return model


def _make_classifier(config: Config, model: ARN, num_classes: int) -> nn.Cell:
    """The linear head of `loss.classify`. It serves training alone: checkpoints keep it with the optimizer's state."""
    if config.loss.classify == 0:
        return nn.SequentialCell()
    classifier = nn.Dense(model.num_features, num_classes)
    classifier.update_parameters_name("classifier.")
    initialize(classifier, config.seed)
    return classifier


def _fit(
    config: Config,
    data: FewShotData,
    model: ARN,
    classifier: nn.Cell,
    optimizer: nn.Optimizer,
    state: TrainingState,
    folder: Path,
    log: RunLog,
) -> None:
    samples, sampler = data.parts["train"], data.samplers["train"]
    labels_M = np.repeat(np.arange(sampler.way), sampler.query)
    target_MN = Tensor(np.eye(sampler.way, dtype=np.float32)[labels_M])

    weight = config.loss.classify

    def forward(support: Tensor, query: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        support_psi, query_psi = model.encode_episode(support, query)
        scores = model.compare(support_psi, query_psi)
        loss = relation_loss(scores, target_MN)
        if weight > 0:
            features = ops.cat((support_psi.flatten(0, 1), query_psi)).flatten(1)
            loss = loss + weight * classification_loss(classifier(features), classes)
        return loss, scores

    def batches() -> Iterator[tuple[Tensor, ...]]:
        episodes = load_episodes(
            sampler, samples, data.train_reader,
            start=state.step, stop=config.train.episodes, workers=config.data.workers,
        )  # fmt: skip
        for number, (support, query) in enumerate(episodes, start=state.step):
            classes = [sampler.classes.index(name) for name in sampler.episode(number).classes]
            each = np.concatenate([np.repeat(classes, sampler.shot), np.repeat(classes, sampler.query)])
            yield Tensor(support), Tensor(query), Tensor(each.astype(np.int32))

    validate = _validation(config, data, model)
    fit(
        make_step(forward, optimizer, clip_norm=config.optim.clip_norm), batches(),
        model=model, optimizer=optimizer, state=state, num_steps=config.train.episodes, folder=folder, log=log,
        accuracy=lambda scores: metrics.episode_accuracy(scores.asnumpy(), labels_M),
        validate=validate, validate_every=config.train.validate_every,
        save_every=config.train.save_every, log_every=config.train.log_every,
    )  # fmt: skip


def _validation(config: Config, data: FewShotData, model: ARN) -> Callable[[], float]:
    """Accuracy over fixed episodes of the validation classes."""
    samples, sampler = data.parts["val"], data.samplers["val"]
    if sampler.way < config.eval.way:
        say(f"validation is {sampler.way}-way: there are no more validation classes on disk.")

    def validate() -> float:
        results = run_episodes(
            model, sampler, samples, data.eval_reader, num_episodes=config.train.validate_episodes,
            batch=config.eval.batch, workers=config.data.workers,
        )  # fmt: skip
        return float(results.accuracies(results.scores).mean())

    return validate


@functools.cache
def _compiled(model: ARN) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]:
    """`encode` and `compare` as graphs, compiled once for all validations and the test."""
    return ms.jit(model.encode), ms.jit(model.compare)


def run_episodes(
    model: ARN,
    sampler: EpisodeSampler,
    samples: list[Sample],
    reader: ClipReader,
    *,
    num_episodes: int,
    batch: int,
    workers: int,
) -> EpisodeResults:
    """Score episodes 0 to `num_episodes` - 1 with the model and with the crude control.

    Frames are chosen without randomness and BatchNorm uses its running statistics, so a clip's matrix is the same in
    every episode: each clip is encoded once.
    """
    psi_SCC, thumbnail_SD = encode_all(model, samples, reader, batch=batch, workers=workers)
    _, compare = _compiled(model)
    scores, control, classes = [], [], []
    with progress_bar("episodes", num_episodes) as progress:
        for number in range(num_episodes):
            episode = sampler.episode(number)
            support_NK, query_M = episode.support_NK, episode.query_NQ.ravel()
            scores.append(compare(Tensor(psi_SCC[support_NK]), Tensor(psi_SCC[query_M])).asnumpy())
            control.append(metrics.nearest_mean_scores(thumbnail_SD[support_NK], thumbnail_SD[query_M]))
            classes.append(episode.classes)
            progress(number + 1)
    return EpisodeResults(sampler, classes, np.stack(scores), np.stack(control))


def encode_all(
    model: ARN, samples: list[Sample], reader: ClipReader, *, batch: int, workers: int
) -> tuple[np.ndarray, np.ndarray]:
    """Matrices Psi `[S, C, C]` and control descriptors `[S, D]` of all samples."""
    encode, _ = _compiled(model)
    matrices: list[np.ndarray] = []
    descriptors: list[np.ndarray] = []
    waiting: list[np.ndarray] = []

    def encode_waiting() -> None:
        # Always a full batch, so that one compiled graph serves: the last is filled up with its first clip.
        filled = waiting + [waiting[0]] * (batch - len(waiting))
        matrices.extend(encode(Tensor(np.stack(filled))).asnumpy()[: len(waiting)])
        waiting.clear()

    with progress_bar("encode", len(samples)) as progress:
        for done, clip in enumerate(load_clips(samples, reader, workers=workers), start=1):
            descriptors.append(metrics.thumbnail_descriptor(reader.transform.denormalize(clip)))
            waiting.append(clip)
            if len(waiting) == batch or done == len(samples):
                encode_waiting()
            progress(done)
    return np.stack(matrices), np.stack(descriptors)


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
    model.set_train(False)
    samples, sampler, shape = data.parts["test"], data.samplers["test"], config.eval
    results = run_episodes(
        model, sampler, samples, data.eval_reader,
        num_episodes=shape.episodes, batch=shape.batch, workers=config.data.workers,
    )  # fmt: skip
    mean, half = metrics.mean_interval(results.accuracies(results.scores))
    control_mean, control_half = metrics.mean_interval(results.accuracies(results.control_scores))
    result = write_result(
        folder,
        {
            "task": "fewshot", "model": config.model.name, "dataset": config.data.dataset,
            "split": config.data.split or config.data.dataset, "seed": config.seed,
            "way": shape.way, "shot": shape.shot, "query": shape.query,
            "metrics": {"accuracy": {"value": mean, "half_width_95": half, "n": shape.episodes}},
            "control": {
                "name": "nearest mean of 16x12 thumbnails (mean and deviation over time)",
                "accuracy": {"value": control_mean, "half_width_95": control_half, "n": shape.episodes},
            },
            "chance": 1 / shape.way, "classes": data.describe(), "excluded_videos": sorted(data.excluded),
            "checkpoint": checkpoint, "checkpoint_episode": tested.step,
            "train_episodes": trained.step, "train_seconds": round(trained.seconds, 1),
            "operators": describe_operators(), "test_seconds": round(time.monotonic() - started, 1),
        },
        to_yaml(config),
    )  # fmt: skip
    write_report(folder, config, data, results, result)
    say(
        f"result: {shape.way}-way {shape.shot}-shot accuracy {100 * mean:.2f} +- {100 * half:.2f} % over "
        f"{shape.episodes} episodes of {len(sampler.classes)} unseen classes; "
        f"control {100 * control_mean:.2f} +- {100 * control_half:.2f} %"
    )
    say(f"report: {(folder / 'report.html').resolve()}")
