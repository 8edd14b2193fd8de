# SPDX-License-Identifier: Apache-2.0
"""Requests taken apart: a body no larger than allowed, one file or one list of poses, nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from mindvideo.errors import InputError
from mindvideo.predict import PosePredictor, Predictor
from mindvideo.serve.decode import decode

MOST_BODY = 64 * 2**20 + 2**16  # a largest file, and what multipart adds to it
MOST_JSON = 16 * 2**20  # as numbers take many times as much memory as a list

MULTIPART, JSON = "multipart/form-data", "application/json"

# It warns of every broken body; who sent it is told.
logging.getLogger("python_multipart").setLevel(logging.ERROR)

# Clips are read by so many threads: a largest file takes some hundred megabytes on its way to an array.
_READERS = 2
# A client that still sends does not listen: what it sends on is thrown away for so long before it is answered.
_DRAIN_SECONDS = 2.0


class Intake:
    """Reads the clips of requests for one predictor."""

    def __init__(self, predictor: Predictor, max_seconds: float):
        self.predictor, self.max_seconds = predictor, max_seconds
        self._readers = asyncio.Semaphore(_READERS)

    async def clip(self, request: Request, allowed: tuple[str, ...]) -> Any:
        """The clip of a request, in one of the content types allowed.

        InputError if it is broken; HTTPException of status 415 for another type, 413 if it is too large, 408 if it does
        not come in time; TimeoutError if others are read for too long.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in allowed:
            raise HTTPException(415, f"Content-Type is {kind or 'missing'}; allowed here: {', '.join(allowed)}.")
        limited = _limited(request, MOST_JSON if kind == JSON else MOST_BODY)
        try:
            async with asyncio.timeout(self.max_seconds):
                content = await limited.body() if kind == JSON else await self._file(limited)
        except TimeoutError:
            raise HTTPException(408, f"The request did not come within {self.max_seconds:g} s.") from None
        except HTTPException as error:
            if error.status_code == 413:
                await _drain(request)
            raise
        try:
            async with asyncio.timeout(self.max_seconds):
                await self._readers.acquire()
            try:
                return await run_in_threadpool(self._read, content)
            finally:
                self._readers.release()
        finally:
            if isinstance(content, UploadFile):
                await content.close()

    async def _file(self, request: Request) -> UploadFile:
        field = self.predictor.field
        parts = (await request.form(max_files=8, max_fields=8)).multi_items()
        named = [value for name, value in parts if name == field]
        if len(parts) == len(named) == 1 and isinstance(named[0], UploadFile):
            return named[0]
        for _, value in parts:
            if isinstance(value, UploadFile):
                await value.close()
        if len(named) > 1:
            raise InputError(f"The field {field!r} comes {len(named)} times; send one file.")
        if not named:
            raise InputError(f"There is no field {field!r}; send one file under this name.")
        if len(parts) > 1:
            raise InputError(f"There are fields besides {field!r}; send nothing but one file.")
        raise InputError(f"The field {field!r} is text; send a file.")

    def _read(self, content: UploadFile | bytes) -> Any:
        """The clip of a file, or of a JSON body."""
        if isinstance(self.predictor, PosePredictor):
            source = poses_of_json(content) if isinstance(content, bytes) else content.file.read()
            return self.predictor.read(source)
        if isinstance(content, bytes):
            raise InputError("A video cannot be sent as JSON; send a file, as multipart/form-data.")
        with tempfile.TemporaryDirectory(prefix="mindvideo-") as folder:
            path = Path(folder) / "video"
            with path.open("wb") as file:
                shutil.copyfileobj(content.file, file)
            return decode(path, self.predictor.reader, self.max_seconds)


def poses_of_json(body: bytes) -> np.ndarray:
    """The array of `{"poses": [[...], ...]}`; InputError if the body is anything else."""
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InputError(f"The body is no JSON ({type(error).__name__}).") from error
    if not isinstance(values, dict) or list(values) != ["poses"]:
        raise InputError('The body must be a JSON object with the one key "poses".')
    try:
        array = np.array(values["poses"])
    except ValueError as error:
        raise InputError("poses: the lists are not all of one length.") from error
    if array.dtype.kind not in "fiu":
        raise InputError("poses: there is something else than numbers.")
    return array.astype(np.float64)


def _limited(request: Request, most: int) -> Request:
    """The same request, but for an HTTPException 413 as soon as its body is larger."""
    too_large = HTTPException(413, f"The request is larger than the {most} bytes allowed.")
    if int(request.headers.get("content-length", "0")) > most:
        raise too_large
    seen = 0

    async def receive() -> Message:
        nonlocal seen
        message = await request.receive()
        seen += len(message.get("body", b""))
        if seen > most:
            raise too_large
        return message

    return Request(request.scope, receive)


async def _drain(request: Request) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            while (await request.receive()).get("more_body"):
                pass
