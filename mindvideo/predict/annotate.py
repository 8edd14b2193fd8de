# SPDX-License-Identifier: Apache-2.0
"""Clips with what is said of them written below: videos as .mp4 or .gif, also with the heat of a class over what the
network saw, and poses as the .gif of a skeleton.

Frames are drawn and encoded one by one. T frames, J joints, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from PIL import Image, ImageDraw

from mindvideo.data import video
from mindvideo.data.datasets import video_name
from mindvideo.data.pose import joint_positions, read_pose
from mindvideo.data.stickfigure_actions import PARENTS
from mindvideo.errors import InputError
from mindvideo.predict.results import Row, refuse_existing
from mindvideo.predict.stream import frame_rate, stream_frames
from mindvideo.report import figures

LEAST_WIDTH = 320  # pixels; smaller frames are enlarged, so that the text below can be read
FOLDER_RATE, POSE_RATE = 25.0, 20.0  # frames a second where nothing says
MOST_POSES = 600  # a longer recording is shown in as many frames
SKELETON_SIDE = 320
OPACITY = 0.7  # of the hottest place

# suffix -> codec, pixel format, options; FFmpeg gives this format of GIF one palette for all frames
_CODECS = {".mp4": ("libx264", "yuv420p", {"crf": "18", "preset": "veryfast"}), ".gif": ("gif", "rgb8", {})}


def targets(clips: Sequence[Path], folder: Path, suffix: str) -> list[Path]:
    """A new file of the folder, which is made, for each clip: its name, numbered from the second of that name on.

    InputError if such a file is there already, or the folder cannot be."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: it is no folder, and pictures of clips go into one.")
    folder.mkdir(parents=True, exist_ok=True)
    taken: set[Path] = set()
    found = []
    for clip in clips:
        name, number = video_name(clip), 1
        while (path := folder / f"{name}{f'-{number}' if number > 1 else ''}{suffix}") in taken:
            number += 1
        refuse_existing(path)
        taken.add(path)
        found.append(path)
    return found


def annotate_video(source: Path, rows: Sequence[Row], target: Path) -> None:
    """A video file or folder of frames, each frame above the last row that has begun."""
    rate = _shown_rate(source)
    if source.is_dir():
        frames = ((n / rate, video.read_frame_file(path)) for n, path in enumerate(video.frame_files(source)))
    else:
        frames = stream_frames(source, rate)
    _write(target, _captioned(frames, rows), rate)


def annotate_heat(
    source: Path, frames_THWC: np.ndarray, heat_THW: np.ndarray, stride: int, row: Row, target: Path
) -> None:
    """What the network saw of a video, every `stride`-th frame, with the heat of the row's class over it; the caption
    names that class, even where it is too unsure to be the verdict."""
    frames = ((0.0, _heated(*pair)) for pair in zip(frames_THWC, heat_THW, strict=True))
    _write(target, _captioned(frames, [replace(row, is_known=None)]), _shown_rate(source) / stride)


def annotate_poses(source: Path, row: Row, target: Path) -> None:
    """The skeleton of an .npy file of poses, seen from the front."""
    poses_TJC = read_pose(source)
    chosen = np.linspace(0, len(poses_TJC) - 1, min(len(poses_TJC), MOST_POSES)).round().astype(int)
    positions_TJ3 = joint_positions(poses_TJC[chosen])
    frames = ((0.0, frame_HWC) for frame_HWC in _skeletons(positions_TJ3))
    _write(target, _captioned(frames, [row]), POSE_RATE)


def _shown_rate(source: Path) -> float:
    return FOLDER_RATE if source.is_dir() else frame_rate(source)


