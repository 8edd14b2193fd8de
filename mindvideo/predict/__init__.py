# SPDX-License-Identifier: Apache-2.0
"""What a trained network says of new clips: poses or videos in, labels with probabilities and an uncertainty out.

    from mindvideo.predict import predict
    predict("one.mp4", checkpoint="output/dear_i3d/best.ckpt").label

For many clips load the network once: `load_predictor(checkpoint).predict([Path("one.npy"), Path("two.npy")])`. Where
and when a video classifier sees its evidence, `GradCam(predictor)(clip, number)` says.

    predictors.py   the networks, and what they say of clips
    support.py      few-shot networks, which are shown examples of the classes
    inputs.py       what a folder holds
    stream.py       videos frame by frame, and the pieces of long ones
    camera.py       the frames of a camera
    results.py      what is printed and written of predictions
    cam.py          where and when a network sees its evidence: Grad-CAM
    annotate.py     clips with what is said of them drawn below
    command.py      `mindvideo predict`
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from mindvideo.predict.cam import GradCam
from mindvideo.predict.predictors import (
    LENGTHS,
    PosePredictor,
    Prediction,
    Predictor,
    VideoClip,
    VideoPredictor,
    load_predictor,
)
from mindvideo.predict.support import FewShotPredictor, load_few_shot

__all__ = [
    "LENGTHS",
    "FewShotPredictor",
    "GradCam",
    "PosePredictor",
    "Prediction",
    "Predictor",
    "VideoClip",
    "VideoPredictor",
    "load_few_shot",
    "load_predictor",
    "predict",
]


def predict(
    source: str | Path | np.ndarray,
    *,
    checkpoint: str | Path,
    support: str | Path | None = None,
    device: str = "auto",
) -> Prediction:
    """What the network of a checkpoint says of one clip: a file, a folder of frames, or an array, poses `(T, 72)` or
    `(T, 24, 6)`, or frames, uint8 `[T, H, W, 3]`; `support` is the folder of examples that a few-shot network needs.

    The last network stays loaded, until its file changes.
    """
    checkpoint = Path(checkpoint).resolve()
    changed = checkpoint.stat().st_mtime_ns if checkpoint.is_file() else 0
    predictor = _load(checkpoint, changed, Path(support) if support else None, device)
    return predictor.predict([Path(source) if isinstance(source, str) else source])[0]


@functools.lru_cache(maxsize=1)
def _load(checkpoint: Path, changed: int, support: Path | None, device: str) -> Predictor | FewShotPredictor:
    if support:
        return load_few_shot(checkpoint, support, device=device)
    return load_predictor(checkpoint, device=device)
