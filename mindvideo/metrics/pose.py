# SPDX-License-Identifier: Apache-2.0
"""Controls that learn nothing, for actions in poses: the nearest training clip by a crude descriptor.

N clips, T frames, C channels (all values of all joints), D descriptor size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np


def motion_descriptor(poses_TJC: np.ndarray) -> np.ndarray:
    """How much each channel moves: its standard deviation over time, `[C]`."""
    return poses_TJC.reshape(len(poses_TJC), -1).std(axis=0)


def posture_descriptor(poses_TJC: np.ndarray) -> np.ndarray:
    """Where each channel is: its mean over time, `[C]`."""
    return poses_TJC.reshape(len(poses_TJC), -1).mean(axis=0)


CONTROLS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "motion": motion_descriptor, "posture": posture_descriptor,
}  # fmt: skip


def nearest_neighbour(train_ND: np.ndarray, labels_N: np.ndarray, test_MD: np.ndarray) -> np.ndarray:
    """The label of the training clip at the least Euclidean distance of each test clip, `[M]`; the first of equals."""
    distance_MN = np.linalg.norm(test_MD[:, None].astype(np.float64) - train_ND[None], axis=-1)
    return labels_N[distance_MN.argmin(axis=1)]
