# SPDX-License-Identifier: Apache-2.0
"""Perturbations that know nothing of the classifier: the control beside every attack."""

from __future__ import annotations

import numpy as np

from mindvideo.attacks.norms import norm_named, random_signs


def uniform_noise(x: np.ndarray, *, epsilon: float, rng: np.random.Generator, norm: str = "linf") -> np.ndarray:
    """A point uniform in the ball around each sample `[N, ...]`, brought into [0, 1]."""
    return norm_named(norm).start(np.asarray(x, np.float32), epsilon, rng)


def sign_noise(x: np.ndarray, *, epsilon: float, rng: np.random.Generator) -> np.ndarray:
    """Every value of samples `[N, ...]` epsilon up or down, cut to [0, 1]: the strongest noise in L-infinity."""
    signs = random_signs(rng, np.shape(x))
    return np.clip(np.asarray(x, np.float32) + np.float32(epsilon) * signs, 0.0, 1.0)
