# SPDX-License-Identifier: Apache-2.0
"""Weather: rain, fog, frost, snow, and spatter on the lens. All textures are made here, from the generator alone."""

from __future__ import annotations

import cv2
import numpy as np

from mindvideo.data.corruptions.blur import enlarge, gaussian, trail_kernel
from mindvideo.data.corruptions.levels import level, to_uint8, within

RAIN_AMOUNTS = (500, 1500)  # drops per 25,600 pixels
RAIN_ANGLES = 30  # degrees from the vertical, either way
RAIN_LENGTH, RAIN_WIDTH = 10, 3
RAIN_OPACITY = 1 / 3  # of one streak
RAIN_BLEND = (0.7, 1.0)
FOG = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))  # amount, decay of the fractal
FROST = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))  # share of the image, of the frost
# Mean and deviation of the noise, its enlargement, threshold, radius and sigma of the trail, share of the image.
SNOW = (
    (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
    (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
    (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
)
# Mean and deviation of the noise, its smoothness, threshold, strength of water or smoothness of mud, whether mud.
SPATTER = (
    (0.65, 0.3, 4, 0.69, 0.6, False),
    (0.65, 0.3, 3, 0.68, 0.6, False),
    (0.65, 0.3, 2, 0.68, 0.5, False),
    (0.65, 0.3, 1, 0.65, 1.5, True),
    (0.67, 0.4, 1, 0.65, 1.5, True),
)
WATER, MUD = (175, 238, 238), (63, 42, 20)
ICE = (205, 232, 255)
ICE_STEMS = 12
ICE_LAYERS = ((1.0, 20), (0.8, 8), (0.6, 0))  # light, twigs on either side: of stems, twigs, and twigs on these
LUMA = (0.299, 0.587, 0.114)


def rain(image_HWC: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """Bright streaks, more of them with severity, up to 30 degrees from the vertical."""
    share = within(*RAIN_AMOUNTS, severity, rng) / 25_600
    drops_HW = (rng.random(image_HWC.shape[:2]) < share).astype(np.float32)
    angle, blend = rng.uniform(-RAIN_ANGLES, RAIN_ANGLES), rng.uniform(*RAIN_BLEND)
    streaks_HW = cv2.filter2D(drops_HW, -1, streak_kernel(angle), borderType=cv2.BORDER_REPLICATE)
    opacity_HW1 = np.minimum(RAIN_OPACITY * streaks_HW, 1)[..., None]
    return to_uint8(image_HWC * (1 - opacity_HW1) + 255 * blend * opacity_HW1)


def streak_kernel(angle: float) -> np.ndarray:
    """A line about the middle, `angle` degrees from the vertical, of weight 1 there and less to its sides."""
    reach = RAIN_LENGTH // 2 + RAIN_WIDTH
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    sin, cos = np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle))
    along, across = columns * sin + rows * cos, columns * cos - rows * sin
    ends = np.clip(RAIN_LENGTH / 2 + 0.5 - np.abs(along), 0, 1)
    return ends * np.exp(-2 * (across / (RAIN_WIDTH / 2)) ** 2)


def fog(image_HWC: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """Clouds of light added, then all scaled down to the brightest value there was."""
    amount, decay = level(FOG, severity)
    height, width = image_HWC.shape[:2]
    clouds_HW = plasma(2 ** max(1, (max(height, width) - 1).bit_length()), decay, rng)[:height, :width]
    brightest = int(image_HWC.max())
    foggy_HWC = image_HWC + 255 * amount * clouds_HW[..., None]
    return to_uint8(foggy_HWC * brightest / (brightest + 255 * amount))


def plasma(side: int, decay: float, rng: np.random.Generator | np.random.RandomState) -> np.ndarray:
    """A cloud that repeats at its borders, float64 `[side, side]` in [0, 1]; the side is a power of two.

    Diamond-square: each middle is the mean of its four neighbours and noise, whose deviation falls by the square of
    `decay` from one scale to the next.
    """
    heights = np.zeros((side, side))
    step, amplitude = side, 1.0

    def middles(neighbours: np.ndarray) -> np.ndarray:
        return neighbours / 4 + amplitude * rng.uniform(-1, 1, neighbours.shape)

    while step > 1:
        half = step // 2
        corners = heights[::step, ::step]
        beside, below = corners + np.roll(corners, -1, 1), corners + np.roll(corners, -1, 0)
        centers = middles(beside + np.roll(beside, -1, 0))
        heights[half::step, half::step] = centers
        heights[::step, half::step] = middles(beside + centers + np.roll(centers, 1, 0))
        heights[half::step, ::step] = middles(below + centers + np.roll(centers, 1, 1))
        step, amplitude = half, amplitude / decay**2
    heights -= heights.min()
    return heights / heights.max()


def frost(image_HWC: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """Behind a pane with ice flowers."""
    kept, added = level(FROST, severity)
    ice_HW = ice_flowers(image_HWC.shape[0], image_HWC.shape[1], rng)
    return to_uint8(kept * image_HWC + added * ice_HW[..., None] * np.array(ICE))


def ice_flowers(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A texture of frost, float64 `[H, W]` in [0, 1]: stems that grow inwards from around the image, twigs on them at
    60 degrees, as ice has, and twigs on these; in a haze."""
    side = max(height, width)
    haze_HW = plasma(2 ** max(1, (side - 1).bit_length()), 1.5, rng)[:height, :width]
    turns = 2 * np.pi * (np.arange(ICE_STEMS) + rng.random(ICE_STEMS)) / ICE_STEMS
    starts = np.array([width, height]) * (0.5 + 0.6 * np.stack([np.cos(turns), np.sin(turns)], axis=1))
    shoots = np.array([width, height]) * rng.uniform(0.1, 0.9, starts.shape) - starts
    ice_HW = np.zeros((height, width))
    for light, twigs in ICE_LAYERS:
        lines_HW = np.zeros((height, width), np.uint8)
        points = np.rint(16 * np.stack([starts, starts + shoots], axis=1)).astype(np.int32)
        cv2.polylines(lines_HW, list(points), False, (255,), max(1, side // 224), cv2.LINE_AA, shift=4)
        ice_HW = np.maximum(ice_HW, light / 255 * lines_HW)
        starts, shoots = _twigs(starts, shoots, twigs, rng)
    return 0.3 * haze_HW + 0.4 * ice_HW + 0.3 * np.clip(2 * gaussian(ice_HW, side / 75), 0, 1)


def _twigs(
    starts: np.ndarray, shoots: np.ndarray, number: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Starts and shoots, `[N, 2]`, of twigs on either side of each shoot, as many on each, shorter towards its tip."""
    places = rng.random((len(shoots), 2, number, 1))
    grown = starts[:, None, None] + places * shoots[:, None, None]
    lengths = 0.35 * (1 - places) * rng.uniform(0.4, 1, places.shape)
    angles = np.deg2rad(rng.normal(60, 4, places.shape)) * np.array([1, -1])[:, None, None]
    x, y = lengths * shoots[:, None, None, :1], lengths * shoots[:, None, None, 1:]
    turned = np.concatenate([x * np.cos(angles) - y * np.sin(angles), x * np.sin(angles) + y * np.cos(angles)], axis=3)
    return grown.reshape(-1, 2), turned.reshape(-1, 2)


def snow(image_HWC: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """A whitened image behind falling flakes."""
    mean, deviation, size, threshold, radius, sigma, kept = level(SNOW, severity)
    noise_HW = enlarge(rng.normal(mean, deviation, image_HWC.shape[:2]).astype(np.float32), size)
    flakes_HW = np.where(noise_HW < threshold, 0, np.clip(noise_HW, 0, 1))
    kernel = trail_kernel(radius, sigma, rng.uniform(45, 135))
    flakes_HW = cv2.filter2D(flakes_HW, -1, kernel, borderType=cv2.BORDER_REPLICATE)
    white_HW1 = 1.5 * (image_HWC @ np.array(LUMA))[..., None] + 127.5
    whitened_HWC = kept * image_HWC + (1 - kept) * np.maximum(image_HWC, white_HW1)
    return to_uint8(whitened_HWC + 255 * (flakes_HW + flakes_HW[::-1, ::-1])[..., None])


def spatter(image_HWC: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """Drops of water on the lens at severities 1 to 3, mud at 4 and 5."""
    mean, deviation, smoothness, threshold, strength, is_mud = level(SPATTER, severity)
    liquid_HW = gaussian(rng.normal(mean, deviation, image_HWC.shape[:2]).astype(np.float32), smoothness)
    if is_mud:
        mud_HW1 = gaussian((liquid_HW > threshold).astype(np.float32), strength)[..., None]
        mud_HW1[mud_HW1 < 0.8] = 0
        return to_uint8(image_HWC * (1 - mud_HW1) + mud_HW1 * np.array(MUD))
    return to_uint8(image_HWC + strength * drops(liquid_HW > threshold)[..., None] * np.array(WATER))


def drops(wet_HW: np.ndarray) -> np.ndarray:
    """Light of drops, `[H, W]` in [0, 1]: domes over the wet pixels, lit from one corner."""
    depth_HW = cv2.distanceTransform(wet_HW.astype(np.uint8), cv2.DIST_L2, 5)
    dome_HW = np.sqrt(depth_HW)
    slope_HW = cv2.filter2D(dome_HW, -1, np.array([[2, 1, 0], [1, 0, -1], [0, -1, -2]]) / -4)
    light_HW = np.where(wet_HW, np.maximum(0.3 + slope_HW, 0), 0).astype(np.float32)
    light_HW = cv2.blur(light_HW, (3, 3))
    return light_HW / max(float(light_HW.max()), 1e-6)
