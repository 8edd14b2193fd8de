# SPDX-License-Identifier: Apache-2.0
"""What the page shows of a clip: a moving skeleton, or frames. T frames."""

from __future__ import annotations

from base64 import b64encode
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from mindvideo.data.pose import rotation6d_to_axis_angle
from mindvideo.data.stickfigure_actions import JOINTS, PARENTS, forward_kinematics

MOST_POSES = 60
MOST_IMAGES = 16
LONGEST_SIDE = 192  # pixels of an image

_AT_REST = np.array([1, 0, 0, 0, 1, 0], np.float32)
_HEAD = JOINTS.index("head")


def drawing_of(seen: np.ndarray) -> dict[str, Any]:
    """A `Prediction.seen` for the page: joint positions in metres, `[T, 24, 3]`, or images as data addresses."""
    if seen.dtype == np.uint8:
        return {"images": [_image(frame_HWC) for frame_HWC in seen[_evenly(len(seen), MOST_IMAGES)]]}
    positions_TJ3 = _positions(seen[_evenly(len(seen), MOST_POSES)])
    return {"joints": positions_TJ3.round(4).tolist(), "parents": list(PARENTS), "names": list(JOINTS)}


def _evenly(count: int, most: int) -> np.ndarray:
    return np.linspace(0, count - 1, min(count, most)).round().astype(int)


def _positions(poses_TJC: np.ndarray) -> np.ndarray:
    """Joint positions `[T, 24, 3]` of rotation-6D, about the pelvis, y up.

    Six numbers that are no rotation count as none. Some recordings have y down, as cameras do: where heads are below
    pelvises on average, the figure is turned over.
    """
    first, second = poses_TJC[..., :3], poses_TJC[..., 3:]
    lengths = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    broken = np.linalg.norm(np.cross(first, second), axis=-1) <= 1e-3 * lengths
    vectors_TJ3 = rotation6d_to_axis_angle(np.where(broken[..., None], _AT_REST, poses_TJC))
    positions_TJ3 = forward_kinematics(vectors_TJ3, np.zeros((len(poses_TJC), 3)))
    if positions_TJ3[:, _HEAD, 1].mean() < 0:
        positions_TJ3[..., 1:] *= -1
    return positions_TJ3


def _image(frame_HWC: np.ndarray) -> str:
    picture = Image.fromarray(frame_HWC)
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    file = BytesIO()
    picture.save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}"
