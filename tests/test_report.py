# SPDX-License-Identifier: Apache-2.0
"""The figures show the numbers they were given, and the page keeps hostile names harmless."""

import subprocess
import sys
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageColor, ImageSequence, UnidentifiedImageError

from mindvideo.errors import InputError
from mindvideo.report import figures
from mindvideo.report.figures import bars, confusion, curves, episode_gif, row_shares, smooth
from mindvideo.report.page import Figure, Figures, Preformatted, Table, Text, write_page

HOSTILE = "\"'><script>alert(1)</script><img src=http://example.org/x>&amp;"
LONG = "a class name that goes on and on and on and on"
NAMES = ["walk", r"$\frac", LONG]


def open_png(data: bytes) -> Image.Image:
    image = Image.open(BytesIO(data))
    image.load()
    assert image.format == "PNG"
    return image


@pytest.fixture
def charts(monkeypatch) -> list[Any]:
    """The matplotlib figures, in the order in which the test draws them."""
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "encode_png", drawn.append)
    return drawn


def test_charts_are_images_of_the_size_asked_for():
    curve = curves({"train $x": [(0, 1.0), (1, 0.5)]}, title="$", x_label="step", y_label="loss")
    bar = bars({"1-shot": {"arn $": (45.0, 44.0, 46.5)}}, title="$", y_label="%")
    # Inches times 180 dots.
    assert open_png(curve).size == open_png(bar).size == (1152, 684)
    width, height = open_png(confusion(np.eye(3), NAMES, r"$\frac")).size
    assert width > height > 180 * 3 * 0.5


def test_drawing_leaves_pyplot_alone_and_importing_loads_no_matplotlib():
    script = (
        "import sys; from mindvideo.report import bars\n"
        "assert 'matplotlib' not in sys.modules\n"
        "bars({'a': {'b': (1, 0, 2)}}, title='', y_label='')\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[1], check=True)


@pytest.mark.parametrize("width", [1, 4, 5])
def test_smooth_averages_what_is_finite_around_each_value(width):
    values = np.random.default_rng(0).normal(size=30)
    values[[3, 4, 17]] = np.nan, np.inf, -np.inf
    half = width // 2
    for index, got in enumerate(smooth(values, width)):
        window = values[max(0, index - half) : index + half + 1]
        want = window[np.isfinite(window)].mean() if np.isfinite(values[index]) else np.nan
        np.testing.assert_allclose(got, want, rtol=1e-12)


def test_curves_smooth_only_the_dense_series(charts):
    noisy = [(step, float(step % 2)) for step in range(100)]
    curves({"train": noisy, "val": [(0, 0.5), (50, 0.25)]}, title="", x_label="", y_label="")
    raw, smoothed, sparse = charts[0].axes[0].lines
    np.testing.assert_array_equal(raw.get_xydata(), noisy)
    np.testing.assert_array_equal(smoothed.get_ydata(), smooth(np.array(noisy)[:, 1], 4))
    np.testing.assert_array_equal(sparse.get_xydata(), [(0, 0.5), (50, 0.25)])
    assert [text.get_text() for text in charts[0].legends[0].get_texts()] == ["train", "val"]


def test_bars_have_the_heights_and_intervals_given(charts):
    groups = {"1-shot": {"arn": (45.0, 44.0, 46.5), "chance": (20, 20, 20)}, "5-shot": {"arn": (60, 58, 61)}}
    bars(groups, title="", y_label="")
    axes = charts[0].axes[0]
    assert [bar.get_height() for bar in axes.patches] == [45, 60, 20]
    lows_highs = [segment[:, 1].tolist() for lines in axes.collections for segment in lines.get_segments()]
    assert lows_highs == [[44, 46.5], [58, 61], [20, 20]]
    assert [text.get_text() for text in axes.texts] == ["45", "60", "20"]


def test_row_shares_divide_each_row_by_its_sum_and_keep_empty_rows_zero():
    matrix = np.array([[3, 1, 0], [0, 0, 0], [1, 1, 2]])
    shares = row_shares(matrix)
    np.testing.assert_array_equal(shares, [[0.75, 0.25, 0], [0, 0, 0], [0.25, 0.25, 0.5]])


def test_confusion_writes_the_percentage_of_the_true_class_in_each_cell(charts):
    confusion(np.array([[2, 1, 0], [0, 0, 0], [0, 0, 7]]), NAMES, "")
    axes = charts[0].axes[0]
    cells = {text.get_position()[::-1]: text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "67", (0, 1): "33", (2, 2): "100"}
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        "walk (3)",
        r"$\frac (0)",
        "a class name that goe\u2026 (7)",
    ]


