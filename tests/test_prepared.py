# SPDX-License-Identifier: Apache-2.0
"""`mindvideo prepare` and what it prepared: the right frames, in loaders and whole runs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from mindvideo.cli import main
from mindvideo.config import load_config
from mindvideo.data.loader import ClipReader, load_batches, load_clips, load_views, open_shard
from mindvideo.data.manifest import Sample
from mindvideo.data.prepared import Prepared, Storage, video_names
from mindvideo.data.transforms import ClipTransform, resize_frames, short_side_resize
from mindvideo.data.video import read_frames, write_video
from mindvideo.errors import VideoError
from mindvideo.tasks import fewshot_data, openset_data, prepare
from tests import tiny
from tests.conftest import REPOSITORY
from tests.test_openset import lists, run, write_tree

VIDEOS = 24  # of tests.tiny, six frames of 32 x 32 each


def prepare_all(experiment: Path, folder: Path) -> Path:
    """That experiment's videos, prepared in shards of five."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "SHARD_VIDEOS", 5)
        assert main(["prepare", *words(experiment), "--to", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def frames(experiment, tmp_path_factory) -> Path:
    return prepare_all(experiment, tmp_path_factory.mktemp("prepared") / "frames")


@pytest.fixture
def own(frames, tmp_path) -> Path:
    """A copy of it, to spoil."""
    return Path(shutil.copytree(frames, tmp_path / "own"))


def words(root: Path, *more: str) -> list[str]:
    return tiny.settings(root, root / "output", *more)


def config_of(root: Path, *more: str):
    path, *overrides = words(root, *more)
    return load_config(path, overrides)


def jpeg(frames_THWC: np.ndarray) -> np.ndarray:
    """The frames after JPEG of quality 95, without the code that is tested."""
    coded = [cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1] for frame in frames_THWC]
    return np.stack([cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1] for data in coded])


def coloured(path: Path, size: tuple[int, int], num_frames: int = 5) -> np.ndarray:
    """A lossless video whose every frame is of one colour, and these colours `[T, 3]`."""
    colours_T3 = np.random.default_rng(3).integers(20, 236, (num_frames, 3), dtype=np.uint8)
    write_video(path, np.broadcast_to(colours_T3[:, None, None], (num_frames, *size, 3)).copy(), codec="ffv1")
    return colours_T3


def take(folder: Path, paths: list[Path], root: Path, storage: Storage) -> Prepared:
    prepared = Prepared(folder, open_shard)
    assert set(prepared.choose(video_names(paths, [("folder", root)]), storage)[0]) == set(paths)
    return prepared


# What is stored.


@pytest.mark.parametrize(
    ("side", "interpolation", "size"),
    [(0, "none", (48, 80)), (20, "area", (20, 33)), (30, "bilinear", (30, 50)), (64, "bilinear", (48, 80))],
)
def test_frames_are_those_of_the_decoder(tmp_path, side, interpolation, size):
    """A frame of one colour has but DC in its JPEG. At quality 95 its steps are 2 in Y, Cb and Cr, an eighth of a pixel
    at most; rounding before and after adds 1. So Y, Cb and Cr are wrong by 1.125 and RGB by 1.125 (1 + 1.772) + 0.5."""
    path = tmp_path / "a.avi"
    colours_T3 = coloured(path, (48, 80))
    video, row = prepare._encode(path, Storage("pyav", side, interpolation), None)
    assert (video.frames, video.height, video.width) == (5, *size)
    index = prepare.Index(Storage("pyav", side, interpolation), {}, {}, {})
    shards = prepare._Shards(tmp_path, index)
    index.write(tmp_path)
    shards.add("folder/a.avi", video, row)
    shards.write()
    prepared = take(tmp_path, [path], tmp_path, index.storage)
    found = prepared.frames(path, [4, 0, 0, 2])
    assert found.shape == (4, *size, 3)
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - colours_T3[[4, 0, 0, 2], None, None]).max() <= 3
    for wanted, message in (([5], "frame 5 was asked for, the video has 5 frames"), ([-1], "0 or more"), ([], "one")):
        with pytest.raises(VideoError, match=message):
            prepared.frames(path, wanted)


