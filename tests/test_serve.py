# SPDX-License-Identifier: Apache-2.0
"""The HTTP application in this process: answers, refusals, numbers, the page."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from mindvideo.cli import main
from mindvideo.data.pose import axis_angle_to_rotation6d
from mindvideo.data.stickfigure_actions import JOINT_INDEX, PARENTS, forward_kinematics
from mindvideo.models import create_model
from mindvideo.predict import PosePredictor
from mindvideo.serve.app import PAGE
from mindvideo.serve.drawing import drawing_of
from mindvideo.serve.intake import poses_of_json
from mindvideo.serve.server import bind
from tests.parity.recipe_actionnet import each, fill, stored
from tests.serving import POSE_CLASSES, ask, clip, npy, pose_predictor, refusal, talk, upload


@pytest.fixture
def poses() -> PosePredictor:
    return pose_predictor()


@each("service*.npz")
def test_the_published_service(path, poses, tmp_path):
    """The golden request and the logits that the authors' service gives."""
    golden = np.load(path)
    network = create_model("actionnet", num_classes=10, width=64, length=16, decoder_width=64)
    fill(network, stored(np.load(path.with_name("actnet_small_T37.npz")), "sd/"))
    predictor = PosePredictor(network, poses.config, tuple("abcdefghij"))
    answer = ask(predictor, **upload(npy(golden["axis_angle_72"]))).json()
    np.testing.assert_allclose(answer["class_scores"]["action_class"], golden["response_action_class"], atol=2e-5)
    assert answer["labels"] == list("abcdefghij")
    assert answer["label"] == answer["labels"][int(golden["response_action_class"].argmax())]


def test_all_ways_to_send_a_clip_give_the_same(poses):
    array = clip(40)
    (expected,) = poses.predict([array])
    rotations = axis_angle_to_rotation6d(array.reshape(40, 24, 3))
    requests = {
        "/": [upload(npy(array)), upload(npy(rotations)), upload(npy(np.asfortranarray(array)))],
        "/predict": [upload(npy(array)), {"json": {"poses": array.tolist()}}, {"json": {"poses": rotations.tolist()}}],
    }
    for path, ways in requests.items():
        for way in ways:
            answer = ask(poses, path, **way).json()
            assert answer.keys() == {"class_scores", "probabilities", "labels", "label", "uncertainty"}
            np.testing.assert_allclose(answer["class_scores"]["action_class"], expected.logits, atol=5e-6)
            np.testing.assert_allclose(answer["probabilities"], expected.probabilities, atol=5e-6)
            assert (answer["labels"], answer["label"]) == (POSE_CLASSES, expected.label)
            assert answer["uncertainty"]["name"] == "max_probability"
            assert answer["uncertainty"]["value"] == pytest.approx(expected.uncertainty, abs=5e-6)


def test_the_drawing_is_the_skeleton(poses):
    array = clip(130)
    array[:, :3] = 0  # the pelvis: upright
    drawing = ask(poses, "/predict?draw=true", **upload(npy(array))).json()["drawing"]
    chosen = np.linspace(0, 129, 60).round().astype(int)
    expected = forward_kinematics(array[chosen].reshape(60, 24, 3), np.zeros((60, 3)))
    np.testing.assert_allclose(drawing["joints"], expected, atol=1e-3)
    assert drawing["parents"] == list(PARENTS)


def test_a_drawing_stands_upright_whatever_the_numbers():
    upside_down = np.zeros((5, 24, 3), np.float32)
    upside_down[:, 0, 0] = np.pi
    positions = np.array(drawing_of(axis_angle_to_rotation6d(upside_down))["joints"])
    assert positions[:, JOINT_INDEX["head"], 1].min() > 0.5
    assert positions[:, JOINT_INDEX["l_foot"], 1].max() < -0.5
    no_rotations = np.zeros((3, 24, 6), np.float32)
    no_rotations[1] = 1  # two equal rows
    at_rest = forward_kinematics(np.zeros((3, 24, 3)), np.zeros((3, 3)))
    np.testing.assert_allclose(drawing_of(no_rotations)["joints"], at_rest, atol=1e-4)