@pytest.mark.parametrize(("classes", "labels"), [(21, 21), (120, 120), (121, None)])
def test_confusion_of_many_classes_shows_colours_only(charts, classes, labels):
    confusion(np.eye(classes), [f"class {index}" for index in range(classes)], "")
    axes = charts[0].axes[0]
    assert not axes.texts
    assert labels is None or len(axes.get_yticklabels()) == labels
    np.testing.assert_array_equal(axes.images[0].get_array(), np.eye(classes))


def test_confusion_rejects_names_that_do_not_fit_the_matrix():
    with pytest.raises(InputError, match="3 x 3"):
        confusion(np.eye(2), NAMES, "")


def plain_clip(*colors: str, size: int = 40) -> np.ndarray:
    """One frame of each colour."""
    return np.stack([np.full((size, size, 3), ImageColor.getrgb(color), np.uint8) for color in colors])


def read_gif(data: bytes) -> list[np.ndarray]:
    image = Image.open(BytesIO(data))
    assert image.format == "GIF"
    assert image.info["loop"] == 0  # for ever
    return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]


SUPPORT = [
    ("jump", [plain_clip("navy", "teal", "gold", "navy", "teal")]),
    ("run", [plain_clip("maroon")] * 5),
]


@pytest.mark.parametrize(("predicted", "color"), [("jump", figures.RIGHT), ("run", figures.WRONG)])
def test_episode_frame_is_green_if_right_and_red_if_wrong(predicted, color):
    frames = read_gif(episode_gif(SUPPORT, plain_clip("silver"), "jump", predicted))
    side = figures.QUERY_SIDE + 2 * figures.BORDER
    bottom, left = frames[0].shape[0] - figures.MARGIN - 1, figures.MARGIN
    for frame in frames:
        for y, x in [(bottom, left), (bottom, left + side - 1), (bottom - side + 1, left)]:
            assert tuple(frame[y, x]) == ImageColor.getrgb(color)


def test_episode_plays_every_clip_and_holds_the_last_frame_of_short_ones():
    frames = read_gif(episode_gif(SUPPORT, plain_clip("lime", "blue"), "jump", "run", scores={"jump": 0.2}))
    assert len(frames) == 5
    query = (frames[0].shape[0] - figures.MARGIN - 100, figures.MARGIN + 100)
    support = (figures.MARGIN + figures.LINE_HEIGHT + 50, figures.MARGIN + 50)
    for place, colors in [
        (query, ["lime", "blue", "blue", "blue", "blue"]),
        (support, ["navy", "teal", "gold", "navy", "teal"]),
    ]:
        shown = [frame[place].astype(int) for frame in frames]
        np.testing.assert_allclose(shown, [ImageColor.getrgb(color) for color in colors], atol=8)


def test_episode_lasts_as_long_as_its_clips():
    image = Image.open(BytesIO(episode_gif(SUPPORT, plain_clip("lime"), "jump", "run", fps=10)))
    assert image.info["duration"] == 100  # milliseconds a frame


