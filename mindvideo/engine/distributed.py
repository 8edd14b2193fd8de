# SPDX-License-Identifier: Apache-2.0
"""Training by several processes, each on a device of its own, as `msrun` or `mpirun` starts them.

A step of training sees `train.accumulate` batches, numbered through the run, and every batch is what the seed and its
number say. The processes deal these batches among them, so how many they are changes the time that a run takes and
nothing else. Every process does everything but write: the first does that. Without such a start there is one process,
the first, and all functions here do nothing else than the name of one process says.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
from numpy.lib import format as npy

from mindvideo.engine.log import console
from mindvideo.errors import InputError

T = TypeVar("T")

_PATIENCE = 600  # seconds

# What msrun and mpirun tell a process that they start: how many there are.
_NUMBERS = ("MS_WORKER_NUM", "OMPI_COMM_WORLD_SIZE")


@functools.cache  # once
def join() -> None:
    """Meet the other processes; the device must be set. msrun's scheduler comes no further than this."""
    if _started_with() > 1:
        # On a CPU a process that waits for another one gives up after 30 seconds, less than some first step takes to
        # compile. The scheduler has the same variable for something else: how soon it misses one that is gone.
        if os.environ.get("MS_ROLE") != "MS_SCHED":
            os.environ.setdefault("MS_NODE_TIMEOUT", str(_PATIENCE))
        import mindspore as ms  # loaded only where there are several processes: some commands need no MindSpore
        from mindspore.communication import init

        init()
        ms.set_auto_parallel_context(parallel_mode=ms.ParallelMode.DATA_PARALLEL, gradients_mean=True)
        console.quiet = not is_first()


@functools.cache
def _started_with() -> int:
    return max(int(os.environ.get(name, "1")) for name in _NUMBERS)


@functools.cache
def rank() -> int:
    """The number of this process, from 0."""
    if _started_with() == 1:
        return 0
    from mindspore.communication import get_rank

    return get_rank()


@functools.cache
def size() -> int:
    """How many processes there are."""
    if _started_with() == 1:
        return 1
    from mindspore.communication import get_group_size

    return get_group_size()


def is_first() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def own_batches(start: int, stop: int, accumulate: int) -> list[int]:
    """The numbers of the batches that this process sees in the steps `start` to `stop - 1`."""
    return [step * accumulate + place for step in range(start, stop) for place in range(rank(), accumulate, size())]


def shard(items: Sequence[T]) -> Sequence[T]:
    """The items that this process looks at in a test: each is some process's, whatever their number."""
    return items[rank() :: size()]


def gather_rows(own: np.ndarray) -> np.ndarray:
    """The rows of all processes, each of which has those of its `shard`, in the order of the items.

    A process whose shard is empty may give any array without rows.
    """
    if size() == 1:
        return own
    file = BytesIO()
    npy.write_array(file, np.ascontiguousarray(own), allow_pickle=False)
    arrays = [npy.read_array(BytesIO(data), allow_pickle=False) for data in exchange(file.getvalue())]
    rows = np.empty((sum(map(len, arrays)), *arrays[0].shape[1:]), arrays[0].dtype)
    for number, array in enumerate(arrays):
        if len(array):
            rows[number :: size()] = array
    return rows


def sum_over_processes(numbers: dict[str, float]) -> dict[str, float]:
    """The sum of each number over the processes, which all have the same names."""
    if size() == 1:
        return numbers
    values_RV = _gather(np.array(list(numbers.values()), np.float32))
    return dict(zip(numbers, values_RV.sum(axis=0, dtype=np.float64).tolist(), strict=True))


def exchange(data: bytes) -> list[bytes]:
    """What each process gives, in the order of the processes; all of them must call it."""
    if size() == 1:
        return [data]
    # float32 is the one type that all back ends send; it holds whole numbers up to 2^24, and as bytes anything.
    parts_R2 = _gather(np.array(divmod(len(data), 2**20), np.float32)).astype(int)
    lengths_R = parts_R2[:, 0] * 2**20 + parts_R2[:, 1]
    padded = data.ljust(4 * (1 + int(lengths_R.max()) // 4), b"\0")
    received_RN = _gather(np.frombuffer(padded, np.float32))
    return [row.tobytes()[:length] for row, length in zip(received_RN, lengths_R, strict=True)]


def _gather(numbers_N: np.ndarray) -> np.ndarray:
    """The float32 numbers of all processes, `[R, N]`."""
    from mindspore import Tensor

    return _all_gather()(Tensor(numbers_N[None])).asnumpy()


@functools.cache  # another one would be compiled anew
def _all_gather() -> Callable[[Any], Any]:
    from mindspore import ops

    return ops.AllGather()


def from_first(make: Callable[[], Any]) -> Any:
    """What `make`, called by the first process alone, gives: something that JSON can hold. Its InputError is raised in
    all."""
    if size() == 1:
        return make()
    answer: dict[str, Any] = {}
    if is_first():
        try:
            answer = {"value": make()}
        except InputError as error:
            answer = {"error": str(error)}
    answer = json.loads(exchange(json.dumps(answer).encode())[0])
    if "error" in answer:
        raise InputError(answer["error"])
    return answer["value"]


def after_first(make: Callable[[], T]) -> T:
    """What `make` gives, which the other processes call only when the first is done: they find its files. An InputError
    of the first is raised in all."""
    made: list[T] = []
    from_first(lambda: made.append(make()))
    return made[0] if made else make()