MISTAKES: dict[str, tuple[dict[str, Any], int, str]] = {
    "not multipart": ({"content": b"x"}, 415, "Content-Type is missing; allowed here: multipart/form-data."),
    "form": ({"data": {"poses": "x"}}, 415, "Content-Type is application/x-www-form-urlencoded; allowed"),
    "JSON": ({"json": {"poses": [[0.0] * 72]}}, 415, "Content-Type is application/json; allowed"),
    "no field": ({"files": {"pose": ("a", b"x")}}, 400, "There is no field 'poses'; send one file under this name."),
    "two files": ({"files": [("poses", ("a", b"x"))] * 2}, 400, "The field 'poses' comes 2 times; send one file."),
    "many files": ({"files": [("poses", ("a", b"x"))] * 9}, 400, "Too many files. Maximum number of files is 8."),
    "another field": (
        {"files": {"poses": ("a", b"x"), "more": ("b", b"y")}}, 400, "There are fields besides 'poses'; send nothing",
    ),
    "text": ({"files": {"poses": (None, b"x")}}, 400, "The field 'poses' is text; send a file."),
    "empty": (upload(b""), 400, "poses: no .npy file of numbers (ValueError)."),
    "no boundary": ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "Missing boundary"),
    "broken": (
        {"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=a"}}, 400, "Invalid multipart",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_wrong_request_is_one_sentence(poses, name):
    request, status, sentence = MISTAKES[name]
    assert refusal(ask(poses, **request), status).startswith(sentence)


def test_other_addresses_and_questions_are_one_sentence(poses):
    assert refusal(ask(poses, "/nothing"), 404) == "Not Found"
    assert refusal(ask(poses, "/health"), 405) == "Method Not Allowed"
    assert refusal(ask(poses, "/docs", method="GET"), 404) == "Not Found"
    sentence = refusal(ask(poses, "/predict?draw=perhaps", **upload(npy(clip(3)))), 422)
    assert sentence.startswith("query.draw: Input should be a valid boolean")


JSON_MISTAKES = {
    b"": "no JSON",
    b"\xff": "no JSON",
    b"[" * 100_000: "no JSON (RecursionError)",
    b"[]": "JSON object with the one key",
    b'{"pose": []}': "JSON object with the one key",
    b'{"poses": [[1], [1, 2]]}': "not all of one length",
    b'{"poses": "x"}': "something else than numbers",
    b'{"poses": [[null]]}': "something else than numbers",
    b'{"poses": [["1"]]}': "something else than numbers",
    b'{"poses": [[true]]}': "something else than numbers",
    b'{"poses": [[1' + b"0" * 400 + b"]]}": "something else than numbers",
    b'{"poses": []}': "an array of shape (0,)",
    b'{"poses": [[1, 2]]}': "an array of shape (1, 2)",
    b'{"poses": [[' + b"0," * 71 + b"NaN]]}": "frame 0, joint 23 (r_hand), number 2 is nan",
    b'{"poses": [[' + b"0," * 71 + b"1e999]]}": "number 2 is inf",
}


@pytest.mark.parametrize("body", JSON_MISTAKES, ids=lambda body: body[:30].decode("latin-1"))
def test_a_wrong_json_body_is_one_sentence(poses, body):
    response = ask(poses, "/predict", content=body, headers={"content-type": "application/json"})
    assert JSON_MISTAKES[body] in refusal(response, 400)


def test_whole_numbers_are_numbers():
    np.testing.assert_array_equal(poses_of_json(b'{"poses": [[1, 2], [3, 4]]}'), [[1.0, 2.0], [3.0, 4.0]])


