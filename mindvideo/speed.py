# SPDX-License-Identifier: Apache-2.0
"""Two quick measurements for `mindvideo doctor`: a convolution, and the decoding of video."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor, ops

from mindvideo.data.datasets import stickfigures
from mindvideo.data.stickfigure_actions import NUM_FRAMES
from mindvideo.data.stickfigures import CLASSES, make_sample
from mindvideo.data.video import read_frames
from mindvideo.native import operators

CHANNELS, KERNEL, ONE = 32, (3, 3, 3), (1, 1, 1)
EXTENTS, MIDDLE = (16, 28, 28), (8, 14, 14)
GFLOP = 2 * CHANNELS**2 * math.prod(KERNEL) * math.prod(EXTENTS) / 1e9


def convolution(is_native: bool) -> tuple[float, float, float]:
    """Seconds of the fastest 3x3x3 convolution in a third of a second, its GFLOP, and a number of its result.

    Input and weights are such that this number, away from the borders, is 864 / 1024 = 0.84375 without any rounding,
    also with TF32.
    """
    weight = Tensor(np.full((CHANNELS, CHANNELS, *KERNEL), 1 / 1024, np.float32))
    operator: Any
    if is_native:
        operator, shape, middle = operators.Convolution(ONE, ONE, ONE), (1, *EXTENTS, CHANNELS), (0, *MIDDLE, 0)
    else:
        operator = ops.Conv3D(CHANNELS, KERNEL, pad_mode="pad", pad=1)
        shape, middle = (1, CHANNELS, *EXTENTS), (0, 0, *MIDDLE)
    x = Tensor(np.ones(shape, np.float32))

    def compute() -> np.ndarray:
        return operator(x, weight).asnumpy()

    result = float(compute()[middle])  # the first time it compiles
    return _fastest(compute), GFLOP, result


def _fastest(run: Callable[[], object]) -> float:
    """Seconds of the fastest run in about a third of a second."""
    best, end = math.inf, time.perf_counter() + 0.3
    while best == math.inf or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def decoded_per_second(root: Path) -> float:
    """Frames decoded to RGB in a second of processor time, of videos that are filmed into the new folder `root`."""
    make_sample(root, num_groups=2, clips_per_group=1, classes=CLASSES[:1])
    paths = [sample.path for sample in stickfigures(root / "videos")] * 10
    start = time.process_time()
    frames = sum(len(read_frames(path, range(NUM_FRAMES))) for path in paths)
    return frames / (time.process_time() - start)
