# SPDX-License-Identifier: Apache-2.0
"""A sheet of small pictures with their names, such as an image under every augmentation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mindvideo.report.figures import INK, PAPER, encode_png

PICTURE, CAPTION = 1.25, 0.25  # inches


def picture_sheet(pictures: Mapping[str, np.ndarray], *, columns: int = 7) -> bytes:
    """Images `[H, W, 3]`, uint8, which may differ in size, by name, as a PNG, in rows of so many."""
    from matplotlib.figure import Figure

    rows = -(-len(pictures) // columns)
    figure = Figure(
        figsize=(columns * (PICTURE + 0.1), rows * (PICTURE + CAPTION + 0.05)), facecolor=PAPER, layout="constrained"
    )
    all_axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in all_axes:
        axes.set_axis_off()
    for axes, (name, image_HWC) in zip(all_axes, pictures.items(), strict=False):
        axes.imshow(image_HWC)
        axes.set_title(name, fontsize=8, color=INK, pad=3, parse_math=False)
    return encode_png(figure)
