# SPDX-License-Identifier: Apache-2.0
"""The numbers of open-set experiments: each measure makes some of one method, by name.

A number is a dict with its `value`, the `n` videos that it is of, and where they are known the bounds `low_95` and
`high_95` of its 95 % interval or the `spread` (standard deviation) over random subsets of unknown classes. All but
thresholds and the EAvUC sum are fractions. N known and M unknown videos, K known classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mindvideo.metrics import accuracy, calibration, openset
from mindvideo.metrics.bootstrap import bootstrap_intervals
from mindvideo.tasks.openset_methods import Method

Number = dict[str, float]
Numbers = dict[str, Number]
Measure = Callable[[Method, int], Numbers]


def detection(method: Method, resamples: int) -> Numbers:
    """How well the uncertainty ranks unknown videos above known ones, without a threshold; intervals are percentiles of
    `resamples` draws of the sources of videos, or lacking where that is 0."""
    ranking = openset.Ranking(method.known.uncertainty, method.hits, method.unknown.uncertainty)
    total = len(method.known.labels) + len(method.unknown.labels)
    numbers = {name: _number(value, total) for name, value in ranking.detection().items()}
    if resamples:
        sources = method.known.sources, method.unknown.sources
        bounds = bootstrap_intervals(ranking.detection, *sources, resamples=resamples)
        for name, (low, high) in bounds.items():
            if np.isfinite(low):  # a single source has no spread
                numbers[name] |= {"low_95": low, "high_95": high}
    return numbers


def closed_set(method: Method, resamples: int) -> Numbers:
    """How often the known class is right, nothing being rejected; the intervals of shares are Wilson's."""
    known, total = method.known, len(method.known.labels)
    numbers = {"top1": _share(method.hits)}
    if known.probabilities is not None:
        numbers["top5"] = _share(accuracy.top_k_hits(known.probabilities, known.labels, 5))
    predicted_NK = np.eye(len(method.known_classes) + 1)[known.predicted]
    numbers["mean_class_accuracy"] = _number(accuracy.mean_class_accuracy(predicted_NK, known.labels), total)
    return numbers


def decisions(method: Method, resamples: int) -> Numbers:
    """What the threshold keeps and rejects, and the paper's AUC, which is that of these decisions."""
    if method.threshold is None:
        return {}
    known_N, unknown_M = method.rejected(method.known), method.rejected(method.unknown)
    trained = method.train_uncertainty
    numbers = {"threshold": _number(method.threshold, 0 if trained is None else len(trained))}
    for name, uncertainty in (("train_kept", trained), ("val_kept", method.val_uncertainty)):
        if uncertainty is not None:
            numbers[name] = _share(~openset.rejects(uncertainty, method.threshold))
    numbers |= {"known_kept": _share(~known_N), "unknown_rejected": _share(unknown_M)}
    auc = openset.binary_auc(method.known.uncertainty, method.unknown.uncertainty, method.threshold)
    return numbers | {"binary_auc": _number(auc, len(known_N) + len(unknown_M))}


def openness(method: Method, resamples: int) -> Numbers:
    """The paper's open macro-F1 at the threshold."""
    if method.threshold is None:
        return {}
    curve = method.openness
    number = _number(curve.open_macro_f1, int(method.counts.sum()))
    return {"open_macro_f1": number | {"spread": curve.open_macro_f1_spread}}


def blocks(method: Method, resamples: int) -> Numbers:
    """The means that DEAR prints of the four blocks of its confusion matrix, which weighs its cells by K and C."""
    if method.threshold is None:
        return {}
    means = openset.block_means(openset.published_confusion(method.counts), len(method.known_classes))
    return {name: _number(value, int(method.counts.sum())) for name, value in means.items()}


def calibrations(method: Method, resamples: int) -> Numbers:
    """Expected calibration error by both confidences, of known classes and, at the threshold, of the open set; EAvUC;
    area under the risk-coverage curve."""
    numbers, bins_by, known = {}, reliabilities(method), method.known
    for by, variants in bins_by.items():
        for variant, bins in variants.items():
            error = calibration.expected_calibration_error(bins)
            numbers[f"ece_{variant}_{by}"] = _number(error, int(bins.count.sum()))
    if "uncertainty" in bins_by:
        error = calibration.eavuc(known.confidence, known.uncertainty, method.hits)
        numbers["eavuc"] = _number(error, len(known.labels))
    return numbers | {"aurc": _number(calibration.aurc(-known.uncertainty, method.hits), len(known.labels))}


def reliabilities(method: Method) -> dict[str, dict[str, calibration.Reliability]]:
    """Bins by confidence, which is 1 - `uncertainty`, as in DEAR, or the `max_probability`, and by variant.

    The first is lacking where the uncertainty is no fraction, or 1 for all known videos; without a threshold only
    `closed` is there.
    """
    hits = {"closed": method.hits}
    if method.threshold is not None:
        hits = calibration.open_set_hits(method.hits, method.rejected(method.known), method.rejected(method.unknown))
    known, unknown = method.known, method.unknown
    confidences = {
        "uncertainty": 1 - np.concatenate([known.uncertainty, unknown.uncertainty]),
        "max_probability": np.concatenate([known.confidence, unknown.confidence]),
    }
    return {
        by: {variant: calibration.reliability(confidence[: len(of)], of) for variant, of in hits.items()}
        for by, confidence in confidences.items()
        if np.abs(confidence - 0.5).max() <= 0.5 + calibration.ROUNDING and confidence[: len(known.labels)].max() > 0
    }


def _number(value: float, videos: int) -> Number:
    return {"value": value, "n": videos}


def _share(of_N: np.ndarray) -> Number:
    value, low, high = accuracy.share_interval(of_N)
    return {"value": value, "low_95": low, "high_95": high, "n": len(of_N)}