def test_episode_of_noise_stays_small_and_long_names_do_not_widen_it():
    noise = np.random.default_rng(0).integers(0, 256, (5, 8, 84, 84, 3), dtype=np.uint8)
    sizes = set()
    for name in ("c", LONG):
        scores = {f"{name}{index}": -float(index) for index in range(5)}
        support = [(f"{name}{index}", [clip]) for index, clip in enumerate(noise // 4 + 96)]
        data = episode_gif(support, noise[0] // 4 + 96, f"{name}0", f"{name}1", scores=scores)
        assert len(data) < 500_000
        sizes.add(Image.open(BytesIO(data)).size)
    assert len(sizes) == 1


@pytest.mark.parametrize(
    "clip", [np.zeros((2, 8, 8, 3)), np.zeros((0, 8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)]
)
def test_episode_rejects_what_is_not_a_clip(clip):
    with pytest.raises(InputError, match="uint8"):
        episode_gif(SUPPORT, clip, "jump", "run")


class PageReader(HTMLParser):
    """Collects the tags with their attributes, and the text between any two tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts = [""]
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self.texts.append("")

    def handle_endtag(self, tag):
        self.texts.append("")

    def handle_data(self, data):
        self.texts[-1] += data


PNG = confusion(np.eye(3), NAMES, "")
GIF = episode_gif(SUPPORT, plain_clip("lime"), "jump", "run")


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "report.html"
    pictures = [Figure(HOSTILE, PNG, "image/png", HOSTILE), Figure(HOSTILE, GIF, "image/gif", HOSTILE)]
    write_page(
        path,
        title=HOSTILE,
        summary={HOSTILE: HOSTILE},
        sections=[
            Text(HOSTILE, f"{HOSTILE}\n\n{HOSTILE}"),
            Table(HOSTILE, [HOSTILE, "n"], [[HOSTILE, 1], [HOSTILE, 2]]),
            Figures(HOSTILE, pictures),
            Preformatted(HOSTILE, HOSTILE),
        ],
    )
    return path.read_text(encoding="utf-8")


def test_hostile_strings_are_text_everywhere(hostile_page):
    page = PageReader(hostile_page)
    assert "script" not in {tag for tag, _ in page.tags}
    # Two titles, a fact (2), two paragraphs, three cells, two captions, four headings, one listing.
    assert page.texts.count(HOSTILE) == 2 + 2 + 2 + 3 + 2 + 4 + 1
    assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == [HOSTILE, HOSTILE]
    assert [attributes["aria-label"] for _, attributes in page.tags if "aria-label" in attributes] == [HOSTILE]


def test_page_loads_nothing_from_elsewhere(hostile_page):
    page = PageReader(hostile_page)
    for _, attributes in page.tags:
        for name in {"src", "href", "srcset", "action"} & attributes.keys():
            assert attributes[name].startswith("data:")
        assert not any(name.startswith("on") for name in attributes)
    style = hostile_page.partition("<style>")[2].partition("</style>")[0]
    assert "color" in style
    assert "url(" not in style
    assert "@import" not in style


def test_images_are_in_the_page_byte_for_byte_at_their_screen_size(hostile_page):
    images = [attributes for tag, attributes in PageReader(hostile_page).tags if tag == "img"]
    for image, data, mime, dpi in zip(images, (PNG, GIF), ("png", "gif"), (180, 96), strict=True):
        head, _, encoded = image["src"].partition(",")
        assert head == f"data:image/{mime};base64"
        assert b64decode(encoded, validate=True) == data
        pixels = Image.open(BytesIO(data)).size
        shown = int(image["width"]), int(image["height"])
        np.testing.assert_allclose(shown, np.array(pixels) * 96 / dpi, atol=0.51)


def test_cells_are_short_numbers_and_columns_of_numbers_align_right(tmp_path):
    rows = [["arn", 0.123456, 12345.6, np.float32(1.5), True, 7], ["b", "\u00b1 2", -1.0, "", "", ""]]
    path = tmp_path / "report.html"
    write_page(path, title="t", summary={"loss": 1e-5}, sections=[Table("h", list("abcdef"), rows)])
    page = PageReader(path.read_text(encoding="utf-8"))
    for text in ("1e-05", "0.1235", "12,346", "1.5", "True", "7", "\u00b1 2", "-1"):
        assert text in page.texts
    aligned = ["class" in attributes for tag, attributes in page.tags if tag == "th"]
    assert aligned == [False, True, True, True, False, True]


def test_table_without_rows_and_names_that_are_not_utf8(tmp_path):
    path = tmp_path / "report.html"
    write_page(path, title="file \udcff", summary={}, sections=[Table("empty", ["a", "b"], [])])
    page = PageReader(path.read_text(encoding="utf-8"))
    assert page.texts.count("file \\udcff") == 2
    assert [tag for tag, _ in page.tags if tag in ("th", "td")] == ["th", "th"]


def test_a_page_that_fails_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "report.html"
    write_page(path, title="old", summary={}, sections=[])
    old = path.read_bytes()
    with pytest.raises(UnidentifiedImageError):
        write_page(path, title="new", summary={}, sections=[Figures("h", [Figure("", b"", "image/png", "")])])
    assert path.read_bytes() == old
    write_page(path, title="new", summary={}, sections=[])
    assert b"<h1>new</h1>" in path.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


def test_a_page_that_cannot_be_put_in_place_leaves_no_temporary_file(tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OSError, match=r"report\.html"):
        write_page(tmp_path / "report.html", title="t", summary={}, sections=[])
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
