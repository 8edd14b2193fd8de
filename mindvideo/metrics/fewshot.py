# SPDX-License-Identifier: Apache-2.0
"""Few-shot numbers: accuracy with its interval, confusion over episodes, and the crude control beside them.

N classes (way), K support clips a class, M queries.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from scipy import stats

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


def thumbnail_descriptor(frames_THWC: np.ndarray) -> np.ndarray:
    """The crude control's view of a clip: mean and standard deviation over time of 16x12 RGB thumbnails."""
    height, width = THUMBNAIL
    small = [cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames_THWC]
    small_THWC = np.stack(small).astype(np.float32) / 255.0
    return np.concatenate([small_THWC.mean(axis=0).ravel(), small_THWC.std(axis=0).ravel()])


def nearest_mean_scores(support_NKD: np.ndarray, query_MD: np.ndarray) -> np.ndarray:
    """Scores `[M, N]`: minus the Euclidean distance of each query to each class's mean support descriptor."""
    return -np.linalg.norm(query_MD[:, None] - support_NKD.mean(axis=1)[None], axis=-1)