@pytest.mark.parametrize("task", ["fewshot", "openset"])
def test_frames_shrink_as_the_task_shrinks_them(real_data, tmp_path, task):
    path = next((real_data / "ucf101" / "Archery").iterdir())
    whole = read_frames(path, [0, 7, 30])
    height, width = whole.shape[1:3]
    assert (height, width) == (128, 170)
    storage = Storage("pyav", 64, "area") if task == "fewshot" else Storage("pyav", 112, "bilinear")
    expected = jpeg(resize_frames(whole, (64, 85)) if task == "fewshot" else short_side_resize(whole, 112))
    index = prepare.Index(storage, {}, {}, {})
    index.write(tmp_path)
    shards = prepare._Shards(tmp_path, index)
    shards.add(f"folder/{path.name}", *prepare._encode(path, storage, None))
    shards.write()
    prepared = take(tmp_path, [path], path.parent, storage)
    np.testing.assert_array_equal(prepared.frames(path, [0, 7, 30]), expected)


@pytest.mark.parametrize("decoder", ["pyav", "opencv"])
def test_frames_come_in_blocks(make_videos, monkeypatch, decoder):
    """Of decoders that read by number, and of folders; whatever the size of a block."""
    root = make_videos(["A/a.avi", "A/folder"], 7)
    monkeypatch.setattr(prepare, "_BLOCK_BYTES", 3 * 16 * 24 * 3)
    for path in (root / "A" / "a.avi", root / "A" / "folder"):
        found = np.stack(list(prepare._stream(path, decoder)))
        np.testing.assert_array_equal(found, read_frames(path, range(7), decoder))


def test_the_config_says_how_frames_are_stored(experiment):
    assert fewshot_data.storage(config_of(experiment, "data.height=40")) == Storage("pyav", 40, "area")
    sides = {"data.short_side=64": 64, "data.short_side=40": 56, "data.short_side=0": 0}
    for setting, side in sides.items():
        config = load_config(REPOSITORY / "configs" / "dear" / "small.yaml", [setting, "data.decoder=opencv"])
        assert openset_data.storage(config) == Storage("opencv", side, "bilinear" if side else "none")


# What is read.