def test_a_body_too_large_is_not_taken(poses):
    """As soon as it is announced, or, where it is not, as soon as it comes to more."""

    async def endless() -> AsyncIterator[bytes]:
        yield b'--a\r\nContent-Disposition: form-data; name="poses"; filename="a"\r\n\r\n'
        for _ in range(70):
            yield bytes(2**20)

    json = {"content-type": "application/json"}
    sentence = refusal(ask(poses, "/predict", content=b" " * 2**24 + b" ", headers=json), 413)
    assert sentence == "The request is larger than the 16777216 bytes allowed."
    form = {"content-type": "multipart/form-data; boundary=a"}
    assert "larger than the 67174400 bytes" in refusal(ask(poses, content=endless(), headers=form), 413)


def test_a_body_that_does_not_come_is_not_waited_for(poses):
    async def never() -> AsyncIterator[bytes]:
        yield b"--a\r\n"
        await asyncio.sleep(60)

    form = {"content-type": "multipart/form-data; boundary=a"}
    response = talk(poses, lambda client: client.post("/", content=never(), headers=form), max_seconds=0.2)
    assert refusal(response, 408) == "The request did not come within 0.2 s."


def test_health_numbers_and_interface(poses):
    async def conversation(client: httpx.AsyncClient) -> tuple[Any, str, Any]:
        for content in (npy(clip(3)), b""):
            await client.post("/", **upload(content))
        await client.get("/somewhere/else")
        health, numbers, openapi = [await client.get(path) for path in ("/health", "/metrics", "/openapi.json")]
        return health.json(), numbers.text, openapi.json()

    health, numbers, openapi = talk(poses, conversation)
    assert (health["status"], health["model"], health["field"], health["classes"]) == ("ok", "actionnet", "poses", 4)
    found = dict(re.findall(r"^(\w+(?:\{.*?\})?) (\S+)$", numbers, flags=re.MULTILINE))
    assert float(found['mindvideo_requests_total{method="POST",path="/",status="200"}']) == 1
    assert float(found['mindvideo_requests_total{method="POST",path="/",status="400"}']) == 1
    assert float(found['mindvideo_requests_total{method="GET",path="other",status="404"}']) == 1
    assert float(found['mindvideo_request_seconds_count{method="POST",path="/"}']) == 2
    assert float(found["mindvideo_batch_clips_sum"]) == float(found["mindvideo_batch_clips_count"]) == 1
    assert float(found["mindvideo_waiting_clips"]) == 0
    assert float(found["process_resident_memory_bytes"]) > 2**20
    assert set(openapi["paths"]) == {"/", "/predict", "/health", "/metrics"}
    form = openapi["paths"]["/"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert list(form["schema"]["properties"]) == ["poses"]


def test_the_page_asks_nobody_else(poses):
    response = ask(poses, "/", method="GET")
    assert response.text == PAGE.read_text(encoding="utf-8")
    assert not re.findall(r"//|@import|url\(|innerHTML", re.sub(r"^// .*$", "", response.text, flags=re.MULTILINE))
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert (policy["default-src"], policy["connect-src"], policy["img-src"]) == ("'none'", "'self'", "data:")
    for tag in ("script", "style"):
        text = response.text.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"


def test_a_missing_library_is_named(capsys, monkeypatch):
    monkeypatch.setattr("mindvideo.cli.find_spec", lambda name: None if name == "uvicorn" else name)
    assert main(["serve", "--ckpt", "any.ckpt"]) == 2
    assert capsys.readouterr().err == (
        "mindvideo: error: mindvideo serve needs uvicorn, which is not installed; `pip install mindvideo[serve]`.\n"
    )


def test_an_address_that_cannot_be_had_is_named(capsys, tmp_path: Path):
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", "--ckpt", "any.ckpt", "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert (
        error == f"mindvideo: error: --host 127.0.0.1 --port {port}: cannot be listened on (Address already in use).\n"
    )
