# SPDX-License-Identifier: Apache-2.0
"""What a classifier says of whole videos: their views are scored one by one and averaged.

N videos, V views of each, P draws of a random network, K known classes, C features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from scipy.special import softmax

from mindvideo.config import Config
from mindvideo.data.loader import ViewReader, load_views
from mindvideo.data.manifest import Sample
from mindvideo.engine.distributed import gather_rows, rank, shard, size
from mindvideo.engine.log import progress_bar
from mindvideo.losses.evidential import EVIDENCE
from mindvideo.metrics.uncertainty import mutual_information, uncertainties
from mindvideo.models.recognizer import Recognizer
from mindvideo.tasks.openset_objective import evidence_of
from mindvideo.tasks.openset_scores import Scores


@dataclass
class Views:
    """Logits of every view `[N, V, K]`, pooled features `[N, C]`, their mean over the views, and, of a random network,
    the probabilities of every draw `[N, V, P, K]`."""

    logits: np.ndarray
    features: np.ndarray
    draws: np.ndarray | None


class Scorer:
    """A classifier in test, as graphs that are compiled once for all validations and tests."""

    def __init__(self, model: Recognizer):
        self.model, head = model, model.head

        def look(views_BCTHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            vectors_BSC, _ = model.backbone(views_BCTHW)
            return head(vectors_BSC), vectors_BSC.mean(axis=1), vectors_BSC

        def draw(vectors_BSC: Tensor, seed: Tensor) -> Tensor:
            return head.sample(vectors_BSC, seed)

        self._look, self._draw = ms.jit(look), ms.jit(draw)

    def __call__(self, views_BCTHW: np.ndarray, draws: int = 0, number: int = 0) -> list[np.ndarray]:
        """Logits `[B, K]`, features `[B, C]`, and, if there are any `draws`, their probabilities `[B, P, K]`.

        These passes of the head are random by the batch's `number`: a Bayesian head draws its weights, another one its
        dropout (Monte Carlo dropout). None of our networks but C3D has dropout before the head, so the backbone runs
        once for all passes, and C3D's own stays off.
        """
        self.model.set_train(False)
        logits_BK, features_BC, vectors_BSC = self._look(Tensor(views_BCTHW))
        found = [logits_BK.asnumpy(), features_BC.asnumpy()]
        if draws:
            seeds = np.random.default_rng(number).integers(2**32, size=draws, dtype=np.uint32)
            drawn = [self._draw(vectors_BSC, Tensor(seed)).asnumpy() for seed in seeds]
            found.append(softmax(np.stack(drawn, axis=1), axis=2))
        return found


def score_views(
    scorer: Scorer,
    samples: Sequence[Sample],
    reader: ViewReader,
    *,
    batch: int,
    workers: int,
    draws: int = 0,
    what: str = "videos",
) -> Views:
    """Look at every view, `batch` at a time, whichever videos they are of; `what` names the videos to who waits.

    Each process looks at its share of the videos, with random draws of its own.
    """
    own = shard(samples)
    batches: list[list[np.ndarray]] = []
    for place, views_BCTHW in enumerate(_in_batches(own, reader, batch, workers, what)):
        number = place * size() + rank()
        # Always a full batch, so that one compiled graph serves: the last is filled up with its first view.
        missing = batch - len(views_BCTHW)
        filled = np.concatenate([views_BCTHW, views_BCTHW[:1].repeat(missing, axis=0)])
        batches.append([array[: len(views_BCTHW)] for array in scorer(filled, draws, number)])
    found = [np.concatenate(arrays) for arrays in zip(*batches, strict=True)] or [np.zeros(0)] * (3 if draws else 2)
    logits_NVK, features_NVC, *drawn_NVPK = (
        gather_rows(array.reshape(len(own), -1, *array.shape[1:]) if len(own) else array) for array in found
    )
    return Views(logits_NVK, features_NVC.mean(axis=1), drawn_NVPK[0] if drawn_NVPK else None)


def _in_batches(
    samples: Sequence[Sample], reader: ViewReader, batch: int, workers: int, what: str
) -> Iterator[np.ndarray]:
    """The views of all videos in order, `batch` at a time but for the last."""
    waiting: list[np.ndarray] = []
    with progress_bar(f"score {what}", len(samples)) as progress:
        for done, views_VCTHW in enumerate(load_views(samples, reader, workers=workers), start=1):
            for view_CTHW in views_VCTHW:
                waiting.append(view_CTHW)
                if len(waiting) == batch:
                    yield np.stack(waiting)
                    waiting.clear()
            progress(done)
    if waiting:
        yield np.stack(waiting)


def average_views(views: Views, *, average: str, evidence: str) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """One verdict a video: mean logits `[N, K]`, probabilities `[N, K]`, and every uncertainty `[N]`.

    DEAR's three ways to the probabilities are the mean of the views' scores (logits), of their softmax probabilities,
    or of the probabilities that their `evidence` gives; with Monte Carlo draws they are the mean over these. `evidence`
    names the function of an evidential head; for other heads it is empty. Vacuity and evidence are those of the mean
    logits, mutual information that of each view's draws, a mean over the views: DEAR averages the views first, which
    takes their disagreement for the network's.
    """
    logits_NK = views.logits.mean(axis=1)
    alpha_NK = alpha_of(logits_NK, evidence) if evidence else None
    spread_N = None
    if views.draws is not None:
        probabilities_NK = views.draws.mean(axis=(1, 2))
        flat_MPK = views.draws.reshape(-1, *views.draws.shape[2:])
        spread_N = mutual_information(flat_MPK).reshape(len(logits_NK), -1).mean(axis=1)
    elif average == "evidence":
        probabilities_NK = expected_probabilities(views.logits, evidence).mean(axis=1)
    elif average == "probability":
        probabilities_NK = softmax(views.logits, axis=2).mean(axis=1)
    else:
        probabilities_NK = expected_probabilities(logits_NK, evidence) if evidence else softmax(logits_NK, axis=1)
    found = uncertainties(logits_NK, probabilities_NK, alpha_NK=alpha_NK, mutual_information_N=spread_N)
    return logits_NK, probabilities_NK, found


def expected_probabilities(logits: np.ndarray, evidence: str) -> np.ndarray:
    """alpha / S over the last axis."""
    alpha = alpha_of(logits, evidence)
    return alpha / alpha.sum(axis=-1, keepdims=True)


def alpha_of(logits: np.ndarray, evidence: str) -> np.ndarray:
    """Evidence + 1, float64."""
    return EVIDENCE[evidence](Tensor(logits)).asnumpy().astype(np.float64) + 1.0


def how_seen(config: Config) -> dict[str, Any]:
    """All settings that change what a network says of a video."""
    video = {key: config.data[key] for key in ("length", "stride", "short_side", "decoder", "prepared")}
    views = {key: config.eval[key] for key in ("clips", "sampling", "crops", "size", "average", "draws")}
    run = {"name": config.name, "method": config.loss.name, "model": config.model.name}
    return run | {"evidence": evidence_of(config), "dropout": config.model.dropout} | video | views


def score_videos(
    scorer: Scorer,
    samples: Sequence[Sample],
    reader: ViewReader,
    config: Config,
    *,
    classes: Sequence[str],
    label_names: Sequence[str],
    what: str,
) -> Scores:
    """Look at the samples and gather what the experiments need; `classes` are the known ones, and `label_names` what
    the samples may show."""
    settings = how_seen(config)
    shape, workers = config.eval, config.data.workers
    views = score_views(scorer, samples, reader, batch=shape.batch, workers=workers, draws=shape.draws, what=what)
    logits, probabilities, found = average_views(views, average=shape.average, evidence=settings["evidence"])
    return Scores(
        classes=list(classes), label_names=list(label_names),
        labels=np.array([label_names.index(sample.label) for sample in samples]),
        videos=[str(sample.path) for sample in samples], groups=[sample.group for sample in samples],
        logits=logits, probabilities=probabilities, features=views.features, uncertainties=found,
        model_hash=hash_of_weights(scorer.model), data_hash=hash_of_videos(samples), settings=settings,
    )  # fmt: skip


def hash_of_weights(model: nn.Cell) -> str:
    """SHA-256 of all parameters, by name."""
    digest = hashlib.sha256()
    for parameter in sorted(model.get_parameters(), key=lambda p: p.name):
        digest.update(parameter.name.encode())
        digest.update(parameter.asnumpy().tobytes())
    return digest.hexdigest()


def hash_of_videos(samples: Sequence[Sample]) -> str:
    """SHA-256 of every video's path, class and source, and of its file's, or all its frames', size and time of the last
    change, in order."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(f"{sample.path}\0{sample.label}\0{sample.group}\0".encode())
        for file in sorted(sample.path.iterdir()) if sample.path.is_dir() else [sample.path]:
            state = file.stat()
            digest.update(f"{file.name}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()
