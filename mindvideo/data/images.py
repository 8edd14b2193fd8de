# SPDX-License-Identifier: Apache-2.0
"""Images: lists of them on disk, frames of videos as images, and the way from file to array.

H height, W width, S side of the square that a network sees; uint8 RGB until the end, then float32 in [0, 1].
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mindvideo.data.crops import center_box, crop_frames, random_crop_box
from mindvideo.data.datasets import cache_folder, folder_group, visible
from mindvideo.data.manifest import Sample
from mindvideo.data.transforms import flip_frames, resize_frames, short_side_resize
from mindvideo.data.video import IMAGE_SUFFIXES, read_frames
from mindvideo.errors import InputError

Augment = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def read_image(path: Path) -> np.ndarray:
    """An image file as uint8 `[H, W, 3]`, upright; InputError if it is none, or announces too many pixels."""
    try:
        with Image.open(path) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such image.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: no readable image ({error}).") from error


@dataclass(frozen=True)
class ImageReader:
    """An image file to float32 `[3, S, S]` in [0, 1].

    In training (`rng` given) a window of a share of its area drawn from `crop_scale`, resized to `size`, mirrored at
    random with `flip`, then changed by `augment`; in tests the shorter side becomes `short_side` and the square in the
    middle counts.
    """

    size: int = 224
    short_side: int = 256
    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip: bool = False
    augment: Augment | None = None

    def __call__(self, sample: Sample, rng: np.random.Generator | None = None) -> np.ndarray:
        image_1HWC = read_image(sample.path)[None]
        if rng is None:
            image_1HWC = short_side_resize(image_1HWC, self.short_side)
            height, width = image_1HWC.shape[1:3]
            image_1HWC = crop_frames(image_1HWC, center_box(height, width, self.size))
        else:
            height, width = image_1HWC.shape[1:3]
            box = random_crop_box(height, width, self.crop_scale, rng)
            image_1HWC = resize_frames(crop_frames(image_1HWC, box), (self.size, self.size))
            if self.flip and rng.random() < 0.5:
                image_1HWC = flip_frames(image_1HWC)
            if self.augment is not None:
                image_1HWC = self.augment(image_1HWC[0], rng)[None]
        return image_1HWC[0].transpose(2, 0, 1).astype(np.float32) / np.float32(255)


def image_folder(root: Path) -> tuple[list[Sample], list[Sample]]:
    """Training and test images of `<root>/train/<Class>/*` and `<root>/test/<Class>/*` (or `val` for `test`)."""
    test = next((root / name for name in ("test", "val") if (root / name).is_dir()), root / "test")
    return _class_tree(root / "train"), _class_tree(test)


def _class_tree(root: Path) -> list[Sample]:
    folders = [folder for folder in visible(root) if folder.is_dir()] if root.is_dir() else []
    samples = [
        Sample(path, folder.name, folder_group(folder.name, path.stem))
        for folder in folders
        for path in visible(folder)
        if path.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not samples:
        raise InputError(f"{root}: no image found; expected {root}/<Class>/<image>.")
    return samples


def image_list(path: Path, root: Path) -> list[Sample]:
    """Images of a list of one of the contest's forms, below `root`: `NAME label` lines, or, in a .json file,
    `{"label": ["NAME", ...], ...}`. InputError names file and line."""
    if not path.is_file():
        raise InputError(f"{path}: no such list of images.")
    text = path.read_text(encoding="utf-8")
    pairs = _json_pairs(path, text) if path.suffix == ".json" else _line_pairs(path, text)
    if not pairs:
        raise InputError(f"{path}: the list names no image.")
    return [Sample(_below(root, name, path), label, name) for name, label in pairs]


def _line_pairs(path: Path, text: str) -> list[tuple[str, str]]:
    pairs = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.rsplit(maxsplit=1)
        if len(words) == 1:
            raise InputError(f"{path}, line {number}: {line!r}; expected `NAME label`.")
        if words:
            pairs.append((words[0].strip(), words[1]))
    return pairs


def _json_pairs(path: Path, text: str) -> list[tuple[str, str]]:
    try:
        listing = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: no JSON ({error}).") from error
    is_listing = isinstance(listing, dict) and all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in listing.values()
    )
    if not is_listing:
        raise InputError(f'{path}: expected {{"label": ["NAME", ...], ...}}.')
    return [(name, label) for label, names in listing.items() for name in names]


def _below(root: Path, name: str, listing: Path) -> Path:
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{listing}: {name!r} leads out of {root}.")
    return path


def extract_frames(
    videos: Sequence[Sample],
    num_frames: dict[Path, int],
    *,
    per_video: int,
    short_side: int,
    decoder: str = "pyav",
    progress: Callable[[int], None] | None = None,
) -> list[Sample]:
    """So many frames of each video, from the middles of equal parts, as PNG files of this shorter side in the cache.

    `num_frames` holds each video's true length. Files made before from the same video are taken as they are. A frame
    has its video's label and group.
    """
    folder = cache_folder() / "frames"
    folder.mkdir(parents=True, exist_ok=True)

    def extract(video: Sample) -> list[Sample]:
        stat = video.path.stat()
        key = f"{video.path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{short_side}|{decoder}"
        stem = sha256(key.encode()).hexdigest()[:24]
        total = num_frames[video.path]
        places = [(2 * i + 1) * total // (2 * per_video) for i in range(per_video)]
        paths = [folder / f"{stem}-{place}.png" for place in places]
        missing = {place: path for place, path in zip(places, paths, strict=True) if not path.is_file()}
        if missing:
            frames_FHWC = short_side_resize(read_frames(video.path, list(missing), decoder), short_side)
            for frame_HWC, path in zip(frames_FHWC, missing.values(), strict=True):
                _write_png(path, frame_HWC)
        return [Sample(path, video.label, video.group) for path in paths]

    frames: list[Sample] = []
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for done, found in enumerate(pool.map(extract, videos), start=1):
            frames += found
            if progress:
                progress(done)
    return frames


def _write_png(path: Path, frame_HWC: np.ndarray) -> None:
    temporary = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.tmp")
    Image.fromarray(frame_HWC).save(temporary, format="PNG")
    temporary.replace(path)
