# SPDX-License-Identifier: Apache-2.0
"""Frames that `mindvideo prepare` stored as JPEG: what is in its folder, and the frames of a video by number.

The folder holds index.json and shards, MindRecord files of a row a video, each with a `.db` of MindSpore's beside it. A
row has the columns `video`, its number in the index, and `frames`, bytes: size and CRC-32 of each frame's JPEG (`<u4`),
then the JPEGs. The sizes have no column of their own, because MindSpore's reader believes the lengths that stand
between several columns of bytes, and a damaged one crashes the process. A damaged head of a shard or `.db` does so too,
and therefore must have the SHA-256 that the index tells before MindSpore opens it. T frames, H height, W width.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np

from mindvideo.errors import InputError, VideoError

INDEX = "index.json"
VERSION = 1
HEAD_BYTES = 2**16  # of a shard, that MindSpore parses when it opens it
COLUMNS = ("video", "frames")
SHARD_NAME = re.compile(r"frames-\d{5}\.mindrecord")

_OPEN_SHARDS = 128  # of a process, each of which takes three of the 1024 files that it usually may open

Record = TypeVar("Record")
# A shard's rows by number: the number of the video, and uint8 `[bytes]`. Raises RuntimeError where there is none.
Rows = Callable[[int], tuple[int, np.ndarray]]


@dataclass(frozen=True)
class Storage:
    """How frames are stored: numbered as `decoder` puts them out, larger ones shrunk to `short_side` (0: as they are).

    `interpolation` is area (that of `transforms.resize_frames`), bilinear, or none where nothing is shrunk.
    """

    decoder: str
    short_side: int
    interpolation: str
    quality: int = 95

    def lacks(self, wanted: Storage) -> str:
        """Why frames stored so do not do for who wants them otherwise; empty if they do."""
        if self.decoder != wanted.decoder:
            return f"its decoder is {self.decoder}, the config's {wanted.decoder}"
        if self.short_side == 0:
            return ""
        if wanted.short_side == 0 or self.short_side < wanted.short_side:
            return f"its shorter sides are {self.short_side} pixels, the config needs {wanted.short_side or 'all'}"
        if self.interpolation != wanted.interpolation:
            return f"its interpolation is {self.interpolation}, the config's {wanted.interpolation}"
        return ""


@dataclass(frozen=True)
class Shard:
    """A whole MindRecord file: its size and SHA-256, and that of its first HEAD_BYTES followed by its `.db`."""

    bytes: int
    sha256: str
    head_sha256: str


@dataclass(frozen=True)
class Video:
    """A prepared video: the file that it was, and the place, number and size of its stored frames."""

    size: int
    mtime_ns: int
    sha256: str
    number: int
    frames: int
    height: int
    width: int
    shard: str = ""
    row: int = 0


@dataclass(frozen=True)
class Broken:
    """A video that could not be decoded, and why."""

    size: int
    mtime_ns: int
    problem: str


@dataclass
class Index:
    """What index.json says: shards by file name, videos by `video_names`."""

    storage: Storage
    shards: dict[str, Shard]
    videos: dict[str, Video]
    broken: dict[str, Broken]

    def write(self, folder: Path) -> None:
        """Write index.json, which is never seen half written."""
        temporary = folder / f".{INDEX}.tmp"
        with temporary.open("w", encoding="utf-8") as file:
            file.write(json.dumps({"mindvideo_prepared": VERSION} | vars(self), default=vars))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / INDEX)


def read_index(folder: Path) -> Index:
    """The index of a folder; InputError if there is none, or it is not what `Index.write` writes."""
    path = folder / INDEX
    if not path.is_file():
        raise InputError(f"{folder}: no prepared videos there (no {INDEX}); `mindvideo prepare` makes such a folder.")
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged, no JSON ({error}).") from error
    version = values.pop("mindvideo_prepared", None) if isinstance(values, dict) else None
    if version != VERSION:
        raise InputError(f"{path}: format version {VERSION} is needed, found {version!r}.")
    tables: dict[str, Any] = {"shards": Shard, "videos": Video, "broken": Broken}
    if values.keys() != {"storage", *tables} or not all(isinstance(values[name], dict) for name in tables):
        raise InputError(f"{path}: damaged, it must hold storage, {', '.join(tables)} and nothing else.")
    found = {
        name: {key: _record(kind, value, f"{path}, {name}, {key!r}") for key, value in values[name].items()}
        for name, kind in tables.items()
    }
    index = Index(_record(Storage, values["storage"], f"{path}, storage"), **found)
    _check(index, path)
    return index


def _record(kind: type[Record], values: object, where: str) -> Record:
    """A dataclass of what JSON holds of it; InputError unless these are its fields in their types, numbers from 0."""
    wanted: dict[str, Any] = {field.name: field.type for field in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(values, dict) or values.keys() != wanted.keys():
        raise InputError(f"{where}: damaged, it must hold {', '.join(wanted)} and nothing else.")
    for name, value in values.items():
        if type(value).__name__ != wanted[name] or (isinstance(value, int) and not 0 <= value < 2**63):
            raise InputError(f"{where}: damaged, {name} is {value!r}.")
    return kind(**values)


def _check(index: Index, path: Path) -> None:
    """InputError where names lead out of the folder, or a video's place cannot be."""
    for name in index.shards:
        if not SHARD_NAME.fullmatch(name):
            raise InputError(f"{path}: damaged, {name!r} is no name of a shard.")
    for name, video in index.videos.items():
        if video.shard not in index.shards or min(video.frames, video.height, video.width) < 1:
            raise InputError(f"{path}: damaged, {name!r} is in shard {video.shard!r}, {video.frames} frames.")


