# SPDX-License-Identifier: Apache-2.0
"""Reading a few frames without decoding all of them, against decoding all of them with bare PyAV.

Equal to the bit, on files where packets can be left out, and on those where nothing may be.
"""

import subprocess
from contextlib import closing

import av
import imageio_ffmpeg
import numpy as np
import pytest

from mindvideo.data import video
from mindvideo.data.seek import needed
from mindvideo.data.video import VIDEO_SUFFIXES, count_frames, read_frames, write_video
from mindvideo.errors import VideoError
from tests.conftest import outside_folder

LENGTH = 60
PYRAMID = "keyint=10:min-keyint=1:scenecut=0:bframes=3:b-pyramid=normal:b-adapt=0"
# H.264 that shows I B B P B B P ..., with B-frames to which no other refers.
PLAIN_B = "keyint=30:min-keyint=30:scenecut=0:bframes=2:b-pyramid=none:b-adapt=0"

SEEKABLE = {
    "write_video.avi": None,
    "write_video.mp4": None,
    "many_keys.mp4": ("libx264", "-x264-params", PYRAMID),
    "one_key.mp4": ("libx264", "-x264-params", "keyint=infinite:bframes=5"),
    "plain_b.mkv": ("libx264", "-x264-params", PLAIN_B),
    "no_b.mov": ("libx264", "-x264-params", "keyint=7:bframes=0", "-pix_fmt", "yuv420p"),
    "open_gop.mp4": ("libx264", "-x264-params", "open-gop=1:" + PYRAMID),
    "open_gop.mkv": ("libx264", "-x264-params", "open-gop=1:" + PYRAMID),
    "intra_refresh.mp4": ("libx264", "-x264-params", "intra-refresh=1:keyint=12:bframes=0"),
    "slices.mp4": ("libx264", "-x264-params", "slices=3:" + PYRAMID),
    "full_range.mp4": ("libx264", "-pix_fmt", "yuvj420p", "-x264-params", PYRAMID),
    "vfr.mp4": ("libx264", "-vf", "select='not(between(n,5,14))'", "-fps_mode", "vfr", "-x264-params", PYRAMID),
    "interlaced.mp4": ("libx264", "-x264-params", "tff=1:" + PYRAMID),
    "keys.avi": ("mpeg4", "-g", "10", "-q:v", "3"),
    "keys.mp4": ("mpeg4", "-g", "10", "-q:v", "3"),
    "four_vectors.avi": ("mpeg4", "-g", "10", "-q:v", "3", "-flags", "+mv4+aic+qpel"),
    "b_frames.avi": ("mpeg4", "-g", "10", "-bf", "2", "-q:v", "3"),
    "b_frames.mp4": ("mpeg4", "-g", "10", "-bf", "2", "-q:v", "3"),
    "one_b.avi": ("mpeg4", "-g", "10", "-bf", "1", "-b_strategy", "0", "-sc_threshold", "1000000000", "-q:v", "3"),
    "one_key.avi": ("mpeg4", "-g", "600", "-q:v", "3"),
}
FALLING_BACK = {
    "h264.avi": ("libx264", "-x264-params", PYRAMID),
    "yuv444.mp4": ("libx264", "-pix_fmt", "yuv444p", "-x264-params", PYRAMID),
    "parameters_on_the_way.mp4": ("libx264", "-x264-params", PYRAMID, "-bsf:v", "dump_extra=freq=keyframe"),
    "times_of_decoding.mkv": ("libx264", "-x264-params", PYRAMID, "-bsf:v", "setts=pts=DTS"),
    "vp8.mkv": ("libvpx", "-g", "10"),
    "mpeg1.mpg": ("mpeg1video", "-g", "10", "-bf", "2"),
    "ffv1.avi": ("ffv1",),
}


def ffmpeg(*arguments) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *map(str, arguments)]
    subprocess.run(command, check=True)


