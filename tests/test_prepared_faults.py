# SPDX-License-Identifier: Apache-2.0
"""What stops, changes or damages prepared frames: going on, or one clear message."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mindvideo.cli import main
from mindvideo.data.loader import open_shard
from mindvideo.data.prepared import Broken, Prepared, Storage, head_sha256, read_index
from mindvideo.errors import InputError
from mindvideo.tasks import fewshot_data, prepare
from tests.conftest import REPOSITORY
from tests.test_prepared import VIDEOS, coloured, config_of, prepare_all, take, words


@pytest.fixture(scope="module")
def frames(experiment, tmp_path_factory) -> Path:
    return prepare_all(experiment, tmp_path_factory.mktemp("prepared") / "frames")


@pytest.fixture
def own(frames, tmp_path) -> Path:
    """A copy of it, to spoil."""
    return Path(shutil.copytree(frames, tmp_path / "own"))


@pytest.fixture
def refused(capsys) -> Callable[..., str]:
    """The message of a command that must fail as an error of the user."""

    def call(*arguments: object) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        error = capsys.readouterr().err
        assert error.count("mindvideo: error: ") == 1
        assert "Traceback" not in error
        return error.partition("mindvideo: error: ")[2]

    return call


# Going on.


def stopping(moment: str, place: Path) -> str:
    """A program that prepares in shards of five and kills itself with SIGKILL in the middle of the second."""
    return f"""
import os, signal, sys
from mindvideo import cli
from mindvideo.tasks import prepare
prepare.SHARD_VIDEOS = 5
original = prepare.{moment}
calls = []
def strike(*arguments):
    calls.append(1)
    result = original(*arguments)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
