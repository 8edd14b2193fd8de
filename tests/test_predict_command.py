# SPDX-License-Identifier: Apache-2.0
"""`mindvideo predict`: folders, the likeliest classes, known or unknown, files written, pieces of long videos."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from mindvideo.cli import main
from mindvideo.data.manifest import Sample
from mindvideo.data.video import write_video
from mindvideo.errors import InputError
from mindvideo.predict import load_predictor, predict
from mindvideo.predict.command import Wishes, run, run_threshold
from mindvideo.predict.inputs import find_clips
from mindvideo.predict.results import Row, lines_of_runs
from mindvideo.predict.stream import frame_rate, slide, stream_frames
from mindvideo.tasks.openset_views import score_videos
from tests.serving import VIDEO_CLASSES, clip, make_video, npy, video_predictor, write_pose_checkpoint
from tests.serving import write_video_checkpoint as write_videos


@pytest.fixture(scope="module")
def poses(tmp_path_factory) -> Path:
    return write_pose_checkpoint(tmp_path_factory.mktemp("poses"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    return write_videos(tmp_path_factory.mktemp("videos"))


def long_video(path: Path, num_frames: int = 30, fps: int = 5) -> np.ndarray:
    """A lossless video and its frames."""
    blocks = np.random.default_rng(1).integers(0, 256, (num_frames, 6, 8, 3), dtype=np.uint8)
    frames = blocks.repeat(8, axis=1).repeat(8, axis=2)
    write_video(path, frames, fps=fps, codec="ffv1")
    return frames


def test_folders_are_searched(tmp_path):
    for name in ("b.npy", "sub/a.npy", "sub/.hidden.npy", "sub/c.MP4", "z.avi", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    frames = tmp_path / "frames"
    frames.mkdir()
    Image.new("RGB", (8, 8)).save(frames / "1.png")
    (tmp_path / "round").symlink_to(tmp_path)
    assert find_clips([tmp_path], "poses") == [tmp_path / "b.npy", tmp_path / "sub/a.npy"]
    assert find_clips([tmp_path, frames], "video") == [frames, tmp_path / "sub/c.MP4", tmp_path / "z.avi", frames]
    assert find_clips([tmp_path / "none.npy"], "poses") == [tmp_path / "none.npy"]
    with pytest.raises(InputError, match="frames: this folder holds no files of poses"):
        find_clips([frames], "poses")


def test_a_broken_file_does_not_stop_the_others(poses, tmp_path, capsys):
    for name, content in (("a", npy(clip(9))), ("b", b"no poses"), ("c", npy(clip(12, 1)))):
        (tmp_path / f"{name}.npy").write_bytes(content)
    table, whole = tmp_path / "found.csv", tmp_path / "found.json"
    words = ["predict", "--ckpt", str(poses), "--device", "cpu", str(tmp_path), "--top", "3", "--threshold", "0.7"]
    assert main([*words, "--csv", str(table), "--json", str(whole)]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"mindvideo: error: {tmp_path / 'b.npy'}: ")
    assert said.err.count("\n") == 1
    lines = said.out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [str(tmp_path / "a.npy"), str(tmp_path / "c.npy")]
    expected = load_predictor(poses, device="cpu").predict([clip(9), clip(12, 1)])
    found = json.loads(whole.read_text())
    assert (found["model"], found["threshold"]) == ("actionnet", 0.7)
    assert [failure["input"] for failure in found["failures"]] == [str(tmp_path / "b.npy")]
    rows = list(csv.DictReader(table.read_text().splitlines()))
    for row, entry, own in zip(rows, found["predictions"], expected, strict=True):
        assert [pair["label"] for pair in entry["top"]] == [row[f"label_{k}"] for k in (1, 2, 3)]
        shares = [pair["probability"] for pair in entry["top"]]
        np.testing.assert_allclose(shares, np.sort(own.probabilities)[::-1][:3], atol=1e-6)
        assert entry["known"] == (own.uncertainty <= 0.7) == (row["known"] == "True")
        assert (row["start"], row["uncertainty_name"]) == ("", "max_probability")
        assert float(row["uncertainty"]) == pytest.approx(own.uncertainty, abs=1e-6)
    assert main([*words, "--csv", str(table)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_the_threshold_is_the_runs_own(tmp_path, capsys):
    paths = [make_video(tmp_path / f"{n}.avi", n) for n in (9, 12, 15)]
    checkpoint = write_videos(tmp_path)
    predictor = load_predictor(checkpoint, device="cpu")
    assert run_threshold(predictor, checkpoint) is None
    samples = [Sample(path, VIDEO_CLASSES[0], "") for path in paths]
    reader = replace(predictor.reader, num_frames=dict(zip(paths, (9, 12, 15), strict=True)))
    scores = score_videos(
        predictor._scorer, samples, reader, predictor.config,
        classes=VIDEO_CLASSES, label_names=VIDEO_CLASSES, what="train",
    )  # fmt: skip
    lowest, middle, _ = np.sort(scores.uncertainties["vacuity"])
    scores.uncertainties["vacuity"][:] = threshold = (lowest + middle) / 2
    scores.save(tmp_path / "scores" / "train.npz")
    assert run_threshold(predictor, checkpoint) == threshold
    assert run(predictor, checkpoint, paths, Wishes()) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == f"unknown above {threshold:.4f}, which keeps 95 % of the run's training videos"
    assert sorted(line.rsplit(", ", 1)[1] for line in lines) == ["known", "unknown", "unknown"]
    scores.model_hash = "another"
    scores.save(tmp_path / "scores" / "train.npz")
    assert run_threshold(predictor, checkpoint) is None


def test_frames_come_one_by_one_with_their_times(tmp_path):
    frames = long_video(tmp_path / "a.avi")
    assert frame_rate(tmp_path / "a.avi") == 5
    seconds, streamed = zip(*stream_frames(tmp_path / "a.avi", 5), strict=True)
    np.testing.assert_allclose(seconds, np.arange(30) / 5, atol=1e-6)
    np.testing.assert_array_equal(np.stack(streamed), frames)
    (tmp_path / "frames").mkdir()
    with pytest.raises(InputError, match="a folder of frames has no times"):
        frame_rate(tmp_path / "frames")


def test_pieces_are_judged_as_videos_of_their_own(tmp_path):
    """A piece every 2 seconds of 6.6: three of 10 frames each, and a last one that ends with the video."""
    path, predictor = tmp_path / "a.avi", video_predictor()
    frames = long_video(path, num_frames=33)
    found = list(slide(predictor, path, 2.0))
    bounds = [(0, 10), (10, 20), (20, 30), (23, 33)]
    assert [(w.start, w.end) for w in found] == [pytest.approx((a / 5, b / 5)) for a, b in bounds]
    for (start, end), window in zip(bounds, found, strict=True):
        write_video(tmp_path / "piece.avi", frames[start:end], codec="ffv1")
        (alone,) = predictor.predict([tmp_path / "piece.avi"])
        np.testing.assert_allclose(window.prediction.logits, alone.logits, atol=1e-5)
    # Where a look lasts longer (4 frames) than a step (1), pieces overlap.
    overlapping = list(slide(predictor, path, 0.2))
    assert len(overlapping) == 30
    assert (overlapping[1].start, overlapping[1].end) == pytest.approx((0.2, 1.0))


class Counter:
    """Says of a piece how many frames it has, and which is its first."""

    span = 2

    def shrink(self, frame_HWC: np.ndarray) -> np.ndarray:
        return frame_HWC[0, 0, :1]

    def gather(self, frames: list[np.ndarray]) -> tuple[int, int]:
        return len(frames), int(frames[0][0])

    def classify(self, clips: list[tuple[int, int]]) -> list[tuple[int, int]]:
        return clips


def test_times_are_those_of_the_stamps(tmp_path):
    """Four frames a tenth of a second apart, then five a second apart, in pieces of half a second and of one."""
    seconds = [0, 0.1, 0.2, 0.3, 1.3, 2.3, 3.3, 4.3, 5.3]
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=30)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "bgr0"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, second in enumerate(seconds):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(second * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    found = [(w.start, w.end, *w.prediction) for w in slide(Counter(), path, 0.5)]
    expected = [(0, 1.3, 4, 0), (1.3, 3.3, 2, 4), (2.3, 4.3, 2, 5), (3.3, 5.3, 2, 6), (4.3, 6.3, 2, 7)]
    np.testing.assert_allclose(found, expected, atol=2e-3)
    found = [(w.start, w.end, *w.prediction) for w in slide(Counter(), path, 2.0)]
    np.testing.assert_allclose(found, [(0, 2.3, 5, 0), (2.3, 4.3, 2, 5), (4.3, 6.3, 2, 7)], atol=2e-3)


def test_a_short_video_is_one_piece(tmp_path):
    long_video(tmp_path / "a.avi", num_frames=7)
    (window,) = slide(video_predictor(), tmp_path / "a.avi", 60.0)
    (whole,) = video_predictor().predict([tmp_path / "a.avi"])
    assert (window.start, window.end) == pytest.approx((0, 1.4))
    np.testing.assert_allclose(window.prediction.logits, whole.logits, atol=1e-5)


def test_equal_pieces_in_succession_are_one_line():
    def row(start: int, label: str, share: float, known: bool = True) -> Row:
        return Row(Path("a.mp4"), [(label, share)], "vacuity", 1 - share, known, float(start), start + 1.0)

    rows = [
        row(0, "run", 0.5),
        row(1, "run", 0.7),
        row(2, "sit", 0.9, False),
        row(3, "run", 0.9, False),
        row(4, "sit", 1),
    ]
    assert lines_of_runs(rows) == [
        "a.mp4: 0.00 to 2.00 s: run 0.600, uncertainty (vacuity 0.400), 2 pieces",
        "a.mp4: 2.00 to 4.00 s: unknown, uncertainty (vacuity 0.100), 2 pieces",
        "a.mp4: 4.00 to 5.00 s: sit 1.000, uncertainty (vacuity 0.000), 1 piece",
    ]


def test_pieces_at_the_command_line(videos, poses, tmp_path, capsys):
    long_video(tmp_path / "a.avi")
    words = ["predict", "--ckpt", str(videos), "--device", "cpu", str(tmp_path / "a.avi"), "--every", "2"]
    assert main([*words, "--json", str(tmp_path / "found.json")]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path / 'a.avi'}: 0.00 to ")
    entries = json.loads((tmp_path / "found.json").read_text())["predictions"]
    assert [(e["start"], e["end"]) for e in entries] == [pytest.approx(pair) for pair in ((0, 2), (2, 4), (4, 6))]
    assert main(["predict", "--ckpt", str(poses), "--device", "cpu", "a.npy", "--every", "1"]) == 2
    assert "--every is for videos" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words[:-1], "0"])
    assert "0 is not more than 0" in capsys.readouterr().err


def test_one_line_of_python(videos, poses, tmp_path):
    frames = long_video(tmp_path / "a.avi", num_frames=12)
    from_file = predict(str(tmp_path / "a.avi"), checkpoint=videos, device="cpu")
    np.testing.assert_allclose(predict(frames, checkpoint=videos, device="cpu").logits, from_file.logits, atol=1e-5)
    assert from_file.label in VIDEO_CLASSES
    with pytest.raises(InputError, match=r"an array \[12, 48, 64\] of uint8; allowed is uint8 \[T, H, W, 3\]"):
        predict(frames[..., 0], checkpoint=videos, device="cpu")
    (expected,) = load_predictor(poses, device="cpu").predict([clip(9)])
    found = predict(clip(9), checkpoint=str(poses), device="cpu")
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-6)
