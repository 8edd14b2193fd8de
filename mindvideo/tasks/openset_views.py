# SPDX-License-Identifier: Apache-2.0
"""What a classifier says of whole videos: their views are scored one by one and averaged.

N videos, V views of each, K known classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor
from scipy.special import softmax

from mindvideo.data.loader import ViewReader, load_views
from mindvideo.data.manifest import Sample
from mindvideo.engine.log import progress_bar
from mindvideo.losses.evidential import EVIDENCE
from mindvideo.models.recognizer import Recognizer


@dataclass
class Scores:
    """What the views of each video came to: the mean of their logits, and class probabilities `[N, K]`; `vacuity` `[N]`
    is 1 without any evidence and None without an evidential head; `labels` `[N]` are places in `classes`."""

    classes: list[str]
    labels: np.ndarray
    logits: np.ndarray
    probabilities: np.ndarray
    vacuity: np.ndarray | None

    def save(self, path: Path, samples: Sequence[Sample]) -> None:
        """As .npz, with the videos' paths."""
        arrays = {"classes": np.array(self.classes), "videos": np.array([str(sample.path) for sample in samples])}
        arrays |= {"labels": self.labels, "logits": self.logits, "probabilities": self.probabilities}
        if self.vacuity is not None:
            arrays["vacuity"] = self.vacuity
        np.savez_compressed(path, allow_pickle=False, **arrays)


def score_views(
    model: Recognizer, samples: Sequence[Sample], reader: ViewReader, *, batch: int, workers: int
) -> np.ndarray:
    """Logits `[N, V, K]`, `batch` views at a time, whichever videos they are of."""
    model.set_train(False)
    logits: list[np.ndarray] = []
    for views_BCTHW in _in_batches(samples, reader, batch, workers):
        # Always a full batch, so that one compiled graph serves: the last is filled up with its first view.
        missing = batch - len(views_BCTHW)
        filled = np.concatenate([views_BCTHW, views_BCTHW[:1].repeat(missing, axis=0)])
        logits.append(_compiled(model)(Tensor(filled)).asnumpy()[: len(views_BCTHW)])
    return np.concatenate(logits).reshape(len(samples), -1, logits[0].shape[1])


@functools.cache
def _compiled(model: Recognizer) -> Callable[[Tensor], Tensor]:
    """The classifier as a graph, compiled once for all validations and the test."""
    return ms.jit(model.construct)


def _in_batches(samples: Sequence[Sample], reader: ViewReader, batch: int, workers: int) -> Iterator[np.ndarray]:
    """The views of all videos in order, `batch` at a time but for the last."""
    waiting: list[np.ndarray] = []
    with progress_bar("score videos", len(samples)) as progress:
        for done, views_VCTHW in enumerate(load_views(samples, reader, workers=workers), start=1):
            for view_CTHW in views_VCTHW:
                waiting.append(view_CTHW)
                if len(waiting) == batch:
                    yield np.stack(waiting)
                    waiting.clear()
            progress(done)
    if waiting:
        yield np.stack(waiting)


def average_views(
    logits_NVK: np.ndarray, labels_N: np.ndarray, classes: list[str], *, average: str, evidence: str
) -> Scores:
    """One verdict a video, with DEAR's three ways to it: the mean of the views' scores (logits), of their softmax
    probabilities, or of the probabilities that their `evidence` gives.

    `evidence` names the function of an evidential head; for other heads it is empty.
    """
    logits_NK = logits_NVK.mean(axis=1)
    if average == "evidence":
        probabilities_NK = expected_probabilities(logits_NVK, evidence).mean(axis=1)
    elif average == "probability" or not evidence:
        probabilities_NK = softmax(logits_NVK if average == "probability" else logits_NK[:, None], axis=2).mean(axis=1)
    else:
        probabilities_NK = expected_probabilities(logits_NK, evidence)
    vacuity_N = logits_NK.shape[1] / _alpha(logits_NK, evidence).sum(axis=1) if evidence else None
    return Scores(classes, labels_N, logits_NK, probabilities_NK, vacuity_N)


def expected_probabilities(logits: np.ndarray, evidence: str) -> np.ndarray:
    """alpha / S over the last axis."""
    alpha = _alpha(logits, evidence)
    return alpha / alpha.sum(axis=-1, keepdims=True)


def _alpha(logits: np.ndarray, evidence: str) -> np.ndarray:
    return EVIDENCE[evidence](Tensor(logits)).asnumpy().astype(np.float64) + 1.0