def stamp(path: Path) -> tuple[int, int]:
    """Size in bytes (0 of a folder of frames) and time of change, in ns, which tell a changed video; 0 of none."""
    if not path.exists():
        return 0, 0
    found = path.stat()
    return 0 if path.is_dir() else found.st_size, found.st_mtime_ns


def video_names(paths: Iterable[Path], roots: Sequence[tuple[str, Path]]) -> dict[Path, str]:
    """What the index calls videos: `<data set>/<path below its root>`, so that data sets can be moved, or the absolute
    path of a video below none of the `roots` (data set, folder) and of a second one by the same name."""
    names: dict[str, Path] = {}
    for path in dict.fromkeys(paths):
        inside = [f"{name}/{path.relative_to(root).as_posix()}" for name, root in roots if path.is_relative_to(root)]
        names[next((name for name in inside if name not in names), str(path.absolute()))] = path
    return {path: name for name, path in names.items()}


def pack(jpegs: Sequence[bytes]) -> bytes:
    """The row of a video's frames."""
    table_T2 = np.array([(len(jpeg), zlib.crc32(jpeg)) for jpeg in jpegs], "<u4")
    return b"".join([table_T2.tobytes(), *jpegs])


def jpegs_of(row: np.ndarray, num_frames: int, wanted: Iterable[int]) -> list[np.ndarray]:
    """The JPEGs of the `wanted` frames, ascending, of a row, uint8 `[bytes]`; ValueError where it is damaged."""
    head = 8 * num_frames
    if len(row) <= head:
        raise ValueError(f"it has {len(row)} bytes, too few for {num_frames} frames")
    table_T2 = row[:head].view("<u4").reshape(num_frames, 2)
    ends_T = head + np.cumsum(table_T2[:, 0], dtype=np.int64)
    if ends_T[-1] != len(row):
        raise ValueError("the sizes of its frames do not add up")
    found = []
    for number in wanted:
        size, checksum = table_T2[number]
        jpeg = row[ends_T[number] - size : ends_T[number]]
        if zlib.crc32(jpeg.data) != checksum:
            raise ValueError(f"frame {number} is not what was written, by its CRC-32")
        found.append(jpeg)
    return found


def head_sha256(path: Path) -> str:
    """SHA-256 of all that MindSpore parses of a shard when it opens it."""
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(HEAD_BYTES))
    digest.update(path.with_name(f"{path.name}.db").read_bytes())
    return digest.hexdigest()


