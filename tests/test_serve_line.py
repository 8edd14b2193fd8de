# SPDX-License-Identifier: Apache-2.0
"""The line in front of the model: order, batches, what is turned away, and that nothing is lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import pytest

from mindvideo.predict import PosePredictor, Prediction
from mindvideo.serve.batching import Batcher, BusyError
from tests.serving import clip, npy, pose_predictor, refusal, talk, upload


@pytest.fixture
def poses() -> PosePredictor:
    return pose_predictor()


def predicted(clips: Sequence[np.ndarray]) -> list[Prediction]:
    """Each clip's length as its only logit."""
    return [Prediction(("a",), np.array([len(c)]), np.ones(1), 0.0, "max_probability", c) for c in clips]


def test_a_full_house_turns_away_and_loses_none(poses):
    go, started = threading.Event(), threading.Event()

    def wait(clips: Sequence[np.ndarray]) -> list[Prediction]:
        started.set()
        assert go.wait(30)
        return predicted(clips)

    async def conversation(client: httpx.AsyncClient) -> tuple[list[httpx.Response], list[httpx.Response]]:
        tasks = [asyncio.create_task(client.post("/", **upload(npy(clip(n))))) for n in range(1, 9)]
        late = [task for task in tasks if not await not_yet(task)]
        go.set()
        return list(await asyncio.gather(*tasks)), [task.result() for task in late]

    async def not_yet(task: asyncio.Task[httpx.Response]) -> bool:
        """Whether it still waits when the model has begun."""
        while not started.is_set() and not task.done():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        return not task.done()

    everyone, late = talk(poses, conversation, classify=wait, queue=5)
    answered = [response for response in everyone if response.status_code == 200]
    assert (len(answered), len(late)) == (5, 3)
    assert [r.json()["class_scores"]["action_class"][0] for r in answered] == [1, 2, 3, 4, 5]
    for response in late:
        assert response.headers["retry-after"] == "1"
        assert refusal(response, 503) == "5 requests are at work; at most 5 may."


def test_a_model_that_takes_too_long_or_breaks_is_told(poses):
    go = threading.Event()

    def wait(clips: Sequence[np.ndarray]) -> list[Prediction]:
        go.wait(30)
        return predicted(clips)

    def breaks(clips: Sequence[np.ndarray]) -> list[Prediction]:
        raise ZeroDivisionError

    def post(client: httpx.AsyncClient) -> Any:
        return client.post("/", **upload(npy(clip(3))))

    async def slow(client: httpx.AsyncClient) -> httpx.Response:
        response = await post(client)
        go.set()
        return response

    sentence = refusal(talk(poses, slow, classify=wait, max_seconds=0.3), 503)
    assert sentence == "Its turn did not come within 0.3 s."
    assert talk(poses, post, classify=breaks).json() == {
        "error": "Something is wrong with the server; its log says what."
    }


def test_clips_are_taken_as_they_come():
    """As many as wait, no more than allowed, in order; a cancelled one is left out, a fault is its batch's own."""
    runs: list[list[int]] = []
    go = threading.Event()

    def classify(clips: Sequence[np.ndarray]) -> list[Prediction]:
        assert go.wait(30)
        runs.append([len(array) for array in clips])
        if 6 in runs[-1]:
            raise ZeroDivisionError
        return predicted(clips)

    sizes: list[int] = []
    batcher = Batcher(classify, max_batch=4, observe=sizes.append)
    first = batcher.submit(np.zeros(1))
    while batcher.depth:  # the thread has it
        pass
    others = [batcher.submit(np.zeros(n)) for n in range(2, 12)]
    assert others[1].cancel()
    assert batcher.depth == 10
    go.set()
    batcher.close(30)
    assert runs == [[1], [2, 4, 5], [6, 7, 8, 9], [10, 11]]
    assert sizes == [1, 3, 4, 2]
    assert first.result().logits == 1
    assert [f.exception() is None for f in others if not f.cancelled()] == [True] * 3 + [False] * 4 + [True] * 2
    with pytest.raises(BusyError, match="shutting down"):
        batcher.submit(np.zeros(1))


def test_only_so_many_bytes_may_wait(monkeypatch):
    monkeypatch.setattr("mindvideo.serve.batching.MOST_WAITING", 100)
    go = threading.Event()
    batcher = Batcher(lambda clips: predicted(clips) if go.wait(30) else [], max_batch=1)
    running = batcher.submit(np.zeros(1000, np.uint8))
    while batcher.depth:
        pass
    waiting = batcher.submit(np.zeros(90, np.uint8))
    with pytest.raises(BusyError, match="Clips of 90 bytes are waiting; at most 100 may"):
        batcher.submit(np.zeros(11, np.uint8))
    go.set()
    batcher.close(30)
    assert (running.result().logits, waiting.result().logits) == (1000, 90)
