# SPDX-License-Identifier: Apache-2.0
"""Noise, colour, files and layout in numbers: statistics, exact moves, and the formulas written out in float64."""

import colorsys
from io import BytesIO

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, stats

from mindvideo.data.corruptions import OPERATIONS, SEVERITIES, digital, random_cut
from tests.pictures import flat, places, scene, slopes

every_severity = pytest.mark.parametrize("severity", SEVERITIES)


def apply(name: str, image: np.ndarray, seed: int = 0, severity: int = 3) -> np.ndarray:
    return OPERATIONS[name](image, np.random.default_rng(seed), severity)


def assert_share(hits: np.ndarray, share: float) -> None:
    """The share of true entries is this, within four deviations of a binomial count."""
    assert abs(hits.mean() - share) < 4 * np.sqrt(share * (1 - share) / hits.size)


def fifth(mild: float, strong: float, severity: int) -> tuple[float, float]:
    """The severity's part of the range, its lower end first."""
    ends = (mild + (strong - mild) * (severity - 1) / 5, mild + (strong - mild) * severity / 5)
    return min(ends), max(ends)


def test_pepper_and_salt_are_whole_pixels_half_a_percent_each():
    noisy = apply("pepper_salt_noise", flat(300, 400, (10, 120, 200)))
    for color, share in ((0, 0.005), (255, 0.005), ((10, 120, 200), 0.99)):
        assert_share((noisy == color).all(axis=2), share)
    assert np.isin(noisy[..., 1], (0, 120, 255)).all()


def test_color_points_are_a_quarter_of_a_percent_each():
    noisy = apply("color_point_noise", flat(400, 500, (10, 120, 200)))
    kinds = [(noisy == color).all(axis=2) for color in ((0, 255, 0), (255, 0, 0), (0, 0, 255), (10, 120, 200))]
    for kind, share in zip(kinds, (0.0025, 0.0025, 0.0025, 0.99), strict=True):
        assert_share(kind, share)
    other = noisy[~np.any(kinds, axis=0)]
    assert abs(len(other) - 500) < 4 * np.sqrt(500)
    assert np.all(np.abs(other.mean(axis=0) - 127.5) < 4 * 74 / np.sqrt(len(other)))


@every_severity
def test_gaussian_noise_has_its_deviation(severity):
    deviations = []
    for seed in range(8):
        noise = apply("gaussian_noise", flat(60, 80, 127), seed, severity) - 127.0
        assert abs(noise.mean()) < 4 * noise.std() / np.sqrt(noise.size)
        assert stats.kurtosis(noise.ravel()) == pytest.approx(0, abs=0.3) or noise.std() < 2  # whole levels count there
        deviations.append(noise.std() / 255)
    assert 0.03 * (severity - 1) * 0.97 <= min(deviations) < max(deviations) <= 0.03 * severity * 1.03 + 0.001
    assert max(deviations) - min(deviations) > 0.01  # drawn for each image


@every_severity
def test_shot_noise_counts_quanta(severity):
    quanta, value = (60, 25, 12, 5, 3)[severity - 1], 40
    noisy = apply("shot_noise", flat(150, 200, value), 0, severity).astype(float)
    counts = np.rint(noisy * quanta / 255)
    assert np.abs(noisy - counts * 255 / quanta).max() <= 0.5
    expected = stats.poisson(value * quanta / 255)
    for count in range(3):
        assert_share(counts == count, expected.pmf(count))
    assert counts.var() == pytest.approx(expected.var(), rel=0.05)


@every_severity
def test_impulses_strike_single_values(severity):
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    noisy = apply("impulse_noise", flat(150, 200, 100), 0, severity)
    assert_share(noisy == 0, share / 2)
    assert_share(noisy == 255, share / 2)
    assert_share((noisy == 100).all(axis=2), (1 - share) ** 3)


@every_severity
def test_speckles_grow_with_the_value(severity):
    std = (0.15, 0.2, 0.35, 0.45, 0.6)[severity - 1]
    for value in (50, 100):
        noisy = apply("speckle_noise", flat(150, 200, value), 0, severity)
        for deviations in (-1, 0, 1):
            expected = value * (1 + deviations * std)
            assert np.quantile(noisy, stats.norm.cdf(deviations)) == pytest.approx(expected, abs=1 + 0.01 * value)
        assert_share(noisy == 0, stats.norm.cdf((0.5 / value - 1) / std))