class Coded:
    """A transform that first JPEG-codes the decoder's frames, which are not larger than is stored."""

    def __init__(self, transform: ClipTransform):
        self.transform = transform

    def __call__(self, frames_THWC: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        return self.transform(jpeg(frames_THWC), rng)


def test_batches_are_those_of_an_oracle_whatever_the_workers(experiment, frames):
    """Every video of every shard, in random order, also in forked processes after shards were opened in this one."""
    data = fewshot_data.prepare_data(config_of(experiment, f"data.prepared={frames}"))
    samples = [sample for members in data.parts.values() for sample in members]
    assert len(samples) == VIDEOS
    assert data.train_reader.prepared is not None
    transform = ClipTransform((32, 32), flip=True, crop_scale=(0.5, 1.0), color=0.2)
    reader = ClipReader(transform, "random", 4, data.train_reader.num_frames, prepared=data.train_reader.prepared)
    oracle = replace(reader, transform=Coded(transform), prepared=None)
    order = {"batch": 6, "seed": 3, "numbers": range(8), "per_epoch": 4}
    classes = sorted({sample.label for sample in samples})
    expected = list(load_batches(samples, classes, oracle, workers=1, **order))
    for workers in (1, 2):
        found = list(load_batches(samples, classes, reader, workers=workers, **order))
        assert len(found) == 8
        for own, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(own[0], other[0])
            np.testing.assert_array_equal(own[1], other[1])


def test_few_shards_stay_open(experiment, frames, monkeypatch):
    monkeypatch.setattr("mindvideo.data.prepared._OPEN_SHARDS", 2)
    opened = []

    def counted(path: Path):
        opened.append(path.name)
        return open_shard(path)

    prepared = Prepared(frames, counted)
    config = config_of(experiment)
    paths, storage = prepare._wanted(config)
    prepared.choose(paths, storage)
    for path in list(paths) * 2:
        np.testing.assert_array_equal(prepared.frames(path, range(6)), jpeg(read_frames(path, range(6))))
    assert opened == sorted({video.shard for video in prepared.index.videos.values()}) * 2
    assert len(opened) == 10
    assert list(map(len, prepared._opened.values())) == [2]


def test_a_moved_folder_is_read(experiment, own, tmp_path):
    moved = tmp_path / "elsewhere" / "with a space, ü"
    moved.parent.mkdir()
    own.rename(moved)
    data = fewshot_data.prepare_data(config_of(experiment, f"data.prepared={moved}"))
    sample = data.parts["test"][-1]
    (clip,) = load_clips([sample], data.eval_reader, workers=1)
    indices = data.eval_reader.indices(sample, None)
    np.testing.assert_array_equal(clip, data.eval_reader.transform(jpeg(read_frames(sample.path, indices)), None))


def test_a_moved_data_set_is_known(experiment, frames, tmp_path):
    shutil.copytree(experiment / "videos", tmp_path / "moved")
    config = config_of(experiment, f"data.prepared={frames}", f"data.root={tmp_path / 'moved'}")
    assert len(fewshot_data.prepare_data(config, ("test",)).parts["test"]) == 9


def test_no_two_videos_share_a_name():
    paths = [Path("/a/x/1.avi"), Path("/b/x/1.avi"), Path("/c/1.avi"), Path("/a/x/1.avi")]
    names = video_names(paths, [("folder", Path("/a")), ("folder", Path("/b"))])
    assert names == dict(zip(paths[:3], ["folder/x/1.avi", "/b/x/1.avi", "/c/1.avi"], strict=True))


def test_frame_counts_are_not_decoded_for(experiment, frames, monkeypatch):
    monkeypatch.setattr("mindvideo.tasks.setup.count_all_frames", None)  # calling it would fail
    data = fewshot_data.prepare_data(config_of(experiment, f"data.prepared={frames}"))
    assert set(data.train_reader.num_frames.values()) == {6}


# Whole runs.


def test_few_shot_training_from_prepared_frames(experiment, frames, tmp_path):
    assert tiny.train(experiment, tmp_path, f"data.prepared={frames}") == 0
    found = tiny.result(tmp_path / "tiny")
    assert found["metrics"]["accuracy"]["n"] == 10
    assert found["controls"]["thumbnails"]["accuracy"]["value"] == 1
    assert f"prepared: {frames}" in (tmp_path / "tiny" / "config.yaml").read_text()


def test_open_set_evaluation_from_prepared_frames(tmp_path, cache):
    """With unknown videos of a folder of their own; views, too, are those of the JPEG-coded frames."""
    write_tree(tmp_path)
    own = lists(tmp_path, tmp_path, ("Archery", "Biking"), (8, 9))
    unknown = ("unknown.dataset=folder", f"unknown.root={tmp_path / 'unknown'}", "unknown.split=all")
    for number in (1, 2):
        coloured(tmp_path / "unknown" / "Grey" / f"{number}.avi", (32, 48), 28)
    folder = tmp_path / "frames"
    setting = f"data.prepared={folder}"
    assert main(["prepare", str(tmp_path / "tiny.yaml"), f"data.root={tmp_path / 'videos'}", *own, *unknown,
                 "--to", str(folder)]) == 0  # fmt: skip
    short = ("train.epochs=1", "data.validation=0", "loss.name=dnn", "train.batch=4")
    assert run("train", tmp_path, tmp_path / "runs", *own, *unknown, *short, setting) == 0
    checkpoint = str(tmp_path / "runs" / "tiny" / "last.ckpt")
    assert run("eval", tmp_path, tmp_path / "tests", *own, *unknown, *short, setting, "--checkpoint", checkpoint) == 0
    assert (
        tiny.result(tmp_path / "tests" / "tiny-eval")["metrics"] == tiny.result(tmp_path / "runs" / "tiny")["metrics"]
    )

    config = load_config(tmp_path / "tiny.yaml", [f"data.root={tmp_path / 'videos'}", *own, *unknown, setting])
    reader = openset_data.check_videos(config, openset_data.find_videos(config)).view_reader
    sample = Sample(tmp_path / "unknown" / "Grey" / "1.avi", "Grey", "1")
    (found,) = load_views([sample], reader, workers=1)
    read = read_frames(sample.path, range(28))
    indices_VT = np.stack([np.arange(24), np.arange(24) + 4])  # two windows of 24 in 28 frames
    places = reader.crops(sample)[1]
    np.testing.assert_array_equal(places, indices_VT)
    expected = [reader.transform.normalize(reader.transform.crop(jpeg(read[places]))[0]) for places in indices_VT]
    np.testing.assert_array_equal(found, np.stack(expected))
