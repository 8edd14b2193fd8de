# SPDX-License-Identifier: Apache-2.0
"""Videos frame by frame, in the memory of a few frames, and verdicts on the pieces of long ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np

from mindvideo.data import video
from mindvideo.errors import InputError, VideoError
from mindvideo.predict.predictors import Prediction

TOLERANCE = 1e-3  # seconds, to which Matroska rounds time stamps

Frames = list[tuple[float, np.ndarray]]  # times and what is kept of each frame


class Pieceable(Protocol):
    """A predictor of videos."""

    @property
    def span(self) -> int: ...
    def shrink(self, frame_HWC: np.ndarray) -> np.ndarray: ...
    def gather(self, frames: Sequence[np.ndarray]) -> Any: ...
    def classify(self, clips: Sequence[Any]) -> list[Prediction]: ...


@dataclass(frozen=True)
class Window:
    """What is said of a piece of a video, from `start` to `end` in seconds."""

    start: float
    end: float
    prediction: Prediction


def frame_rate(path: Path) -> float:
    """Frames a second, as the container says; InputError for a folder of frames, VideoError where it does not say."""
    if path.is_dir():
        raise InputError(f"{path}: a folder of frames has no times; --every is for video files.")
    with closing(video.decode_all(video.existing(path))) as decoded:
        next(decoded)  # refuses what is no video
    with av.open(str(path), metadata_errors="ignore") as container:
        stream = container.streams.best("video")
        rate = stream.average_rate if isinstance(stream, av.VideoStream) else None
    if not rate:
        raise VideoError(f"{path}: the file does not say how many frames a second has")
    return float(rate)


def stream_frames(path: Path, rate: float) -> Iterator[tuple[float, np.ndarray]]:
    """Every frame of a video file in order, uint8 `[H, W, 3]`, with its time in seconds since the first one: its time
    stamp's or, where it has none, by the rate. VideoError at the first sign of damage."""
    first = None
    with closing(video.decode_all(video.existing(path))) as decoded:
        for number, frame in enumerate(decoded):
            seconds = number / rate if frame.time is None else frame.time
            first = seconds if first is None else first
            yield seconds - first, video.upright(frame, frame.to_ndarray(format="rgb24"))


def slide(predictor: Pieceable, path: Path, every: float) -> Iterator[Window]:
    """A verdict every so many seconds of a video file, each of a piece that lasts as long or, if the network's look
    lasts longer, as that; the last piece ends with the video. No more than two pieces are held in memory.

    InputError or VideoError as `frame_rate` and `stream_frames`.
    """
    rate = frame_rate(path)
    yield from follow(predictor, stream_frames(path, rate), every, interval=1 / rate)


def follow(
    predictor: Pieceable,
    frames: Iterable[tuple[float, np.ndarray]],
    every: float,
    *,
    interval: float,
    longest_gap: float = math.inf,
) -> Iterator[Window]:
    """As `slide`, of frames with their times in seconds, of which a single one lasts an `interval`. A piece with a gap
    longer than the longest one is given up, and the next begins behind the gap."""
    piece: Frames = []
    before: Frames = []  # of the piece before, what this one does not share
    for seconds, frame_HWC in frames:
        if piece and seconds - piece[-1][0] > longest_gap:
            before, piece = [], []
        end = _next_start(piece, every)
        if len(piece) >= predictor.span and seconds > end - TOLERANCE:
            yield _judge(predictor, piece, seconds)
            shared = [kept for kept in piece if kept[0] > end - TOLERANCE]
            before, piece = piece[: len(piece) - len(shared)], shared
        if piece:
            interval = seconds - piece[-1][0]
        piece.append((seconds, predictor.shrink(frame_HWC)))
    if not piece:
        return
    # The last frame is in no verdict yet, and lasts as long as the one before it.
    end = piece[-1][0] + interval
    late = [kept for kept in before + piece if kept[0] > end - every - TOLERANCE]
    yield _judge(predictor, (before + piece)[-max(predictor.span, len(late)) :], end)


def _next_start(piece: Frames, every: float) -> float:
    """When the piece after this one starts: they start at multiples of `every`."""
    return every * (1 + (piece[0][0] + TOLERANCE) // every) if piece else 0.0


def _judge(predictor: Pieceable, piece: Frames, end: float) -> Window:
    clip = predictor.gather([frame for _, frame in piece])
    return Window(piece[0][0], end, predictor.classify([clip])[0])
