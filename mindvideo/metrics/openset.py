# SPDX-License-Identifier: Apache-2.0
"""How well an uncertainty tells unknown videos from known ones, and what remains of the known classes then.

N known and M unknown videos, K known and C unknown classes, T distinct uncertainties. Uncertainties are larger for what
is less known; unknown is the positive class. All rates and scores are fractions, 0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.integrate import trapezoid

from mindvideo.errors import InputError


def threshold_keeping(train_uncertainty_N: np.ndarray, share: float = 0.95) -> float:
    """The uncertainty up to which `share` of the training videos are known, by DEAR's rule: the k-th largest one, with
    k = N - int(share N), so that int(share N) + 1 videos are kept, and more where several have it.

    DEAR's rule for confidences, the int(share N)-th largest, keeps one video less.
    """
    if not 0 < share < 1:
        raise InputError(f"The share of training videos to keep is {share}; it must lie between 0 and 1.")
    uncertainty = np.asarray(train_uncertainty_N)
    if not uncertainty.size:
        raise InputError("A threshold needs at least one training video; there is none.")
    place = int(uncertainty.size * share)
    return float(np.partition(uncertainty, place)[place])


def rejects(uncertainty_N: np.ndarray, threshold: float) -> np.ndarray:
    """Which videos are taken for unknown, bool `[N]`: those above the threshold, in the precision of the uncertainties,
    so that a float32 uncertainty of 0.1 is not above 0.1."""
    return np.asarray(uncertainty_N) > float(threshold)


def roc_points(known_N: np.ndarray, unknown_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rate, from (0, 0) to (1, 1), at the corners of the curve."""
    return _roc(*_cumulative(*_places(known_N, unknown_M)))


