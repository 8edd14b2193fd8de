# SPDX-License-Identifier: Apache-2.0
"""Score test episodes with a model and, beside it, with the controls that learn nothing.

N classes of an episode (way), K support clips a class (shot), M queries, U of them of no class and last; E episodes,
S samples.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from mindvideo.data.episodes import Episode, EpisodeSampler
from mindvideo.data.loader import ClipReader, load_clips, load_episodes
from mindvideo.data.manifest import Sample
from mindvideo.engine.distributed import gather_rows, shard
from mindvideo.engine.log import progress_bar
from mindvideo.metrics import fewshot as metrics
from mindvideo.models.arn import ARN

BATCH_NORM = ("running", "episode")


@dataclass
class EpisodeResults:
    """What the episodes of one evaluation gave, by method: `model` and the names of `metrics.CONTROLS`.

    `scores` `[E, M, N]` and `knownness` `[E, M]`, the higher the surer a query belongs to one of the classes;
    `classes` are the class names of each episode.
    """

    sampler: EpisodeSampler
    classes: list[tuple[str, ...]]
    scores: dict[str, np.ndarray]
    knownness: dict[str, np.ndarray]

    @property
    def labels_M(self) -> np.ndarray:
        """The class number of each query that has one, the same in all episodes."""
        return np.repeat(np.arange(self.sampler.way), self.sampler.query)

    def accuracies(self, method: str = "model") -> np.ndarray:
        """Accuracy of each episode, over the queries that have a class."""
        known = len(self.labels_M)
        return np.array([metrics.episode_accuracy(s[:known], self.labels_M) for s in self.scores[method]])

    def rejection(self, method: str = "model") -> np.ndarray:
        """AUROC of each episode: queries of its classes against those of none."""
        is_known = np.arange(len(self.labels_M) + self.sampler.unknown) < len(self.labels_M)
        return np.array([metrics.rejection_auroc(k, is_known) for k in self.knownness[method]])

    def confusion(self) -> np.ndarray:
        """Counts over all episodes, by class of the whole set: row true, column predicted by the model."""
        number = {name: i for i, name in enumerate(self.sampler.classes)}
        of_episode = np.array([[number[name] for name in names] for names in self.classes])
        true = of_episode[:, self.labels_M]
        chosen = self.scores["model"][:, : len(self.labels_M)].argmax(axis=2)
        predicted = np.take_along_axis(of_episode, chosen, axis=1)
        return metrics.confusion_matrix(true.ravel().tolist(), predicted.ravel().tolist(), len(number))


def run_episodes(
    model: ARN,
    sampler: EpisodeSampler,
    samples: list[Sample],
    reader: ClipReader,
    *,
    num_episodes: int,
    batch: int,
    workers: int,
    batch_norm: str,
    controls: Mapping[str, Callable[[np.ndarray], np.ndarray]],
) -> EpisodeResults:
    """Score episodes 0 to `num_episodes` - 1 with the model and with `controls`, descriptors of raw frames by name.

    Frames are chosen without randomness.

    With `batch_norm` "running" BatchNorm uses its running statistics: a clip's embedding is the same in every episode,
    so each clip is encoded once, `batch` at a time. With "episode" it uses those of the episode's support clips, query
    clips and pairs, as in training: the queries then see one another (transductive), and every episode is encoded anew.
    """
    alone = batch_norm == "running"
    scores: dict[str, list[np.ndarray]] = {method: [] for method in ("model", *controls)}
    knownness: dict[str, list[np.ndarray]] = {method: [] for method in scores}
    classes = []
    with _statistics(model, batch_norm):
        encoder = model if alone else None
        embeddings, descriptors = encode_all(encoder, controls, samples, reader, batch=batch, workers=workers)
        judged = (
            _of_embeddings(model, sampler, embeddings, num_episodes)
            if alone
            else _of_episodes(model, sampler, samples, reader, num_episodes, workers)
        )
        with progress_bar("episodes", num_episodes) as progress:
            for number, (own_scores, own_knownness) in enumerate(judged):
                episode = sampler.episode(number)
                scores["model"].append(own_scores)
                knownness["model"].append(own_knownness)
                for name, descriptor_SD in descriptors.items():
                    support_NKD, query_MD = descriptor_SD[episode.support_NK], descriptor_SD[queries(episode)]
                    scores[name].append(metrics.nearest_mean_scores(support_NKD, query_MD))
                    knownness[name].append(scores[name][-1].max(axis=1))
                classes.append(episode.classes)
                progress(number + 1)
    return EpisodeResults(sampler, classes, _stacked(scores), _stacked(knownness))


@contextmanager
def _statistics(model: ARN, batch_norm: str) -> Iterator[None]:
    """Set how BatchNorm normalises; the running statistics are afterwards what they were."""
    kept = [(p, Tensor(p.asnumpy().copy())) for p in model.get_parameters() if not p.requires_grad]
    model.set_train(batch_norm == "episode")
    try:
        yield
    finally:
        model.set_train(False)
        for parameter, value in kept:
            ops.assign(parameter, value)


def queries(episode: Episode) -> np.ndarray:
    """Positions `[M]` of an episode's queries, those of no class last."""
    return np.concatenate([episode.query_NQ.ravel(), episode.unknown_U])


