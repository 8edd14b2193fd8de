# SPDX-License-Identifier: Apache-2.0
"""Frames to network input: uint8 `[T, H, W, 3]` to normalised float32 `[3, T, H, W]`.

One random draw serves the whole clip, so that all its frames are cropped, mirrored and coloured alike.
Resizing is OpenCV's. ClipTransform takes INTER_AREA where both sides shrink to half or less, as INTER_LINEAR would skip
pixels there and flicker, and INTER_LINEAR otherwise, which is 7 times faster. TrainTransform and ViewTransform are the
pipelines of DEAR (arXiv 2107.10161), which always takes INTER_LINEAR; they crop before anything becomes a float.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from mindvideo.data.crops import CROPS, center_box, crop_frames, random_crop_box, three_boxes
from mindvideo.errors import InputError

# Pixel statistics of the ARN authors' code, the same for all three channels.
ARN_MEAN = 0.3474
ARN_STD = 0.2100

# Pixel statistics of ImageNet's training images, in units of pixels in [0, 255].
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)

VIEWS = ("center", "three")

_LUMA = np.array([0.299, 0.587, 0.114])
_YIQ = np.array([_LUMA, [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
# Principal axes of ImageNet's colours, one a column, and the standard deviations along them (AlexNet).
_COLOR_AXES = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
_COLOR_DEVIATIONS = np.array([55.46, 4.794, 1.148])


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
        _check_std(self.std)
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise InputError(f"crop_scale is {self.crop_scale}, it must be a range within (0, 1]")
        if not 0 <= self.color < 1:
            raise InputError(f"color is {self.color}, it must be in [0, 1)")

    def __call__(self, frames_THWC: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        """Float32 `[3, T, height, width]`. Without `rng` nothing is random: the whole frame is resized,
        its aspect ratio not kept, as ARN does."""
        if rng is not None and self.crop_scale is not None:
            height, width = frames_THWC.shape[1:3]
            frames_THWC = crop_frames(frames_THWC, random_crop_box(height, width, self.crop_scale, rng))
        frames_THWC = resize_frames(frames_THWC, self.size)
        if rng is not None and self.flip and rng.random() < 0.5:
            frames_THWC = flip_frames(frames_THWC)
        if rng is not None and self.color > 0:
            frames_THWC = jitter_color(frames_THWC, *rng.uniform(1 - self.color, 1 + self.color, 3))
        return self.normalize(frames_THWC)

    def normalize(self, frames_THWC: np.ndarray) -> np.ndarray:
        """uint8 `[T, H, W, 3]` to float32 `[3, T, H, W]`: `(pixel / 255 - mean) / std`."""
        means, stds = np.broadcast_to(self.mean, 3), np.broadcast_to(self.std, 3)
        return _scale_channels(frames_THWC, 1 / (255 * stds), -means / stds)

    def denormalize(self, clip_CTHW: np.ndarray) -> np.ndarray:
        """Back to uint8 `[T, H, W, 3]`, for pictures and for controls on pixels."""
        pixels_THWC = 255 * (clip_CTHW.transpose(1, 2, 3, 0) * np.asarray(self.std) + np.asarray(self.mean))
        return np.clip(np.rint(pixels_THWC), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class TrainTransform:
    """Shorter side to `short_side` (0 leaves the frames as they are), a random `crop` of CROPS resized to a square of
    `size`, every second clip mirrored with `flip`, recoloured with `color`, normalised.

    `mean` and `std` are in units of pixels in [0, 255].
    """

    size: int = 224
    short_side: int = 256
    crop: str = "multiscale_5"
    flip: bool = True
    color: bool = False
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.size < 1 or self.short_side < 0:
            raise InputError(f"size is {self.size}, short_side {self.short_side}; at least 1 and 0 are allowed")
        if self.crop not in CROPS:
            raise InputError(f"unknown crop {self.crop!r}, choose from {', '.join(CROPS)}")
        _check_std(self.std)

    def __call__(self, frames_THWC: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        """Float32 `[3, T, size, size]`. Without `rng` nothing is random, and the crop is the largest square in the
        middle."""
        if self.short_side:
            frames_THWC = short_side_resize(frames_THWC, self.short_side)
        height, width = frames_THWC.shape[1:3]
        box = CROPS[self.crop].box(height, width, rng) if rng else center_box(height, width, min(height, width))
        frames_THWC = resize_bilinear(crop_frames(frames_THWC, box), (self.size, self.size))
        if rng is not None and self.flip and rng.random() < 0.5:
            frames_THWC = flip_frames(frames_THWC)
        if rng is None or not self.color:
            return _normalize(frames_THWC, self.mean, self.std)
        gains_CC, offsets_C = color_map(*draw_color(rng))
        means, stds = np.array(self.mean), np.array(self.std)
        return _mix_channels(frames_THWC, gains_CC / stds[:, None], (offsets_C - means) / stds)


@dataclass(frozen=True)
class ViewTransform:
    """Shorter side to `short_side`, then square windows of `size`: the one in the middle, or with `views` "three" those
    at the left, right and middle (of an upright video top, bottom and middle). Nothing is random.

    `mean` and `std` are in units of pixels in [0, 255].
    """

    size: int = 224
    short_side: int = 256
    views: str = "center"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.short_side:
            raise InputError(f"size is {self.size}, it must be in [1, short_side], and short_side is {self.short_side}")
        if self.views not in VIEWS:
            raise InputError(f"unknown views {self.views!r}, choose from {', '.join(VIEWS)}")
        _check_std(self.std)

    def crop(self, frames_THWC: np.ndarray) -> np.ndarray:
        """uint8 `[K, T, size, size, 3]`, K crops of every frame."""
        frames_THWC = short_side_resize(frames_THWC, self.short_side)
        height, width = frames_THWC.shape[1:3]
        is_three = self.views == "three"
        boxes = three_boxes(height, width, self.size) if is_three else [center_box(height, width, self.size)]
        return np.stack([crop_frames(frames_THWC, box) for box in boxes])

    def normalize(self, frames_THWC: np.ndarray) -> np.ndarray:
        """uint8 `[T, H, W, 3]` to float32 `[3, T, H, W]`: `(pixel - mean) / std`."""
        return _normalize(frames_THWC, self.mean, self.std)


def resize_frames(frames_THWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize to `size` (height, width) without keeping the aspect ratio, by area where both sides shrink to half."""
    halves = 2 * size[0] <= frames_THWC.shape[1] and 2 * size[1] <= frames_THWC.shape[2]
    return _resize(frames_THWC, size, cv2.INTER_AREA if halves else cv2.INTER_LINEAR)


