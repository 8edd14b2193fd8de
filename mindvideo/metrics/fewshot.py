# SPDX-License-Identifier: Apache-2.0
"""Few-shot numbers: accuracy with its interval, confusion over episodes, rejection, and the crude controls beside them.

N classes (way), K support clips a class, M queries, D descriptor size.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from scipy import stats
from sklearn.metrics import roc_auc_score

THUMBNAIL = (12, 16)  # height, width


def mean_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Mean and half width of Student's t interval over independent values, such as episode accuracies.

    A single value has no interval: its half width is nan.
    """
    values = np.asarray(values, np.float64)
    if values.size < 2:
        return float(values.mean()), float("nan")
    error = values.std(ddof=1) / np.sqrt(values.size)
    return float(values.mean()), float(stats.t.ppf((1 + confidence) / 2, values.size - 1) * error)


def episode_accuracy(scores_MN: np.ndarray, labels_M: np.ndarray) -> float:
    """Fraction of queries whose highest score is their class's."""
    return float((scores_MN.argmax(axis=1) == labels_M).mean())


def confusion_matrix(true: Sequence[int], predicted: Sequence[int], num_classes: int) -> np.ndarray:
    """Counts `[num_classes, num_classes]`: row the true class, column the predicted one."""
    matrix = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(matrix, (np.asarray(true, int), np.asarray(predicted, int)), 1)
    return matrix


def rejection_auroc(knownness: np.ndarray, is_known: np.ndarray) -> float:
    """How well `knownness` tells queries of the episode's classes from others: the area under the ROC curve."""
    return float(roc_auc_score(is_known, knownness))


def thumbnail_descriptor(frames_THWC: np.ndarray) -> np.ndarray:
    """Mean and standard deviation over time of 16x12 RGB thumbnails: where things are, and where they move."""
    small_THWC = _thumbnails(frames_THWC)
    return np.concatenate([small_THWC.mean(axis=0).ravel(), small_THWC.std(axis=0).ravel()])


def motion_descriptor(frames_THWC: np.ndarray) -> np.ndarray:
    """The standard deviation over time alone: where things move."""
    return _thumbnails(frames_THWC).std(axis=0).ravel()


def color_descriptor(frames_THWC: np.ndarray) -> np.ndarray:
    """Square roots of the shares of 8x8x8 RGB colours in all frames: which colours there are, wherever and whenever."""
    bins_N3 = frames_THWC.reshape(-1, 3).astype(np.int64) // 32
    counts = np.bincount(bins_N3 @ (64, 8, 1), minlength=512)
    return np.sqrt(counts / counts.sum()).astype(np.float32)


def _thumbnails(frames_THWC: np.ndarray) -> np.ndarray:
    height, width = THUMBNAIL
    small = [cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames_THWC]
    return np.stack(small).astype(np.float32) / 255.0


# Methods that learn nothing: the nearest mean of these descriptors of the raw frames.
CONTROLS = {"thumbnails": thumbnail_descriptor, "motion": motion_descriptor, "colours": color_descriptor}


def nearest_mean_scores(support_NKD: np.ndarray, query_MD: np.ndarray) -> np.ndarray:
    """Scores `[M, N]`: minus the Euclidean distance of each query to each class's mean support descriptor."""
    return -np.linalg.norm(query_MD[:, None] - support_NKD.mean(axis=1)[None], axis=-1)
