# SPDX-License-Identifier: Apache-2.0
"""Blur and weather in numbers: kernels by their moments, filters against scipy and Pillow, textures by formula."""

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy import ndimage

from mindvideo.data.corruptions import OPERATIONS, SEVERITIES, blur, weather
from tests.pictures import flat, scene, slopes

every_severity = pytest.mark.parametrize("severity", SEVERITIES)


def apply(name: str, image: np.ndarray, seed: int = 0, severity: int = 3) -> np.ndarray:
    return OPERATIONS[name](image, np.random.default_rng(seed), severity)


def correlate(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return ndimage.correlate(image.astype(float), kernel[..., None], mode="nearest")


def moments(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre `(row, column)` from the middle of the array, and covariance."""
    grids = [grid - (size - 1) / 2 for grid, size in zip(np.indices(weights.shape), weights.shape, strict=True)]
    shares = weights / weights.sum()
    center = np.array([(shares * grid).sum() for grid in grids])
    offsets = [grid - middle for grid, middle in zip(grids, center, strict=True)]
    return center, np.array([[(shares * a * b).sum() for a in offsets] for b in offsets])


def test_gaussian_blur_is_pillows_with_either_radius():
    image = scene(40, 50)
    expected = [np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius))) for radius in (1, 2)]
    matches = np.array([[(apply("gaussian_blur", image, seed) == e).all() for e in expected] for seed in range(30)])
    assert (matches.sum(axis=1) == 1).all()
    assert 6 < matches[:, 0].sum() < 24


def test_blur_is_the_mean_of_the_rim():
    image = scene(30, 41)
    kernel = np.ones((5, 5))
    kernel[1:-1, 1:-1] = 0
    inside = (slice(2, -2), slice(2, -2))
    assert np.abs(apply("blur", image) - correlate(image, kernel / 16))[inside].max() <= 0.5


@pytest.mark.parametrize("sigma", [0.7, 1.1, 4.0])
def test_gaussian_is_scipys(sigma):
    image = scene(40, 51).astype(np.float32)
    expected = ndimage.gaussian_filter(image.astype(float), (sigma, sigma, 0), mode="reflect", truncate=4)
    np.testing.assert_allclose(blur.gaussian(image, sigma), expected, atol=1e-2)


@pytest.mark.parametrize(("farthest", "rounds"), [(1, 2), (4, 2), (2, 3)])
def test_glass_swaps_pixels_one_after_the_other(farthest, rounds):
    height, width = 13, 17
    order = blur.swapped_order(height, width, farthest, rounds, np.random.default_rng(3))
    np.testing.assert_array_equal(np.sort(order, axis=None), np.arange(height * width))
    rng, image = np.random.default_rng(3), np.arange(height * width).reshape(height, width)
    for _ in range(rounds):
        shifts = rng.integers(-farthest, farthest + 1, (2, height, width))
        for row, column in np.ndindex(height, width):
            down, right = shifts[:, row, column]
            other = min(max(row + down, 0), height - 1), min(max(column + right, 0), width - 1)
            kept = image[row, column].copy()
            image[row, column] = image[other]
            image[other] = kept
    np.testing.assert_array_equal(order, image)


@every_severity
def test_glass_blurs_both_ways_and_no_colours(severity):
    plain = flat(30, 40, (200, 90, 10))
    np.testing.assert_array_equal(apply("glass_blur", plain, 0, severity), plain)
    red = scene(40, 50) * np.array([1, 0, 0], np.uint8)
    assert (apply("glass_blur", red, 0, severity)[..., 1:] == 0).all()
    stripes = flat(40, 40, 20)
    stripes[:, ::2] = 220
    across, down = (apply("glass_blur", image, 0, severity) for image in (stripes, stripes.transpose(1, 0, 2).copy()))
    for blurred in (across, down):
        assert blurred.std() < 40
        assert abs(blurred.mean() - 120) < 3


@every_severity
def test_disks_are_round_and_as_large_as_their_radius(severity):
    radius = (3, 4, 6, 8, 10)[severity - 1]
    kernel = blur.disk_kernel(radius)
    assert kernel.sum() == pytest.approx(1)
    for turned in (kernel[::-1], kernel[:, ::-1], kernel.T):
        np.testing.assert_allclose(turned, kernel)
    assert 1 / kernel.max() == pytest.approx(np.pi * radius**2, rel=0.05)
    assert moments(kernel)[1] == pytest.approx(radius**2 / 4 * np.eye(2), rel=0.1)  # a disk's
    image = scene(60, 71)
    assert np.abs(apply("defocus_blur", image, severity=severity) - correlate(image, kernel)).max() <= 0.51


@pytest.mark.parametrize("angle", [-45, -20.0, 0.0, 33.3, 90.0, 135.0])
@pytest.mark.parametrize(("radius", "sigma"), [(10, 3), (15, 8), (20, 15)])
def test_trails_have_their_angle_and_length(angle, radius, sigma):
    kernel = blur.trail_kernel(radius, sigma, angle)
    assert kernel.sum() == pytest.approx(1)
    assert kernel.shape == (4 * radius + 1, 4 * radius + 1)
    weights = np.exp(-((np.arange(2 * radius + 1) / sigma) ** 2) / 2)
    length = (weights * np.arange(2 * radius + 1)).sum() / weights.sum()
    direction = np.array([np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle))])
    center, spread = moments(kernel)
    np.testing.assert_allclose(center, length * direction, atol=1e-9)
    across = np.array([direction[1], -direction[0]])
    assert across @ spread @ across < 0.3  # a line, of a pixel's width
    far = np.linalg.norm(np.argwhere(kernel > 0) - 2 * radius, axis=1).max()
    assert 2 * radius <= far < 2 * radius + 1.5
    if angle == 0:
        np.testing.assert_allclose(kernel[2 * radius, 2 * radius :], weights / weights.sum(), atol=1e-12)


@every_severity
def test_motion_draws_a_dot_into_a_trail(severity):
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    dot = np.zeros((121, 121, 3), np.uint8)
    dot[57:64, 57:64] = 255
    square = np.zeros((121, 121))
    square[57:64, 57:64] = 255
    angles = []
    for seed in range(12):
        drawn = apply("motion_blur", dot, seed, severity)[..., 0]
        center, _ = moments(drawn.astype(float))
        angles.append(np.rad2deg(np.arctan2(-center[0], -center[1])))
        expected = ndimage.correlate(square, blur.trail_kernel(radius, sigma, angles[-1]))
        assert np.abs(drawn - expected).max() < 6
    assert max(np.abs(angles)) < 46
    assert min(angles) < -5 < 5 < max(angles)


def test_enlargement_is_scipys():
    image = slopes(41, 60)[..., 0].astype(np.float32)
    for factor in (1.0, 1.07, 3.0):
        offset = (np.array(image.shape) - 1) / 2 * (1 - 1 / factor)
        expected = ndimage.affine_transform(image.astype(float), np.eye(2) / factor, offset, order=1, mode="nearest")
        assert np.abs(blur.enlarge(image, factor) - expected).max() < 0.7


@every_severity
def test_zoom_is_the_mean_of_enlargements(severity):
    largest, number = ((1.11, 12), (1.16, 17), (1.21, 11), (1.26, 14), (1.31, 11))[severity - 1]
    image = slopes(60, 81)
    total = image.astype(float)
    for factor in np.linspace(1, largest, number):
        offset = np.append((np.array(image.shape[:2]) - 1) / 2 * (1 - 1 / factor), 0)
        total += ndimage.affine_transform(
            image.astype(float), np.diag([1 / factor, 1 / factor, 1]), offset, order=1, mode="nearest"
        )
    zoomed = apply("zoom_blur", image, severity=severity)
    assert np.abs(zoomed - total / (number + 1)).max() < 1.1
    assert np.abs(zoomed[28:32, 39:42].astype(int) - image[28:32, 39:42]).max() <= 3  # the middle stays


@pytest.mark.parametrize("angle", [-30.0, 0.0, 17.0])
def test_streaks_lean_by_their_angle(angle):
    kernel = weather.streak_kernel(angle)
    np.testing.assert_allclose(kernel, kernel[::-1, ::-1])
    _, spread = moments(kernel)
    along = np.array([np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))])
    across = np.array([-along[1], along[0]])
    assert abs(along @ spread @ across) < 0.05
    assert along @ spread @ along == pytest.approx(weather.RAIN_LENGTH**2 / 12, rel=0.05)
    assert across @ spread @ across < 1


@every_severity
def test_rain_is_bright_and_as_dense_as_its_amount(severity):
    densities, blends = [], []
    for seed in range(8):
        streaks = apply("rain", flat(120, 150, 0), seed, severity)
        np.testing.assert_array_equal(streaks, np.repeat(streaks[..., :1], 3, axis=2))
        blends.append(streaks.max() / 255)
        densities.append((streaks > 0).mean())
        washed = apply("rain", flat(120, 150, 255), seed, severity)
        assert (washed[streaks == 0] == 255).all()
    assert max(blends) <= 1
    # A pixel stays dry if no drop falls on any pixel of the streak around it.
    wet = np.count_nonzero(weather.streak_kernel(0.0) > 0.02)
    low, high = (1 - (1 - amount / 25_600) ** wet for amount in (300 + 200 * severity, 300 + 200 * (severity + 1)))
    assert 0.8 * low < np.mean(densities) < 1.2 * high


def test_plasma_covers_its_range_and_repeats():
    roughness = []
    for decay in (1.4, 1.7, 2.0):
        clouds = [weather.plasma(64, decay, np.random.default_rng(seed)) for seed in range(20)]
        assert all(cloud.min() == 0 and cloud.max() == 1 for cloud in clouds)
        seams = np.mean([np.abs(cloud[0] - cloud[-1]).mean() for cloud in clouds])
        roughness.append(np.mean([np.abs(np.diff(cloud, axis=0)).mean() for cloud in clouds]))
        assert seams < 1.5 * roughness[-1]
    assert roughness[0] > roughness[1] > roughness[2]


def test_plasma_is_its_definition():
    """Point by point, from the same draws."""
    side, decay = 8, 1.7
    rng, heights, step, amplitude = np.random.RandomState(4), np.zeros((8, 8)), 8, 1.0
    while step > 1:
        half, number = step // 2, side // step
        for (row, column), straight in (((half, half), False), ((0, half), True), ((half, 0), True)):
            noise = rng.uniform(-1, 1, (number, number))
            for i, j in np.ndindex(number, number):
                y, x = row + i * step, column + j * step
                around = ((0, 1), (0, -1), (1, 0), (-1, 0)) if straight else ((1, 1), (1, -1), (-1, 1), (-1, -1))
                mean = np.mean([heights[(y + half * a) % side, (x + half * b) % side] for a, b in around])
                heights[y, x] = mean + amplitude * noise[i, j]
        step, amplitude = half, amplitude / decay**2
    expected = (heights - heights.min()) / np.ptp(heights)
    np.testing.assert_allclose(weather.plasma(side, decay, np.random.RandomState(4)), expected, atol=1e-12)


@every_severity
def test_fog_is_one_cloud_on_all_channels(severity):
    amount = 255 * (1.5, 2.0, 2.5, 2.5, 3.0)[severity - 1]
    image = scene(50, 70)
    scale = (int(image.max()) + amount) / int(image.max())
    rounding = 0.5 * scale / amount
    clouds = np.stack([(apply("fog", image, seed, severity) * scale - image) / amount for seed in range(12)])
    assert np.ptp(clouds, axis=3).max() <= 2 * rounding + 1e-9
    assert -rounding <= clouds.min() < 0.05
    assert 0.95 < clouds.max() <= 1 + rounding


@every_severity
def test_frost_adds_ice_to_a_darker_picture(severity):
    kept, added = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[severity - 1]
    image = flat(60, 80, 40)
    textures = []
    for seed in range(6):
        frosted = apply("frost", image, seed, severity).astype(float)
        assert (frosted >= np.floor(kept * 40)).all()
        assert (np.diff(frosted.mean(axis=(0, 1))) > 0).all()  # bluish
        texture = (frosted - kept * 40) / (added * np.array(weather.ICE))
        assert np.ptp(texture, axis=2).max() < 1.1 / (added * 205)
        textures.append(texture[..., 0])
    assert 0.2 < np.mean(textures) < 0.6
    assert np.corrcoef(textures[0].ravel(), textures[1].ravel())[0, 1] < 0.5  # each has a texture of its own


def test_ice_flowers_branch_at_sixty_degrees_and_fade_to_the_tips():
    starts, shoots = np.array([[10.0, 20.0]]), np.array([[100.0, 0.0]])
    twig_starts, twigs = weather._twigs(starts, shoots, 200, np.random.default_rng(0))
    assert len(twigs) == 400
    angles = np.rad2deg(np.arctan2(twigs[:, 1], twigs[:, 0]))
    assert np.abs(angles).mean() == pytest.approx(60, abs=1)
    assert np.count_nonzero(angles > 0) == 200
    places, lengths = (twig_starts[:, 0] - 10) / 100, np.linalg.norm(twigs, axis=1)
    assert (twig_starts[:, 1] == 20).all()
    assert (lengths <= 35 * (1 - places) + 1e-9).all()
    assert (lengths >= 14 * (1 - places) - 1e-9).all()
    for size in ((40, 90), (224, 224)):
        ice = weather.ice_flowers(*size, np.random.default_rng(1))
        assert ice.shape == size
        assert 0 <= ice.min() < ice.max() <= 1


@every_severity
def test_snow_whitens_and_falls(severity):
    kept = (0.8, 0.7, 0.7, 0.65, 0.55)[severity - 1]
    color = np.array([60, 40, 20])
    image = flat(64, 64, tuple(color.tolist()))
    whitened = kept * color + (1 - kept) * (1.5 * color @ (0.299, 0.587, 0.114) + 127.5)
    images = np.stack([apply("snow", image, seed, severity) for seed in range(16)]).astype(float)
    assert images.min(axis=(0, 1, 2)) == pytest.approx(whitened, abs=1 + 40 * (severity == 5))  # where no flake is
    flakes = images - images.min(axis=(0, 1, 2))
    assert 5 < flakes.mean() < 180
    inside = images[..., 0] - images[..., 0].mean()
    down, across = (np.mean(inside * np.roll(inside, 6, axis)) for axis in (1, 2))
    assert down > across
    unclipped = images.max(axis=3) < 255
    assert np.ptp((images - whitened)[unclipped], axis=1).max() <= 1 + 1e-9  # flakes are white


@pytest.mark.parametrize("severity", [1, 2, 3])
def test_water_adds_its_colour(severity):
    strength = (0.6, 0.6, 0.5)[severity - 1]
    wet = apply("spatter", flat(120, 160, 10), 0, severity).astype(float) - 10
    assert (wet >= 0).all()
    assert wet.max(axis=(0, 1)) == pytest.approx(strength * np.array([175, 238, 238]), abs=1)
    assert wet[..., 0] == pytest.approx(wet[..., 1] * 175 / 238, abs=1)
    np.testing.assert_array_equal(wet[..., 1], wet[..., 2])
    assert {1: 0.005, 2: 0.05, 3: 0.1}[severity] < (wet > 0).any(axis=2).mean() < {1: 0.2, 2: 0.4, 3: 0.6}[severity]
    white = apply("spatter", flat(60, 60, 255), 0, severity)
    assert (white == 255).all()  # nothing wraps around


@pytest.mark.parametrize("severity", [4, 5])
def test_mud_covers(severity):
    color, mud = np.array([200, 180, 160]), np.array([63, 42, 20])
    spattered = apply("spatter", flat(120, 160, tuple(color.tolist())), 0, severity).astype(float)
    cover = (color - spattered) / (color - mud)
    assert np.ptp(cover, axis=2).max() < 0.01
    covered = cover[..., 0] > 0
    assert cover[covered].min() > 0.79
    assert cover.max() <= 1.01
    assert 0.03 < covered.mean() < 0.6


def test_drops_shine_at_wet_places_alone():
    wet = np.hypot(*(np.indices((40, 40)) - 19.5)) < 9
    light = weather.drops(wet)
    assert light.max() == 1
    assert light.min() == 0
    assert (light[np.hypot(*(np.indices((40, 40)) - 19.5)) > 11] == 0).all()
    assert light[:20, :20].sum() > 2 * light[20:, 20:].sum()  # lit from the upper left
    np.testing.assert_array_equal(weather.drops(np.zeros((9, 9), bool)), 0)