def resize_bilinear(frames_THWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize to `size` (height, width) without keeping the aspect ratio; pixels are skipped where it shrinks a lot."""
    return _resize(frames_THWC, size, cv2.INTER_LINEAR)


def short_side_resize(frames_THWC: np.ndarray, side: int) -> np.ndarray:
    """Resize, bilinear, so that the shorter side is `side` pixels, keeping the aspect ratio; halves are rounded up."""
    height, width = frames_THWC.shape[1:3]
    scale = side / min(height, width)
    return resize_bilinear(frames_THWC, (int(height * scale + 0.5), int(width * scale + 0.5)))


def _resize(frames_THWC: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    height, width = size
    if frames_THWC.shape[1:3] == (height, width):
        return frames_THWC
    resized_THWC = np.empty((len(frames_THWC), height, width, 3), np.uint8)
    for frame_HWC, out_HWC in zip(frames_THWC, resized_THWC, strict=True):
        cv2.resize(frame_HWC, (width, height), dst=out_HWC, interpolation=interpolation)
    return resized_THWC


def flip_frames(frames_THWC: np.ndarray) -> np.ndarray:
    """Mirror left and right."""
    flipped_THWC = np.empty(frames_THWC.shape, np.uint8)
    for frame_HWC, out_HWC in zip(frames_THWC, flipped_THWC, strict=True):
        cv2.flip(frame_HWC, 1, dst=out_HWC)
    return flipped_THWC


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


def draw_color(rng: np.random.Generator) -> tuple[float, float, float, float, np.ndarray]:
    """Arguments of `color_map`, each but `light` neutral in half of all clips, as DEAR trains TPN: MMAction2's
    ColorJitter with color_space_aug. There each frame has coins of its own, so that a clip flickers; here the clip has.
    """
    low, high, neutral = (-32, 0.6, 0.6, -np.pi), (32, 1.4, 1.4, np.pi), (0, 1, 1, 0)
    brightness, contrast, saturation, hue = np.where(rng.random(4) < 0.5, rng.uniform(low, high), neutral)
    return brightness, contrast, saturation, hue, rng.normal(0, 0.1, 3)


def color_map(
    brightness: float, contrast: float, saturation: float, hue: float, light: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The map `gains @ RGB + offsets`, `[3, 3]` and `[3]`, on pixels in [0, 255], unclipped.

    Add `brightness`, scale by `contrast`, scale the distance to each pixel's grey by `saturation`, turn the colours
    about grey by `hue` radians (in YIQ), and add `light` times the principal components of ImageNet's colours.
    """
    cos, sin = np.cos(hue), np.sin(hue)
    turn = np.linalg.inv(_YIQ) @ [[1, 0, 0], [0, cos, -sin], [0, sin, cos]] @ _YIQ
    gains_CC = contrast * turn @ (saturation * np.eye(3) + (1 - saturation) * _LUMA)
    return gains_CC, brightness * gains_CC.sum(axis=1) + _COLOR_AXES @ (light * _COLOR_DEVIATIONS)


def _normalize(frames_THWC: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    stds = np.array(std)
    return _scale_channels(frames_THWC, 1 / stds, -np.array(mean) / stds)


def _scale_channels(frames_THWC: np.ndarray, gains_C: np.ndarray, offsets_C: np.ndarray) -> np.ndarray:
    """Float32 `[3, T, H, W]`: `gain * pixel + offset` of each channel, from a table of the 256 values of a pixel."""
    values_CN = np.multiply(gains_C[:, None], np.arange(256), dtype=np.float32)
    values_CN += offsets_C[:, None].astype(np.float32)
    clip_CTHW = np.empty((3, *frames_THWC.shape[:3]), np.float32)
    for t, frame_HWC in enumerate(frames_THWC):
        for plane_HW, values_N, clip_THW in zip(cv2.split(frame_HWC), values_CN, clip_CTHW, strict=True):
            cv2.LUT(plane_HW, values_N, dst=clip_THW[t])
    return clip_CTHW


def _mix_channels(frames_THWC: np.ndarray, gains_CC: np.ndarray, offsets_C: np.ndarray) -> np.ndarray:
    """Float32 `[3, T, H, W]`: `gains @ pixel + offsets`."""
    pixels_CN = frames_THWC.reshape(-1, 3).T.astype(np.float32)
    clip_CN = gains_CC.astype(np.float32) @ pixels_CN
    clip_CN += offsets_C.astype(np.float32)[:, None]
    return clip_CN.reshape(3, *frames_THWC.shape[:3])


def _check_std(std: float | tuple[float, ...]) -> None:
    if np.min(std) <= 0:
        raise InputError(f"std is {std}, it must be above 0")
