# SPDX-License-Identifier: Apache-2.0
"""Images made worse: the 32 operations of the published training pipeline, all by one generator, of five severities.

The levels of the weather, blur, noise and digital operations are those of ImageNet-C (Hendrycks and Dietterich, ICLR
2019), so ImageNet-C is no held-out test for a model trained with them. docs/augmentations.md says what each does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mindvideo.data.corruptions import blur, digital, layout, noise, weather
from mindvideo.data.corruptions.layout import random_cut
from mindvideo.data.corruptions.levels import SEVERITIES, Operation, check_severity
from mindvideo.errors import InputError

__all__ = ["OPERATIONS", "SEVERITIES", "Augmentation", "Operation", "corrupt_clip", "random_cut"]

# In the order in which the pipeline applies them. Each keeps the image's size; random_cut, which does not, is no part.
OPERATIONS: Mapping[str, Operation] = {
    operation.__name__: operation
    for operation in (
        noise.pepper_salt_noise, noise.color_point_noise, noise.gaussian_noise, layout.mosaic, layout.rgb_shuffle,
        layout.rotate, layout.hflip, layout.vflip, blur.gaussian_blur, blur.blur, weather.rain, layout.extend,
        layout.block_shuffle, layout.local_shuffle, layout.random_padding, weather.fog, noise.shot_noise,
        noise.impulse_noise, noise.speckle_noise, blur.glass_blur, blur.defocus_blur, blur.motion_blur, blur.zoom_blur,
        weather.frost, weather.snow, weather.spatter, digital.contrast, digital.brightness, digital.saturate,
        digital.compress, digital.pixelate, digital.elastic,
    )
}  # fmt: skip


@dataclass(frozen=True)
class Augmentation:
    """Each of the operations, in the order of OPERATIONS, with this probability, at a severity drawn for each image."""

    probability: float = 0.05
    operations: tuple[str, ...] = tuple(OPERATIONS)

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise InputError(f"probability is {self.probability}, it must be in [0, 1]")
        for name in self.operations:
            _find(name)

    def __call__(self, image_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        for name, operation in OPERATIONS.items():
            if name in self.operations and rng.random() < self.probability:
                image_HWC = operation(image_HWC, rng, int(rng.choice(SEVERITIES)))
        return image_HWC


def corrupt_clip(frames_THWC: np.ndarray, name: str, severity: int, seed: int) -> np.ndarray:
    """The operation on every frame of a clip, uint8 `[T, H, W, 3]`, with the same draws, so that nothing jumps.

    Noise stands still, except shot noise, which depends on each frame's light.
    """
    if frames_THWC.dtype != np.uint8 or frames_THWC.ndim != 4 or frames_THWC.shape[-1] != 3 or not frames_THWC.size:
        raise InputError(
            f"frames of shape {frames_THWC.shape} and type {frames_THWC.dtype}: must be uint8 [T, H, W, 3], not empty"
        )
    check_severity(severity)
    operation = _find(name)
    return np.stack([operation(frame_HWC, np.random.default_rng(seed), severity) for frame_HWC in frames_THWC])


def _find(name: str) -> Operation:
    if name not in OPERATIONS:
        raise InputError(f"unknown operation {name!r}, choose from {', '.join(OPERATIONS)}")
    return OPERATIONS[name]
