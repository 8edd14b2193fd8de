# SPDX-License-Identifier: Apache-2.0
"""The routes: `POST /` as the published service has it, `POST /predict`, the page, health and numbers.

Every refusal is `{"error": "one sentence"}`.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from base64 import b64encode
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mindvideo import __version__
from mindvideo.errors import InputError
from mindvideo.predict import Prediction, Predictor
from mindvideo.serve.batching import Batcher, BusyError
from mindvideo.serve.drawing import drawing_of
from mindvideo.serve.intake import JSON, MULTIPART, Intake

PAGE = Path(__file__).with_name("page.html")
PATHS = ("/", "/predict", "/health", "/metrics", "/openapi.json")
METHODS = ("GET", "POST")


class Metrics:
    """What `GET /metrics` tells, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "path", "status")
        self.requests = Counter("mindvideo_requests", "Requests answered", labels, registry=self.registry)
        self.seconds = Histogram(
            "mindvideo_request_seconds", "From a request's first byte to its answer's last", labels[:2],
            registry=self.registry,
        )  # fmt: skip
        self.batch = Histogram(
            "mindvideo_batch_clips", "Clips that the model sees at once", buckets=(1, 2, 4, 8, 16),
            registry=self.registry,
        )  # fmt: skip
        self.waiting = Gauge("mindvideo_waiting_clips", "Clips that wait for the model", registry=self.registry)
        ProcessCollector(registry=self.registry)  # resident memory, processor time, open files


class Service:
    """Answers requests by one predictor, of which at most `queue` are read, wait or run at once."""

    def __init__(self, predictor: Predictor, batcher: Batcher, *, queue: int, max_seconds: float):
        self.predictor, self.batcher, self.queue, self.max_seconds = predictor, batcher, queue, max_seconds
        self._intake = Intake(predictor, max_seconds)
        self._at_work = 0

    async def answer(self, request: Request, allowed: tuple[str, ...]) -> Prediction:
        """The prediction for a request's clip; BusyError where there is no room or no time."""
        if self._at_work >= self.queue:
            raise BusyError(f"{self._at_work} requests are at work; at most {self.queue} may.")
        self._at_work += 1
        try:
            clip = await self._intake.clip(request, allowed)
            future = asyncio.wrap_future(self.batcher.submit(clip))
            async with asyncio.timeout(self.max_seconds):
                return await future
        except TimeoutError:
            raise BusyError(f"Its turn did not come within {self.max_seconds:g} s.") from None
        finally:
            self._at_work -= 1

    def describe(self) -> dict[str, Any]:
        """What the model is and takes."""
        config = self.predictor.config
        about = {"status": "ok", "version": __version__, "model": config.model.name, "task": config.task}
        return about | {"field": self.predictor.field, "classes": len(self.predictor.labels)}


def create_app(service: Service, metrics: Metrics) -> ASGIApp:
    """The routes over one service."""
    # FastAPI's own pages of the interface load scripts from elsewhere: /openapi.json stays, they do not.
    app = FastAPI(title="MindVideo", version=__version__, docs_url=None, redoc_url=None)
    page = PAGE.read_text(encoding="utf-8")
    page_headers = {"Content-Security-Policy": _policy(page)}
    metrics.waiting.set_function(lambda: service.batcher.depth)
    field = service.predictor.field
    file = {"type": "object", "required": [field], "properties": {field: {"type": "string", "format": "binary"}}}
    poses = {"type": "object", "required": ["poses"], "properties": {"poses": {"type": "array"}}}

    @app.post("/", openapi_extra=_body({MULTIPART: file}))
    async def published(request: Request) -> JSONResponse:
        """Classify one file."""
        return JSONResponse((await service.answer(request, (MULTIPART,))).as_json())

    @app.post("/predict", openapi_extra=_body({MULTIPART: file, JSON: poses}))
    async def predict(request: Request, draw: bool = False) -> JSONResponse:
        """Classify one file, or a list of poses; `draw` adds what the page draws."""
        prediction = await service.answer(request, (JSON, MULTIPART))
        answer = prediction.as_json()
        if draw:
            answer["drawing"] = await run_in_threadpool(drawing_of, prediction.seen)
        return JSONResponse(answer)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Whether the server is there, and for what."""
        return service.describe()

    @app.get("/metrics")
    async def numbers() -> Response:
        """Numbers for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    @app.get("/", include_in_schema=False)
    async def show() -> HTMLResponse:
        return HTMLResponse(page, headers=page_headers)

    _answer_mistakes(app)
    return observed(app, metrics)


def _answer_mistakes(app: FastAPI) -> None:
    @app.exception_handler(InputError)
    async def wrong_input(request: Request, error: InputError) -> JSONResponse:
        return _error(400, str(error))

    @app.exception_handler(BusyError)
    async def busy(request: Request, error: BusyError) -> JSONResponse:
        return _error(503, str(error), {"Retry-After": "1"})

    @app.exception_handler(RequestValidationError)
    async def wrong_query(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return _error(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}.")

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        return _error(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        return _error(500, "Something is wrong with the server; its log says what.")


def _error(status: int, sentence: str, headers: Any = None) -> JSONResponse:
    return JSONResponse({"error": " ".join(sentence.split())}, status, headers)


def _body(schemas: dict[str, Any]) -> dict[str, Any]:
    content = {kind: {"schema": schema} for kind, schema in schemas.items()}
    return {"requestBody": {"required": True, "content": content}}


def _policy(page: str) -> str:
    """A Content-Security-Policy under which the page's own script and style run, known by their hashes, and no other;
    it may load images from data addresses, and ask this server."""
    sources = []
    for tag in ("script", "style"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
        sources.append(f"{tag}-src 'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'")
    others = "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return f"default-src 'none'; {'; '.join(sources)}; {others}"


def observed(app: ASGIApp, metrics: Metrics) -> ASGIApp:
    """The same application, whose answers are counted and timed, and taken by browsers for what they say they are."""

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        # Clients shall not fill the memory with names of their own.
        method = scope["method"] if scope["method"] in METHODS else "other"
        path = scope["path"] if scope["path"] in PATHS else "other"
        started = time.perf_counter()

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                metrics.requests.labels(method, path, message["status"]).inc()
                message["headers"] = [*message.get("headers", []), (b"x-content-type-options", b"nosniff")]
            await send(message)

        try:
            await app(scope, receive, send_on)
        finally:
            metrics.seconds.labels(method, path).observe(time.perf_counter() - started)

    return run
