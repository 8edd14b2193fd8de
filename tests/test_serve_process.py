# SPDX-License-Identifier: Apache-2.0
"""`mindvideo serve` as a process: many clients at once, a thousand malformed uploads, its end."""

from __future__ import annotations

import http.client
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from tests.serving import clip, npy, pose_predictor, refusal, served, upload, write_pose_checkpoint

REQUESTS, CLIENTS, MALFORMED = 200, 8, 1000
MEGABYTE = 2**20


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_pose_checkpoint(tmp_path_factory.mktemp("poses"))


@pytest.fixture(scope="module")
def address(checkpoint) -> Iterator[str]:
    with served(checkpoint, "--model", "actionnet", "--device", "cpu", "--max-batch", "4") as (found, process):
        yield found
        assert process.poll() is None
    assert process.returncode == 0


@pytest.fixture(scope="module")
def client(address) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=60) as found:
        yield found


def resident(client: httpx.Client) -> float:
    """Bytes of memory that the server has."""
    (found,) = re.findall(r"^process_resident_memory_bytes (\S+)$", client.get("/metrics").text, flags=re.MULTILINE)
    return float(found)


def test_many_clients_at_once_get_what_single_clips_give(address, client):
    lengths = np.random.default_rng(0).integers(1, 600, REQUESTS)
    lengths[::20] += 2000  # all graphs
    arrays = [clip(int(length), seed) for seed, length in enumerate(lengths)]

    def ask_part(number: int, places: range) -> dict[int, list[float]]:
        with httpx.Client(base_url=address, timeout=60) as own:
            answers = {i: own.post("/", **upload(npy(arrays[i]))) for i in places[number::CLIENTS]}
        assert {answer.status_code for answer in answers.values()} == {200}
        return {i: answer.json()["class_scores"]["action_class"] for i, answer in answers.items()}

    found: dict[int, list[float]] = {}
    memory = []
    for places in (range(REQUESTS // 2), range(REQUESTS // 2, REQUESTS)):
        with ThreadPoolExecutor(CLIENTS) as pool:
            for part in pool.map(ask_part, range(CLIENTS), [places] * CLIENTS):
                found |= part
        memory.append(resident(client))
    assert sorted(found) == list(range(REQUESTS))
    assert memory[1] - memory[0] < 16 * MEGABYTE
    for i in range(0, REQUESTS, 10):
        (expected,) = pose_predictor().predict([arrays[i]])
        np.testing.assert_allclose(found[i], expected.logits, atol=5e-6)
    text = client.get("/metrics").text
    clips, runs = (
        float(re.findall(rf"^mindvideo_batch_clips_{n} (\S+)$", text, re.MULTILINE)[0]) for n in ("sum", "count")
    )
    assert clips == REQUESTS
    assert runs < REQUESTS, "some went through together"


class Trap:
    """What pickle would run."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def malformed(rng: np.random.Generator, trap: Path) -> Iterator[dict[str, Any]]:
    """Requests without end, none of which is a clip of poses."""
    good = npy(clip(20))
    header = len(good) - 20 * 72 * 4
    while True:
        kind = int(rng.integers(12))
        if kind == 0:  # a header with bytes changed, unless it still means poses
            content = bytearray(good)
            for place in rng.integers(0, header - 60, int(rng.integers(1, 6))):
                content[place] = int(rng.integers(256))
            if not is_poses(bytes(content)):
                yield upload(bytes(content))
        elif kind == 1:
            yield upload(npy(np.array([Trap(trap), {}], dtype=object), allow_pickle=True))
        elif kind == 2:
            yield upload(good[: int(rng.integers(len(good)))])
        elif kind == 3:  # a huge array, promised
            shape = [(10**9, 72), (2**62, 72), (32769, 24, 6), (1000, 72, 10**6), (-5, 72), (0, 72)][
                int(rng.integers(6))
            ]
            yield upload(good.replace(b"(20, 72), }", f"{shape}, }}".encode(), 1))
        elif kind == 4:
            array = clip(20)
            array[tuple(rng.integers((20, 72)))] = rng.choice([np.nan, np.inf, -np.inf, 1e30])
            yield upload(npy(array))
        elif kind == 5:
            shapes = ((72,), (20, 71), (20, 24, 3), (20, 24, 6, 1), (2, 20, 72), (), (20, 0))
            yield upload(npy(np.zeros(shapes[int(rng.integers(len(shapes)))], np.float32)))
        elif kind == 6:
            kinds = ("i4", "u1", "c8", "U3", "S4", "?", "f16", "M8[s]", "V8", [("a", "f4")])
            yield upload(npy(np.zeros((20, 72), np.dtype(kinds[int(rng.integers(len(kinds)))]))))
        elif kind == 7:
            yield upload(rng.bytes(int(rng.integers(3000))))
        elif kind == 8:
            yield {"files": [("poses", ("a", good))] * int(rng.integers(2, 12))}
        elif kind == 9:
            yield {"files": {"pose": ("a", good)}} if rng.random() < 0.5 else {"data": {"poses": "1"}}
        elif kind == 10:
            kinds = (
                "application/json",
                "text/plain",
                "application/octet-stream",
                "multipart/form-data; boundary=x",
                "",
            )
            yield {"content": good, "headers": {"content-type": str(rng.choice(kinds))}}
        else:  # numbers behind the end, or two files in one
            yield upload(good + rng.bytes(int(rng.integers(1, 100))) if rng.random() < 0.5 else good + good)


def is_poses(content: bytes) -> bool:
    """By numpy's reader."""
    try:
        array = np.load(BytesIO(content), allow_pickle=False)
    except Exception:
        return False
    return array.dtype.kind == "f" and array.shape[1:] in ((72,), (24, 6))


def test_a_thousand_malformed_uploads(client, tmp_path):
    trap = tmp_path / "executed"
    requests = malformed(np.random.default_rng(1), trap)
    statuses: dict[int, int] = {}
    for number, request in zip(range(MALFORMED), requests, strict=False):
        response = client.post("/" if number % 3 else "/predict", **request)
        assert response.status_code in (400, 415), (number, request, response.text)
        refusal(response, response.status_code)
        statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
    assert sum(statuses.values()) == MALFORMED
    assert min(statuses[400], statuses[415]) > 20
    assert not trap.exists()
    array = clip(77, 5)
    (expected,) = pose_predictor().predict([array])
    answer = client.post("/", **upload(npy(array))).json()
    np.testing.assert_allclose(answer["class_scores"]["action_class"], expected.logits, atol=5e-6)


def test_an_endless_upload_is_cut_off(client):
    """A request without a length, which is larger than allowed, is answered before it ends."""
    before = resident(client)
    boundary = b'--a\r\nContent-Disposition: form-data; name="poses"; filename="a"\r\n\r\n'

    def body() -> Iterator[bytes]:
        yield boundary
        for _ in range(66):
            yield bytes(MEGABYTE)

    response = client.post("/", content=body(), headers={"content-type": "multipart/form-data; boundary=a"})
    assert refusal(response, 413) == "The request is larger than the 67174400 bytes allowed."
    assert resident(client) - before < 40 * MEGABYTE, "it was not kept in memory"


def test_sigterm_lets_what_has_begun_be_finished(checkpoint):
    content = npy(clip(30))
    body = b'--a\r\nContent-Disposition: form-data; name="poses"; filename="a"\r\n\r\n' + content + b"\r\n--a--\r\n"
    with served(checkpoint, "--device", "cpu", "--max-batch", "1") as (address, process):
        place = urlsplit(address)
        assert place.hostname
        assert place.port
        slow, idle = (http.client.HTTPConnection(place.hostname, place.port, timeout=60) for _ in range(2))
        slow.putrequest("POST", "/")
        slow.putheader("Content-Type", "multipart/form-data; boundary=a")
        slow.putheader("Content-Length", str(len(body)))
        slow.endheaders(body[:500])
        idle.request("GET", "/health")  # answered behind the other, which the server knows by now
        assert idle.getresponse().read()
        threading.Thread(target=process.send_signal, args=(signal.SIGTERM,)).start()
        while True:
            try:
                http.client.HTTPConnection(place.hostname, place.port, timeout=60).connect()
                time.sleep(0.05)
            except ConnectionRefusedError:
                break
        slow.send(body[500:])
        response = slow.getresponse()
        assert response.status == 200
        assert len(httpx.Response(200, content=response.read()).json()["probabilities"]) == 4
        assert process.wait(60) == 0
        assert process.stdout
        assert process.stdout.read() == ""
