# SPDX-License-Identifier: Apache-2.0
"""What cameras and files do: contrast, brightness, saturation, JPEG, coarse pixels; and a bent sheet."""

from __future__ import annotations

from io import BytesIO

import cv2
import numpy as np
from PIL import Image
from scipy.fft import dctn, idctn

from mindvideo.data.corruptions.levels import level, to_uint8

CONTRASTS = (0.4, 0.3, 0.2, 0.1, 0.05)
BRIGHTNESSES = (0.1, 0.2, 0.3, 0.4, 0.5)
SATURATIONS = ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2))  # factor, addend
JPEG_QUALITIES = (25, 18, 15, 10, 7)
PIXEL_SCALES = (0.6, 0.5, 0.4, 0.3, 0.25)
# Strength and smoothness of the local shifts, and shift of the corners, in units of 244 pixels on an image of 224.
ELASTIC = ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
ELASTIC_UNIT = 244 / 224


def contrast(image_HWC: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """Nearer to the mean of each channel; nothing is random."""
    means_C = image_HWC.mean(axis=(0, 1))
    return to_uint8(means_C + level(CONTRASTS, severity) * (image_HWC - means_C))


def brightness(image_HWC: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """More of HSV's value; nothing is random."""
    hsv_HWC = _to_hsv(image_HWC)
    hsv_HWC[..., 2] = np.clip(hsv_HWC[..., 2] + level(BRIGHTNESSES, severity), 0, 1)
    return _from_hsv(hsv_HWC)


def saturate(image_HWC: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """HSV's saturation scaled and raised: pale at severities 1 and 2, gaudy from 3; nothing is random."""
    factor, addend = level(SATURATIONS, severity)
    hsv_HWC = _to_hsv(image_HWC)
    hsv_HWC[..., 1] = np.clip(factor * hsv_HWC[..., 1] + addend, 0, 1)
    return _from_hsv(hsv_HWC)


def compress(image_HWC: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """Through a JPEG file; nothing is random."""
    buffer = BytesIO()
    Image.fromarray(image_HWC).save(buffer, "JPEG", quality=level(JPEG_QUALITIES, severity))
    return np.array(Image.open(buffer))


def pixelate(image_HWC: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """Fewer, larger pixels; nothing is random."""
    height, width = image_HWC.shape[:2]
    scale = level(PIXEL_SCALES, severity)
    small = max(1, int(width * scale)), max(1, int(height * scale))
    image = Image.fromarray(image_HWC).resize(small, Image.Resampling.BOX)
    return np.array(image.resize((width, height), Image.Resampling.BOX))


def elastic(image_HWC: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """A bent sheet: severities 1 and 2 skew it as a whole, 3 to 5 make ever stronger ripples. Edges are mirrored."""
    height, width = image_HWC.shape[:2]
    columns, rows = displaced_grid(height, width, rng, severity)
    return cv2.remap(image_HWC, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def displaced_grid(height: int, width: int, rng: np.random.Generator, severity: int) -> tuple[np.ndarray, np.ndarray]:
    """The columns and rows, float32 `[H, W]` each, that the pixels are taken from.

    A random affine map moves three corners of a triangle about the middle, then smoothed noise each pixel. All lengths
    grow with the shorter side.
    """
    side = min(height, width)
    strength, smoothness, corner_shift = (ELASTIC_UNIT * side * factor for factor in level(ELASTIC, severity))
    middle, third = np.array([width, height]) // 2, side / 3
    corners = (middle + third * np.array([[1, 1], [1, -1], [-1, -1]])).astype(np.float32)
    moved = corners + rng.uniform(-corner_shift, corner_shift, corners.shape).astype(np.float32)
    inverse = cv2.getAffineTransform(moved, corners)
    columns, rows = (
        grid + strength * smooth(rng.uniform(-1, 1, (height, width)), smoothness)
        for grid in np.meshgrid(np.arange(width), np.arange(height))
    )
    mapped = inverse @ np.stack([columns.ravel(), rows.ravel(), np.ones(height * width)])
    column_map, row_map = mapped.reshape(2, height, width).astype(np.float32)
    return column_map, row_map


def smooth(values_HW: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur, edges mirrored, by the cosine transform, whose time does not grow with sigma."""
    reaches = (np.exp(-((np.pi * sigma * np.arange(size) / size) ** 2) / 2) for size in values_HW.shape)
    return np.asarray(idctn(dctn(values_HW) * np.outer(*reaches)))


def _to_hsv(image_HWC: np.ndarray) -> np.ndarray:
    """Hue in degrees, saturation and value in [0, 1]."""
    return cv2.cvtColor(image_HWC.astype(np.float32) / np.float32(255), cv2.COLOR_RGB2HSV)


def _from_hsv(hsv_HWC: np.ndarray) -> np.ndarray:
    return to_uint8(255 * cv2.cvtColor(hsv_HWC, cv2.COLOR_HSV2RGB))
