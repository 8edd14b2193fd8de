# SPDX-License-Identifier: Apache-2.0
"""What the inputs of `mindvideo predict` stand for: themselves, or all clips of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mindvideo.data.datasets import is_video, visible
from mindvideo.errors import InputError


def find_clips(inputs: Sequence[Path], field: str) -> list[Path]:
    """Files in the order given, and of folders all clips in them, sorted; `field` is the predictor's, "poses" or
    "video". A folder of images is one video. InputError for a folder without any clip; files are not looked at."""
    found = []
    for path in inputs:
        if not path.is_dir() or _is_clip(path, field):
            found.append(path)
            continue
        inside = _search(path, field)
        if not inside:
            wanted = "files of poses (.npy)" if field == "poses" else "videos or folders of frames"
            raise InputError(f"{path}: this folder holds no {wanted}, nor do the folders in it.")
        found += inside
    return found


def _search(folder: Path, field: str) -> list[Path]:
    found = []
    for path in visible(folder):
        if _is_clip(path, field):
            found.append(path)
        elif path.is_dir() and not path.is_symlink():  # links may lead in circles
            found += _search(path, field)
    return found


def _is_clip(path: Path, field: str) -> bool:
    return path.suffix.lower() == ".npy" and path.is_file() if field == "poses" else is_video(path)
