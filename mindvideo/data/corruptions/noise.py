# SPDX-License-Identifier: Apache-2.0
"""Noise: of whole pixels, of single values, added, multiplied, and of counted light."""

from __future__ import annotations

import numpy as np

from mindvideo.data.corruptions.levels import level, to_uint8, within

SPOILT_SHARE = 0.01  # of the pixels, in a signal-to-noise ratio of 0.99
GAUSSIAN_STD = (0.0, 0.15)
LIGHT_QUANTA = (60, 25, 12, 5, 3)  # of a white pixel
IMPULSE_SHARES = (0.03, 0.06, 0.09, 0.17, 0.27)
SPECKLE_STDS = (0.15, 0.2, 0.35, 0.45, 0.6)


def pepper_salt_noise(image_HWC: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """Half a percent of the pixels white, as many black, at any severity."""
    chance_HW = rng.random(image_HWC.shape[:2])
    noisy = image_HWC.copy()
    noisy[chance_HW < SPOILT_SHARE / 2] = 0
    noisy[chance_HW >= 1 - SPOILT_SHARE / 2] = 255
    return noisy


def color_point_noise(image_HWC: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """A quarter of a percent of the pixels each pure green, red, blue, and of any colour, at any severity."""
    kind_HW = (rng.random(image_HWC.shape[:2]) * 4 / SPOILT_SHARE).astype(int)
    noisy = image_HWC.copy()
    for kind, color in enumerate(((0, 255, 0), (255, 0, 0), (0, 0, 255))):
        noisy[kind_HW == kind] = color
    any_color = kind_HW == 3
    noisy[any_color] = rng.integers(256, size=(np.count_nonzero(any_color), 3))
    return noisy


def gaussian_noise(image_HWC: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """Normal noise on every value, of a deviation in the severity's fifth of 0 to 0.15."""
    std = 255 * within(*GAUSSIAN_STD, severity, rng)
    return to_uint8(image_HWC + std * rng.standard_normal(image_HWC.shape, dtype=np.float32))


def shot_noise(image_HWC: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """The noise of few light quanta: each value is Poisson's count of them."""
    quanta = level(LIGHT_QUANTA, severity) / 255
    return to_uint8(rng.poisson(image_HWC * quanta) / quanta)


def impulse_noise(image_HWC: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """A share of the values, each channel on its own, 0 or 255, half of them each."""
    share = level(IMPULSE_SHARES, severity)
    chance_HWC = rng.random(image_HWC.shape)
    noisy = image_HWC.copy()
    noisy[chance_HWC < share / 2] = 0
    noisy[chance_HWC >= 1 - share / 2] = 255
    return noisy


def speckle_noise(image_HWC: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """Normal noise in proportion to each value."""
    std = level(SPECKLE_STDS, severity)
    return to_uint8(image_HWC * (1 + std * rng.standard_normal(image_HWC.shape, dtype=np.float32)))
