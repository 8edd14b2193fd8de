# SPDX-License-Identifier: Apache-2.0
"""Videos of strangers are opened in a process of their own, with limits on its memory and time.

A decoder cannot be stopped from within, and what crashes it shall not take the server along. This module is both sides:
`decode` starts `python -m mindvideo.serve.decode`, which answers with the arrays of `ViewReader.crops` as .npz on its
standard output, or with one sentence and status 2. It does without MindSpore, whose import takes longer than decoding.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from mindvideo.data.sampling import dense, windows
from mindvideo.data.transforms import ViewTransform
from mindvideo.data.video import count_frames, read_frames
from mindvideo.errors import InputError, VideoError

if TYPE_CHECKING:
    from mindvideo.data.loader import ViewReader
    from mindvideo.predict import VideoClip

MOST_MEMORY = 2 * 2**30  # address space of the process
MOST_PIXELS = 4096 * 2304  # of a frame
MOST_FRAME_BYTES = 2**30  # of the frames that are needed, before they are cropped

_REFUSED = 2  # exit status


def decode(path: Path, reader: ViewReader, max_seconds: float) -> VideoClip:
    """What a network needs of a video; InputError, which calls it "video", if it is broken, too large or too slow."""
    from mindvideo.predict import VideoClip

    settings = {
        "path": str(path), "sampling": reader.sampling, "length": reader.length, "stride": reader.stride,
        "num_clips": reader.num_clips, "decoder": reader.decoder, "size": reader.transform.size,
        "short_side": reader.transform.short_side, "views": reader.transform.views, "max_seconds": max_seconds,
    }  # fmt: skip
    command = [sys.executable, "-m", "mindvideo.serve.decode", json.dumps(settings)]
    package = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(command, capture_output=True, timeout=max_seconds, cwd=package, check=False)
    except subprocess.TimeoutExpired:
        raise InputError(f"video: it takes longer to decode than the {max_seconds:g} s allowed.") from None
    if done.returncode == _REFUSED:
        raise InputError(done.stdout.decode())
    if done.returncode:
        raise InputError("video: the decoder broke down over it.")
    with np.load(BytesIO(done.stdout), allow_pickle=False) as arrays:
        return VideoClip(arrays["crops"], arrays["places"])


def main() -> int:
    """The other side."""
    settings = json.loads(sys.argv[1])
    path = Path(settings["path"])
    seconds = int(settings["max_seconds"]) + 1
    for what, most in ((resource.RLIMIT_AS, MOST_MEMORY), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(what, (most, most))
    try:
        crops_KFHWC, places_VT = _look(path, settings)
        output = BytesIO()
        np.savez(output, crops=crops_KFHWC, places=places_VT)
    except VideoError as error:
        print(str(error).replace(str(path), "video"), end="")
        return _REFUSED
    except (MemoryError, cv2.error):
        print(f"video: it takes more than {MOST_MEMORY} bytes of memory to decode.", end="")
        return _REFUSED
    sys.stdout.buffer.write(output.getbuffer())
    return 0


def _look(path: Path, settings: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """As `ViewReader.crops` does, once frames are known to be of a bearable size."""
    height, width = read_frames(path, [0])[0].shape[:2]
    if height * width > MOST_PIXELS:
        raise VideoError(f"{path}: frames of {width} x {height}; allowed are {MOST_PIXELS} pixels.")
    sampler = {"dense": dense, "windows": windows}[settings["sampling"]]
    count = count_frames(path, settings["decoder"])
    indices_VT = sampler(count, settings["length"], settings["stride"], settings["num_clips"])
    wanted_F, places = np.unique(indices_VT, return_inverse=True)
    if len(wanted_F) * height * width * 3 > MOST_FRAME_BYTES:
        raise VideoError(
            f"{path}: {len(wanted_F)} frames of {width} x {height} are needed; allowed are {MOST_FRAME_BYTES} bytes."
        )
    transform = ViewTransform(settings["size"], settings["short_side"], settings["views"])
    crops_KFHWC = transform.crop(read_frames(path, wanted_F, settings["decoder"]))
    return crops_KFHWC, places.reshape(indices_VT.shape)


if __name__ == "__main__":
    sys.exit(main())
