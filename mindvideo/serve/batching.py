# SPDX-License-Identifier: Apache-2.0
"""Many requests, one model: clips wait in line, and one thread takes as many at once as have come."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from mindvideo.predict import Prediction

# What may wait, in bytes; a clip alone always may. A longest clip of poses has 19 MB.
MOST_WAITING = 256 * 2**20


class BusyError(Exception):
    """There is no room, or no time; the message is for the client, who may try again."""


class Batcher:
    """Runs `classify` on a thread of its own, on at most `max_batch` clips at once, in the order of their coming.

    `observe` is told how many clips each run has.
    """

    def __init__(
        self,
        classify: Callable[[Sequence[Any]], list[Prediction]],
        *,
        max_batch: int,
        observe: Callable[[int], None] = lambda count: None,
    ):
        self._classify, self._max_batch, self._observe = classify, max_batch, observe
        self._waiting: deque[tuple[Any, Future[Prediction]]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._closed = False
        # A daemon: a run that never ends must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """How many clips wait."""
        return len(self._waiting)

    def submit(self, clip: Any) -> Future[Prediction]:
        """The prediction to come; BusyError if too much waits. One that is cancelled in time costs nothing."""
        future: Future[Prediction] = Future()
        with self._changed:
            if self._closed:
                raise BusyError("The server is shutting down.")
            if self._waiting and self._bytes + clip.nbytes > MOST_WAITING:
                raise BusyError(f"Clips of {self._bytes} bytes are waiting; at most {MOST_WAITING} may.")
            self._waiting.append((clip, future))
            self._bytes += clip.nbytes
            self._changed.notify()
        return future

    def close(self, timeout: float) -> None:
        """Take no more, and finish what waits, as far as the seconds allow."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout)

    def _take(self) -> list[tuple[Any, Future[Prediction]]]:
        """The next clips to run; none when all is done and closed."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            taken = [self._waiting.popleft() for _ in range(min(self._max_batch, len(self._waiting)))]
            self._bytes -= sum(clip.nbytes for clip, _ in taken)
        return taken

    def _run(self) -> None:
        while taken := self._take():
            wanted = [(clip, future) for clip, future in taken if future.set_running_or_notify_cancel()]
            if not wanted:
                continue
            self._observe(len(wanted))
            try:
                predictions = self._classify([clip for clip, _ in wanted])
            except Exception as error:  # whatever it is, the next clips shall have their turn
                for _, future in wanted:
                    future.set_exception(error)
                continue
            for (_, future), prediction in zip(wanted, predictions, strict=True):
                future.set_result(prediction)
