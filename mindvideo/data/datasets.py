# SPDX-License-Identifier: Apache-2.0
"""Data sets on disk: UCF101, HMDB51, Kinetics, Moments in Time, SSv2, a folder per class, or a CSV file.

A tree is `<root>/<Class>/<video>`, where a video is a file or a folder of frames. Frame counts come from
decoding every video once (`count_all_frames`), which also finds the broken ones; they are cached.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mindvideo.data.manifest import Sample, read_csv
from mindvideo.data.video import IMAGE_SUFFIXES, VIDEO_SUFFIXES, count_frames
from mindvideo.errors import InputError, VideoError

_UCF101_NAME = re.compile(r"v_\w+_(g\d+)_c\d+")
_HMDB51_TAIL = re.compile(r"_[a-z]+_[a-z]{2}_np\d+_[a-z]{2}_[a-z]+_\d+$")
_YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")
_KINETICS_TIMES = re.compile(r"_\d{6}_\d{6}$")


def ucf101(root: Path) -> list[Sample]:
    """`<root>/<Class>/v_<Class>_gXX_cYY.*`; the group is <Class>/gXX (25 sources a class)."""
    return _tree(root, ucf101_group)


def ucf101_group(label: str, stem: str) -> str:
    """The source of a UCF101 video: <Class>/gXX."""
    found = _UCF101_NAME.fullmatch(stem)
    if found is None:
        raise InputError(f"{label}/{stem}: UCF101 names are v_<Class>_gXX_cYY; use `data.dataset: folder`.")
    return f"{label}/{found.group(1)}"


def stickfigures(root: Path) -> list[Sample]:
    """The embedded sample's videos; the group is gXX, an actor in a scene, which all classes share."""
    return _tree(root, stickfigures_group)


def stickfigures_group(label: str, stem: str) -> str:
    """The source of one of the sample's videos: gXX."""
    return ucf101_group(label, stem).partition("/")[2]


def hmdb51(root: Path) -> list[Sample]:
    """`<root>/<class>/<film>_<class>_<six tags>.*`; the group is the film, whatever its class.

    Spellings and numbered parts of one film (`The_Fugitive_2`, `The_Fugitive_3`) are one group: small letters and
    digits joined by `_`, without the numbers at the end.
    """
    return _tree(root, hmdb51_group)


def hmdb51_group(label: str, stem: str) -> str:
    """The source of an HMDB51 video: its film."""
    name = _HMDB51_TAIL.sub("", stem).removesuffix(f"_{label}")
    words = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return re.sub(r"(_\d+)+$", "", words)


def kinetics(root: Path) -> list[Sample]:
    """`<root>/<class>/<YouTube id>_<first>_<last>.*`, or without the seconds; the group is the YouTube video."""
    return _tree(root, kinetics_group)


def kinetics_group(label: str, stem: str) -> str:
    """The source of a Kinetics video: its YouTube id."""
    youtube_id = without_times(stem)
    if not _YOUTUBE_ID.fullmatch(youtube_id):
        raise InputError(
            f"{label}/{stem}: Kinetics names are <YouTube id> or <YouTube id>_<first>_<last>, the seconds with six "
            "digits; use `data.dataset: folder`."
        )
    return youtube_id


def without_times(stem: str) -> str:
    """The YouTube id in the name of a Kinetics clip; other names as they are."""
    return _KINETICS_TIMES.sub("", stem)


def mit(root: Path) -> list[Sample]:
    """Moments in Time: `<root>/<class>/<site>-<video>_<number>.*`; the group is the video, whatever its class.

    YouTube's videos are named `yt-<id>` or `<id>`.
    """
    return _tree(root, mit_group)


def mit_group(_label: str, stem: str) -> str:
    """The source of a Moments in Time video: the video of the site that it was cut from."""
    return re.sub(r"_\d+$", "", stem).removeprefix("yt-")


def ssv2(root: Path) -> list[Sample]:
    """Something-Something V2: `<root>/<number>.*` or `<root>/<folder>/<number>.*`; every video is its own group.

    A video's number says all and folders nothing, so labels are empty until a video list gives them.
    """
    root = _checked_root(root, "<number>.webm")
    folders = [root, *(p for p in visible(root) if p.is_dir() and not is_video(p))]
    videos = [p for folder in folders for p in visible(folder) if is_video(p)]
    if not videos:
        raise InputError(f"{root}: no video found; expected {root}/<number>.webm.")
    return [Sample(video, "", video_name(video)) for video in videos]


