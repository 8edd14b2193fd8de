# SPDX-License-Identifier: Apache-2.0
"""What attacks demand of what they are given, and when they have reached their aim. N samples, K classes."""

from __future__ import annotations

import numpy as np

from mindvideo.errors import InputError


def checked(x: np.ndarray, labels: np.ndarray, epsilon: float = 0.0, steps: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Samples as float32 and labels as int32; InputError where an attack could not go on from them."""
    x, labels = np.asarray(x, np.float32), np.asarray(labels)
    if x.ndim < 2 or len(x) == 0:
        raise InputError(f"samples of shape {list(x.shape)}: an attack needs [N, ...], N 1 or more.")
    if not (x.min() >= 0.0 and x.max() <= 1.0):
        raise InputError(f"samples from {x.min()} to {x.max()}: attacks work on values in [0, 1].")
    if labels.shape != (len(x),) or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"labels {labels.dtype} {list(labels.shape)}: an attack needs {len(x)} integers.")
    if not 0.0 <= epsilon < np.inf:
        raise InputError(f"epsilon {epsilon}: a budget is a finite number, 0 or more.")
    if steps < 1:
        raise InputError(f"{steps} steps: an attack takes 1 or more.")
    return x, labels.astype(np.int32)


def is_broken(logits_NK: np.ndarray, labels_N: np.ndarray, targeted: bool = False) -> np.ndarray:
    """Whether each prediction is not the label, or is it if that is the attack's aim, bool `[N]`."""
    is_label_N = logits_NK.argmax(axis=1) == labels_N
    return is_label_N if targeted else ~is_label_N


def margins(logits_NK: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """How far the largest other logit is above the label's, `[N]`; below 0 where the prediction is right."""
    others_NK = logits_NK.copy()
    np.put_along_axis(others_NK, labels_N[:, None], -np.inf, axis=1)
    return others_NK.max(axis=1) - np.take_along_axis(logits_NK, labels_N[:, None], axis=1)[:, 0]