def _heated(frame_HWC: np.ndarray, heat_HW: np.ndarray) -> np.ndarray:
    """The hotter a place, the more it is covered by its colour, from dark violet to yellow."""
    colors_HWC = cv2.applyColorMap((heat_HW * 255).round().astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    share_HW1 = OPACITY * heat_HW[..., None]
    return (frame_HWC * (1 - share_HW1) + colors_HWC * share_HW1).round().astype(np.uint8)


def _captioned(frames: Iterable[tuple[float, np.ndarray]], rows: Sequence[Row]) -> Iterator[np.ndarray]:
    place, size, caption = 0, None, None
    for seconds, frame_HWC in frames:
        picture = Image.fromarray(frame_HWC)
        if size is None:
            scale = max(1, -(-LEAST_WIDTH // picture.width))
            size = picture.width * scale // 2 * 2, picture.height * scale // 2 * 2  # codecs want even sides
        while place + 1 < len(rows) and (rows[place + 1].start or 0) <= seconds:
            place, caption = place + 1, None
        caption = caption or _caption(rows[place], size[0])
        canvas = Image.new("RGB", (size[0], size[1] + caption.height))
        canvas.paste(picture.resize(size, Image.Resampling.BICUBIC))
        canvas.paste(caption, (0, size[1]))
        yield np.asarray(canvas)


def _caption(row: Row, width: int) -> Image.Image:
    """The class above bars of its probability and of the uncertainty, which fills its bar from 1 on."""
    text, gap = max(12, width // 30), max(6, width // 60)
    line = text + gap
    image = Image.new("RGB", (width, (3 * line + 2 * gap) // 2 * 2), figures.PAPER)
    draw = ImageDraw.Draw(image)
    bold, plain = figures.font_of(text, bold=True), figures.font_of(text - 2)
    color = figures.WRONG if row.is_known is False else figures.INK
    draw.text((gap, gap), figures.fit_text(row.verdict, bold, width - 2 * gap), color, bold)
    bars = (
        ("probability", row.top[0][1], figures.SERIES[0]),
        (row.uncertainty_name, row.uncertainty, figures.SERIES[1]),
    )
    for number, (name, value, color) in enumerate(bars, start=1):
        top, left, right = gap + number * line, width * 2 // 5, width - 4 * text
        draw.text((gap, top), figures.fit_text(name.replace("_", " "), plain, left - 2 * gap), figures.MUTED, plain)
        draw.rectangle((left, top, right, top + text), figures.PANEL)
        filled = round((right - left) * min(max(value, 0.0), 1.0))
        if filled:
            draw.rectangle((left, top, left + filled, top + text), color)
        draw.text((width - gap, top), f"{value:.3f}", figures.INK, plain, anchor="ra")
    return image


def _skeletons(positions_TJ3: np.ndarray) -> Iterator[np.ndarray]:
    """Pictures uint8 `[H, W, 3]`, all at one scale."""
    flat_TJ2 = positions_TJ3[..., :2] * [1, -1]
    low, high = flat_TJ2.min(axis=(0, 1)), flat_TJ2.max(axis=(0, 1))
    scale = 0.9 * SKELETON_SIDE / (high - low).max()
    pixels_TJ2 = (flat_TJ2 - (low + high) / 2) * scale + SKELETON_SIDE / 2
    for pixels_J2 in pixels_TJ2:
        image = Image.new("RGB", (SKELETON_SIDE, SKELETON_SIDE), figures.PANEL)
        draw = ImageDraw.Draw(image)
        for joint, parent in enumerate(PARENTS):
            if parent >= 0:
                draw.line([*pixels_J2[parent], *pixels_J2[joint]], figures.INK, 4)
        yield np.asarray(image)


def _write(target: Path, frames: Iterable[np.ndarray], rate: float) -> None:
    """Encode frames of one size as they come; the file is there whole or not at all."""
    codec, pixel_format, options = _CODECS[target.suffix]
    unfinished = target.with_name(f".unfinished-{target.name}")
    try:
        with av.open(str(unfinished), "w") as container:
            stream = container.add_stream(codec, rate=Fraction(rate).limit_denominator(100_000), options=options)
            assert isinstance(stream, av.VideoStream)
            for number, frame_HWC in enumerate(frames):
                if number == 0:
                    stream.height, stream.width, stream.pix_fmt = *frame_HWC.shape[:2], pixel_format
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
            container.mux(stream.encode())
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
