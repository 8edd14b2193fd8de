# SPDX-License-Identifier: Apache-2.0
"""Verdicts on what a camera shows: a video file stands for the camera, and made ones for what files cannot do."""

from __future__ import annotations

import csv
import json
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import pytest

from mindvideo.cli import main
from mindvideo.data.video import write_video
from mindvideo.errors import InputError, VideoError
from mindvideo.predict import command
from mindvideo.predict.camera import LONGEST_GAP, camera_frames, camera_number
from mindvideo.predict.stream import follow, slide
from tests.serving import video_predictor, write_pose_checkpoint, write_video_checkpoint

RATE = 5


class Capture:
    """A camera that gives gray frames with these times in seconds, each by its number, after one without a time, and
    then ends, or is where the user presses Ctrl-C."""

    def __init__(self, seconds: Iterable[float], ctrl_c: bool = False):
        self.seconds, self.ctrl_c = [0.0, *seconds], ctrl_c
        self.number, self.is_open = -1, True

    def read(self) -> tuple[bool, np.ndarray | None]:
        self.number += 1
        if self.number < len(self.seconds):
            return True, np.full((48, 64, 3), self.number, np.uint8)
        if self.ctrl_c:
            signal.raise_signal(signal.SIGINT)
            for _ in range(1000):  # MindSpore answers it by a second signal
                time.sleep(0.01)
        return False, None

    def get(self, what: int) -> float:
        assert what == cv2.CAP_PROP_POS_MSEC
        return 1000 * self.seconds[self.number]

    def release(self) -> None:
        self.is_open = False


class Counter:
    """Says of a piece how many frames it has, and which is its first; needs two."""

    span = 2

    def shrink(self, frame_HWC: np.ndarray) -> int:
        return int(frame_HWC[0, 0, 0])

    def gather(self, frames: list[int]) -> tuple[int, int]:
        if len(frames) < self.span:
            raise VideoError("too short")
        return len(frames), frames[0]

    def classify(self, clips: list[tuple[int, int]]) -> list[tuple[int, int]]:
        return clips


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_video_checkpoint(tmp_path_factory.mktemp("videos"))


@pytest.fixture
def connect(monkeypatch):
    """`connect(camera)`: OpenCV finds a `Capture`, or a video file, in place of every camera."""
    opened = cv2.VideoCapture

    def connect(camera: Capture | Path) -> None:
        found = (lambda number: opened(str(camera))) if isinstance(camera, Path) else (lambda number: camera)
        monkeypatch.setattr(cv2, "VideoCapture", found)

    return connect


@pytest.fixture
def film(tmp_path) -> tuple[Path, np.ndarray]:
    """A lossless video of 6 seconds, and its frames."""
    blocks = np.random.default_rng(1).integers(0, 256, (30, 6, 8, 3), dtype=np.uint8)
    frames = blocks.repeat(8, axis=1).repeat(8, axis=2)
    write_video(tmp_path / "film.avi", frames, fps=RATE, codec="ffv1")
    return tmp_path / "film.avi", frames


def test_cameras_have_numbers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [camera_number(Path(name)) for name in ("webcam", "webcam:0", "webcam:12")] == [0, 0, 12]
    assert [camera_number(Path(name)) for name in ("webcam.mp4", "a/webcam", "webcam:x", "webcam:")] == [None] * 4
    (tmp_path / "webcam").mkdir()
    assert camera_number(Path("webcam")) is None


def test_frames_come_in_their_colours_with_their_times(connect, film):
    path, frames = film
    connect(path)
    seconds, shown = zip(*camera_frames(0), strict=True)
    np.testing.assert_array_equal(np.stack(shown), frames[1:])
    np.testing.assert_allclose(seconds, np.arange(29) / RATE, atol=1e-3)


