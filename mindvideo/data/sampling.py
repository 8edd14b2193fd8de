# SPDX-License-Identifier: Apache-2.0
"""Which frames of a video make a clip: index arithmetic on `num_frames`, nothing else.

Every function returns int64 indices in `[0, num_frames)`, ascending, and raises InputError when the video
has fewer frames than the clip needs. A window of `length` frames at `stride` spans `length * stride` frames,
as PySlowFast and MMAction2 count it.
"""

import numpy as np

from mindvideo.errors import InputError

SAMPLERS = ("uniform", "random", "consecutive", "segments")


def uniform(num_frames: int, length: int) -> np.ndarray:
    """`[T]` frames over the whole video: the middle of each of `length` equal segments.

    Segment i is `[e_i, e_i+1)` with `e_i = floor(i * num_frames / length)`, its middle
    `floor((e_i + e_i+1) / 2)`: the uniform sampling of ARN, and the test sampling of TSN.
    """
    edges = _segment_edges(num_frames, length)
    return (edges[:-1] + edges[1:]) // 2


def random_sorted(num_frames: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """`[T]` different frames drawn from the whole video, in order: what ARN's authors' code does."""
    _require(num_frames, length)
    return np.sort(rng.choice(num_frames, length, replace=False))


def consecutive(num_frames: int, length: int, stride: int = 1, rng: np.random.Generator | None = None) -> np.ndarray:
    """`[T]` frames of one window, which starts anywhere with `rng` and is centred without."""
    _require(num_frames, length * stride)
    slack = num_frames - length * stride
    start = slack // 2 if rng is None else int(rng.integers(slack + 1))
    return start + stride * np.arange(length)


def dense(num_frames: int, length: int, stride: int, num_clips: int) -> np.ndarray:
    """`[V, T]` test views: `num_clips` windows, evenly spaced from the first frame to the last.

    A single one is centred. This serves multi-view testing too: PySlowFast and MMAction2 do the same.
    """
    if num_clips < 1:
        raise InputError(f"num_clips is {num_clips}, it must be at least 1")
    if num_clips == 1:
        return consecutive(num_frames, length, stride)[None]
    _require(num_frames, length * stride)
    starts = np.arange(num_clips) * (num_frames - length * stride) // (num_clips - 1)
    return starts[:, None] + stride * np.arange(length)


def tsn_segments(num_frames: int, num_segments: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """`[T]` frames, one of each equal segment: any of it with `rng`, the middle without (see `uniform`)."""
    if rng is None:
        return uniform(num_frames, num_segments)
    edges = _segment_edges(num_frames, num_segments)
    return rng.integers(edges[:-1], edges[1:])


def repeat_last(indices: np.ndarray, num_frames: int) -> np.ndarray:
    """Indices past the end of a short video become its last frame."""
    return np.minimum(indices, num_frames - 1)


def sample(
    kind: str,
    num_frames: int,
    length: int,
    *,
    stride: int = 1,
    rng: np.random.Generator | None = None,
    short: str = "error",
) -> np.ndarray:
    """`[T]` frames by the sampler named `kind`, one of SAMPLERS; `stride` belongs to consecutive alone.

    A video too short for the clip is an error, or with `short` "repeat" its last frame fills the clip.
    """
    if kind not in SAMPLERS:
        raise InputError(f"unknown sampler {kind!r}, choose from {', '.join(SAMPLERS)}")
    if short not in ("error", "repeat"):
        raise InputError(f"short is {short!r}, choose from error, repeat")
    if stride != 1 and kind != "consecutive":
        raise InputError(f"stride is {stride}, but the sampler {kind} takes none: only consecutive does")
    _require(num_frames, 1)
    available = max(num_frames, length * stride) if short == "repeat" else num_frames
    if kind == "uniform":
        indices = uniform(available, length)
    elif kind == "consecutive":
        indices = consecutive(available, length, stride, rng)
    elif kind == "segments":
        indices = tsn_segments(available, length, rng)
    elif rng is None:
        raise InputError("the sampler random needs a random generator")
    else:
        indices = random_sorted(available, length, rng)
    return repeat_last(indices, num_frames)


def _segment_edges(num_frames: int, num_segments: int) -> np.ndarray:
    """The `num_segments + 1` borders of equal segments; none is empty."""
    _require(num_frames, num_segments)
    return np.arange(num_segments + 1) * num_frames // num_segments


def _require(num_frames: int, needed: int) -> None:
    if needed < 1:
        raise InputError(f"a clip of {needed} frames was asked for, it must have at least 1")
    if num_frames < needed:
        raise InputError(f"the video has {num_frames} frames, the clip needs {needed}")
