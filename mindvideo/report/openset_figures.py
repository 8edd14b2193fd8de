# SPDX-License-Identifier: Apache-2.0
"""Figures of open-set experiments: how far the uncertainties of known and unknown videos lie apart, how a method fares
as the unknown classes grow many, how true its confidence is. All are PNG bytes.

N known and M unknown videos.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mindvideo.report.figures import INK, LINE, MUTED, SERIES, add_legend, encode_png, new_chart

KNOWN, UNKNOWN = SERIES[:2]
STROKES = ("-", "--", ":")  # tell apart more lines than there are colours
DIAGONAL = ([0, 100], [0, 100])
HISTOGRAM_BINS = 50
LEAST = 1e-5  # of the largest uncertainty that a logarithmic scale shows


@dataclass(frozen=True)
class Line:
    """Points of a line in order, and half the width of the band around it."""

    x: np.ndarray
    y: np.ndarray
    spread: np.ndarray | None = None


def lines(named: Mapping[str, Line], *, title: str, x_label: str, y_label: str, diagonal: bool = False) -> bytes:
    """A line for each name, with its band, and perhaps the diagonal from 0 to 100."""
    figure, axes = new_chart(6.4, 4.4 + 0.1 * max(0, len(named) - len(SERIES)), title)  # room for the legend
    if diagonal:
        axes.plot(*DIAGONAL, color=MUTED, linewidth=0.8, linestyle=":")
    for index, (name, line) in enumerate(named.items()):
        color = SERIES[index % len(SERIES)]
        stroke = STROKES[index // len(SERIES) % len(STROKES)]
        axes.plot(line.x, line.y, color=color, linestyle=stroke, linewidth=1.6, label=name)
        if line.spread is not None:
            axes.fill_between(line.x, line.y - line.spread, line.y + line.spread, color=color, alpha=0.2, linewidth=0)
    axes.set_xlabel(x_label, color=MUTED)
    axes.set_ylabel(y_label, color=MUTED)
    axes.grid(color=LINE, linewidth=0.6)
    add_legend(figure)
    return encode_png(figure)


def histograms(
    known_N: np.ndarray, unknown_M: np.ndarray, *, title: str, x_label: str, threshold: float | None = None
) -> bytes:
    """Shares of the known and of the unknown videos over 50 common bins of their uncertainty.

    Where most videos of either would crowd in the first, as vacuities do at saturated evidence, both scales are
    logarithmic, and uncertainties below a hundred-thousandth of the largest fall into the first bin.
    """
    figure, axes = new_chart(6.4, 3.8, title)
    both = np.concatenate([known_N, unknown_M])
    edges = np.histogram_bin_edges(both, HISTOGRAM_BINS)
    crowded = max(np.mean(values < edges[1]) for values in (known_N, unknown_M)) > 0.5
    if crowded and both.min() > -LEAST * both.max():
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        edges = np.geomspace(max(both.min(), LEAST * both.max()), both.max(), HISTOGRAM_BINS + 1)
    for name, values, color in (("known", known_N, KNOWN), ("unknown", unknown_M, UNKNOWN)):
        shares = 100 * np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] / len(values)
        axes.stairs(shares, edges, fill=True, alpha=0.35, color=color, label=f"{name} ({len(values)} videos)")
        axes.stairs(shares, edges, linewidth=1.4, color=color)
    if threshold is not None:
        axes.axvline(threshold, color=INK, linewidth=1.0, linestyle="--", label="threshold")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xlabel(x_label, color=MUTED)
    axes.set_ylabel("videos (%)", color=MUTED)
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    add_legend(figure)
    return encode_png(figure)


@dataclass(frozen=True)
class Bins:
    """Mean confidence, accuracy and number of videos of each bin."""

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray


def reliability_diagram(named: Mapping[str, Bins], *, title: str, x_label: str) -> bytes:
    """Accuracy against confidence in percent, a point for each bin that has videos, in area their share."""
    figure, axes = new_chart(6.4, 4.4, title)
    axes.plot(*DIAGONAL, color=MUTED, linewidth=0.8, linestyle=":")
    for (name, bins), color in zip(named.items(), SERIES, strict=False):
        filled = bins.count > 0
        x, y = 100 * bins.confidence[filled], 100 * bins.accuracy[filled]
        axes.plot(x, y, color=color, linewidth=1.2, label=name)
        axes.scatter(x, y, 6 + 300 * bins.count[filled] / bins.count.sum(), color=color, alpha=0.6, linewidth=0)
    axes.set_xlim(-3, 103)
    axes.set_ylim(-3, 103)
    axes.set_xlabel(x_label, color=MUTED)
    axes.set_ylabel("accuracy (%)", color=MUTED)
    axes.grid(color=LINE, linewidth=0.6)
    add_legend(figure)
    return encode_png(figure)
