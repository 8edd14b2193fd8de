# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint to a server that answers, and to its end."""

from __future__ import annotations

import ctypes
import signal
import socket

import uvicorn

from mindvideo.engine.log import say
from mindvideo.errors import InputError
from mindvideo.predict import Predictor
from mindvideo.serve.app import Metrics, Service, create_app
from mindvideo.serve.batching import Batcher


def bind(host: str, port: int) -> socket.socket:
    """A socket of this address, which does not listen yet; InputError if it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        raise InputError(f"--host {host} --port {port}: cannot be listened on ({error.strerror}).") from error
    return found


def serve(predictor: Predictor, listener: socket.socket, *, max_batch: int, queue: int, max_seconds: float) -> None:
    """Answer requests until SIGTERM or SIGINT: then take no more, finish what is there, and return.

    All graphs are compiled before the first request: they would make it wait for seconds, and each takes memory for
    good.
    """
    _give_large_arrays_back()
    metrics = Metrics()
    batcher = Batcher(predictor.classify, max_batch=max_batch, observe=metrics.batch.observe)
    predictor.warm_up(max_batch)
    service = Service(predictor, batcher, queue=queue, max_seconds=max_seconds)
    config = uvicorn.Config(
        create_app(service, metrics), loop="asyncio", http="h11", ws="none", lifespan="off", proxy_headers=False,
        log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=int(max_seconds) + 1,
    )  # fmt: skip
    server = uvicorn.Server(config)

    def stop(*_: object) -> None:
        server.should_exit = True

    # uvicorn ends well on these signals, but raises them anew once it has: without this the process would die of them.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    listener.listen(128)
    host, port = listener.getsockname()[:2]
    say(f"ready: http://{f'[{host}]' if ':' in host else host}:{port}/ answers by {predictor.config.model.name}")
    try:
        server.run(sockets=[listener])
    finally:
        batcher.close(max_seconds)


def _give_large_arrays_back() -> None:
    """Have glibc take memory for arrays of a megabyte or more from the system, and give it back with them.

    Left alone it soon keeps such memory for itself, and clips of all lengths tear it into pieces: with eight clients
    the process wanders by 60 MB, with this by 5.
    """
    mallopt, threshold = getattr(ctypes.CDLL(None), "mallopt", None), -3
    if mallopt is not None:
        mallopt(threshold, 2**20)