def folder(root: Path) -> list[Sample]:
    """`<root>/<Class>/*`; every video is its own group."""
    return _tree(root, folder_group)


def folder_group(label: str, stem: str) -> str:
    """Every video is a source of its own."""
    return f"{label}/{stem}"


def csv(root: Path) -> list[Sample]:
    """A CSV file `path,label,group`; relative paths start at its folder."""
    return read_csv(root)


READERS: dict[str, Callable[[Path], list[Sample]]] = {
    "stickfigures": stickfigures, "ucf101": ucf101, "hmdb51": hmdb51, "kinetics": kinetics, "mit": mit, "ssv2": ssv2,
    "folder": folder, "csv": csv,
}  # fmt: skip


def _tree(root: Path, group_of: Callable[[str, str], str]) -> list[Sample]:
    """All videos of a class tree, sorted.

    Folders without a video, such as those of split lists, are no classes; an empty folder is an error.
    """
    root = _checked_root(root, "<Class>/<video>")
    samples: list[Sample] = []
    for class_folder in (p for p in visible(root) if p.is_dir()):
        entries = visible(class_folder)
        if not entries:
            raise InputError(f"{class_folder}: the class folder is empty; remove it or add videos.")
        label = class_folder.name
        videos = [p for p in entries if is_video(p)]
        samples += [Sample(p, label, group_of(label, video_name(p))) for p in videos]
    if not samples:
        raise InputError(f"{root}: no video found; expected {root}/<Class>/<video>.")
    return samples


def _checked_root(root: Path, form: str) -> Path:
    if not Path(root).is_dir():
        raise InputError(f"data.root: {root} is not a folder. Expected {root}/{form}.")
    return Path(root)


def visible(folder: Path) -> list[Path]:
    """What is in a folder, sorted, without hidden files."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def video_name(path: Path) -> str:
    """A video's name without suffix; the dots in the name of a frame folder are part of it."""
    return path.name if path.is_dir() else path.stem


def is_video(path: Path) -> bool:
    """Whether this is a video file by its suffix, or a folder of images."""
    if path.is_dir():
        return any(p.suffix.lower() in IMAGE_SUFFIXES for p in path.iterdir())
    return path.suffix.lower() in VIDEO_SUFFIXES


def cache_folder() -> Path:
    """`$MINDVIDEO_CACHE`, or ~/.cache/mindvideo."""
    return Path(os.environ.get("MINDVIDEO_CACHE") or Path.home() / ".cache" / "mindvideo")


def count_all_frames(
    samples: Sequence[Sample],
    decoder: str = "pyav",
    *,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[Path, int], dict[Path, str]]:
    """Decode every video once: frame counts of the good ones, and what is wrong with the broken ones.

    Counts are kept in the cache folder and reused while a file's size and time stay the same; broken videos
    are always looked at again.
    """
    cache = cache_folder() / "frame_counts.json"
    known = _read_cache(cache)
    counts: dict[Path, int] = {}
    broken: dict[Path, str] = {}
    keys: dict[Path, str] = {}
    for path in dict.fromkeys(sample.path for sample in samples):
        try:
            stat = path.stat()
        except FileNotFoundError:
            broken[path] = f"{path}: no such video."
            continue
        keys[path] = f"{decoder}|{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
        if keys[path] in known:
            counts[path] = known[keys[path]]
    todo = [path for path in keys if path not in counts]

    def count(path: Path) -> int | VideoError:
        try:
            return count_frames(path, decoder)
        except VideoError as error:
            return error

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for done, (path, result) in enumerate(zip(todo, pool.map(count, todo), strict=True), start=1):
            if isinstance(result, VideoError):
                broken[path] = str(result)
            else:
                counts[path] = result
            if progress:
                progress(done, len(todo))
    if todo:
        _write_cache(cache, known | {keys[p]: n for p, n in counts.items()})
    return counts, broken


def _read_cache(path: Path) -> dict[str, int]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _write_cache(path: Path, counts: dict[str, int]) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(counts), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            f"{path.parent}: cannot write the cache ({error}); set MINDVIDEO_CACHE to a folder."
        ) from error
