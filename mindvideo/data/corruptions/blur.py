# SPDX-License-Identifier: Apache-2.0
"""Blur: by Pillow's filters, and as behind glass, out of focus, of motion and of a zoom."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image, ImageFilter

from mindvideo.data.corruptions.levels import level, to_uint8

GAUSSIAN_RADII = (1, 2)
GLASS = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))  # sigma, farthest swap, rounds
DISK_RADII = (3, 4, 6, 8, 10)
MOTION = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))  # radius, sigma
MOST_MOTION_ANGLE = 45  # degrees
ZOOMS = ((1.11, 12), (1.16, 17), (1.21, 11), (1.26, 14), (1.31, 11))  # largest enlargement, number of them


def gaussian_blur(image_HWC: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """Pillow's Gaussian blur of radius 1 or 2, drawn alike at any severity."""
    radius = GAUSSIAN_RADII[rng.integers(len(GAUSSIAN_RADII))]
    return np.array(Image.fromarray(image_HWC).filter(ImageFilter.GaussianBlur(radius)))


def blur(image_HWC: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """Pillow's BLUR, the mean over the rim of 5 x 5 pixels, at any severity; nothing is random."""
    return np.array(Image.fromarray(image_HWC).filter(ImageFilter.BLUR))


def glass_blur(image_HWC: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """Blurred, each pixel in turn swapped with one nearby, some rounds of that, and blurred again."""
    sigma, farthest, rounds = level(GLASS, severity)
    blurred_HWC = gaussian(image_HWC.astype(np.float32), sigma)
    order_HW = swapped_order(image_HWC.shape[0], image_HWC.shape[1], farthest, rounds, rng)
    return to_uint8(gaussian(blurred_HWC.reshape(-1, 3)[order_HW], sigma))


def swapped_order(height: int, width: int, farthest: int, rounds: int, rng: np.random.Generator) -> np.ndarray:
    """Where each pixel's value comes from, a permutation of the H x W places, `[H, W]`."""
    # Swaps depend on the ones before. On a list of places they take 0.1 microseconds each, on an image a hundred times
    # as long.
    order = list(range(height * width))
    rows, columns = np.mgrid[:height, :width]
    for _ in range(rounds):
        down, right = rng.integers(-farthest, farthest + 1, (2, height, width))
        others = np.clip(rows + down, 0, height - 1) * width + np.clip(columns + right, 0, width - 1)
        for place, other in enumerate(others.ravel().tolist()):
            order[place], order[other] = order[other], order[place]
    return np.reshape(order, (height, width))


def defocus_blur(image_HWC: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """The mean over a disk around each pixel; nothing is random."""
    return _filter(image_HWC, disk_kernel(level(DISK_RADII, severity)))


def disk_kernel(radius: float) -> np.ndarray:
    """Equal weights within the radius, which fall to nothing over the pixel at the rim."""
    reach = np.arange(-int(radius) - 1, int(radius) + 2)
    kernel = np.clip(radius + 0.5 - np.hypot(reach[:, None], reach), 0, 1)
    return kernel / kernel.sum()


def motion_blur(image_HWC: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """Drawn out sideways, up to 45 degrees up or down."""
    radius, sigma = level(MOTION, severity)
    return _filter(image_HWC, trail_kernel(radius, sigma, rng.uniform(-MOST_MOTION_ANGLE, MOST_MOTION_ANGLE)))


def trail_kernel(radius: int, sigma: float, angle: float) -> np.ndarray:
    """Half a bell curve along a line from the middle, 2 `radius` pixels long, as ImageMagick blurs motion.

    The angle is in degrees from the right, clockwise as seen on the image. The kernel is one to correlate with.
    """
    along = np.arange(2 * radius + 1)
    weights = np.exp(-((along / sigma) ** 2) / 2)
    row, column = (
        2 * radius + along * direction for direction in (np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle)))
    )
    kernel = np.zeros((4 * radius + 2, 4 * radius + 2))  # one more row and column for the last pixel's share
    for down in (0, 1):
        for right in (0, 1):
            top, left = np.floor(row).astype(int), np.floor(column).astype(int)
            share = (1 - np.abs(row - top - down)) * (1 - np.abs(column - left - right))
            np.add.at(kernel, (top + down, left + right), weights * share)
    return kernel[:-1, :-1] / weights.sum()


def zoom_blur(image_HWC: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """The mean of the image and of its enlargements, as when zooming while the shutter is open; nothing is random."""
    largest, number = level(ZOOMS, severity)
    pixels_HWC = image_HWC.astype(np.float32)
    total = pixels_HWC + sum(enlarge(pixels_HWC, factor) for factor in np.linspace(1, largest, number))
    return to_uint8(total / (number + 1))


def enlarge(image: np.ndarray, factor: float) -> np.ndarray:
    """Enlarged about the middle, bilinear, cut to its size."""
    height, width = image.shape[:2]
    inverse = np.array([[1, 0, (factor - 1) * (width - 1) / 2], [0, 1, (factor - 1) * (height - 1) / 2]]) / factor
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, inverse, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def gaussian(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of a float image, cut off at four deviations, its edges mirrored."""
    side = 2 * int(4 * sigma + 0.5) + 1
    return cv2.GaussianBlur(image, (side, side), sigma, borderType=cv2.BORDER_REFLECT)


def _filter(image_HWC: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return cv2.filter2D(image_HWC, -1, kernel, borderType=cv2.BORDER_REPLICATE)
