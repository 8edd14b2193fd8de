# SPDX-License-Identifier: Apache-2.0
"""Frames to network input: uint8 `[T, H, W, 3]` to normalised float32 `[3, T, H, W]`.

One random draw serves the whole clip, so that all its frames are cropped, mirrored and coloured alike.
Resizing is OpenCV's: INTER_AREA where both sides shrink to half or less, as INTER_LINEAR would skip pixels
there and flicker; INTER_LINEAR otherwise, which is 7 times faster and what the mmcv-based pipelines use.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from mindvideo.errors import InputError

# Pixel statistics of the ARN authors' code, the same for all three channels.
ARN_MEAN = 0.3474
ARN_STD = 0.2100

# A random crop is up to this much wider and lower than the frame's own shape, or narrower and higher.
_ASPECT_JITTER = 1.1
_LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class ClipTransform:
    """Crop, resize to `size` (height, width), mirror, recolour, normalise.

    `mean` and `std` are in units of pixels in [0, 1]. `flip` mirrors every second clip. `crop_scale` is
    the range of the crop's share of the frame's area; None takes the whole frame. `color` is the
    strength of the brightness, contrast and saturation jitter: each factor lies in 1 +- `color`.
    """

    size: tuple[int, int]
    mean: float | tuple[float, float, float] = ARN_MEAN
    std: float | tuple[float, float, float] = ARN_STD
    flip: bool = False
    crop_scale: tuple[float, float] | None = None
    color: float = 0.0

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise InputError(f"size is {self.size}, both sides must be at least 1")
        if np.min(self.std) <= 0:
            raise InputError(f"std is {self.std}, it must be above 0")
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise InputError(f"crop_scale is {self.crop_scale}, it must be a range within (0, 1]")
        if not 0 <= self.color < 1:
            raise InputError(f"color is {self.color}, it must be in [0, 1)")

    def __call__(self, frames_THWC: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        """Float32 `[3, T, height, width]`. Without `rng` nothing is random: the whole frame is resized,
        its aspect ratio not kept, as ARN does."""
        if rng is not None and self.crop_scale is not None:
            height, width = frames_THWC.shape[1:3]
            frames_THWC = crop_frames(frames_THWC, *random_crop_box(height, width, self.crop_scale, rng))
        frames_THWC = resize_frames(frames_THWC, self.size)
        if rng is not None and self.flip and rng.random() < 0.5:
            frames_THWC = flip_frames(frames_THWC)
        if rng is not None and self.color > 0:
            frames_THWC = jitter_color(frames_THWC, *rng.uniform(1 - self.color, 1 + self.color, 3))
        return self.normalize(frames_THWC)

    def normalize(self, frames_THWC: np.ndarray) -> np.ndarray:
        """uint8 `[T, H, W, 3]` to float32 `[3, T, H, W]`: `(pixel / 255 - mean) / std`."""
        clip_CTHW = np.empty((3, *frames_THWC.shape[:3]), np.float32)
        means, stds = np.broadcast_to(self.mean, 3), np.broadcast_to(self.std, 3)
        for channel, (mean, std) in enumerate(zip(means, stds, strict=True)):
            np.multiply(frames_THWC[..., channel], 1 / (255 * std), out=clip_CTHW[channel], dtype=np.float32)
            clip_CTHW[channel] -= mean / std
        return clip_CTHW

    def denormalize(self, clip_CTHW: np.ndarray) -> np.ndarray:
        """Back to uint8 `[T, H, W, 3]`, for pictures and for controls on pixels."""
        pixels_THWC = 255 * (clip_CTHW.transpose(1, 2, 3, 0) * np.asarray(self.std) + np.asarray(self.mean))
        return np.clip(np.rint(pixels_THWC), 0, 255).astype(np.uint8)


def resize_frames(frames_THWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize to `size` (height, width) without keeping the aspect ratio."""
    height, width = size
    if frames_THWC.shape[1:3] == (height, width):
        return frames_THWC
    halves = 2 * height <= frames_THWC.shape[1] and 2 * width <= frames_THWC.shape[2]
    interpolation = cv2.INTER_AREA if halves else cv2.INTER_LINEAR
    resized_THWC = np.empty((len(frames_THWC), height, width, 3), np.uint8)
    for frame_HWC, out_HWC in zip(frames_THWC, resized_THWC, strict=True):
        cv2.resize(frame_HWC, (width, height), dst=out_HWC, interpolation=interpolation)
    return resized_THWC


def short_side_resize(frames_THWC: np.ndarray, side: int) -> np.ndarray:
    """Resize so that the shorter side is `side` pixels, keeping the aspect ratio."""
    height, width = frames_THWC.shape[1:3]
    scale = side / min(height, width)
    return resize_frames(frames_THWC, (round(height * scale), round(width * scale)))


def crop_frames(frames_THWC: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    """The same window of every frame, as a view."""
    rows, columns = frames_THWC.shape[1:3]
    if top < 0 or left < 0 or top + height > rows or left + width > columns:
        raise InputError(f"a crop of {height} x {width} at ({top}, {left}) leaves the frame {rows} x {columns}")
    return frames_THWC[:, top : top + height, left : left + width]


def center_crop(frames_THWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle window of `size` (height, width)."""
    return three_crop(frames_THWC, size)[1]


def three_crop(frames_THWC: np.ndarray, size: tuple[int, int]) -> list[np.ndarray]:
    """Windows of `size` (height, width) at the start, middle and end of the frame.

    After `short_side_resize` they are left, middle, right, or top, middle, bottom.
    """
    rows, columns = frames_THWC.shape[1:3]
    free_rows, free_columns = rows - size[0], columns - size[1]
    return [crop_frames(frames_THWC, free_rows * k // 2, free_columns * k // 2, *size) for k in range(3)]


def random_crop_box(
    height: int, width: int, scale: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a window with a share of the area drawn from `scale`."""
    area = rng.uniform(*scale)
    widen = _ASPECT_JITTER ** rng.uniform(-1, 1)
    crop_height = max(1, min(height, round(height * area**0.5 / widen)))
    crop_width = max(1, min(width, round(width * area**0.5 * widen)))
    top = int(rng.integers(height - crop_height + 1))
    left = int(rng.integers(width - crop_width + 1))
    return top, left, crop_height, crop_width


def flip_frames(frames_THWC: np.ndarray) -> np.ndarray:
    """Mirror left and right, as a view."""
    return frames_THWC[:, :, ::-1]


def jitter_color(frames_THWC: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    """Scale brightness, then contrast about the clip's mean grey, then saturation about each pixel's grey.

    The three are one affine map of RGB, applied in one pass, rounded and clipped once; 1 changes nothing.
    """
    stacked_THxWxC = frames_THWC.reshape(-1, *frames_THWC.shape[2:])
    mean_grey = brightness * float(_LUMA @ cv2.mean(stacked_THxWxC)[:3])
    saturate = saturation * np.eye(3) + (1 - saturation) * _LUMA
    gain = brightness * contrast * saturate
    offset = np.full((3, 1), (1 - contrast) * mean_grey)
    return cv2.transform(stacked_THxWxC, np.hstack([gain, offset])).reshape(frames_THWC.shape)
