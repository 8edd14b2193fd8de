# SPDX-License-Identifier: Apache-2.0
"""Where the work runs. Call `use_device` once, before the first MindSpore operation: MindSpore 2.8 refuses a change."""

from __future__ import annotations

import ctypes
import os

import mindspore as ms

from mindvideo.errors import InputError

DEVICES = ("auto", "cpu", "gpu", "ascend")


def available_cores() -> int:
    """CPU cores this process may use (its affinity, not the machine's total)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_device(name: str = "auto") -> str:
    """Select graph mode on a device and return its name; `auto` takes Ascend, then a GPU, then the CPU.

    InputError when the device asked for is not there. On the CPU, operators get one thread for each core.
    """
    if name not in DEVICES:
        raise InputError(f"device {name!r}: allowed are {', '.join(DEVICES)}.")
    ms.set_context(mode=ms.GRAPH_MODE)
    if name in ("auto", "ascend") and ms.hal.is_available("Ascend"):
        ms.set_device("Ascend")
        return "ascend"
    if name in ("auto", "gpu") and ms.hal.is_available("GPU") and _has_nvidia_driver():
        ms.set_device("GPU")
        return "gpu"
    if name in ("gpu", "ascend"):
        raise InputError(f"device {name!r} is not available on this machine; use `device: cpu` or `auto`.")
    ms.set_device("CPU")
    return "cpu"


def _has_nvidia_driver() -> bool:
    """MindSpore reports a GPU as soon as its plugin loads; only the driver knows whether there is one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