prepare.{moment} = strike
cli.main(["prepare", *sys.argv[1:], "--to", {str(place)!r}])
"""


@pytest.mark.parametrize("moment", ["_write_shard", "_Shards._move_in"])
def test_a_killed_call_is_continued(experiment, frames, tmp_path, monkeypatch, moment):
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", stopping(moment, folder), *words(experiment)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = {path.name for path in folder.iterdir()}
    assert "frames-00000.mindrecord" in left
    assert any(name.startswith(".writing-") for name in left)  # half a shard, or the folder it was moved from
    assert ("frames-00001.mindrecord" in left) == (moment == "_Shards._move_in")
    before = read_index(folder)
    assert [video.shard for video in before.videos.values()] == ["frames-00000.mindrecord"] * 5
    tried = []
    encode = prepare._encode
    monkeypatch.setattr(prepare, "_encode", lambda path, *more: tried.append(path) or encode(path, *more))
    monkeypatch.setattr(prepare, "SHARD_VIDEOS", 5)
    assert main(["prepare", *words(experiment), "--to", str(folder)]) == 0
    assert len(tried) == VIDEOS - 5
    assert (folder / "index.json").read_bytes() == (frames / "index.json").read_bytes()
    assert {path.name for path in folder.iterdir()} == {path.name for path in frames.iterdir()}
    prepare.check(folder)


def test_a_finished_folder_is_left_alone(experiment, own, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in own.iterdir() if path.name != ".lock"}
    assert main(["prepare", *words(experiment), "--to", str(own)]) == 0
    assert f"all {VIDEOS} videos are prepared already" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in own.iterdir() if path.name != ".lock"} == before


def test_a_changed_video_is_done_anew(experiment, own, tmp_path, monkeypatch, refused):
    root = Path(shutil.copytree(experiment / "videos", tmp_path / "videos"))
    setting = f"data.root={root}"
    changed, touched = root / "a" / "1.avi", root / "f" / "2.avi"
    colours_T3 = coloured(changed, (32, 32))
    os.utime(touched, ns=(1, 1))
    message = refused("train", *words(experiment, setting, f"data.prepared={own}"))
    assert f"2 of {VIDEOS} videos are not prepared in {own}" in message
    for path in (changed, touched):
        assert f"{path}: has changed since it was prepared" in message
    assert f"mindvideo prepare CONFIG --to {own}" in message
    before = read_index(own).videos
    assert main(["prepare", *words(experiment, setting), "--to", str(own)]) == 0
    index = read_index(own)
    differing = [name for name, video in index.videos.items() if video != before[name]]
    assert differing == ["folder/a/1.avi", "folder/f/2.avi"]
    assert index.videos["folder/a/1.avi"].frames == 5
    assert index.videos["folder/f/2.avi"] == replace(before["folder/f/2.avi"], mtime_ns=1)  # the same bytes: not redone
    prepared = take(own, [changed], root, index.storage)
    assert np.abs(prepared.frames(changed, range(5)).astype(int) - colours_T3[:, None, None]).max() <= 3
    prepare.check(own)


def test_more_videos_join_a_folder(experiment, tmp_path):
    folder = tmp_path / "more"
    (tmp_path / "split").mkdir()
    for part, names in {"train": "ab", "val": "de", "test": "f g"}.items():
        (tmp_path / "split" / f"{part}.txt").write_text("\n".join(names.replace(" ", "")) + "\n")
    assert main(["prepare", *words(experiment, f"data.split={tmp_path / 'split'}"), "--to", str(folder)]) == 0
    few = read_index(folder)
    assert len(few.videos) == 18
    assert main(["prepare", *words(experiment), "--to", str(folder)]) == 0
    index = read_index(folder)
    assert len(index.videos) == VIDEOS
    assert {name: index.videos[name] for name in few.videos} == few.videos
    assert sorted(video.number for video in index.videos.values()) == list(range(VIDEOS))


def test_the_second_data_set_is_prepared_too(experiment, tmp_path):
    second = ("second.dataset=ucf101", f"second.root={tmp_path / 'ucf'}", f"second.split={tmp_path / 'split'}")
    (tmp_path / "split").mkdir()
    for part in ("train", "val", "test"):
        (tmp_path / "split" / f"{part}.txt").write_text({"train": "Archery\n"}.get(part, f"{part}\n"))
    coloured(tmp_path / "ucf" / "Archery" / "v_Archery_g01_c01.avi", (32, 48))
    paths, _ = prepare._wanted(config_of(experiment, *second))
    assert len(paths) == VIDEOS + 1
    assert list(paths.values())[-1] == "ucf101/Archery/v_Archery_g01_c01.avi"


# What goes wrong.


def test_broken_videos_are_told_or_left_out(experiment, tmp_path, refused, capsys):
    root = Path(shutil.copytree(experiment / "videos", tmp_path / "videos"))
    broken = root / "b" / "2.avi"
    broken.write_bytes(broken.read_bytes()[:-200])
    folder = tmp_path / "frames"
    setting = f"data.root={root}"
    message = refused("prepare", *words(experiment, setting), "--to", folder)
    assert f"1 of {VIDEOS} videos cannot be decoded" in message
    assert f"{broken}: cut short" in message
    assert len(read_index(folder).videos) == VIDEOS - 1  # all others were done
    use = (setting, f"data.prepared={folder}")
    assert "cannot be decoded" in refused("train", *words(experiment, *use))
    exclude = "data.broken=exclude"
    assert main(["prepare", *words(experiment, setting, exclude), "--to", str(folder)]) == 0
    assert f"excluded: 1 of {VIDEOS} videos" in capsys.readouterr().out
    data = fewshot_data.prepare_data(config_of(experiment, *use, exclude))
    assert data.excluded == [str(broken)]
    assert len(data.parts["train"]) == 8
    shutil.copy2(experiment / "videos" / "b" / "2.avi", broken)
    assert main(["prepare", *words(experiment, setting), "--to", str(folder)]) == 0
    assert len(fewshot_data.prepare_data(config_of(experiment, *use)).parts["train"]) == 9


def test_a_video_that_is_not_there_counts_as_broken(own, tmp_path):
    """As it does where videos are decoded: a list may name it."""
    path = tmp_path / "gone.avi"
    index = read_index(own)
    found = prepare._encode(path, index.storage, None)
    assert found == Broken(0, 0, f"{path}: no such file or folder")
    index.broken[str(path)] = found
    index.write(own)
    assert Prepared(own, open_shard).choose({path: str(path)}, index.storage) == ({}, {path: found.problem})
    coloured(path, (32, 32))
    with pytest.raises(InputError, match=rf"{path}: has changed since"):
        Prepared(own, open_shard).choose({path: str(path)}, index.storage)


def test_a_missing_video_is_named_with_the_command(experiment, own, tmp_path, refused):
    root = Path(shutil.copytree(experiment / "videos", tmp_path / "videos"))
    new = root / "g" / "new.avi"
    coloured(new, (32, 32))
    message = refused("train", *words(experiment, f"data.root={root}", f"data.prepared={own}"))
    assert f"1 of {VIDEOS + 1} videos are not prepared in {own}:\n  {new}: not in the index\n" in message
    assert f"Run `mindvideo prepare CONFIG --to {own}`." in message


@pytest.mark.parametrize(
    ("setting", "reading", "preparing"),
    [
        ("data.height=40", "shorter sides are 32 pixels, the config needs 40", "short_side is 32 there, 40 for"),
        ("data.decoder=opencv", "decoder is pyav, the config's opencv", "decoder is 'pyav' there, 'opencv' for"),
    ],
)
def test_other_settings_are_refused(experiment, frames, refused, setting, reading, preparing):
    assert reading in refused("train", *words(experiment, setting, f"data.prepared={frames}"))
    assert preparing in refused("prepare", *words(experiment, setting), "--to", frames)


def test_what_frames_do_for_what():
    stored = Storage("pyav", 64, "area")
    assert stored.lacks(stored) == ""
    assert stored.lacks(replace(stored, short_side=48)) == ""
    assert "needs 65" in stored.lacks(replace(stored, short_side=65))
    assert "needs all" in stored.lacks(Storage("pyav", 0, "none"))
    assert "interpolation is area" in stored.lacks(replace(stored, interpolation="bilinear"))
    assert Storage("pyav", 0, "none").lacks(stored) == ""


@pytest.mark.parametrize(("task", "config"), [("pose", "actionnet/sample.yaml"), ("robust", "robust/base.yaml")])
def test_other_tasks_are_refused(tmp_path, refused, task, config):
    message = refused("prepare", REPOSITORY / "configs" / config, "--to", tmp_path / "new")
    assert message == f"mindvideo prepare is for the tasks fewshot and openset; this config is of {task}.\n"
    assert not (tmp_path / "new").exists()


def test_only_folders_of_its_own_are_written_to(experiment, tmp_path, frames, refused):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    assert "holds other files and no index.json" in refused("prepare", *words(experiment), "--to", tmp_path / "other")
    assert "cannot be used as a folder" in refused(
        "prepare", *words(experiment), "--to", tmp_path / "other" / "mine.txt"
    )
    with (frames / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another `mindvideo prepare` is at work" in refused("prepare", *words(experiment), "--to", frames)


def test_a_full_disk_is_one_line_and_continued(experiment, frames, tmp_path, monkeypatch, refused):
    folder, calls = tmp_path / "full", []
    monkeypatch.setattr(prepare, "SHARD_VIDEOS", 5)
    reserve = os.posix_fallocate

    def full(*arguments: int) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reserve(*arguments)

    monkeypatch.setattr(os, "posix_fallocate", full)
    message = refused("prepare", *words(experiment), "--to", folder)
    assert message.count("\n") == 1
    assert "frames-00002.mindrecord: cannot be written ([Errno 28] No space left on device)" in message
    assert len(read_index(folder).videos) == 10
    assert not list(folder.glob(".writing-*"))
    assert main(["prepare", *words(experiment), "--to", str(folder)]) == 0
    assert read_index(folder) == read_index(frames)


SHARD = "frames-00002.mindrecord"


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "head": (lambda folder: flip(folder / SHARD, 30), "its head is not what was written"),
    "db": (lambda folder: flip(folder / f"{SHARD}.db", 5000), "its head is not what was written"),
    "cut": (lambda folder: os.truncate(folder / SHARD, 70_000), "it has 70000 bytes, not the"),
    "gone": (lambda folder: (folder / SHARD).unlink(), "is missing"),
    "no db": (lambda folder: (folder / f"{SHARD}.db").unlink(), "is missing"),
    "link": (lambda folder: (folder / SHARD).replace(folder / "x") and (folder / SHARD).symlink_to("x"), "no plain"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_shard_is_refused_and_done_anew(experiment, frames, own, refused, kind, monkeypatch):
    strike, told = DAMAGE[kind]
    strike(own)
    for command in (["train", *words(experiment, f"data.prepared={own}")], ["prepare", "--check", "--to", own]):
        message = refused(*command)
        assert str(own / SHARD) in message
        assert told in message
    (own / SHARD).unlink(missing_ok=True)
    monkeypatch.setattr(prepare, "SHARD_VIDEOS", 5)
    assert main(["prepare", *words(experiment), "--to", str(own)]) == 0
    assert len(read_index(own).videos) == VIDEOS
    assert {path.name for path in own.glob("frames-*")} == {path.name for path in frames.glob("frames-*")}
    prepare.check(own)


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_a_changed_bit_of_frames_is_seen(experiment, own, refused, place):
    """In the sizes, the CRC, a JPEG of the first video, and the numbers of videos behind all rows."""
    paths, storage = prepare._wanted(config_of(experiment))
    index = read_index(own)
    path, video = next(
        (path, video) for path, name in paths.items() if (video := index.videos[name]).shard == SHARD and not video.row
    )
    start = 2**16 + 8  # the row's length comes first
    flip(own / SHARD, (start, start + 4, start + 8 * 6 + 300, -100)[place])
    prepared = Prepared(own, open_shard)
    prepared.choose(paths, storage)
    if place < 3:
        with pytest.raises(InputError, match=rf"{SHARD}: damaged \({path}: "):
            prepared.frames(path, range(6))
    message = refused("prepare", "--check", "--to", own)
    assert f"1 of {len(index.shards)} shards are damaged" in message
    assert "not what was written, by its SHA-256" in message


def spoilt(own: Path, change: Callable[[dict], object]) -> None:
    index = json.loads((own / "index.json").read_text())
    change(index)
    (own / "index.json").write_text(json.dumps(index))


OUT = "../x/frames-00000.mindrecord"
WRONG: dict[str, tuple[Callable[[dict], object], str]] = {
    "version": (lambda index: index.update(mindvideo_prepared=2), "format version 1 is needed, found 2"),
    "table": (lambda index: index.pop("broken"), "must hold storage, shards, videos, broken"),
    "list": (lambda index: index.update(videos=[]), "must hold storage, shards, videos, broken"),
    "key": (lambda index: index["storage"].pop("quality"), "must hold decoder, short_side, interpolation, quality"),
    "escape": (lambda index: index["shards"].update({OUT: index["shards"].pop(SHARD)}), f"{OUT!r} is no name"),
    "absolute": (lambda index: index["shards"].update({"/etc/x": index["shards"].pop(SHARD)}), "is no name"),
    "shard": (lambda index: next(iter(index["videos"].values())).update(shard=OUT), f"in shard {OUT!r}"),
    "negative": (lambda index: next(iter(index["videos"].values())).update(row=-1), "row is -1"),
    "bool": (lambda index: next(iter(index["videos"].values())).update(row=True), "row is True"),
    "huge": (lambda index: next(iter(index["videos"].values())).update(frames=2**70), "frames is"),
    "none": (lambda index: next(iter(index["videos"].values())).update(frames=0), "0 frames"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_damaged_index_is_refused(experiment, own, refused, kind):
    change, told = WRONG[kind]
    spoilt(own, change)
    for command in (
        ["train", *words(experiment, f"data.prepared={own}")],
        ["prepare", *words(experiment), "--to", own],
    ):
        message = refused(*command)
        assert told in message
        assert str(own / "index.json") in message


def test_no_index_is_refused(experiment, tmp_path, own, refused):
    assert "no prepared videos there" in refused("train", *words(experiment, f"data.prepared={tmp_path}"))
    for data in (b"", b"[1]", b"\xff{", b"[" * 100_000):
        (own / "index.json").write_bytes(data)
        with pytest.raises(InputError, match=r"index\.json: "):
            read_index(own)


@pytest.mark.parametrize(
    "change",
    [{"row": 2}, {"row": 2**62}, {"height": 33}, {"height": 2**40, "width": 2**40}, {"frames": 5}, {"frames": 2**40}],
    ids=str,
)
def test_an_index_that_lies_gives_no_wrong_frames(experiment, own, change):
    paths, storage = prepare._wanted(config_of(experiment))
    path, name = next(iter(paths.items()))
    spoilt(own, lambda index: index["videos"][name].update(change))
    prepared = Prepared(own, open_shard)
    prepared.choose(paths, storage)
    with pytest.raises(InputError, match="damaged"):
        prepared.frames(path, [0, 3])


def test_heads_are_what_mindspore_parses(frames):
    """The first bytes and the .db alone: what follows may be damaged without harm to the process."""
    index = read_index(frames)
    for name, shard in index.shards.items():
        assert head_sha256(frames / name) == shard.head_sha256
        header = (frames / name).read_bytes()[: 2**16]
        said = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])
        assert said["header_size"] == 2**16
        assert [page["page_type"] for page in said["page"]] == ["BLOB_DATA", "RAW_DATA"]
        assert said["schema"][0]["blob_fields"] == ["frames"]