def _stacked(by_method: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
    return {method: np.stack(arrays) for method, arrays in by_method.items()}


@functools.cache
def _encoder(model: ARN) -> Callable[[Tensor], Tensor]:
    """`model.encode` as a graph, compiled once for all validations and the test; so are the two below."""
    return ms.jit(model.encode)


@functools.cache
def _judge(model: ARN) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Embeddings of support and queries to scores and knownness."""

    def judge(support_NK: Tensor, query_M: Tensor) -> tuple[Tensor, Tensor]:
        outputs_MN = model.relate(support_NK, query_M)
        return model.scores(outputs_MN), model.knownness(outputs_MN)

    return ms.jit(judge)


@functools.cache
def _whole_judge(model: ARN) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Clips of support and queries to scores and knownness."""

    def judge(support_NKCTHW: Tensor, query_MCTHW: Tensor) -> tuple[Tensor, Tensor]:
        support_NK, query_M = model.encode_episode(support_NKCTHW, query_MCTHW)
        outputs_MN = model.relate(support_NK, query_M)
        return model.scores(outputs_MN), model.knownness(outputs_MN)

    return ms.jit(judge)


def _of_embeddings(
    model: ARN, sampler: EpisodeSampler, embeddings_S: np.ndarray, num_episodes: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Scores and knownness of each episode, from embeddings of all samples."""
    for number in range(num_episodes):
        episode = sampler.episode(number)
        support_NK, query_M = embeddings_S[episode.support_NK], embeddings_S[queries(episode)]
        scores, knownness = _judge(model)(Tensor(support_NK), Tensor(query_M))
        yield scores.asnumpy(), knownness.asnumpy()


def _of_episodes(
    model: ARN, sampler: EpisodeSampler, samples: list[Sample], reader: ClipReader, num_episodes: int, workers: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Scores and knownness of each episode, encoded anew by the processes together."""
    episodes = load_episodes(
        sampler, samples, reader, numbers=shard(range(num_episodes)), workers=workers, is_random=False
    )  # fmt: skip
    judged = [_whole_judge(model)(Tensor(support), Tensor(query)) for support, query in episodes]
    scores_EMN, knownness_EM = (
        gather_rows(np.array([outputs[i].asnumpy() for outputs in judged], np.float32)) for i in (0, 1)
    )
    yield from zip(scores_EMN, knownness_EM, strict=True)


def encode_all(
    model: ARN | None,
    controls: Mapping[str, Callable[[np.ndarray], np.ndarray]],
    samples: list[Sample],
    reader: ClipReader,
    *,
    batch: int,
    workers: int,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Embeddings `[S, ...]` of all samples (none without a model) and the controls' descriptors `[S, D]` by name, which
    the processes make together."""
    own = shard(samples)
    embeddings: list[np.ndarray] = []
    descriptors: dict[str, list[np.ndarray]] = {name: [] for name in controls}
    waiting: list[np.ndarray] = []

    def encode_waiting(encode: Callable[[Tensor], Tensor]) -> None:
        # Always a full batch, so that one compiled graph serves: the last is filled up with its first clip.
        filled = waiting + [waiting[0]] * (batch - len(waiting))
        embeddings.extend(encode(Tensor(np.stack(filled))).asnumpy()[: len(waiting)])
        waiting.clear()

    with progress_bar("encode", len(own)) as progress:
        for done, clip in enumerate(load_clips(own, reader, workers=workers), start=1):
            for name, describe in controls.items():
                descriptors[name].append(describe(reader.transform.denormalize(clip)))
            if model is not None:
                waiting.append(clip)
                if len(waiting) == batch or done == len(own):
                    encode_waiting(_encoder(model))
            progress(done)
    gathered = {name: gather_rows(np.array(vectors)) for name, vectors in descriptors.items()}
    return gather_rows(np.array(embeddings, np.float32)) if model is not None else np.zeros(0), gathered
