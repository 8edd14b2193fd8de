# SPDX-License-Identifier: Apache-2.0
"""Whether there is an NVIDIA GPU that MindSpore can use: asked of the driver itself, then of MindSpore's plugin.

MindSpore says that a GPU is available as soon as its plugin loads, and accepts the device then; the first operation
fails where no GPU is. So the driver is asked first.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import NamedTuple

OLDEST_CUDA = (11, 0)  # drivers from this on run the libraries of CUDA 11.8
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


class Gpu(NamedTuple):
    """A device as the driver tells of it; (9, 0) is Hopper."""

    name: str
    capability: tuple[int, int]


class Driver(NamedTuple):
    """The newest CUDA that the driver knows, its GPUs, and why there are none; the last is empty where there are."""

    cuda: tuple[int, int]
    gpus: tuple[Gpu, ...]
    problem: str


def driver() -> Driver:
    """Ask the driver. This needs no other part of CUDA, and no MindSpore."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return Driver((0, 0), (), f"no NVIDIA driver is installed ({error})")
    number = ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(number))
    cuda = (number.value // 1000, number.value % 1000 // 10)
    status = library.cuInit(0)
    if status:
        return Driver(cuda, (), f"the NVIDIA driver does not start ({_error(library, status)})")
    status = library.cuDeviceGetCount(ctypes.byref(number))
    if status or not number.value:
        return Driver(cuda, (), "the NVIDIA driver sees no GPU")
    if cuda < OLDEST_CUDA:
        return Driver(cuda, (), f"the NVIDIA driver is for CUDA {cuda[0]}.{cuda[1]}, older than 11.0")
    return Driver(cuda, tuple(_gpu(library, index) for index in range(number.value)), "")


def _gpu(library: ctypes.CDLL, index: int) -> Gpu:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(100)
    library.cuDeviceGet(ctypes.byref(device), index)
    library.cuDeviceGetName(name, len(name), device)
    library.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, device)
    library.cuDeviceGetAttribute(ctypes.byref(minor), MINOR, device)
    return Gpu(name.value.decode(errors="replace"), (major.value, minor.value))


def _error(library: ctypes.CDLL, status: int) -> str:
    text = ctypes.c_char_p()
    library.cuGetErrorString(status, ctypes.byref(text))
    return f"error {status}: {(text.value or b'unknown').decode(errors='replace')}"


def plugin_problem() -> str:
    """Why MindSpore's GPU plugin is not loaded; empty where it is."""
    import mindspore as ms  # here, so that the driver can be asked without
    from mindspore._c_expression import MSContext

    if ms.hal.is_available("GPU"):
        return ""
    for line in MSContext.get_instance().load_plugin_error().splitlines():
        if "libmindspore_gpu" in line:
            return line.partition(" failed. ")[2]
    home = os.environ.get("CUDA_HOME")
    if not home:
        return "CUDA_HOME is not set"
    if home == os.path.join(sys.prefix, "cuda"):  # set as mindvideo was imported
        return "MindSpore was imported before mindvideo, which tells it where CUDA is: import mindvideo first"
    return f"CUDA_HOME is {home}, which holds no CUDA 11 with bin/nvcc: unset it"


def gpu_problem() -> str:
    """Why this process cannot compute on a GPU, and what to do about it; empty where it can."""
    if problem := driver().problem:
        return f"{problem}; install or repair the driver, then run `bash scripts/setup_gpu.sh`"
    if problem := plugin_problem():
        return f"MindSpore has not loaded its GPU plugin ({problem}); run `bash scripts/setup_gpu.sh`"
    return ""
