# SPDX-License-Identifier: Apache-2.0
"""What the page shows of a clip: a moving skeleton, or frames. T frames."""

from __future__ import annotations

from base64 import b64encode
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from mindvideo.data.pose import joint_positions
from mindvideo.data.stickfigure_actions import JOINTS, PARENTS

MOST_POSES = 60
MOST_IMAGES = 16
LONGEST_SIDE = 192  # pixels of an image


def drawing_of(seen: np.ndarray) -> dict[str, Any]:
    """A `Prediction.seen` for the page: joint positions in metres, `[T, 24, 3]`, or images as data addresses."""
    if seen.dtype == np.uint8:
        return {"images": [_image(frame_HWC) for frame_HWC in seen[_evenly(len(seen), MOST_IMAGES)]]}
    positions_TJ3 = joint_positions(seen[_evenly(len(seen), MOST_POSES)])
    return {"joints": positions_TJ3.round(4).tolist(), "parents": list(PARENTS), "names": list(JOINTS)}


def _evenly(count: int, most: int) -> np.ndarray:
    return np.linspace(0, count - 1, min(count, most)).round().astype(int)


def _image(frame_HWC: np.ndarray) -> str:
    picture = Image.fromarray(frame_HWC)
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    file = BytesIO()
    picture.save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}"