def test_where_a_driver_tells_no_times_the_clock_does(connect, monkeypatch):
    camera = Capture([0.0, 0.0, 0.0])
    connect(camera)
    clock = iter([100.0, 100.5, 102.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    assert [seconds for seconds, _ in camera_frames(3)] == [0.0, 0.5, 2.0]
    assert not camera.is_open


def test_pieces_do_not_bridge_frames_that_were_dropped(connect):
    """Ten frames a second; while the first verdict is made, three seconds go by."""
    seconds = np.round([*np.arange(14) / 10, *(4.4 + np.arange(14) / 10)], 3) + 1000
    connect(Capture(seconds))
    found = [
        (w.start, w.end, *w.prediction)
        for w in follow(Counter(), camera_frames(0), 1.0, interval=0.1, longest_gap=LONGEST_GAP)
    ]
    # From the second verdict on, pieces end at whole seconds; the last one ends with the frames.
    expected = [(0, 1, 10, 1), (4.4, 5, 6, 15), (4.8, 5.8, 10, 19)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_camera_at_the_command_line(connect, film, checkpoint, tmp_path, capsys):
    path, frames = film
    connect(path)
    table, whole = tmp_path / "found.csv", tmp_path / "found.json"
    words = ["predict", "--ckpt", str(checkpoint), "--device", "cpu", "webcam:1", "--top", "3"]
    assert main([*words, "--json", str(whole), "--csv", str(table)]) == 0
    said = capsys.readouterr().out.splitlines()
    write_video(tmp_path / "rest.avi", frames[1:], fps=RATE, codec="ffv1")
    expected = list(slide(video_predictor(), tmp_path / "rest.avi", 1.0))
    entries = json.loads(whole.read_text())["predictions"]
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(expected) == len(entries) == len(rows) == len(said) - 1 == 6
    assert said[0] == "webcam:1: a verdict every 1 s, or as often as the network can; Ctrl-C ends"
    for window, entry, row, line in zip(expected, entries, rows, said[1:], strict=True):
        assert (entry["start"], entry["end"]) == pytest.approx((window.start, window.end), abs=1e-3)
        assert entry["input"] == row["input"] == "webcam:1"
        assert line.startswith(f"webcam:1: {window.start:.2f} to {window.end:.2f} s: {entry['top'][0]['label']} ")


def test_the_same_network_says_the_same_of_a_camera(connect, film, tmp_path):
    path, frames = film
    connect(path)
    write_video(tmp_path / "rest.avi", frames[1:], fps=RATE, codec="ffv1")
    live = list(follow(video_predictor(), camera_frames(0), 1.0, interval=1 / RATE, longest_gap=LONGEST_GAP))
    for window, expected in zip(live, slide(video_predictor(), tmp_path / "rest.avi", 1.0), strict=True):
        np.testing.assert_allclose(window.prediction.logits, expected.prediction.logits, atol=1e-6)


def test_ctrl_c_ends_a_session_well(connect, checkpoint, tmp_path, capsys):
    camera = Capture(1000 + np.arange(13) / RATE, ctrl_c=True)
    connect(camera)
    whole = tmp_path / "found.json"
    words = ["predict", "--ckpt", str(checkpoint), "--device", "cpu", "webcam", "--json", str(whole)]
    assert main(words) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    found = json.loads(whole.read_text())
    assert [(e["start"], e["end"]) for e in found["predictions"]] == [pytest.approx(pair) for pair in ((0, 1), (1, 2))]
    assert found["failures"] == []
    assert not camera.is_open
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_what_is_too_short_does_not_cost_the_rest(connect, capsys):
    connect(Capture([1.0]))

    def to_row(*_: object, **__: object) -> None: ...

    rows, failures = command._watch(Counter(), Path("webcam"), 0, 1.0, to_row)
    assert (rows, failures) == ([], {Path("webcam"): "too short"})
    assert capsys.readouterr().err == "mindvideo: error: too short\n"
    connect(Capture([]))
    assert command._watch(Counter(), Path("webcam"), 0, 1.0, to_row) == ([], {})


def test_without_a_camera_there_is_one_line(checkpoint, capfd):
    assert main(["predict", "--ckpt", str(checkpoint), "--device", "cpu", "webcam:99"]) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if "WARNING" not in line]  # MindSpore's
    assert lines == ["mindvideo: error: webcam:99: camera 99 gives no picture; webcam:N names another one."]


def test_what_does_not_go_with_a_camera_is_refused(checkpoint, tmp_path, capsys):
    poses = write_pose_checkpoint(tmp_path)
    for network, words, sentence in (
        (poses, [], "webcam is for networks of videos, not of poses."),
        (checkpoint, ["a.mp4"], "webcam goes alone"),
        (checkpoint, ["--annotate", str(tmp_path / "shown")], "--annotate and --cam are for clips"),
        (checkpoint, ["--cam", str(tmp_path / "shown")], "--annotate and --cam are for clips"),
    ):
        assert main(["predict", "--ckpt", str(network), "--device", "cpu", "webcam", *words]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "shown").exists()


def test_a_camera_that_gives_nothing_is_refused_at_once(connect):
    class Dead(Capture):
        def read(self) -> tuple[bool, None]:
            return False, None

    connect(Dead([]))
    with pytest.raises(InputError, match="webcam:7: camera 7 gives no picture"):
        camera_frames(7)
