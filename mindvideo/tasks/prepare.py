# SPDX-License-Identifier: Apache-2.0
"""`mindvideo prepare`: decode the videos of a config once, and store their frames as JPEG for data/prepared.py to read.

A shard is written in a folder aside, read again, and only then moved in and listed in index.json, so that a stop at any
moment leaves whole shards, after which the next call goes on. T frames, H height, W width.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from av.video.reformatter import VideoReformatter
from mindspore.mindrecord import FileWriter

from mindvideo.config import Config
from mindvideo.data.loader import open_shard
from mindvideo.data.prepared import (
    COLUMNS,
    HEAD_BYTES,
    INDEX,
    Broken,
    Index,
    Prepared,
    Shard,
    Storage,
    Video,
    first_line,
    head_sha256,
    pack,
    read_index,
    stamp,
)
from mindvideo.data.transforms import resize_frames, short_side_resize
from mindvideo.data.video import count_frames, decode_all, existing, frame_files, read_frames, upright
from mindvideo.engine.log import progress_bar, say
from mindvideo.errors import InputError, VideoError
from mindvideo.tasks import fewshot_data, openset_data
from mindvideo.tasks.setup import names_of, tell_broken

SHARD_VIDEOS = 256
SHARD_BYTES = 240 * 2**20  # MindSpore's pages, of which a shard has one for frames, end at 256 MB

_ROW_BYTES = 64  # what MindSpore adds to a row, and more
_BLOCK_BYTES = 2**26  # raw frames of a video in memory at once
_SIDE = 65_500  # pixels of a JPEG's sides
_TEMPORARY = ".writing-"

Item = TypeVar("Item")
Result = TypeVar("Result")


def prepare(config: Config, folder: Path) -> None:
    """Store the frames of all videos that training and tests of the config read, but for those that `folder` has.

    InputError where the folder's frames are stored otherwise, or it cannot be written; VideoError, after all are
    tried, where videos cannot be decoded and `data.broken` is error.
    """
    paths, storage = _wanted(config)
    with _locked(folder):
        index = _open(folder, storage)
        todo = [path for path, name in paths.items() if not _is_done(path, index.videos.get(name))]
        if not todo:
            say(f"{folder}: all {len(paths)} videos are prepared already, nothing to do.")
            return
        say(f"{folder}: {len(todo)} of {len(paths)} videos to prepare")
        shards = _Shards(folder, index)
        broken: dict[Path, Broken] = {}
        with progress_bar("prepare videos", len(todo)) as progress:
            known = {path: index.videos.get(paths[path]) for path in todo}
            results = _in_order(lambda path: _encode(path, storage, known[path]), todo)
            for done, (path, result) in enumerate(zip(todo, results, strict=True), start=1):
                if isinstance(result, Broken):
                    broken[path] = result
                    index.videos.pop(paths[path], None)
                else:
                    shards.add(paths[path], *result)
                progress(done)
        shards.write()
        others = {name: found for name, found in index.broken.items() if name not in paths.values()}
        index.broken = others | {paths[path]: found for path, found in broken.items()}
        index.write(folder)
    size = sum(shard.bytes for shard in index.shards.values())
    say(f"{folder}: {len(index.videos)} videos, {len(index.shards)} shards, {size / 1e6:.1f} MB")
    tell_broken(config, {path: found.problem for path, found in broken.items()}, len(paths))


def check(folder: Path) -> None:
    """Read all shards again; InputError, with all that is damaged, unless all is what was written."""
    prepared = Prepared(folder, open_shard)
    index = prepared.index
    problems: list[str] = []
    videos: dict[str, list[Video]] = defaultdict(list)
    for video in index.videos.values():
        videos[video.shard].append(video)
    with progress_bar("check shards", len(index.shards)) as progress:
        for done, (name, shard) in enumerate(index.shards.items(), start=1):
            try:
                prepared.check_head(name)
                if _file_sha256(folder / name) != shard.sha256:
                    raise InputError(f"{folder / name}: damaged (not what was written, by its SHA-256).")
                for video in videos[name]:
                    prepared.jpegs(video, range(video.frames))
            except (ValueError, RuntimeError) as error:
                problems.append(str(error) if isinstance(error, InputError) else f"{folder / name}: {error}")
            progress(done)
    if problems:
        listed = "\n  ".join(problems)
        raise InputError(
            f"{len(problems)} of {len(index.shards)} shards are damaged:\n  {listed}\n"
            f"Remove them, and run `mindvideo prepare CONFIG --to {folder}` again: their videos are done anew."
        )
    say(f"{folder}: whole, {len(index.videos)} videos in {len(index.shards)} shards")


def _wanted(config: Config) -> tuple[dict[Path, str], Storage]:
    """The names of the videos that a config reads, and how their frames are to be stored."""
    if config.task == "fewshot":
        found, notes = fewshot_data.find_videos(config)
        parts, storage = found.values(), fewshot_data.storage(config)
    elif config.task == "openset":
        videos = openset_data.find_videos(config)
        parts, notes, storage = videos.parts.values(), videos.notes, openset_data.storage(config)
    else:
        raise InputError(f"mindvideo prepare is for the tasks fewshot and openset; this config is of {config.task}.")
    for note in notes:
        say(note)
    return names_of(config, (sample for samples in parts for sample in samples)), storage


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make the folder, and keep other calls out of it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / INDEX).is_file() and any(path.name != ".lock" for path in folder.iterdir()):
            raise InputError(f"--to: {folder} holds other files and no {INDEX}; name a new folder.")
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise InputError(f"--to: {folder} cannot be used as a folder ({error}).") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"--to: another `mindvideo prepare` is at work in {folder}.") from None
        yield


def _open(folder: Path, storage: Storage) -> Index:
    """The folder's index without shards that are missing or cut short, and nothing beside what it lists; a new one if
    there is none. InputError where frames are stored otherwise."""
    if not (folder / INDEX).exists():
        Index(storage, {}, {}, {}).write(folder)
    index = read_index(folder)
    differing = [
        f"{key} is {value!r} there, {asdict(storage)[key]!r} for this config"
        for key, value in asdict(index.storage).items()
        if value != asdict(storage)[key]
    ]
    if differing:
        raise InputError(f"--to: {folder} was prepared with other settings: {'; '.join(differing)}. Name a new folder.")
    for name, shard in list(index.shards.items()):
        file = folder / name
        if not file.is_file() or file.stat().st_size != shard.bytes or not file.with_name(f"{name}.db").is_file():
            del index.shards[name]
    index.videos = {name: video for name, video in index.videos.items() if video.shard in index.shards}
    for path in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path)
    for path in folder.glob("frames-*"):
        if path.name.removesuffix(".db") not in index.shards:
            path.unlink()
    return index


def _is_done(path: Path, video: Video | None) -> bool:
    return video is not None and stamp(path) == (video.size, video.mtime_ns)


def _in_order(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """What `work` makes of the items, in their order, by a thread a processor that are at most two items ahead each."""
    workers = os.cpu_count() or 1
    pool = ThreadPoolExecutor(workers)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _encode(path: Path, storage: Storage, known: Video | None) -> tuple[Video, bytes] | Broken:
    """A video and its row; no row if it is the `known` one, whose time of change alone is another."""
    size, mtime_ns = stamp(path)
    try:
        sha256 = _video_sha256(existing(path))
        if known and known.sha256 == sha256:
            return replace(known, size=size, mtime_ns=mtime_ns), b""
        jpegs: list[bytes] = []
        sizes: set[tuple[int, ...]] = set()
        height = width = 0
        for frame_HWC in _stream(path, storage.decoder):
            sizes.add(frame_HWC.shape)
            if len(sizes) > 1:
                raise VideoError(f"{path}: the frames are not all of one size")
            small_HWC = shrink(frame_HWC, storage)
            height, width = small_HWC.shape[:2]
            jpegs.append(_jpeg(path, small_HWC, storage.quality))
        row = pack(jpegs)
        if len(row) + _ROW_BYTES > SHARD_BYTES:
            raise VideoError(f"{path}: too long to be prepared, {len(row) / 1e6:.0f} MB of frames; cut it into pieces")
        return Video(size, mtime_ns, sha256, 0, len(jpegs), height, width), row
    except VideoError as error:
        return Broken(size, mtime_ns, str(error))


def _stream(path: Path, decoder: str) -> Iterator[np.ndarray]:
    """The frames that `read_frames` gives, one by one, uint8 `[H, W, 3]`; VideoError if the video is damaged."""
    if decoder == "pyav" and path.is_file():
        reformatter = VideoReformatter()
        for frame in decode_all(path):
            yield upright(frame, reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray())
        return
    count = count_frames(path, decoder)
    block = max(1, _BLOCK_BYTES // read_frames(path, [0], decoder).nbytes)
    for start in range(0, count, block):
        yield from read_frames(path, range(start, min(start + block, count)), decoder)


def shrink(frame_HWC: np.ndarray, storage: Storage) -> np.ndarray:
    """A frame, uint8 `[H, W, 3]`, as it is to be stored: not larger than it was."""
    height, width = frame_HWC.shape[:2]
    if storage.short_side == 0 or min(height, width) <= storage.short_side:
        return frame_HWC
    if storage.interpolation == "bilinear":
        return short_side_resize(frame_HWC[None], storage.short_side)[0]
    scale = storage.short_side / min(height, width)
    return resize_frames(frame_HWC[None], (int(height * scale + 0.5), int(width * scale + 0.5)))[0]


def _jpeg(path: Path, frame_HWC: np.ndarray, quality: int) -> bytes:
    if max(frame_HWC.shape) > _SIDE:
        raise VideoError(f"{path}: frames with a side of {max(frame_HWC.shape)} pixels, a JPEG's end at {_SIDE}")
    bgr_HWC = cv2.cvtColor(np.ascontiguousarray(frame_HWC), cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr_HWC, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def _video_sha256(path: Path) -> str:
    """Of a folder of frames, that of its images' names and SHA-256."""
    if path.is_file():
        return _file_sha256(path)
    told = "".join(f"{image.name} {_file_sha256(image)}\n" for image in frame_files(path))
    return hashlib.sha256(told.encode(errors="surrogateescape")).hexdigest()


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Shards:
    """Gathers rows, and writes a shard whenever there are enough of them."""

    def __init__(self, folder: Path, index: Index):
        self.folder, self.index = folder, index
        self._waiting: list[tuple[str, Video, bytes]] = []
        self._size = 0

    def add(self, name: str, video: Video, row: bytes) -> None:
        """A video to store; without a row, one that is stored already."""
        if not row:
            self.index.videos[name] = video
            return
        if len(self._waiting) == SHARD_VIDEOS or self._size + len(row) + _ROW_BYTES > SHARD_BYTES:
            self.write()
        self._waiting.append((name, video, row))
        self._size += len(row) + _ROW_BYTES

    def write(self) -> None:
        """Write what has been gathered; InputError where that cannot be."""
        if not self._waiting:
            return
        shard = next(name for number in range(10**5) if (name := _shard_name(number)) not in self.index.shards)
        first = max((video.number + 1 for video in self.index.videos.values()), default=0)
        rows = [(first + place, row) for place, (_, _, row) in enumerate(self._waiting)]
        try:
            with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=self.folder) as temporary:
                self.index.shards[shard] = self._move_in(_write_shard(Path(temporary) / shard, rows, self._size))
            for place, (name, video, _) in enumerate(self._waiting):
                self.index.videos[name] = replace(video, number=first + place, shard=shard, row=place)
            self.index.write(self.folder)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"{self.folder / shard}: cannot be written ({first_line(error)}). What was written before stays; the "
                "same command goes on from there."
            ) from error
        self._waiting, self._size = [], 0

    def _move_in(self, path: Path) -> Shard:
        found = Shard(path.stat().st_size, _file_sha256(path), head_sha256(path))
        for file in (path.with_name(f"{path.name}.db"), path):
            with file.open("rb+") as stored:
                os.fsync(stored.fileno())
            shutil.copymode(self.folder / INDEX, file)  # MindSpore lets nobody else read it
            file.replace(self.folder / file.name)
        return found


def _shard_name(number: int) -> str:
    return f"frames-{number:05d}.mindrecord"


def _write_shard(path: Path, rows: list[tuple[int, bytes]], size: int) -> Path:
    """Write a MindRecord file and read it again; OSError or RuntimeError where that goes wrong."""
    page = -(-max(size, 2**15) // 4096) * 4096
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, HEAD_BYTES + page + 2**20)  # MindSpore does not say that the disk is full
    path.unlink()
    writer = FileWriter(str(path))
    writer.set_header_size(HEAD_BYTES)
    writer.set_page_size(page)
    writer.add_schema(dict(zip(COLUMNS, ({"type": "int64"}, {"type": "bytes"}), strict=True)))
    for number, row in rows:
        writer.write_raw_data([dict(zip(COLUMNS, (number, row), strict=True))])
    writer.commit()
    read = open_shard(path)
    for place, (number, row) in enumerate(rows):
        found, data = read(place)
        if found != number or data.tobytes() != row:
            raise RuntimeError(f"row {place} is not what was written")
    return path
