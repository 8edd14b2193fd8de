# SPDX-License-Identifier: Apache-2.0
"""Videos over HTTP: the numbers of the open-set task, a decoder kept apart, nothing left behind."""

from __future__ import annotations

import base64
import tempfile
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from mindvideo.errors import InputError
from mindvideo.predict import VideoPredictor
from mindvideo.serve import decode as decoding
from tests.serving import VIDEO_CLASSES, ask, make_video, refusal, upload, video_predictor


@pytest.fixture
def videos() -> VideoPredictor:
    return video_predictor()


def test_a_video_is_answered_and_leaves_nothing(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "private"))
    (tmp_path / "private").mkdir()
    path = make_video(tmp_path / "a.avi")
    (expected,) = videos.predict([path])
    answer = ask(videos, "/predict?draw=true", **upload(path.read_bytes(), "video")).json()
    np.testing.assert_allclose(answer["class_scores"]["action_class"], expected.logits, atol=1e-5)
    assert answer["uncertainty"]["value"] == pytest.approx(expected.uncertainty, abs=1e-5)
    assert (answer["label"], answer["labels"]) == (expected.label, VIDEO_CLASSES)
    for address, frame in zip(answer["drawing"]["images"], expected.seen, strict=True):
        kind, _, content = address.partition(",")
        assert kind == "data:image/jpeg;base64"
        image = np.asarray(Image.open(BytesIO(base64.b64decode(content))))
        assert np.abs(image.astype(int) - frame).mean() < 20
    content = path.read_bytes()
    assert "video: cut short" in refusal(ask(videos, **upload(content[:-100], "video")), 400)
    assert "video: cannot be decoded" in refusal(ask(videos, **upload(b"#EXTM3U\n/etc/passwd\n", "video")), 400)
    assert "video: the file is empty" in refusal(ask(videos, **upload(b"", "video")), 400)
    json = {"json": {"poses": []}}
    assert "A video cannot be sent as JSON" in refusal(ask(videos, "/predict", **json), 400)
    assert list((tmp_path / "private").iterdir()) == []


def test_a_video_is_decoded_as_readers_do(videos, tmp_path):
    path = make_video(tmp_path / "a.avi", 9)
    apart, here = decoding.decode(path, videos.reader, 30), videos.read(path)
    np.testing.assert_array_equal(apart.crops, here.crops)
    np.testing.assert_array_equal(apart.places, here.places)


def test_a_video_too_slow_or_too_large_to_decode_is_refused(videos, tmp_path, monkeypatch):
    path = make_video(tmp_path / "a.avi", 9)
    with pytest.raises(InputError, match=r"^video: it takes longer to decode than the 0.01 s allowed\.$"):
        decoding.decode(path, videos.reader, 0.01)
    settings = {"sampling": "dense", "length": 4, "stride": 1, "num_clips": 2, "decoder": "pyav"}
    monkeypatch.setattr(decoding, "MOST_FRAME_BYTES", 8 * 48 * 64 * 3 - 1)
    with pytest.raises(InputError, match="8 frames of 64 x 48 are needed; allowed are 73727 bytes"):
        decoding._look(path, settings)
    monkeypatch.setattr(decoding, "MOST_PIXELS", 48 * 64 - 1)
    with pytest.raises(InputError, match="frames of 64 x 48; allowed are 3071 pixels"):
        decoding._look(path, settings)
