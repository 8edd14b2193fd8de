# SPDX-License-Identifier: Apache-2.0
"""Frames of a camera as they come.

OpenCV opens it, as it calls cameras by number on every system; PyAV would have to be told a format and a name, which
differ from system to system (v4l2 and /dev/video0, dshow and the product's name).
"""

from __future__ import annotations

import re
import time
from collections.abc import Generator
from pathlib import Path

import cv2
import numpy as np

from mindvideo.errors import InputError

LONGEST_GAP = 0.5  # seconds; cameras give more than two frames a second in any light, so there frames were dropped
INTERVAL = 1 / 30  # seconds from frame to frame, where there is only one


def camera_number(path: Path) -> int | None:
    """The number of the camera that `webcam` or `webcam:N` names, None for any other input or a file called so."""
    found = re.fullmatch(r"webcam(?::(\d{1,3}))?", str(path))
    return int(found[1] or 0) if found and not path.exists() else None


def camera_frames(number: int) -> Generator[tuple[float, np.ndarray], None, None]:
    """Frames, uint8 `[H, W, 3]`, with their times in seconds since the first one, until the camera is gone.

    Nothing piles up while nobody asks for frames: the driver keeps a few, with the times at which they were taken, and
    drops the others. InputError, at once, if the camera gives no picture.
    """
    level = cv2.getLogLevel()
    cv2.setLogLevel(0)  # what fails is said below, in one line
    try:
        capture = cv2.VideoCapture(number)
        works = capture.read()[0]  # often black, and without a time; it is not shown
    finally:
        cv2.setLogLevel(level)
    if not works:
        raise InputError(f"webcam:{number}: camera {number} gives no picture; webcam:N names another one.")
    return _frames(capture)


def _frames(capture: cv2.VideoCapture) -> Generator[tuple[float, np.ndarray], None, None]:
    first = None
    try:
        while True:
            works, frame_HWC = capture.read()
            if not works:
                return
            # Where the driver tells no times, as on macOS, OpenCV keeps the newest frame alone: its time is now.
            seconds = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000 or time.monotonic()
            first = seconds if first is None else first
            yield seconds - first, cv2.cvtColor(frame_HWC, cv2.COLOR_BGR2RGB)
    finally:
        capture.release()
