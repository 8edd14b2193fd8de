# SPDX-License-Identifier: Apache-2.0
"""Small checkpoints to predict with, clips for them, and servers of one: in this process, or in one of its own."""

from __future__ import annotations

import asyncio
import functools
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from mindvideo.config import parse_config
from mindvideo.data.video import write_video
from mindvideo.engine.checkpoint import TrainingState, save_checkpoint
from mindvideo.predict import PosePredictor, VideoPredictor, load_predictor
from mindvideo.serve.app import Metrics, Service, create_app
from mindvideo.serve.batching import Batcher
from mindvideo.tasks import openset_objective, pose

# Names come from data sets of unknown origin: the first would run in a page that takes it for HTML.
POSE_CLASSES = ["<img src=x onerror=alert(1)>", "bow", "kick", "wave"]
VIDEO_CLASSES = ["run", "sit", "wave"]
POSES = {
    "task": "pose",
    "model": {"width": 16, "length": 8, "decoder_width": 16, "positional": True, "motion": 2},
}
VIDEOS = {
    "task": "openset",
    "model": {"name": "tsm_r18", "width": 8},
    "loss": {"name": "edlnokl"},
    "data": {"length": 4, "stride": 1, "short_side": 36, "size": 32},
    "eval": {"clips": 2, "crops": "three", "size": 32, "batch": 4},
}


def write_pose_checkpoint(folder: Path) -> Path:
    """poses.ckpt, and .safetensors beside it, with random weights."""
    config = parse_config(POSES, "here")
    state = TrainingState("actionnet", config=config.to_dict(), classes=POSE_CLASSES)
    save_checkpoint(folder / "poses.ckpt", pose.make_model(config, len(POSE_CLASSES)), state)
    return folder / "poses.ckpt"


def write_video_checkpoint(folder: Path, **loss: str) -> Path:
    """videos.ckpt with random weights."""
    config = parse_config(VIDEOS | {"loss": loss or VIDEOS["loss"]}, "here")
    state = TrainingState("tsm_r18", config=config.to_dict(), classes=VIDEO_CLASSES)
    save_checkpoint(folder / "videos.ckpt", openset_objective.make_model(config, len(VIDEO_CLASSES)), state)
    return folder / "videos.ckpt"


@functools.cache
def pose_predictor() -> PosePredictor:
    """That of `write_pose_checkpoint`, whose graphs all tests share."""
    with tempfile.TemporaryDirectory() as folder:
        found = load_predictor(write_pose_checkpoint(Path(folder)), device="cpu")
    assert isinstance(found, PosePredictor)
    return found


@functools.cache
def video_predictor() -> VideoPredictor:
    """That of `write_video_checkpoint`, likewise."""
    with tempfile.TemporaryDirectory() as folder:
        found = load_predictor(write_video_checkpoint(Path(folder)), device="cpu")
    assert isinstance(found, VideoPredictor)
    return found


def make_video(path: Path, num_frames: int = 12) -> Path:
    """A small video of coloured blocks."""
    blocks = np.random.default_rng(0).integers(0, 256, (num_frames, 6, 8, 3), dtype=np.uint8)
    write_video(path, blocks.repeat(8, axis=1).repeat(8, axis=2))
    return path


def clip(num_frames: int, seed: int = 0) -> np.ndarray:
    """Axis-angle poses `(T, 72)`."""
    return np.random.default_rng(seed).normal(0, 0.3, (num_frames, 72)).astype(np.float32)


def npy(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    """What an .npy file of the array holds."""
    file = BytesIO()
    np.save(file, array, allow_pickle=allow_pickle)
    return file.getvalue()


def talk(
    predictor: Any, conversation: Callable[[httpx.AsyncClient], Any], *, classify: Any = None, **limits: float
) -> Any:
    """What a conversation with an application of one's own comes to."""
    metrics = Metrics()
    batcher = Batcher(classify or predictor.classify, max_batch=4, observe=metrics.batch.observe)
    app = create_app(Service(predictor, batcher, **{"queue": 64, "max_seconds": 30.0} | limits), metrics)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)

    async def run() -> Any:
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await conversation(client)

    try:
        return asyncio.run(run())
    finally:
        batcher.close(10)


def ask(predictor: Any, path: str = "/", *, method: str = "POST", **request: Any) -> httpx.Response:
    return talk(predictor, lambda client: client.request(method, path, **request))


def upload(content: bytes, field: str = "poses") -> dict[str, Any]:
    return {"files": {field: ("a.npy", content)}}


def refusal(response: httpx.Response, status: int) -> str:
    """The one sentence of a refusal."""
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    sentence = response.json()["error"]
    assert "\n" not in sentence
    assert response.headers["x-content-type-options"] == "nosniff"
    return sentence


@contextmanager
def served(checkpoint: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Address and process of `mindvideo serve`, which is stopped at the end if it still runs."""
    command = [sys.executable, "-m", "mindvideo", "serve", "--ckpt", str(checkpoint), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        lines = []
        try:
            for line in process.stdout:
                lines.append(line)
                ready = re.match(r"ready: (http://\S+)/ ", line)
                if ready:
                    yield ready[1], process
                    break
            else:
                raise AssertionError("".join(lines))
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            finally:
                process.kill()