@every_severity
def test_contrast_is_its_formula(severity):
    image = scene(37, 50)
    pixels = image.astype(np.float64)
    means = pixels.mean(axis=(0, 1), keepdims=True)
    expected = means + (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1] * (pixels - means)
    assert np.abs(apply("contrast", image, severity=severity) - expected).max() <= 0.5 + 1e-9


@every_severity
@pytest.mark.parametrize("name", ["brightness", "saturate"])
def test_hsv_is_as_in_the_standard_library(name, severity):
    image = scene(9, 12)
    brighter = (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]
    factor, addend = ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))[severity - 1]
    expected = np.empty(image.shape)
    for place in np.ndindex(image.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*image[place] / 255.0)
        if name == "brightness":
            value = min(value + brighter, 1)
        else:
            saturation = min(factor * saturation + addend, 1)
        expected[place] = 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))
    assert np.abs(apply(name, image, severity=severity) - expected).max() < 0.51


@every_severity
def test_compression_is_a_jpeg_file(severity):
    image = scene(45, 61)
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=(25, 18, 15, 10, 7)[severity - 1])
    np.testing.assert_array_equal(apply("compress", image, severity=severity), np.asarray(Image.open(buffer)))


@every_severity
def test_pixels_grow(severity):
    image = scene(60, 120)
    scale = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    rows, columns = (box_weights(size, int(size * scale)) for size in (60, 120))
    small = np.rint(np.einsum("ri,cj,ijk->rck", rows, columns, image))
    back = [np.minimum(((np.arange(size) + 0.5) * scale).astype(int), int(size * scale) - 1) for size in (60, 120)]
    result = apply("pixelate", image, severity=severity)
    if severity in (2, 5):  # where small pixels are whole numbers of large ones
        assert np.abs(result - small[np.ix_(*back)]).max() <= 1
    assert np.abs(result - small[np.ix_(*back)]).mean() < 3
    assert len(np.unique(result.reshape(-1, 3), axis=0)) < len(np.unique(image.reshape(-1, 3), axis=0))


def box_weights(old: int, new: int) -> np.ndarray:
    """The share of each old pixel in each new one, `[new, old]`, rows of sum 1."""
    edges = np.arange(new + 1) * old / new
    starts = np.arange(old)
    overlap = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    return np.maximum(overlap, 0) * new / old


@every_severity
def test_elastic_is_an_affine_map_and_smoothed_noise(severity):
    height, width = 120, 160
    strength, smoothness, corner = (
        244 * 120 / 224 * factor
        for factor in ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))[
            severity - 1
        ]
    )
    rows, columns = np.mgrid[:height, :width]
    known = np.stack([columns.ravel(), rows.ravel(), np.ones(rows.size)], axis=1)
    local, largest = [], 0.0
    for seed in range(10):
        column_map, row_map = digital.displaced_grid(height, width, np.random.default_rng(seed), severity)
        found = np.stack([column_map.ravel(), row_map.ravel()], axis=1)
        affine = np.linalg.lstsq(known, found, rcond=None)[0]
        local.append((found - known @ affine).std())
        # The map back moves the triangle's corners by no more than the constants allow.
        corners = np.array([[80, 60]]) + 40 * np.array([[1, 1], [1, -1], [-1, -1]])
        moved = (corners - affine[2]) @ np.linalg.inv(affine[:2])
        largest = max(largest, float(np.abs(moved - corners).max()))
    assert 0.6 * corner < largest < 1.05 * corner + 0.5
    if severity >= 3:  # the noise of the others is wider than the picture
        assert np.mean(local) == pytest.approx(strength / np.sqrt(3) / (2 * np.sqrt(np.pi) * smoothness), rel=0.1)


@pytest.mark.parametrize("sigma", [2.5, 6.0, 40.0])
def test_smooth_is_scipys_gaussian_filter(sigma):
    noise = np.random.default_rng(0).uniform(-1, 1, (40, 61))
    expected = ndimage.gaussian_filter(noise, sigma, mode="reflect", truncate=8)
    np.testing.assert_allclose(digital.smooth(noise, sigma), expected, atol=1e-6)