class Prepared:
    """The frames of videos in a folder, read by `open_shard`, in any number of processes and threads.

    Each process opens the shards for itself, when it first needs them: a fork would share the place in an open file
    with its parent.
    """

    def __init__(self, folder: Path, open_shard: Callable[[Path], Rows]):
        """InputError if the folder's index is damaged."""
        self.folder, self.index, self._open_shard = folder, read_index(folder), open_shard
        self.names: dict[Path, str] = {}
        # What a fork inherits stays in its parent's entry, untouched: MindSpore's destructor may wait for ever there.
        self._opened: dict[int, OrderedDict[str, Rows]] = {}

    def choose(self, names: Mapping[Path, str], wanted: Storage) -> tuple[dict[Path, int], dict[Path, str]]:
        """Take these videos, by `video_names`: the frame counts of the whole ones, and what is wrong with broken ones.

        InputError if the frames are not stored as wanted, a video is not there or has changed since, or a shard is
        damaged.
        """
        if problem := self.index.storage.lacks(wanted):
            raise InputError(f"data.prepared: {self.folder} does not fit: {problem}. Prepare another folder.")
        counts: dict[Path, int] = {}
        broken: dict[Path, str] = {}
        lost: list[str] = []
        for path, name in names.items():
            known = self.index.videos.get(name) or self.index.broken.get(name)
            if known is None:
                lost.append(f"{path}: not in the index")
            elif stamp(path) != (known.size, known.mtime_ns):
                lost.append(f"{path}: {'has changed since it was prepared' if path.exists() else 'no such video'}")
            elif isinstance(known, Broken):
                broken[path] = known.problem
            else:
                counts[path] = known.frames
        if lost:
            shown = "\n  ".join(lost[:10]) + ("\n  ..." if len(lost) > 10 else "")
            raise InputError(
                f"data.prepared: {len(lost)} of {len(names)} videos are not prepared in {self.folder}:\n  {shown}\n"
                f"Run `mindvideo prepare CONFIG --to {self.folder}`."
            )
        for shard in sorted({self.index.videos[names[path]].shard for path in counts}):
            self.check_head(shard)
        self.names = dict(names)
        return counts, broken

    def frames(self, path: Path, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The frames at `indices` (any order, repeats allowed), uint8 RGB `[T, H, W, 3]`, as `video.read_frames`.

        VideoError for an index that the video does not have, InputError where its row is damaged.
        """
        video = self.index.videos[self.names[path]]
        wanted, order = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
        if wanted.size == 0 or wanted[0] < 0:
            raise VideoError(f"{path}: frame indices must be 0 or more and at least one, got {list(indices)}")
        if wanted[-1] >= video.frames:
            raise VideoError(f"{path}: frame {wanted[-1]} was asked for, the video has {video.frames} frames")
        try:
            frames = [_decode(jpeg, video) for jpeg in self.jpegs(video, wanted)]
        except (ValueError, RuntimeError, cv2.error) as error:
            if isinstance(error, InputError):
                raise
            raise self._damaged(video.shard, f"{path}: {first_line(error)}") from error
        return np.stack([frames[i] for i in order])

    def jpegs(self, video: Video, wanted: Iterable[int]) -> list[np.ndarray]:
        """The JPEGs of these frames; ValueError or RuntimeError where the row is damaged."""
        number, row = self._rows(video.shard)(video.row)
        if number != video.number:
            raise ValueError(f"row {video.row} holds video {number} instead of {video.number}")
        return jpegs_of(row, video.frames, wanted)

    def _rows(self, shard: str) -> Rows:
        """Those of a shard, the last used of which stay open."""
        opened = self._opened.setdefault(os.getpid(), OrderedDict())
        rows = opened.pop(shard, None)
        if rows is None:
            self.check_head(shard)
            rows = self._open_shard(self.folder / shard)
        opened[shard] = rows
        if len(opened) > _OPEN_SHARDS:
            opened.popitem(last=False)
        return rows

    def check_head(self, shard: str) -> None:
        """InputError unless a shard is there, in its size, and may be opened."""
        path, known = self.folder / shard, self.index.shards[shard]
        for file in (path, path.with_name(f"{shard}.db")):
            if file.is_symlink() or not file.is_file():
                raise self._damaged(shard, f"{file.name} is missing, or is no plain file")
        if path.stat().st_size != known.bytes:
            raise self._damaged(shard, f"it has {path.stat().st_size} bytes, not the {known.bytes} that were written")
        if head_sha256(path) != known.head_sha256:
            raise self._damaged(shard, "its head is not what was written, by its SHA-256")

    def _damaged(self, shard: str, what: str) -> InputError:
        return InputError(
            f"{self.folder / shard}: damaged ({what}). Remove it, and run `mindvideo prepare` again as before."
        )


def _decode(jpeg: np.ndarray, video: Video) -> np.ndarray:
    """RGB `[H, W, 3]` of a JPEG; ValueError if it is none of the video's size."""
    bgr_HWC = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)
    if bgr_HWC is None or bgr_HWC.shape != (video.height, video.width, 3):
        raise ValueError(f"a frame is no JPEG of {video.width} x {video.height} pixels")
    return cv2.cvtColor(bgr_HWC, cv2.COLOR_BGR2RGB)


def first_line(error: Exception) -> str:
    """What an error says, of MindSpore's pages of text the line that tells something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" -")]
    told = [line.removeprefix("[ERROR] ") for line in lines if line.startswith("[ERROR]")]
    return next(iter(told + lines), type(error).__name__)