@pytest.fixture(scope="module")
def master(tmp_path_factory):
    """Sixty different frames, 48 x 64, without loss: a picture that moves, so that B-frames pay."""
    blocks = np.random.default_rng(0).integers(30, 226, (12, 24, 3), dtype=np.uint8)
    picture = blocks.repeat(8, axis=0).repeat(8, axis=1)
    frames_THWC = np.stack([picture[t // 3 : t // 3 + 48, 2 * t : 2 * t + 64] for t in range(LENGTH)])
    path = tmp_path_factory.mktemp("seek") / "master.avi"
    write_video(path, frames_THWC, codec="ffv1")
    return path


@pytest.fixture(scope="module")
def make(master):
    """`make(name)` encodes the master once as SEEKABLE or FALLING_BACK says."""

    def encode(name):
        path, options = master.with_name(name), (SEEKABLE | FALLING_BACK)[name]
        if path.exists():
            return path
        if options is None:
            write_video(path, read_frames(master, range(LENGTH)))
        else:
            pixels = () if "-pix_fmt" in options or options[0] == "ffv1" else ("-pix_fmt", "yuv420p")
            ffmpeg("-i", master, "-c:v", *options, *pixels, path)
        return path

    return encode


@pytest.fixture
def decoded_whole(monkeypatch):
    """A list that grows by a path whenever everything is decoded."""
    paths, decode = [], video.decode_all

    def spy(path):
        paths.append(path)
        with closing(decode(path)) as frames:
            yield from frames

    monkeypatch.setattr(video, "decode_all", spy)
    return paths


def all_frames(path) -> np.ndarray:
    """The oracle: what the decoder puts out, one after the other."""
    with av.open(str(path), metadata_errors="ignore") as container:
        container.streams.video[0].codec_context.thread_count = 1
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def selections(count: int) -> list[list[int]]:
    """Every frame alone, windows from every second start, spread ones, and unordered ones with repeats."""
    rng = np.random.default_rng(count)
    windows = [list(range(start, start + 7)) for start in range(0, count - 6, 2)]
    spread = [sorted(rng.choice(count, 8, replace=False).tolist()) for _ in range(8)]
    return [[n] for n in range(count)] + windows + spread + [list(range(0, count, 2)), [count - 1, 3, 3, 20]]


@pytest.mark.parametrize("name", SEEKABLE)
def test_frames_are_those_of_decoding_everything(make, decoded_whole, name):
    path = make(name)
    expected = all_frames(path)
    assert len({frame.tobytes() for frame in expected}) == len(expected)
    for indices in selections(len(expected)):
        decoded_whole.clear()
        assert np.array_equal(read_frames(path, indices), expected[indices]), indices
        assert not decoded_whole, indices


@pytest.mark.parametrize("name", FALLING_BACK)
def test_files_of_which_everything_must_be_decoded(make, decoded_whole, name):
    path = make(name)
    expected = all_frames(path)
    for indices in selections(len(expected)):
        assert np.array_equal(read_frames(path, indices), expected[indices]), indices
    assert len(decoded_whole) == len(selections(len(expected)))


def test_an_edit_list_needs_everything(make, tmp_path, decoded_whole):
    """Cut at frame 23 without encoding again: the packets from the key frame on are there, some are not to be shown."""
    path = tmp_path / "edited.mp4"
    ffmpeg("-ss", 23 / 25, "-i", make("many_keys.mp4"), "-c", "copy", path)
    expected = all_frames(path)
    with av.open(str(path)) as container:
        assert len([packet for packet in container.demux(video=0) if packet.size]) > len(expected)
    for indices in selections(len(expected)):
        assert np.array_equal(read_frames(path, indices), expected[indices]), indices
    assert len(decoded_whole) == len(selections(len(expected)))


def pack(source, path) -> None:
    """As XviD and DivX write B-VOPs: each in the packet of the frame before it, and an empty frame in its place."""
    user_data, vop = b"\x00\x00\x01\xb2DivX503b1393p", b"\x00\x00\x01\xb6"
    with av.open(str(source)) as container, av.open(str(path), "w") as packed:
        contents = [bytes(packet) for packet in container.demux(video=0) if packet.size]
        stream = packed.add_stream_from_template(container.streams.video[0])
        kinds = [content[content.find(vop) + 4] >> 6 for content in contents]
        for number, content in enumerate(contents):
            if kinds[number] == 2:
                content = vop + b"\x50\x00\x00"
            elif kinds[number + 1 : number + 2] == [2]:
                content += contents[number + 1]
            packet = av.Packet(content if number else content.replace(vop, user_data + vop, 1))
            packet.stream, packet.dts, packet.pts = stream, number, number
            packet.time_base, packet.is_keyframe = stream.time_base, kinds[number] == 0
            packed.mux(packet)


def test_packed_b_frames_are_taken_apart(make, tmp_path, decoded_whole):
    path = tmp_path / "packed.avi"
    pack(make("one_b.avi"), path)
    expected = all_frames(path)
    assert np.array_equal(expected, all_frames(make("one_b.avi")))
    for indices in selections(len(expected)):
        assert np.array_equal(read_frames(path, indices), expected[indices]), indices
    assert not decoded_whole
    # Decoded as 0, 2, 1, 4, 3, ...; of the B-frames only those wanted.
    assert numbers_decoded(path, [3]) == [0, 2, 4, 3]


def numbers_decoded(path, wanted) -> list[int]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [number for _, number in needed(stream, container.demux(stream), wanted)]


def test_only_the_packets_that_are_needed_are_decoded(make):
    # Key frames 0, 10, 20...; the first packet is always taken.
    assert numbers_decoded(make("keys.avi"), [25, 27]) == [0, 20, 21, 22, 23, 24, 25, 26, 27]
    assert numbers_decoded(make("keys.avi"), [20]) == [0, 20]
    assert numbers_decoded(make("keys.avi"), [9, 10]) == list(range(11))
    # Key frames 0 and 30; decoded as 0, 3, 1, 2, 6, 4, 5, ... and B-frames are left out.
    assert numbers_decoded(make("plain_b.mkv"), [4]) == [0, 3, 6, 4]
    assert numbers_decoded(make("plain_b.mkv"), [5, 6]) == [0, 3, 6, 5]
    assert numbers_decoded(make("plain_b.mkv"), [31, 33]) == [0, 30, 33, 31]


def test_a_frame_that_is_not_there_is_named_with_the_count(make):
    for name in ("keys.avi", "many_keys.mp4"):
        with pytest.raises(VideoError, match=rf"{name}: frame 60 was asked for, the video has 60 frames"):
            read_frames(make(name), [30, 60])


@pytest.mark.parametrize("name", ["keys.avi", "many_keys.mp4"])
def test_damage_counts_where_frames_need_it(make, tmp_path, name):
    """Frames 20-29 are damaged: those behind do not need them, and before them nothing changes."""
    path = tmp_path / name
    with av.open(str(make(name))) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        key = [packet for packet in packets if packet.is_keyframe][2]
    content = bytearray(make(name).read_bytes())
    start = key.pos + (key.size // 4 if name.endswith("avi") else key.size // 2)
    content[start : start + key.size // 4] = bytes(255 for _ in range(key.size // 4))
    path.write_bytes(content)
    expected = all_frames(make(name))
    assert np.array_equal(read_frames(path, range(12, 20)), expected[12:20])
    assert np.array_equal(read_frames(path, range(30, 37)), expected[30:37])
    for reading in (lambda: count_frames(path), lambda: read_frames(path, [19, 20, 30])):
        with pytest.raises(VideoError, match=f"{name}: corrupt"):
            reading()


def real_files() -> list:
    data = outside_folder("MINDVIDEO_DATA", "data")
    if data is None:
        return []
    odd = sorted(p for p in data.glob("odd/*") if p.suffix in VIDEO_SUFFIXES)
    return odd + sorted(data.glob("ucf101/*/*.mp4"))[::120] + sorted(data.glob("hmdb51_jhmdb/*/*.mp4"))[::120]


@pytest.mark.parametrize("path", real_files(), ids=lambda path: path.name)
def test_windows_of_real_files(path):
    """Six windows of five frames and five frames spread, among the first 150 frames."""
    frames = []
    with closing(video.decode_all(path)) as decoded:
        for frame, _ in zip(decoded, range(150), strict=False):
            frames.append(frame)
    starts = np.linspace(0, max(0, len(frames) - 5), 6).astype(int)
    choices = [np.arange(start, min(start + 5, len(frames))) for start in starts]
    for indices in [*choices, np.unique(np.linspace(0, len(frames) - 1, 5).astype(int))]:
        for index, image in zip(indices, read_frames(path, indices), strict=True):
            expected = frames[index].to_ndarray(format="rgb24")
            assert np.array_equal(image, video.upright(frames[index], expected))
