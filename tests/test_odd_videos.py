# SPDX-License-Identifier: Apache-2.0
"""Real files that readers stumble over, against the ffmpeg program that imageio-ffmpeg ships.

The truth is every frame of `ffmpeg -i FILE -map 0:v:0 -fps_mode passthrough -pix_fmt rgb24 -f framemd5 -`:
as decoded, none repeated or dropped for the frame rate, turned upright, non-square pixels not resized.
PyAV brings its own build of the same libraries: the largest difference seen over all files is 0 grey
levels, so equal hashes are demanded. The tests are driven by the files found in `odd/` of the real data.
Where ffmpeg reports a damaged frame it goes on with a patched one; there a VideoError is demanded.
"""

import hashlib
import subprocess
from pathlib import Path

import imageio_ffmpeg
import pytest

from mindvideo.data.sampling import uniform
from mindvideo.data.video import VIDEO_SUFFIXES, count_frames, read_frames
from mindvideo.errors import VideoError
from tests.conftest import outside_folder

DATA = outside_folder("MINDVIDEO_DATA", "data")
FILES = sorted(p for p in DATA.glob("odd/**/*") if p.suffix in VIDEO_SUFFIXES) if DATA else []
pytestmark = pytest.mark.skipif(not FILES, reason="no odd videos: set MINDVIDEO_DATA to run these tests")


def hashes_from_ffmpeg(path: Path) -> tuple[list[str], str]:
    """The MD5 of each frame's RGB bytes, and what ffmpeg complained about."""
    arguments = ["-v", "error", "-i", str(path), "-map", "0:v:0", "-fps_mode", "passthrough"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), *arguments, "-pix_fmt", "rgb24", "-f", "framemd5", "-"]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    rows = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    return [row.rsplit(",", 1)[1].strip() for row in rows], done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_frames_equal_those_of_ffmpeg(path):
    expected, complaints = hashes_from_ffmpeg(path)
    if complaints:
        with pytest.raises(VideoError) as caught:
            count_frames(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
        return
    assert count_frames(path) == len(expected)
    # Every frame, but no more than 400 MB of them: of a long clip in high definition as many as that, spread.
    affordable = int(4e8) // read_frames(path, [0]).nbytes
    indices = uniform(len(expected), min(len(expected), affordable))
    for index, frame in zip(indices, read_frames(path, indices), strict=True):
        assert hashlib.md5(frame.tobytes()).hexdigest() == expected[index], f"frame {index}"


def test_the_corrupt_file_is_reported_by_name():
    corrupt = [path for path in FILES if path.parent.name == "corrupt"]
    for path in corrupt:
        for read in (count_frames, lambda p: read_frames(p, [0, 40])):
            with pytest.raises(VideoError, match=path.name):
                read(path)
