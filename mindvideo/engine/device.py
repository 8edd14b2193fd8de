# SPDX-License-Identifier: Apache-2.0
"""Where the work runs. Call `use_device` once, before the first MindSpore operation: MindSpore 2.8 refuses a change."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import mindspore as ms

from mindvideo.engine.distributed import join
from mindvideo.engine.nvidia import gpu_problem
from mindvideo.errors import InputError

DEVICES = ("auto", "cpu", "gpu", "ascend")


def use_device(name: str = "auto") -> str:
    """Select graph mode on a device and return its name; `auto` takes Ascend, then a GPU, then the CPU.

    InputError when the device asked for is not there. On the CPU, operators may use every core.
    """
    if name not in DEVICES:
        raise InputError(f"device {name!r}: allowed are {', '.join(DEVICES)}.")
    if name == "gpu" and (problem := gpu_problem()):
        raise InputError(f"device 'gpu' cannot be used: {problem}, or use `device: cpu` or `auto`.")
    ms.set_context(mode=ms.GRAPH_MODE)
    if name in ("auto", "ascend") and ms.hal.is_available("Ascend"):
        ms.set_device("Ascend")
        join()
        return "ascend"
    if name == "ascend":
        raise InputError("device 'ascend' is not available on this machine; use `device: cpu` or `auto`.")
    if name == "gpu" or (name == "auto" and not gpu_problem()):
        ms.set_device("GPU")
        join()
        return "gpu"
    ms.set_device("CPU")
    join()
    _run_one_operator_at_a_time()
    _free_the_main_thread()
    return "cpu"


@contextmanager
def operator_by_operator() -> Iterator[None]:
    """Inside, operators run one by one: compiling a graph takes longer than a single pass."""
    mode = ms.get_context("mode")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        yield
    finally:
        ms.set_context(mode=mode)


@functools.cache  # MindSpore takes it once
def _run_one_operator_at_a_time() -> None:
    """Each operator has a thread for every core; two at once would get in each other's way."""
    ms.runtime.dispatch_threads_num(1)


def _free_the_main_thread() -> None:
    """Leave all cores to the operators.

    In graph mode MindSpore's main thread spins while the operators compute, which costs them a core: with two cores a
    training step takes up to twice as long. Without its graph pipeline the thread sleeps. MindSpore announces that
    setting on standard output when it compiles its first graph: this one, whose output is thrown away.
    """
    if "MS_DEV_RUNTIME_CONF" in os.environ:
        return
    os.environ["MS_DEV_RUNTIME_CONF"] = "graph_pipeline:False"
    sys.stdout.flush()
    screen = os.dup(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        try:
            ms.jit(_double)(ms.Tensor(1.0))
        finally:
            ctypes.CDLL(None).fflush(None)
            os.dup2(screen, 1)
            os.close(screen)
    # Its runtime sets OMP_NUM_THREADS=1 behind Python's back. That comes too late for this process, but the processes
    # it starts would have one thread, and with it other rounding.
    if "OMP_NUM_THREADS" not in os.environ:
        os.unsetenv("OMP_NUM_THREADS")


def _double(x: ms.Tensor) -> ms.Tensor:
    return x + x
