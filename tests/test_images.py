# SPDX-License-Identifier: Apache-2.0
"""Images: reading, cropping, lists of them, frames of videos; and two mixed into one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mindvideo.data.datasets import folder
from mindvideo.data.images import ImageReader, extract_frames, image_folder, image_list, read_image
from mindvideo.data.manifest import Sample
from mindvideo.data.mixing import cutmix, draw_box, mixup
from mindvideo.data.video import read_frames, write_video
from mindvideo.errors import InputError

RNG = np.random.default_rng(0)


def picture(path: Path, height: int = 40, width: int = 60) -> np.ndarray:
    """A PNG of random pixels, written."""
    pixels = RNG.integers(0, 256, (height, width, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format="PNG")
    return pixels


def test_reading(tmp_path):
    pixels = picture(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), pixels)
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), pixels[..., :1].repeat(3, axis=2))
    turned = Image.fromarray(pixels)
    turned.getexif()[0x0112] = 6  # shown turned clockwise
    turned.save(tmp_path / "turned.png", exif=turned.getexif())
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png"), np.rot90(pixels, -1))


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + bytes(40)], ids=["empty", "text", "cut"])
def test_what_is_no_image(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.png: no readable image"):
        read_image(tmp_path / "x.png")
    with pytest.raises(InputError, match="no such image"):
        read_image(tmp_path / "y.png")


def test_an_image_that_announces_too_many_pixels(tmp_path, monkeypatch):
    picture(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match="decompression bomb"):
        read_image(tmp_path / "x.png")


def test_tests_see_the_middle(tmp_path):
    pixels = picture(tmp_path / "a.png", 40, 60)
    sample = Sample(tmp_path / "a.png", "a", "a")
    found = ImageReader(size=30, short_side=40)(sample)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, pixels[5:35, 15:45].transpose(2, 0, 1) / np.float32(255))
    assert ImageReader(size=16, short_side=20)(sample).shape == (3, 16, 16)


def test_training_sees_windows_of_the_asked_share(tmp_path):
    picture(tmp_path / "a.png", 60, 60)
    ramp = np.tile(np.arange(60, dtype=np.uint8)[:, None, None], (1, 60, 3))
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    sample, reader = Sample(tmp_path / "ramp.png", "a", "a"), ImageReader(size=60, crop_scale=(0.25, 1.0))
    heights = []
    for seed in range(100):
        image = reader(sample, np.random.default_rng(seed))
        assert image.shape == (3, 60, 60)
        heights.append(255 * (image[0, -1, 0] - image[0, 0, 0]) + 1)
    assert 26 < min(heights) < 34
    assert max(heights) > 55
    np.testing.assert_array_equal(reader(sample, np.random.default_rng(3)), reader(sample, np.random.default_rng(3)))


def test_training_flips_and_augments(tmp_path):
    pixels = picture(tmp_path / "a.png", 32, 32)
    whole = {"size": 32, "crop_scale": (1.0, 1.0), "flip": True}
    sample = Sample(tmp_path / "a.png", "a", "a")

    def inverted(image_HWC, rng):
        return 255 - image_HWC

    plain, changed = ImageReader(**whole), ImageReader(**whole, augment=inverted)
    kinds = set()
    for seed in range(20):
        one, other = (reader(sample, np.random.default_rng(seed)) for reader in (plain, changed))
        np.testing.assert_allclose(one + other, 1, atol=1e-6)
        for name, expected in (("as it is", pixels), ("mirrored", pixels[:, ::-1])):
            if np.abs(one - expected.transpose(2, 0, 1) / 255).max() < 1e-6:
                kinds.add(name)
    assert {"as it is", "mirrored"} == kinds


def test_folders(tmp_path):
    for name in ("train/cat/1.png", "train/dog/1.png", "train/dog/2.JPG", "val/cat/3.png", "train/dog/notes.txt"):
        picture(tmp_path / name)
    train, test = image_folder(tmp_path)
    assert [(s.path.name, s.label) for s in train] == [("1.png", "cat"), ("1.png", "dog"), ("2.JPG", "dog")]
    assert [(s.path.name, s.label) for s in test] == [("3.png", "cat")]
    with pytest.raises(InputError, match=r"train: no image found"):
        image_folder(tmp_path / "val")


def test_lists(tmp_path):
    (tmp_path / "label.txt").write_text("12.JPEG 3\nwith space.png 0\n\n")
    (tmp_path / "train.json").write_text(json.dumps({"7": ["1.JPEG", "2.JPEG"], "8": ["3.JPEG"]}))
    lines = image_list(tmp_path / "label.txt", tmp_path / "images")
    assert [(s.path, s.label) for s in lines] == [
        (tmp_path / "images/12.JPEG", "3"), (tmp_path / "images/with space.png", "0"),
    ]  # fmt: skip
    names = image_list(tmp_path / "train.json", tmp_path)
    assert [(s.path.name, s.label) for s in names] == [("1.JPEG", "7"), ("2.JPEG", "7"), ("3.JPEG", "8")]
    assert len({s.group for s in names}) == 3


@pytest.mark.parametrize(("name", "text", "message"), [
    ("a.txt", "1.png 0\nlonely\n", "line 2: 'lonely'"), ("a.txt", "\n", "names no image"),
    ("a.json", "{", "no JSON"), ("a.json", '["1.png"]', "expected"), ("a.json", '{"a": [1]}', "expected"),
    ("a.txt", "../../etc/passwd 0\n", "leads out of"), ("b.txt", "", "no such list"),
])  # fmt: skip
def test_lists_that_are_wrong(tmp_path, name, text, message):
    if name != "b.txt":
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        image_list(tmp_path / name, tmp_path)


@pytest.fixture
def videos(tmp_path, monkeypatch) -> list[Sample]:
    monkeypatch.setenv("MINDVIDEO_CACHE", str(tmp_path / "cache"))
    for number in range(2):
        frames = RNG.integers(0, 256, (9, 4, 6, 3), np.uint8).repeat(16, axis=1).repeat(16, axis=2)
        write_video(tmp_path / "videos" / "wave" / f"{number}.avi", frames)
    return folder(tmp_path / "videos")


def test_frames_of_videos(videos, tmp_path):
    counts, told = {video.path: 9 for video in videos}, []
    frames = extract_frames(videos, counts, per_video=3, short_side=64, progress=told.append)
    assert told == [1, 2]
    assert len(frames) == 6
    assert {(frame.label, frame.group) for frame in frames} == {("wave", video.group) for video in videos}
    for video, start in zip(videos, (0, 3), strict=True):
        expected = read_frames(video.path, [1, 4, 7])
        for frame, pixels in zip(frames[start : start + 3], expected, strict=True):
            np.testing.assert_array_equal(read_image(frame.path), pixels)


def test_frames_are_taken_once(videos, tmp_path, monkeypatch):
    counts = {video.path: 9 for video in videos}
    first = extract_frames(videos, counts, per_video=2, short_side=32)
    monkeypatch.setattr("mindvideo.data.images.read_frames", None)  # calling it would fail
    assert extract_frames(videos, counts, per_video=2, short_side=32) == first
    with pytest.raises(TypeError):
        extract_frames(videos, counts, per_video=2, short_side=48)
    assert read_image(first[0].path).shape == (32, 48, 3)
    assert not list((tmp_path / "cache" / "frames").glob("*.tmp"))


def test_mixup_is_the_weighted_sum():
    x = RNG.uniform(0, 1, (4, 3, 5, 6)).astype(np.float32)
    partners = np.array([2, 3, 1, 0])
    np.testing.assert_allclose(mixup(x, partners, 0.3), 0.3 * x + 0.7 * x[partners], atol=1e-7)
    np.testing.assert_array_equal(mixup(x, partners, 1.0), x)


def test_cutmix_counts_pixels():
    x = RNG.uniform(0, 1, (2, 3, 10, 8)).astype(np.float32)
    mixed, share = cutmix(x, np.array([1, 0]), (2, 6, 3, 8))
    assert share == 1 - 20 / 80
    inside = np.zeros((10, 8), bool)
    inside[2:6, 3:8] = True
    np.testing.assert_array_equal(mixed[0], np.where(inside, x[1], x[0]))


@pytest.mark.parametrize("share", [0.0, 0.36, 0.9, 1.0])
def test_boxes_lie_anywhere_and_are_cut_at_the_edge(share):
    rng, side = np.random.default_rng(0), (1 - share) ** 0.5
    boxes = np.array([draw_box(20, 30, share, rng) for _ in range(3000)])
    heights, widths = boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]
    assert boxes.min() >= 0
    assert (boxes[:, 1].max(), boxes[:, 3].max()) <= (20, 30)
    assert heights.max() == int(20 * side) // 2 * 2
    assert widths.max() == int(30 * side) // 2 * 2
    # Cut at the edges, the mean extent of an axis is e (1 - e / 4 n) for a box of e and an axis of n.
    expected = heights.max() * (1 - heights.max() / 80)
    assert heights.mean() == pytest.approx(expected, abs=0.4)
