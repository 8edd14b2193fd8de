# SPDX-License-Identifier: Apache-2.0
"""How often a classifier is right. N clips or videos, K classes."""

from __future__ import annotations

import numpy as np
from scipy import stats


def top_k_hits(scores_NK: np.ndarray, labels_N: np.ndarray, k: int) -> np.ndarray:
    """Whether the label is among the k highest scores, bool `[N]`; of equal ones the later classes are the higher."""
    highest_Nk = np.argsort(scores_NK, axis=1, kind="stable")[:, -k:]
    return (highest_Nk == labels_N[:, None]).any(axis=1)


def mean_class_accuracy(scores_NK: np.ndarray, labels_N: np.ndarray) -> float:
    """The mean over the classes of the share of their clips that are right, as MMAction2 takes it: a class that is
    predicted but has no clip counts as 0, and one that is neither does not count."""
    hits_N, labels = top_k_hits(scores_NK, labels_N, 1), np.unique(labels_N)
    predicted_N = np.argsort(scores_NK, axis=1, kind="stable")[:, -1]
    shares = [hits_N[labels_N == label].mean() for label in labels]
    return float(sum(shares) / len(np.union1d(labels, predicted_N)))


def share_interval(hits_N: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """The share of hits and the bounds of Wilson's interval for it."""
    interval = stats.binomtest(int(hits_N.sum()), len(hits_N)).proportion_ci(confidence, method="wilson")
    return float(hits_N.mean()), float(interval.low), float(interval.high)
