# SPDX-License-Identifier: Apache-2.0
"""What the operations share: strengths by severity, and the way back to pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from mindvideo.errors import InputError

SEVERITIES = (1, 2, 3, 4, 5)

# Image uint8 `[H, W, 3]`, generator, severity -> image; the image given is left as it is.
Operation = Callable[[np.ndarray, np.random.Generator, int], np.ndarray]

Strength = TypeVar("Strength")


def check_severity(severity: int) -> None:
    if severity not in SEVERITIES:
        raise InputError(f"severity is {severity}, it must be 1, 2, 3, 4 or 5")


def level(strengths: Sequence[Strength], severity: int) -> Strength:
    """The strength of this severity, of five."""
    check_severity(severity)
    return strengths[severity - 1]


def within(mild: float, strong: float, severity: int, rng: np.random.Generator) -> float:
    """A number from the severity's fifth of the range, so that severities drawn alike give the whole range alike."""
    check_severity(severity)
    return mild + (strong - mild) * (severity - 1 + rng.random()) / 5


def whole_within(mild: int, strong: int, severity: int, rng: np.random.Generator) -> int:
    """Likewise a whole number, both ends included."""
    half = 0.5 if strong > mild else -0.5
    return round(within(mild - half, strong + half, severity, rng))


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """Pixels in [0, 255], rounded and clipped."""
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