def test_elastic_takes_pixels_from_its_grid():
    image = slopes(60, 80)
    columns, rows = digital.displaced_grid(60, 80, np.random.default_rng(1), 4)
    expected = [ndimage.map_coordinates(channel.astype(float), [rows, columns], order=1, mode="mirror")
                for channel in image.transpose(2, 0, 1)]  # fmt: skip
    assert np.abs(apply("elastic", image, 1, 4) - np.stack(expected, axis=2)).max() <= 1.5


@every_severity
def test_a_mosaic_is_one_square_away_from_the_border(severity):
    kinds, (low, high) = [], fifth(12.5, 26.5, severity)
    for seed in range(200):
        covered = apply("mosaic", flat(140, 160, (1, 2, 3)), seed, severity)
        rows, columns = np.nonzero((covered != (1, 2, 3)).any(axis=2))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert height == width
        assert low - 0.5 <= height <= high + 0.5
        assert 2 * height <= rows.min() <= rows.max() < 140 - 2 * height
        assert 2 * width <= columns.min() <= columns.max() < 160 - 2 * width
        square = covered[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        kinds.append(int(square[0, 0, 0]) if square.std() == 0 else -1)
    for kind, share in ((-1, 0.7), (0, 0.1), (255, 0.1), (127, 0.1)):
        assert_share(np.array(kinds) == kind, share)


def test_channels_come_in_all_six_orders():
    orders = [tuple(apply("rgb_shuffle", flat(2, 2, (1, 2, 3)), seed)[0, 0].tolist()) for seed in range(600)]
    assert set(orders) == {(1, 2, 3), (1, 3, 2), (2, 1, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1)}
    assert_share(np.array([order == (1, 2, 3) for order in orders]), 1 / 6)


@every_severity
def test_turns_are_within_five_degrees(severity):
    image = np.zeros((101, 151, 3), np.uint8)
    for column in (20, 130):
        cv2.circle(image, (column, 50), 6, (255, 255, 255), -1)
    angles = []
    for seed in range(20):
        turned = apply("rotate", image, seed, severity)[..., 0].astype(float)
        left, right = (ndimage.center_of_mass(half) for half in (turned[:, :75], turned[:, 75:]))
        angles.append(np.rad2deg(np.arctan2(left[0] - right[0], right[1] + 75 - left[1])))
        assert left[0] + right[0] == pytest.approx(100, abs=0.2)  # about the middle
        assert left[1] + right[1] + 75 == pytest.approx(150, abs=0.2)
    assert np.all((np.abs(angles) > severity - 1.05) & (np.abs(angles) < severity + 0.05))
    assert min(angles) < 0 < max(angles)


def test_a_turn_is_scipys():
    image = slopes(61, 80)
    turned = apply("rotate", image, 2, 5)
    angles = np.arange(-5, 5.01, 0.05)
    inside = (slice(6, -6), slice(6, -6))
    differences = [
        np.abs(ndimage.rotate(image.astype(float), angle, reshape=False, order=1) - turned)[inside].max()
        for angle in angles
    ]
    assert min(differences) < 2.5
    assert 4 <= abs(angles[np.argmin(differences)]) <= 5
    assert (turned[[0, -1]] == 0).any()  # corners


def test_flips_are_exact():
    image = scene(5, 8)
    np.testing.assert_array_equal(apply("hflip", image), [[row[7 - j] for j in range(8)] for row in image])
    np.testing.assert_array_equal(apply("vflip", image), [image[4 - i] for i in range(5)])


@every_severity
def test_a_cut_is_a_window(severity):
    corners, (low, high) = set(), fifth(0.9, 0.4, severity)
    for seed in range(30):
        window = random_cut(places(100, 200), np.random.default_rng(seed), severity)
        height, width = window.shape[:2]
        assert 100 * low - 1 < height <= 100 * high
        assert width in (2 * height, 2 * height + 1)
        top, left = window[0, 0, :2]
        np.testing.assert_array_equal(window, places(100, 200)[top : top + height, left : left + width])
        corners.add((top, left))
    assert len(corners) > 20


@every_severity
def test_extended_pixels_come_from_right_and_below(severity):
    reaches, (low, high) = set(), fifth(2.5, 9.5, severity)
    for seed in range(20):
        taken = apply("extend", places(60, 90), seed, severity).astype(int)
        down, right = taken[..., 0] - np.arange(60)[:, None], taken[..., 1] - np.arange(90)
        reach = int(down.max()) + 1
        assert right.max() + 1 == reach
        assert min(down.min(), right.min()) == 0
        inside = down[: 60 - reach]
        for offset in range(reach):
            assert_share(inside == offset, 1 / reach)
        assert (down[-1] == 0).all()
        reaches.add(reach)
    assert low - 0.5 <= min(reaches) <= max(reaches) <= high + 0.5


def test_blocks_swap():
    shifts = {0: [], 1: []}
    for seed in range(100):
        taken = apply("block_shuffle", places(50, 80), seed).astype(int)
        down, right = (taken[..., 0] - np.arange(50)[:, None]) % 50, (taken[..., 1] - np.arange(80)) % 80
        assert np.ptp(down) == np.ptp(right) == 0
        assert (down[0, 0] == 0) != (right[0, 0] == 0)
        axis = int(down[0, 0] == 0)
        shifts[axis].append(float((down, right)[axis][0, 0] / (50, 80)[axis]))
    for shares in shifts.values():
        assert len(shares) > 30
        assert 0.39 < min(shares) < 0.45 < 0.55 < max(shares) < 0.61


def test_tiles_are_permuted():
    taken = apply("local_shuffle", places(140, 160), 1, 1)  # at most half the sides: four tiles
    np.testing.assert_array_equal(np.unique(taken.reshape(-1, 3), axis=0), places(140, 160).reshape(-1, 3))
    corners = taken[::70, ::80, :2].reshape(-1, 2).tolist()
    assert sorted(corners) == [[0, 0], [0, 80], [70, 0], [70, 80]]
    for top in (0, 70):
        for left in (0, 80):
            tile = taken[top : top + 70, left : left + 80].astype(int)
            np.testing.assert_array_equal(tile - tile[0, 0], places(70, 80).astype(int) - (0, 0, 7))


def are_tiles(taken: np.ndarray, side: int) -> bool:
    """Whether a square of places consists of its nine tiles of this side, the last ones over those before."""
    size = len(taken)
    spans = [(0, side), (side, size - side), (size - side, size)]
    sources = set()
    for top, bottom in spans:
        for left, right in spans:
            tile = taken[top:bottom, left:right, :2].astype(int)
            if (tile - tile[0, 0] != places(bottom - top, right - left)[..., :2]).any():
                return False
            sources.add(tuple(tile[0, 0].tolist()))
    starts = [start for start, _ in spans]
    return sources == {(top, left) for top in starts for left in starts}


@every_severity
def test_the_last_tiles_overlap(severity):
    low, high = fifth(100.5, 79.5, severity)
    for seed in range(10):
        taken = apply("local_shuffle", places(224, 224), seed, severity)
        sides = [side for side in range(75, 112) if are_tiles(taken, side)]
        assert len(sides) == 1
        assert low - 0.5 <= sides[0] <= high + 0.5


@every_severity
def test_padding_shrinks_onto_grey_or_noise(severity):
    color, noisy, (low, high) = (10, 200, 30), [], fifth(0.95, 0.65, severity)
    for seed in range(40):
        padded = apply("random_padding", flat(100, 200, color), seed, severity)
        inside = (padded == color).all(axis=2)
        rows, columns = np.nonzero(inside)
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert inside.sum() == height * width
        assert 100 * low - 1 < height <= 100 * high
        assert width in (2 * height, 2 * height + 1)
        noisy.append(padded[~inside].std() > 0)
    assert 8 < sum(noisy) < 32


def test_padding_takes_the_whole_picture():
    image = slopes(80, 100)
    for seed in range(20):
        padded = apply("random_padding", image, seed, 5).astype(int)
        canvas = padded[0, 0] if (padded[0, 0] == padded[-1, -1]).all() else None
        if canvas is None:
            continue
        rows, columns = (np.nonzero((padded != canvas).any(axis=(2, other)))[0] for other in (1, 0))
        shrunk = padded[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        expected = cv2.resize(image, shrunk.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        assert np.abs(shrunk - expected).mean() < 2


def test_what_only_moves_pixels_makes_no_new_ones():
    image = scene(33, 47)
    colors = {tuple(color) for color in image.reshape(-1, 3).tolist()}
    for name in ("hflip", "vflip", "extend", "block_shuffle", "local_shuffle"):
        assert {tuple(color) for color in apply(name, image).reshape(-1, 3).tolist()} <= colors, name
