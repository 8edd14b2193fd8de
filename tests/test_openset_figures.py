# SPDX-License-Identifier: Apache-2.0
"""The figures of open-set experiments show the numbers they were given."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mindvideo.report import openset_figures
from mindvideo.report.openset_figures import Bins, Line, histograms, lines, reliability_diagram

HOSTILE = r"$\frac{" + "x" * 100


@pytest.fixture
def charts(monkeypatch) -> list[Any]:
    """The matplotlib figures, in the order in which the test draws them."""
    drawn: list[Any] = []
    monkeypatch.setattr(openset_figures, "encode_png", drawn.append)
    return drawn


def legend(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def filled(figure: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Heights and edges of the histograms of known and unknown videos."""
    return [(patch.get_data().values, patch.get_data().edges) for patch in figure.axes[0].patches[::2]]


def test_figures_are_images_whatever_the_names_are():
    curve = Line(np.arange(3.0), np.arange(3.0))
    bins = Bins(np.array([0.5]), np.array([0.4]), np.array([3]))
    for picture, size in (
        (lines({HOSTILE: curve}, title=HOSTILE, x_label="x", y_label="y"), (1152, 792)),
        (reliability_diagram({HOSTILE: bins}, title=HOSTILE, x_label="x"), (1152, 792)),
        (histograms(np.array([0.5]), np.array([0.5]), title=HOSTILE, x_label="x"), (1152, 684)),
    ):
        image = Image.open(BytesIO(picture))
        assert (image.format, image.size) == ("PNG", size)


def test_histograms_have_common_bins_and_count_every_video(charts):
    rng = np.random.default_rng(0)
    known, unknown = rng.normal(0, 1, 300), rng.normal(4, 1, 70)
    histograms(known, unknown, title="", x_label="energy", threshold=2.0)
    (known_percent, edges), (unknown_percent, unknown_edges) = filled(charts[0])
    np.testing.assert_array_equal(edges, unknown_edges)
    np.testing.assert_allclose(edges, np.linspace(known.min(), unknown.max(), 51))
    np.testing.assert_allclose(known_percent, np.histogram(known, edges)[0] / 3)
    np.testing.assert_allclose(unknown_percent.sum(), 100)
    axes = charts[0].axes[0]
    assert axes.get_xscale() == "linear"
    assert axes.get_xlim() == (edges[0], edges[-1])
    assert set(axes.lines[0].get_xdata()) == {2.0}
    assert legend(charts[0]) == ["known (300 videos)", "unknown (70 videos)", "threshold"]


def test_uncertainties_that_crowd_near_zero_are_drawn_on_a_logarithmic_scale(charts):
    known = np.concatenate([np.full(90, 0.0045), [-1e-9, 1e-12]])  # what rounding leaves is no reason against it
    histograms(known, np.geomspace(1e-3, 0.5, 30), title="", x_label="")
    (known_percent, edges), (unknown_percent, _) = filled(charts[0])
    assert charts[0].axes[0].get_xscale() == "log"
    np.testing.assert_allclose(edges, np.geomspace(5e-6, 0.5, 51))
    np.testing.assert_allclose(known_percent[0], 100 * 2 / 92)
    np.testing.assert_allclose([known_percent.sum(), unknown_percent.sum()], 100)
    assert legend(charts[0]) == ["known (92 videos)", "unknown (30 videos)"]


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_a_constant_uncertainty_is_one_bar(charts, value):
    histograms(np.full(5, value), np.full(3, value), title="", x_label="")
    for percent, _ in filled(charts[0]):
        assert sorted(percent)[-2:] == [0, 100]


def test_lines_have_bands_and_styles_of_their_own(charts):
    named = {f"method {n}": Line(np.arange(4.0), np.full(4, float(n)), np.full(4, 0.5)) for n in range(8)}
    lines(named, title="", x_label="", y_label="", diagonal=True)
    axes = charts[0].axes[0]
    diagonal, *drawn = axes.lines
    np.testing.assert_array_equal(diagonal.get_xydata(), [[0, 0], [100, 100]])
    np.testing.assert_array_equal(drawn[3].get_ydata(), [3, 3, 3, 3])
    heights = axes.collections[3].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (2.5, 3.5)
    assert len({(line.get_color(), line.get_linestyle()) for line in drawn}) == 8
    assert legend(charts[0]) == list(named)


def test_reliability_shows_the_bins_that_have_videos(charts):
    bins = Bins(np.array([0.1, 0.0, 0.9]), np.array([0.3, 0.0, 0.8]), np.array([25, 0, 75]))
    reliability_diagram({"closed": bins, "open": bins}, title="", x_label="")
    axes = charts[0].axes[0]
    np.testing.assert_allclose(axes.lines[1].get_xydata(), [[10, 30], [90, 80]])
    np.testing.assert_allclose(axes.collections[0].get_sizes() - 6, [75, 225])
    assert legend(charts[0]) == ["closed", "open"]


def test_long_names_stand_below_one_another_and_are_cut(charts):
    def columns(names: list[str]) -> int:
        lines({name: Line(np.arange(2.0), np.arange(2.0)) for name in names}, title="", x_label="", y_label="")
        return charts[-1].legends[0]._ncols

    assert columns(["training", "validation", "test"]) == 3
    assert columns(["a name of twenty-five letters", "b"]) == 2
    assert columns(["c" * 90, "d"]) == 1
    assert legend(charts[-1])[0] == "c" * 69 + "\u2026"