def pr_points(known_N: np.ndarray, unknown_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision `[1 + T]`, from (0, 1) to recall 1."""
    return _precision_recall(*_cumulative(*_places(known_N, unknown_M)))


def auroc(known_N: np.ndarray, unknown_M: np.ndarray) -> float:
    """The area under the ROC curve: how often an unknown video is the more uncertain of two, equal ones half."""
    return _area(*roc_points(known_N, unknown_M))


def aupr(known_N: np.ndarray, unknown_M: np.ndarray) -> float:
    """The area under the precision-recall curve, straight between its points. Chance is M / (N + M)."""
    return _area(*pr_points(known_N, unknown_M))


def fpr95(known_N: np.ndarray, unknown_M: np.ndarray) -> float:
    """The share of known videos rejected where 95 % of the unknown ones are: at the corner of the ROC curve whose true
    positive rate is nearest to 0.95, which may lie on either side, as DEAR takes it."""
    return _fpr95(*roc_points(known_N, unknown_M))


def oscr(known_uncertainty_N: np.ndarray, known_hits_N: np.ndarray, unknown_uncertainty_M: np.ndarray) -> float:
    """The area under the share of known videos that are accepted and right against that of unknown ones accepted
    (Dhamija et al. 2018): how often of two a known video is right and less uncertain. At most closed-set accuracy."""
    return Ranking(known_uncertainty_N, known_hits_N, unknown_uncertainty_M).detection()["oscr"]


def binary_auc(known_N: np.ndarray, unknown_M: np.ndarray, threshold: float) -> float:
    """The "open set AUC" of DEAR's paper: the area under the ROC curve of the *decision* at one threshold, which is the
    mean of the shares of unknown videos rejected and of known ones accepted."""
    return auroc(rejects(known_N, threshold), rejects(unknown_M, threshold))


class Ranking:
    """Known and unknown videos by falling uncertainty. Sorting takes the time: all numbers without a threshold are then
    quickly had, also those of resamples. `known_hits_N` says which known videos are classified right."""

    def __init__(self, known_uncertainty_N: np.ndarray, known_hits_N: np.ndarray, unknown_uncertainty_M: np.ndarray):
        self.known_N, self.unknown_M = _places(known_uncertainty_N, unknown_uncertainty_M)
        self.hits_N = np.asarray(known_hits_N, bool)

    def detection(
        self, known: np.ndarray | slice = slice(None), unknown: np.ndarray | slice = slice(None)
    ) -> dict[str, float]:
        """AUROC, AUPR, FPR95 and OSCR of the videos at these places, which may be there more than once."""
        known_N, unknown_M, hits_N = self.known_N[known], self.unknown_M[unknown], self.hits_N[known]
        counts = _cumulative(known_N, unknown_M)
        roc = _roc(*counts)
        pairs = _area(*_roc(*_cumulative(known_N[hits_N], unknown_M))) if hits_N.any() else 0.0
        return {
            "auroc": _area(*roc),
            "aupr": _area(*_precision_recall(*counts)),
            "fpr95": _fpr95(*roc),
            "oscr": float(hits_N.mean()) * pairs,
        }


def _places(known_N: np.ndarray, unknown_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places of known and unknown videos by falling uncertainty, from 0; equal ones share a place."""
    if not (len(known_N) and len(unknown_M)):
        raise InputError(
            f"Detection needs known and unknown videos; there are {len(known_N)} known and {len(unknown_M)} unknown."
        )
    uncertainty = np.concatenate([known_N, unknown_M]).astype(np.float64)
    if not np.isfinite(uncertainty).all():
        raise InputError(f"Uncertainties must be finite numbers; one is {uncertainty[~np.isfinite(uncertainty)][0]}.")
    places = np.unique(-uncertainty, return_inverse=True)[1]
    return places[: len(known_N)], places[len(known_N) :]


def _cumulative(known_N: np.ndarray, unknown_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many known and unknown videos are rejected `[T]`, by falling threshold, from their places."""
    size = 1 + max(known_N.max(), unknown_M.max())
    known_T, unknown_T = np.bincount(known_N, minlength=size), np.bincount(unknown_M, minlength=size)
    filled = (known_T + unknown_T) > 0
    return np.cumsum(known_T[filled]), np.cumsum(unknown_T[filled])


def _roc(known_T: np.ndarray, unknown_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # A point that goes on as the one before it is left out, as scikit-learn does: FPR95 depends on which are there.
    corners = np.ones(len(known_T), bool)
    corners[1:-1] = (np.diff(known_T, 2) != 0) | (np.diff(unknown_T, 2) != 0)
    return np.append(0, known_T[corners]) / known_T[-1], np.append(0, unknown_T[corners]) / unknown_T[-1]


def _precision_recall(known_T: np.ndarray, unknown_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.append(0.0, unknown_T / unknown_T[-1]), np.append(1.0, unknown_T / (known_T + unknown_T))


def _area(x: np.ndarray, y: np.ndarray) -> float:
    return float(trapezoid(y, x))


def _fpr95(false_positive: np.ndarray, true_positive: np.ndarray) -> float:
    return float(false_positive[np.abs(true_positive - 0.95).argmin()])


def open_set_counts(
    known_labels_N: np.ndarray,
    known_predicted_N: np.ndarray,
    known_rejected_N: np.ndarray,
    unknown_labels_M: np.ndarray,
    unknown_predicted_M: np.ndarray,
    unknown_rejected_M: np.ndarray,
    *,
    num_known: int,
    num_unknown: int,
) -> np.ndarray:
    """Counts of videos, int64 `[K + C, K + 1]`: row the true class, the K known ones first; column the predicted one,
    the last of them "unknown", which a rejected video is counted under whatever was predicted."""
    counts = np.zeros((num_known + num_unknown, num_known + 1), np.int64)
    for what, first, classes, labels, predicted, rejected in (
        ("known", 0, num_known, known_labels_N, known_predicted_N, known_rejected_N),
        ("unknown", num_known, num_unknown, unknown_labels_M, unknown_predicted_M, unknown_rejected_M),
    ):
        if not len(labels) == len(predicted) == len(rejected):
            raise InputError(
                f"There are {len(labels)} labels, {len(predicted)} predictions and {len(rejected)} decisions "
                f"of {what} videos; their numbers must be equal."
            )
        _check_classes(f"label of a video of {what} classes", labels, classes)
        _check_classes(f"prediction for a video of {what} classes", predicted, num_known + 1)
        columns = np.where(np.asarray(rejected, bool), num_known, predicted)
        np.add.at(counts, (np.asarray(labels, np.int64) + first, columns.astype(np.int64)), 1)
    return counts


def _check_classes(what: str, classes_N: np.ndarray, number: int) -> None:
    outside = [c for c in np.unique(classes_N).tolist() if not 0 <= c < number]
    if outside:
        raise InputError(f"The {what} is {outside[0]}; it must be 0 to {number - 1}.")


def merge_unknown(counts: np.ndarray) -> np.ndarray:
    """`open_set_counts` with one row for all unknown classes, `[K + 1, K + 1]`."""
    num_known = counts.shape[1] - 1
    return np.vstack([counts[:num_known], counts[num_known:].sum(axis=0)])


@dataclass
class OpennessCurve:
    """Macro-F1 over the known classes and "unknown" for 0, 1, ..., C unknown classes, each `[C + 1]`.

    `openness` of i classes is 1 - sqrt(2 K / (2 K + i)) (Scheirer et al. 2013); `macro_f1` is the mean over random
    subsets of i unknown classes and `spread` the standard deviation. The two numbers are means weighted by openness.
    """

    openness: np.ndarray
    macro_f1: np.ndarray
    spread: np.ndarray
    open_macro_f1: float
    open_macro_f1_spread: float


def draw_subsets(num_unknown: int, subsets: int = 10, seed: int = 123) -> np.ndarray:
    """Whether a class is in a subset, bool `[C, subsets, C]`: first those of 1 class, last those of all. The defaults
    make the very subsets of DEAR's published numbers."""
    rng = np.random.RandomState(seed)  # not default_rng: DEAR's stream
    drawn = np.zeros((num_unknown, subsets, num_unknown), bool)
    for size in range(1, num_unknown + 1):
        for subset in range(subsets):
            drawn[size - 1, subset, rng.choice(num_unknown, size, replace=False)] = True
    return drawn


def openness_curve(counts: np.ndarray, *, subsets: int = 10, seed: int = 123) -> OpennessCurve:
    """DEAR's open macro-F1 from `open_set_counts`. A class counts if a video of it, or one taken for it, is there."""
    num_known = counts.shape[1] - 1
    known_KL, unknown_CL = counts[:num_known], counts[num_known:].astype(np.float64)  # L = K + 1
    num_unknown = len(unknown_CL)
    if not (known_KL.any() and num_unknown):
        raise InputError(
            f"An openness curve needs known videos and unknown classes; there are {known_KL.sum()} and {num_unknown}."
        )
    drawn_SC = draw_subsets(num_unknown, subsets, seed).reshape(-1, num_unknown)
    unknown_SL = np.vstack([np.zeros(num_known + 1), drawn_SC @ unknown_CL])
    copies = (len(unknown_SL), 1)
    right_SL = np.hstack([np.tile(known_KL.diagonal(), copies), unknown_SL[:, -1:]])
    videos_SL = np.hstack([np.tile(known_KL.sum(axis=1), copies), unknown_SL.sum(axis=1, keepdims=True)])
    either_SL = videos_SL + known_KL.sum(axis=0) + unknown_SL
    f1_S = (2 * right_SL / np.maximum(either_SL, 1)).sum(axis=1) / (either_SL > 0).sum(axis=1)
    by_size = f1_S[1:].reshape(num_unknown, subsets)
    openness = 1 - np.sqrt(2 * num_known / (2 * num_known + np.arange(num_unknown + 1)))
    macro_f1 = np.append(f1_S[0], by_size.mean(axis=1))
    spread = np.append(0.0, by_size.std(axis=1))
    means = (float(np.average(values, weights=openness)) for values in (macro_f1, spread))
    return OpennessCurve(openness, macro_f1, spread, *means)


def published_confusion(counts: np.ndarray, *, by_class: bool = False) -> np.ndarray:
    """DEAR's confusion matrix of `open_set_counts`, float64 `[K + C, K + C]`: row the predicted class, column the true.

    A known video adds K to its cell if accepted, or C to all C unknown rows of its column. An unknown one adds C to the
    row that it is taken for, or 1 to all unknown rows, in all C unknown columns; in its own alone if `by_class`.
    """
    num_known = counts.shape[1] - 1
    known_KL, unknown_CL = counts[:num_known], counts[num_known:]
    num_unknown = len(unknown_CL)
    if not by_class:
        unknown_CL = np.broadcast_to(unknown_CL.sum(axis=0), unknown_CL.shape)
    confusion = np.empty((len(counts), len(counts)))
    confusion[:num_known, :num_known] = num_known * known_KL[:, :-1].T
    confusion[num_known:, :num_known] = num_unknown * known_KL[:, -1]
    confusion[:num_known, num_known:] = num_unknown * unknown_CL[:, :-1].T
    confusion[num_known:, num_known:] = unknown_CL[:, -1]
    return confusion


def normalise_confusion(confusion: np.ndarray) -> np.ndarray:
    """As DEAR draws it: its smallest entry but 0 becomes 0, its largest 1, and so 0 a little less than 0."""
    smallest = confusion[confusion > 0].min()
    return (confusion - smallest) / (confusion.max() - smallest + 1e-6)


def block_means(confusion: np.ndarray, num_known: int) -> dict[str, float]:
    """The means that DEAR prints beside it (UUC, UKC, KUC, KKC); of known as known that of the diagonal."""
    return {
        "unknown_as_unknown": float(confusion[num_known:, num_known:].mean()),
        "unknown_as_known": float(confusion[:num_known, num_known:].mean()),
        "known_as_unknown": float(confusion[num_known:, :num_known].mean()),
        "known_as_known": float(confusion[:num_known, :num_known].diagonal().mean()),
    }
