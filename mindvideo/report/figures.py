# SPDX-License-Identifier: Apache-2.0
"""Figures of a run as encoded bytes: training curves, accuracy bars, confusion matrices, animated episodes.

Charts are drawn by matplotlib on a `Figure` of their own, so no global pyplot state is read or changed.
Class names come from data sets: they are cut to size and never read as mathematical markup.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont, ImageOps

from mindvideo.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, LINE, PANEL, PAPER = "#1b1f24", "#5f6874", "#dfe3e8", "#f1f3f5", "#ffffff"
RIGHT, WRONG = "#0a8f4e", "#d1242f"
# Okabe and Ito's colours, which colour-blind readers can tell apart.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")

DENSE_SERIES = 50  # points from which a series counts as noisy and is smoothed
MOST_ANNOTATED_CLASSES = 20
MOST_NAMED_CLASSES = 120
MOST_GIF_BYTES = 500_000
MOST_LEGEND_LETTERS = 70

# Layout of an episode, in pixels.
MARGIN, GAP, BORDER = 16, 10, 5
CARD, QUERY_SIDE, SCORES_WIDTH = 112, 192, 340
LINE_HEIGHT = 22
CARDS_PER_ROW = 5
MOST_SCORES = 5


def curves(log: Mapping[str, Sequence[tuple[float, float]]], *, title: str, x_label: str, y_label: str) -> bytes:
    """Series of (x, y) by name, in order of x, as a PNG.

    A series of 50 points or more, such as the loss of every step, is drawn faint under its moving average
    over a 25th of its length; a shorter one, such as one validation per epoch, as joined markers.
    """
    figure, axes = new_chart(6.4, 3.8, title)
    for index, (name, points) in enumerate(log.items()):
        color = SERIES[index % len(SERIES)]
        x, y = np.asarray(points, dtype=np.float64).reshape(-1, 2).T
        if len(y) < DENSE_SERIES:
            axes.plot(x, y, color=color, marker="o", markersize=4, linewidth=1.6, label=name)
        else:
            axes.plot(x, y, color=color, linewidth=0.8, alpha=0.25)
            axes.plot(x, smooth(y, len(y) // 25), color=color, linewidth=1.8, label=name)
    axes.set_xlabel(x_label, color=MUTED)
    axes.set_ylabel(y_label, color=MUTED)
    axes.grid(color=LINE, linewidth=0.6)
    add_legend(figure)
    return encode_png(figure)


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Centred moving average of the finite values within `width` samples; NaN where a value is not finite."""
    finite = np.isfinite(values)
    window = np.ones(2 * (width // 2) + 1)
    total = np.convolve(np.where(finite, values, 0.0), window, mode="same")
    count = np.convolve(finite, window, mode="same")
    return np.where(finite, total / np.maximum(count, 1), np.nan)


def bars(groups: Mapping[str, Mapping[str, tuple[float, float, float]]], *, title: str, y_label: str) -> bytes:
    """Methods side by side in each group, as a PNG.

    `groups[group][method]` is (value, low, high), where low and high bound its 95 % interval; an exact
    value, such as chance, has all three equal. A method may be missing from a group.
    """
    methods = list(dict.fromkeys(method for group in groups.values() for method in group))
    figure, axes = new_chart(max(6.4, 0.45 * len(methods) * len(groups)), 3.8, title)
    width = 0.8 / len(methods)
    for index, method in enumerate(methods):
        slots = [slot for slot, group in enumerate(groups.values()) if method in group]
        values, lows, highs = np.array([group[method] for group in groups.values() if method in group]).T
        x = np.array(slots) + (index - (len(methods) - 1) / 2) * width
        color = SERIES[index % len(SERIES)]
        axes.bar(x, values, width * 0.9, color=color, label=method)
        axes.errorbar(x, values, np.stack([values - lows, highs - values]), fmt="none", ecolor=INK, capsize=3)
        for position, value, high in zip(x, values, highs, strict=True):
            axes.annotate(f"{value:.3g}", (position, high), (0, 4), textcoords="offset points", ha="center", fontsize=9)
    axes.set_xticks(range(len(groups)), [_shorten(name) for name in groups], parse_math=False)
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel(y_label, color=MUTED)
    axes.margins(y=0.12)
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    add_legend(figure)
    return encode_png(figure)


def confusion(matrix: np.ndarray, class_names: Sequence[str], title: str) -> bytes:
    """Counts `[K, K]`, row = true class, column = predicted class, as a PNG of the shares of each row.

    Up to 20 classes, each cell shows its percentage; above 120, classes are numbered from 0.
    """
    classes = len(class_names)
    if matrix.shape != (classes, classes):
        raise InputError(
            f"confusion matrix of shape {matrix.shape}: must be {classes} x {classes} for the {classes} class names"
        )
    shares = row_shares(matrix)
    annotated, named = classes <= MOST_ANNOTATED_CLASSES, classes <= MOST_NAMED_CLASSES
    cell = 0.5 if annotated else 0.17
    side = min(2.2 + cell * classes, 18.0)
    figure, axes = new_chart(side + (0.4 if annotated else 0.9), side, title)
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    if named:
        names = [_shorten(name) for name in class_names]
        counted = [f"{name} ({count:g})" for name, count in zip(names, matrix.sum(axis=1), strict=True)]
        style = {"fontsize": 9 if annotated else 7, "parse_math": False}
        axes.set_xticks(range(classes), names, rotation=45, ha="right", rotation_mode="anchor", **style)
        axes.set_yticks(range(classes), counted, **style)
    if annotated:
        for row, column in np.argwhere(matrix > 0):
            share = shares[row, column]
            color = PAPER if share > 0.5 else INK
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=color, fontsize=9)
    else:
        figure.colorbar(image, ax=axes, shrink=0.5, fraction=0.03, label="share of the true class")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted, % of the true class" if annotated else "predicted", color=MUTED)
    axes.set_ylabel("true (samples)" if named else "true", color=MUTED)
    return encode_png(figure)


def row_shares(matrix: np.ndarray) -> np.ndarray:
    """Each row of counts divided by its sum; a row without samples stays zero."""
    totals = matrix.sum(axis=1, keepdims=True)
    return matrix / np.maximum(totals, 1)


def episode_gif(
    support: Sequence[tuple[str, Sequence[np.ndarray]]],
    query_THWC: np.ndarray,
    true: str,
    predicted: str,
    *,
    fps: float = 8,
    scores: Mapping[str, float] | None = None,
) -> bytes:
    """One few-shot episode as a GIF that loops for ever.

    On top, the clips of each support class, uint8 `[T, H, W, 3]` each; below, the query, framed green if the
    prediction is right and red if wrong, beside the classes of highest score. All clips start together; the
    shorter ones hold their last frame.
    """
    for clip in [query_THWC, *(clip for _, clips in support for clip in clips)]:
        if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[-1] != 3 or clip.size == 0:
            raise InputError(f"clip of shape {clip.shape} and type {clip.dtype}: must be uint8 [T, H, W, 3], not empty")
    panel, movies = _draw_panel(support, query_THWC, true, predicted, scores or {})
    frames = []
    for time in range(max(len(movie.clip) for movie in movies)):
        frame = panel.copy()
        for movie in movies:
            movie.paste_into(frame, time)
        frames.append(frame)
    return _encode_gif(frames, fps)


@dataclass(frozen=True)
class _Movie:
    """A clip and the square of the panel where it plays."""

    clip: np.ndarray
    left: int
    top: int
    side: int

    def paste_into(self, frame: Image.Image, time: int) -> None:
        picture = Image.fromarray(self.clip[min(time, len(self.clip) - 1)])
        square = ImageOps.pad(picture, (self.side, self.side), Image.Resampling.BICUBIC, color=PANEL)
        frame.paste(square, (self.left, self.top))


def _draw_panel(
    support: Sequence[tuple[str, Sequence[np.ndarray]]],
    query_THWC: np.ndarray,
    true: str,
    predicted: str,
    scores: Mapping[str, float],
) -> tuple[Image.Image, list[_Movie]]:
    """All that stands still in an episode, and what moves on top of it."""
    columns = min(len(support), CARDS_PER_ROW)
    rows = -(-len(support) // CARDS_PER_ROW)
    frame_side = QUERY_SIDE + 2 * BORDER
    card_height = max(_mosaic_height(len(clips)) for _, clips in support)
    width = 2 * MARGIN + max(columns * (CARD + GAP) - GAP, frame_side + 2 * GAP + SCORES_WIDTH)
    query_top = MARGIN + LINE_HEIGHT + rows * (card_height + LINE_HEIGHT + GAP) + GAP
    panel = Image.new("RGB", (width, query_top + LINE_HEIGHT + frame_side + MARGIN), PAPER)
    draw = ImageDraw.Draw(panel)

    draw.text((MARGIN, MARGIN), "Support", MUTED, font_of(13))
    movies = []
    for index, (name, clips) in enumerate(support):
        left = MARGIN + index % CARDS_PER_ROW * (CARD + GAP)
        top = MARGIN + LINE_HEIGHT + index // CARDS_PER_ROW * (card_height + LINE_HEIGHT + GAP)
        movies += _lay_mosaic(clips, left, top)
        font = font_of(13, bold=name in (true, predicted))
        draw.text((left, top + card_height + 3), fit_text(name, font, CARD), _color(name, true, predicted), font)

    draw.line((MARGIN, query_top - GAP, width - MARGIN, query_top - GAP), LINE)
    draw.text((MARGIN, query_top), "Query", MUTED, font_of(13))
    top = query_top + LINE_HEIGHT
    verdict = _color(predicted, true, predicted)
    draw.rectangle((MARGIN, top, MARGIN + frame_side - 1, top + frame_side - 1), verdict)
    movies.append(_Movie(query_THWC, MARGIN + BORDER, top + BORDER, QUERY_SIDE))
    left = MARGIN + frame_side + 2 * GAP
    _draw_verdict(draw, left, top, width - MARGIN, true, predicted)
    _draw_scores(draw, left, top + 3 * LINE_HEIGHT, width - MARGIN, true, predicted, scores)
    return panel, movies


def _mosaic_columns(shots: int) -> int:
    """Clips side by side in a card: one for a single shot, two for up to six, three for up to thirteen."""
    return int(np.ceil(np.sqrt(shots * 2 / 3)))


def _mosaic_height(shots: int) -> int:
    columns = _mosaic_columns(shots)
    return -(-shots // columns) * (CARD // columns)


def _lay_mosaic(clips: Sequence[np.ndarray], left: int, top: int) -> list[_Movie]:
    """The shots of one class as equal squares within the width of a card."""
    columns = _mosaic_columns(len(clips))
    pitch = CARD // columns
    side = CARD if columns == 1 else pitch - 2
    return [
        _Movie(clip, left + index % columns * pitch, top + index // columns * pitch, side)
        for index, clip in enumerate(clips)
    ]


def _color(name: str, true: str, predicted: str) -> str:
    """Green for the true class, red for a wrong prediction, plain for the others."""
    if name == true:
        return RIGHT
    return WRONG if name == predicted else INK


def _draw_verdict(draw: ImageDraw.ImageDraw, left: int, top: int, right: int, true: str, predicted: str) -> None:
    """The true and the predicted class; a mark says right or wrong without the help of colour."""
    mark = "\u2713" if predicted == true else "\u2717"
    plain, bold = font_of(14), font_of(14, bold=True)
    for line, (label, name, prefix) in enumerate((("true", true, ""), ("predicted", predicted, f"{mark} "))):
        y = top + line * LINE_HEIGHT
        draw.text((left, y), label, MUTED, plain)
        text = fit_text(prefix + name, bold, right - left - 84)
        draw.text((left + 84, y), text, _color(name, true, predicted), bold)


def _draw_scores(
    draw: ImageDraw.ImageDraw,
    left: int,
    top: int,
    right: int,
    true: str,
    predicted: str,
    scores: Mapping[str, float],
) -> None:
    """The classes of highest score, each with its bar.

    Bars start at zero or, where scores are negative, such as minus a distance, at the lowest of them.
    """
    base = min([0.0, *scores.values()])
    span = max([0.0, *(score - base for score in scores.values())])
    font, bar_left, bar_right = font_of(12), left + 146, right - 50
    best = sorted(scores, key=lambda name: -scores[name])[:MOST_SCORES]
    for line, name in enumerate(best):
        y = top + line * (LINE_HEIGHT + 4)
        draw.text((left, y), fit_text(name, font, 138), INK, font)
        draw.rectangle((bar_left, y + 2, bar_right, y + 13), PANEL)
        if scores[name] > base:
            length = (bar_right - bar_left) * (scores[name] - base) / span
            color = MUTED if name not in (true, predicted) else _color(name, true, predicted)
            draw.rectangle((bar_left, y + 2, bar_left + length, y + 13), color)
        draw.text((right, y), f"{scores[name]:.2f}", INK, font, anchor="ra")


def _encode_gif(frames: Sequence[Image.Image], fps: float) -> bytes:
    """The frames with one palette, as true to the colours as 500 kB allow."""
    encoded = b""
    for colors, tolerance in ((192, 8), (128, 12), (96, 20), (64, 20), (32, 30)):
        palette = _learn_palette(frames, colors)
        # Dithering would make the still pixels flicker again.
        indexed = [
            frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in _hold_still(frames, tolerance)
        ]
        buffer = BytesIO()
        indexed[0].save(buffer, "GIF", save_all=True, append_images=indexed[1:], duration=round(1000 / fps), loop=0)
        encoded = buffer.getvalue()
        if len(encoded) < MOST_GIF_BYTES:
            break
    return encoded


def _hold_still(frames: Sequence[Image.Image], tolerance: int) -> Iterator[Image.Image]:
    """Frames whose pixels change only by more than `tolerance` of 255: noise is most of the size of a GIF."""
    shown = np.asarray(frames[0], dtype=np.int16)
    for frame in frames:
        pixels = np.asarray(frame, dtype=np.int16)
        moved = np.abs(pixels - shown).max(axis=2, keepdims=True) > tolerance
        shown = np.where(moved, pixels, shown)
        yield Image.fromarray(shown.astype(np.uint8))


def _learn_palette(frames: Sequence[Image.Image], colors: int) -> Image.Image:
    """The colours of the panel, exactly, and `colors` learned from the clips."""
    drawn = np.array([ImageColor.getrgb(color) for color in (INK, MUTED, LINE, PANEL, PAPER, RIGHT, WRONG)])
    # A quarter of the pixels weighs the colours as well.
    sample = Image.fromarray(np.concatenate([np.asarray(frame)[::2, ::2] for frame in frames]))
    learned = np.reshape(sample.quantize(colors, Image.Quantize.MEDIANCUT).getpalette() or [], (-1, 3))
    # Pillow finds the nearest colour only to within a few levels: near a drawn one, it must be alone.
    distance = np.abs(learned[:, None] - drawn).max(axis=2).min(axis=1)
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate([drawn, learned[distance > 8]]).ravel().tolist())
    return palette


def font_of(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans of so many pixels, which comes with matplotlib and covers more scripts than Pillow's own font."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)


def fit_text(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text on one line, cut to `width` pixels with an ellipsis."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "\u2026") > width:
        text = text[:-1]
    return text + "\u2026"


def _shorten(name: str, length: int = 22) -> str:
    """The name on one line, cut to `length` characters with an ellipsis."""
    name = " ".join(name.split())
    return name if len(name) <= length else name[: length - 1] + "\u2026"


def new_chart(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    """An empty chart of the given size in inches, in the style of all charts here."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)  # inches
    figure = Figure(figsize=(width, height), facecolor=PAPER, layout=layout)
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=12, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=9)
    axes.set_axisbelow(True)
    return figure, axes


def add_legend(figure: Figure) -> None:
    """The names of all series below the chart, in as many columns as there is room for."""
    names = figure.axes[0].get_legend_handles_labels()[1]
    width = 40 + 5 * min(MOST_LEGEND_LETTERS, max(map(len, names), default=0))  # points
    columns = int(np.clip(72 * figure.get_figwidth() // width, 1, 3))
    legend = figure.legend(loc="outside lower left", ncols=columns, frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_text(_shorten(text.get_text(), MOST_LEGEND_LETTERS))
        text.set_parse_math(False)


def encode_png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=180)
    return buffer.getvalue()
