# SPDX-License-Identifier: Apache-2.0
"""Which frames of a video make a clip: index arithmetic on `num_frames`, nothing else.

Every function returns int64 indices in `[0, num_frames)`, ascending, and raises InputError when the video
has fewer frames than the clip needs; only `dense` and `windows` take such a video from its start again. A window of
`length` frames at `stride` spans `length * stride` frames, as PySlowFast and MMAction2 count it.

DEAR (arXiv 2107.10161) trains on one window, of 32 frames at stride 2 or of 8 at stride 8: `consecutive` with `short`
"loop". MMAction2 has two samplers for it; DenseSampleFrames never draws the last start, SampleFrames does, and so does
this one. For tests they place ten windows differently: `dense` follows the former, `windows` the latter.
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
    """`[V, T]` test views: `num_clips` windows, evenly spaced from the first start to the last; one alone is centred.

    A video shorter than a window loops. PySlowFast and MMAction2's DenseSampleFrames do the same.
    """
    _require_clips(num_clips)
    _require(num_frames, 1)
    available = max(num_frames, length * stride)
    if num_clips == 1:
        return loop(consecutive(available, length, stride)[None], num_frames)
    starts = np.arange(num_clips) * (available - length * stride) // (num_clips - 1)
    return loop(starts[:, None] + stride * np.arange(length), num_frames)


def windows(
    num_frames: int, length: int, stride: int, num_clips: int, rng: np.random.Generator | None = None
) -> np.ndarray:
    """`[V, T]` windows, one start in each of `num_clips` equal parts of the possible ones: anywhere in it with `rng`,
    in its middle without.

    This is MMAction2's SampleFrames. Drawn parts have whole lengths; starts behind the last part are never drawn. A
    video shorter than a window loops. Where there are fewer starts than windows, they are drawn with repeats; where not
    even more frames than windows, they are evenly spaced.
    """
    _require_clips(num_clips)
    _require(num_frames, 1)
    span = length * stride
    num_starts = max(0, num_frames - span + 1)
    part = num_starts / num_clips
    numbers = np.arange(num_clips)
    if rng is None:
        # In floating point as published: exact arithmetic is a frame off at some lengths.
        starts = (part * numbers + part / 2).astype(np.int64)
    elif part >= 1:
        starts = int(part) * numbers + rng.integers(int(part), size=num_clips)
    elif num_frames > max(num_clips, span):
        starts = np.sort(rng.integers(num_starts, size=num_clips))
    else:
        starts = np.rint(part * numbers).astype(np.int64)
    return loop(starts[:, None] + stride * np.arange(length), num_frames)


def tsn_segments(num_frames: int, num_segments: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """`[T]` frames, one of each equal segment: any of it with `rng`, the middle without (see `uniform`)."""
    if rng is None:
        return uniform(num_frames, num_segments)
    edges = _segment_edges(num_frames, num_segments)
    return rng.integers(edges[:-1], edges[1:])


def repeat_last(indices: np.ndarray, num_frames: int) -> np.ndarray:
    """Indices past the end of a short video become its last frame."""
    return np.minimum(indices, num_frames - 1)


def loop(indices: np.ndarray, num_frames: int) -> np.ndarray:
    """Indices past the end of a short video go on at its start."""
    return indices % num_frames


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

    A video too short for the clip is an error, or with `short` "repeat" its last frame fills the clip, or with "loop"
    the video from its start again.
    """
    if kind not in SAMPLERS:
        raise InputError(f"unknown sampler {kind!r}, choose from {', '.join(SAMPLERS)}")
    if short not in ("error", "repeat", "loop"):
        raise InputError(f"short is {short!r}, choose from error, repeat, loop")
    if stride != 1 and kind != "consecutive":
        raise InputError(f"stride is {stride}, but the sampler {kind} takes none: only consecutive does")
    _require(num_frames, 1)
    available = num_frames if short == "error" else max(num_frames, length * stride)
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
    return loop(indices, num_frames) if short == "loop" else repeat_last(indices, num_frames)


def _segment_edges(num_frames: int, num_segments: int) -> np.ndarray:
    """The `num_segments + 1` borders of equal segments; none is empty."""
    _require(num_frames, num_segments)
    return np.arange(num_segments + 1) * num_frames // num_segments


def _require(num_frames: int, needed: int) -> None:
    if needed < 1:
        raise InputError(f"a clip of {needed} frames was asked for, it must have at least 1")
    if num_frames < needed:
        raise InputError(f"the video has {num_frames} frames, the clip needs {needed}")


def _require_clips(num_clips: int) -> None:
    if num_clips < 1:
        raise InputError(f"num_clips is {num_clips}, it must be at least 1")
