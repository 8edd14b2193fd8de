# SPDX-License-Identifier: Apache-2.0
"""Whether a classifier is right as often as its confidence says. N known and M unknown videos."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mindvideo.errors import InputError

ROUNDING = 1e-6  # how far float32 arithmetic may carry a probability or an uncertainty beyond 0 and 1
FLOOR = 1e-10  # of logarithms, as in the EUC loss of DEAR


@dataclass
class Reliability:
    """Mean confidence, accuracy and number of videos of each bin, from low confidence to high; 0 where none is."""

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray


def reliability(confidence_N: np.ndarray, hits_N: np.ndarray, bins: int = 15) -> Reliability:
    """Videos in `bins` bins (m / M, (m + 1) / M] of equal width, their edges in the precision of the confidences.

    As published, a confidence of 0 is in no bin, nor is one that rounding put above 1, and such videos do not count.
    InputError if there is none left, or one lies outside [0, 1] by more than rounding.
    """
    confidence_N, hits_N = np.asarray(confidence_N), np.asarray(hits_N, bool)
    _check_unit_interval("confidence", confidence_N)
    edges = (np.arange(bins + 1) / bins).astype(confidence_N.dtype)
    place_N = np.searchsorted(edges, confidence_N, side="left")  # 0 below the first bin, bins + 1 above the last
    count, confidence, right = (
        np.bincount(place_N, weights, minlength=bins + 2)[1:-1] for weights in (None, confidence_N, hits_N)
    )
    if not count.any():
        raise InputError(
            f"Calibration needs confidences above 0 and up to 1; of {len(confidence_N)} videos none has one."
        )
    filled = np.maximum(count, 1)
    return Reliability(confidence / filled, right / filled, count)


def expected_calibration_error(bins: Reliability) -> float:
    """ECE (Naeini et al. 2015): the gap between accuracy and confidence, a mean over the videos' bins."""
    return float(np.average(np.abs(bins.accuracy - bins.confidence), weights=bins.count))


def open_set_hits(
    known_hits_N: np.ndarray, known_rejected_N: np.ndarray, unknown_rejected_M: np.ndarray
) -> dict[str, np.ndarray]:
    """Who is right in DEAR's three tasks: "closed", the known classes `[N]`; "open", these and "unknown" as one more;
    "binary", known or unknown; the last two `[N + M]`, known videos first."""
    hits_N, rejected_N = np.asarray(known_hits_N, bool), np.asarray(known_rejected_N, bool)
    return {
        "closed": hits_N,
        "open": np.concatenate([hits_N & ~rejected_N, unknown_rejected_M]),
        "binary": np.concatenate([~rejected_N, unknown_rejected_M]),
    }


def eavuc(max_probability_N: np.ndarray, uncertainty_N: np.ndarray, hits_N: np.ndarray) -> float:
    """DEAR's EAvUC, a sum over videos of largest probability p and uncertainty u, so larger for more of them:
    -p ln(1 - u) if right, -(1 - p) ln u if wrong. No logarithm is of less than 1e-10, where theirs is infinite.

    InputError if p or u lies outside [0, 1].
    """
    p = np.asarray(max_probability_N, np.float64)
    u, hits_N = np.asarray(uncertainty_N, np.float64), np.asarray(hits_N, bool)
    _check_unit_interval("probability", p)
    _check_unit_interval("uncertainty", u)
    right, wrong = p * np.log(np.maximum(1 - u, FLOOR)), (1 - p) * np.log(np.maximum(u, FLOOR))
    return -float(np.where(hits_N, right, wrong).sum())


def risk_coverage(confidence_N: np.ndarray, hits_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The share of videos covered and the share of errors among them, `[N]`: the most confident video alone, two, ...,
    all (Geifman & El-Yaniv 2017). Of equal confidences each has the same part of their errors, in whatever order."""
    confidence_N, hits_N = np.asarray(confidence_N), np.asarray(hits_N, bool)
    if not confidence_N.size:
        raise InputError("A risk-coverage curve needs at least one video; there is none.")
    _, place_N, size = np.unique(-confidence_N, return_inverse=True, return_counts=True)
    errors_N = np.repeat(np.bincount(place_N, ~hits_N) / size, size)
    covered_N = np.arange(1, len(hits_N) + 1)
    return covered_N / len(hits_N), np.cumsum(errors_N) / covered_N


def aurc(confidence_N: np.ndarray, hits_N: np.ndarray) -> float:
    """The area under the risk-coverage curve: the mean risk over all coverages. 0 is best; by chance the error rate."""
    return float(risk_coverage(confidence_N, hits_N)[1].mean())


def _check_unit_interval(what: str, values_N: np.ndarray) -> None:
    outside = values_N[~((values_N >= -ROUNDING) & (values_N <= 1 + ROUNDING))]
    if outside.size:
        raise InputError(f"A {what} is {outside[0]:g}; calibration needs all of them between 0 and 1.")
