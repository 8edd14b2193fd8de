# SPDX-License-Identifier: Apache-2.0
"""OpenMax (Bendale & Boult, "Towards Open Set Deep Networks", CVPR 2016), with the distances and the ranks of DEAR.

N training and M test videos, C features, K known classes. A class is the mean feature of its training videos that were
predicted right; a Weibull distribution of the largest distances from it says how far away is too far.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy.optimize import root_scalar
from scipy.spatial.distance import cdist
from scipy.special import softmax

from mindvideo.errors import InputError

Distance = Literal["eucos", "eu", "cos"]
EUCLIDEAN_UNIT = 200.0  # of the authors' code
SHIFT = 10000.0  # where libMR moves the smallest distance of the tail to
FEWEST = 3  # of two videos both are equally far from their mean
SPREAD = 1e-10  # what a double near SHIFT can still tell apart, with a margin


@dataclass
class OpenMax:
    """Means `[K, C]` and Weibull parameters `[K]` of the classes; `smallest` is the shortest distance of each tail."""

    distance: Distance
    means: np.ndarray
    scale: np.ndarray
    shape: np.ndarray
    smallest: np.ndarray

    @classmethod
    def fit(
        cls,
        features_NC: np.ndarray,
        logits_NK: np.ndarray,
        labels_N: np.ndarray,
        *,
        tail: int = 20,
        distance: Distance = "eucos",
    ) -> OpenMax:
        """Fit each class to its `tail` largest distances, or to all if it has fewer.

        "eu" is the Euclidean distance / 200, "cos" the cosine distance, "eucos" their sum. InputError names a class of
        which fewer than 3 training videos are predicted right, or whose distances do not differ.
        """
        if tail < FEWEST:
            raise InputError(f"OpenMax's tail is {tail}; it must have at least {FEWEST} distances.")
        labels_N, right_N = np.asarray(labels_N), np.argmax(logits_NK, axis=1) == labels_N
        means, weibulls = [], []
        for k in range(logits_NK.shape[1]):
            features = features_NC[right_N & (labels_N == k)].astype(np.float64)
            if len(features) < FEWEST:
                raise InputError(
                    f"OpenMax: {len(features)} of {(labels_N == k).sum()} training videos of class {k} are predicted "
                    f"right; it needs at least {FEWEST}."
                )
            means.append(features.mean(axis=0))
            largest = np.sort(distances(features, means[-1][None], distance)[:, 0])[-tail:]
            if np.ptp(largest) < SPREAD:
                raise InputError(f"OpenMax: the training videos of class {k} are all equally far from their mean.")
            weibulls.append((*fit_weibull(largest - largest[0] + SHIFT), largest[0]))
        return cls(distance, np.stack(means), *np.array(weibulls).T)

    def outlier_probabilities(self, features_MC: np.ndarray) -> np.ndarray:
        """How likely a video is too far away from each class, `[M, K]`: the Weibull distribution function."""
        x_MK = distances(features_MC, self.means, self.distance) - self.smallest + SHIFT
        exponent_MK = self.shape * np.log(x_MK / self.scale)
        return -np.expm1(-np.exp(np.minimum(exponent_MK, 100.0)))  # 1 long before, and no overflow

    def probabilities(self, features_MC: np.ndarray, logits_MK: np.ndarray, rank: int = 1) -> np.ndarray:
        """Probabilities of the known classes and, last, of "unknown", `[M, K + 1]`.

        Of the `rank` largest logits v the i-th, i = 0, 1, ..., becomes v (1 - (1 - i / rank) w) with its outlier
        probability w; what they lose is the logit of "unknown". So a *negative* logit grows, and "unknown" loses by it.
        """
        if rank < 1:
            raise InputError(f"OpenMax's rank is {rank}; it must be at least 1.")
        logits_MK = np.asarray(logits_MK, np.float64)
        rank = min(rank, logits_MK.shape[1])
        highest = np.argsort(logits_MK, axis=1)[:, ::-1][:, :rank]
        weights_MK = np.zeros_like(logits_MK)
        np.put_along_axis(weights_MK, highest, 1 - np.arange(rank)[None] / rank, axis=1)
        lost_MK = logits_MK * weights_MK * self.outlier_probabilities(features_MC)
        return softmax(np.hstack([logits_MK - lost_MK, lost_MK.sum(axis=1, keepdims=True)]), axis=1)


def distances(features_MC: np.ndarray, means_KC: np.ndarray, distance: Distance) -> np.ndarray:
    """Distance of every feature from every mean, `[M, K]`."""
    if distance not in get_args(Distance):
        raise InputError(f"OpenMax's distance is {distance!r}; it must be one of {', '.join(get_args(Distance))}.")
    found_MK = np.zeros((len(features_MC), len(means_KC)))
    if distance != "cos":
        found_MK += cdist(features_MC, means_KC, "euclidean") / EUCLIDEAN_UNIT
    if distance != "eu":
        found_MK += cdist(features_MC, means_KC, "cosine")
    if not np.isfinite(found_MK).all():
        raise InputError("OpenMax: a video's features are all 0 or not finite; it has no distance from a class.")
    return found_MK


def fit_weibull(x_N: np.ndarray) -> tuple[float, float]:
    """Scale and shape of the two-parameter Weibull distribution that makes these numbers the most likely; they must be
    positive and not all equal.

    The shape is the only zero of sum(x^shape ln x) / sum(x^shape) - 1 / shape - mean(ln x); libMR stops within 1e-6 of
    it. Numbers near SHIFT have a shape of 1e5 and more: powers are taken of x over the largest x.
    """
    largest = x_N.max()
    logs_N = np.log1p((x_N - largest) / largest)

    def slope(shape: float) -> float:
        powers_N = np.exp(shape * logs_N)
        return float(powers_N @ logs_N / powers_N.sum() - 1 / shape - logs_N.mean())

    low = high = -1 / logs_N.mean()  # there the slope is negative
    while slope(high) <= 0:
        high *= 2
    shape = float(root_scalar(slope, bracket=(low, high)).root)
    return float(largest * np.exp(shape * logs_N).mean() ** (1 / shape)), shape
