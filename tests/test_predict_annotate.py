# SPDX-License-Identifier: Apache-2.0
"""Annotated clips: every frame is there, in its colours, above the right caption."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mindvideo.cli import main
from mindvideo.data.video import read_frames, write_video
from mindvideo.errors import InputError, VideoError
from mindvideo.predict.annotate import annotate_poses, annotate_video, targets
from mindvideo.predict.results import Row
from mindvideo.predict.stream import frame_rate
from tests.serving import clip, npy, write_pose_checkpoint

SIZE = (24, 40)


def row(label: str, share: float, start: float | None = None, known: bool | None = None) -> Row:
    return Row(Path("a"), [(label, share)], "vacuity", 1 - share, known, start, None if start is None else start + 1)


def gray_video(path: Path, num_frames: int = 10) -> np.ndarray:
    """Frames that grow brighter, 5 a second."""
    frames = np.broadcast_to(np.arange(num_frames, dtype=np.uint8)[:, None, None, None] * 20, (num_frames, *SIZE, 3))
    write_video(path, np.ascontiguousarray(frames), fps=5, codec="ffv1")
    return frames


def test_each_frame_stands_above_the_verdict_of_its_time(tmp_path):
    frames = gray_video(tmp_path / "a.avi")
    annotate_video(tmp_path / "a.avi", [row("run", 0.25, 0.0), row("sit", 1.0, 1.0)], tmp_path / "out.mp4")
    assert frame_rate(tmp_path / "out.mp4") == 5
    shown = read_frames(tmp_path / "out.mp4", range(10))
    assert shown.shape[2] == 320
    np.testing.assert_allclose(shown[:, 20:170, 20:300].mean(axis=(1, 2, 3)), frames.mean(axis=(1, 2, 3)), atol=2)
    captions = shown[:, 192:].astype(float)
    # Constant while a verdict lasts: second 0 has frames 0 to 4.
    assert np.abs(captions[0] - captions[4]).mean() < 1 < 5 < np.abs(captions[4] - captions[5]).mean()
    # The blue bar of the probability covers four times as much at 1 as at 0.25.
    blue = ((captions[..., 2] - captions[..., 0]) > 80).sum(axis=(1, 2))
    assert blue[9] / blue[0] == pytest.approx(4, rel=0.1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.avi", "out.mp4"]


def test_a_gif_and_a_folder_of_frames(tmp_path):
    frames = gray_video(tmp_path / "a.avi")
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(np.ascontiguousarray(frame)).save(folder / f"{number}.png")
    annotate_video(folder, [row("run", 0.5, known=False)], tmp_path / "out.gif")
    with Image.open(tmp_path / "out.gif") as movie:
        assert (movie.n_frames, movie.info["duration"], movie.width) == (10, 40, 320)
        assert movie.info["loop"] == 0
        movie.seek(9)
        assert np.asarray(movie.convert("RGB"))[20:170].mean() == pytest.approx(180, abs=6)


def test_a_broken_video_leaves_nothing(tmp_path):
    gray_video(tmp_path / "a.avi")
    whole = (tmp_path / "a.avi").read_bytes()
    (tmp_path / "a.avi").write_bytes(whole[:-100])
    with pytest.raises(VideoError, match="cut short"):
        annotate_video(tmp_path / "a.avi", [row("run", 0.5)], tmp_path / "out.mp4")
    assert [p.name for p in tmp_path.iterdir()] == ["a.avi"]


def test_the_skeleton_moves(tmp_path):
    (tmp_path / "a.npy").write_bytes(npy(clip(12)))
    annotate_poses(tmp_path / "a.npy", row("wave", 0.5), tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as movie:
        assert (movie.n_frames, movie.size[0], movie.info["duration"]) == (12, 320, 50)
        pictures = []
        for number in (0, 11):
            movie.seek(number)
            pictures.append(np.asarray(movie.convert("RGB")).astype(int)[:320])
    dark = [(picture.max(axis=2) < 90) for picture in pictures]
    assert all(1000 < mask.sum() < 15_000 for mask in dark)
    assert (dark[0] != dark[1]).sum() > 500


def test_files_are_new_and_named_after_clips(tmp_path):
    clips = [tmp_path / "x/a.avi", tmp_path / "y/a.avi", tmp_path / "b.mp4"]
    names = [path.name for path in targets(clips, tmp_path / "out", ".gif")]
    assert names == ["a.gif", "a-2.gif", "b.gif"]
    (tmp_path / "out" / "b.gif").touch()
    with pytest.raises(InputError, match=r"b\.gif: it is there already"):
        targets(clips, tmp_path / "out", ".gif")
    with pytest.raises(InputError, match="it is no folder"):
        targets(clips, tmp_path / "out" / "b.gif", ".gif")


def test_at_the_command_line(tmp_path, capsys):
    checkpoint = write_pose_checkpoint(tmp_path)
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.npy").write_bytes(npy(clip(9)))
    words = ["predict", "--ckpt", str(checkpoint), "--device", "cpu", str(tmp_path / "clips")]
    assert main([*words, "--gif"]) == 2
    assert "--gif goes with --annotate" in capsys.readouterr().err
    assert main([*words, "--annotate", str(tmp_path / "out")]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.gif"]
