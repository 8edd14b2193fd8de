# SPDX-License-Identifier: Apache-2.0
"""Convolution, norms, pooling, GELU and steps of optimizers for CPUs, over oneDNN 3, as MindSpore cells.

    build.py                  compiles the operators on first use;  call.h  how they reach oneDNN
    operators.cc, tokens.cc   the operators of networks;   operators.py, tokens.py   the cells
    optimizers.cc             the steps of optimizers;     optimizers.py  the cells

MindSpore's own CPU operators call an old oneDNN with fixed layouts and are several times slower. The two
differ by float32 rounding only. Where the native ones do not load, `available()` is False and `reason()`
says why; `MINDVIDEO_NATIVE=0` turns them off.

The cells of networks take tensors with the channels last, [B, T, H, W, C]: oneDNN's kernels run on them as they lie.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager


@functools.cache
def load() -> tuple[str, str]:
    """Return the library's path and "", or "" and the reason why there is none."""
    from mindvideo.native import build  # here, so that `python -m mindvideo.native.build` runs one copy of it

    if os.environ.get("MINDVIDEO_NATIVE") == "0":
        return "", "they are turned off by MINDVIDEO_NATIVE=0"
    try:
        path = str(build.library())
        major = ctypes.CDLL(path).mindvideo_onednn_major()
    except (build.BuildError, OSError) as error:
        return "", str(error)
    if major != 3:
        return "", f"another oneDNN, version {major}, took the place of version 3 in this process"
    return path, ""


def available() -> bool:
    """Whether the native operators can be used in this process; the first call may compile them."""
    return bool(load()[0])


def reason() -> str:
    """Why the native operators are not available; empty where they are."""
    return load()[1]


_set_aside = False


def in_use() -> bool:
    """Whether this process computes on a CPU with the native operators."""
    import mindspore as ms  # here, as the rest of this file needs none of it

    return not _set_aside and ms.get_context("device_target") == "CPU" and available()


@contextmanager
def set_aside() -> Iterator[None]:
    """Inside, `in_use` is False."""
    global _set_aside
    _set_aside = True
    try:
        yield
    finally:
        _set_aside = False
