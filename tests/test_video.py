# SPDX-License-Identifier: Apache-2.0
"""Reading and writing videos that the tests make themselves: lossless ones give exact pixels."""

import importlib.util
import subprocess
import sys

import av
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from mindvideo.data import video
from mindvideo.data.video import count_frames, read_frames, write_video
from mindvideo.errors import InputError, VideoError

CODECS = [(".avi", "mpeg4"), (".mp4", "libx264"), (".mov", "libx264"), (".mkv", "mpeg4"), (".webm", "libvpx")]
needs_decord = pytest.mark.skipif(importlib.util.find_spec("decord") is None, reason="decord is not installed")
DECODERS = ["pyav", "opencv", pytest.param("decord", marks=needs_decord)]


@pytest.fixture(scope="module")
def frames_THWC() -> np.ndarray:
    """Thirty noisy frames, 48 x 64, in blocks of 8 pixels that a lossy codec keeps apart."""
    blocks = np.random.default_rng(0).integers(30, 226, (30, 6, 8, 3), dtype=np.uint8)
    return blocks.repeat(8, axis=1).repeat(8, axis=2)


@pytest.fixture
def lossless(tmp_path, frames_THWC):
    path = tmp_path / "lossless.avi"
    write_video(path, frames_THWC, codec="ffv1")
    return path


def ffmpeg(*arguments) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *map(str, arguments)]
    subprocess.run(command, check=True)


@pytest.mark.parametrize("decoder", DECODERS)
def test_frames_come_back_in_the_order_asked(lossless, frames_THWC, decoder):
    assert count_frames(lossless, decoder) == 30
    for indices in ([0], [29], [7, 7, 3], [29, 0, 15, 15, 28], range(30), np.arange(30)[::-3]):
        frames = read_frames(lossless, indices, decoder)
        assert frames.dtype == np.uint8
        assert frames.flags.c_contiguous
        assert np.array_equal(frames, frames_THWC[list(indices)])


def codec_name(path):
    with av.open(str(path)) as container:
        return container.streams.video[0].codec_context.name


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(("suffix", "codec"), CODECS)
def test_every_container_and_decoder_agree(tmp_path, frames_THWC, suffix, codec, decoder):
    path = tmp_path / "deep" / "er" / f"clip{suffix}"
    write_video(path, frames_THWC)
    assert count_frames(path, decoder) == 30
    frames = read_frames(path, range(30), decoder)
    assert np.array_equal(frames, read_frames(path, range(30)))
    assert np.abs(frames.astype(int) - frames_THWC).mean() < 6  # chroma is stored at half resolution
    explicit = path.with_name(f"explicit{suffix}")
    write_video(explicit, frames_THWC, codec=codec)
    assert codec_name(explicit) == codec_name(path)
    if codec in ("mpeg4", "ffv1"):  # the H.264 encoder is not repeatable to the bit
        assert explicit.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("decoder", ["pyav", "opencv"])
@pytest.mark.parametrize(("angle", "turns"), [(0, 0), (90, 1), (180, 2), (-90, 3)])
def test_rotation_is_applied(tmp_path, frames_THWC, angle, turns, decoder):
    plain, turned = tmp_path / "plain.mp4", tmp_path / "turned.mp4"
    write_video(plain, frames_THWC)
    ffmpeg("-display_rotation", angle, "-i", plain, "-c", "copy", turned)
    expected = np.rot90(read_frames(plain, [0, 9]), turns, axes=(1, 2))
    assert np.array_equal(read_frames(turned, [0, 9], decoder), expected)


def test_mirroring_is_applied(tmp_path, frames_THWC):
    plain, mirrored = tmp_path / "plain.mp4", tmp_path / "mirrored.mp4"
    write_video(plain, frames_THWC)
    frame = read_frames(plain, [4])[0]
    for option, expected in (("-display_hflip", frame[:, ::-1]), ("-display_vflip", frame[::-1])):
        ffmpeg(option, "-i", plain, "-c", "copy", mirrored)
        assert np.array_equal(read_frames(mirrored, [4])[0], expected)


def test_variable_frame_rate_keeps_the_frame_number(tmp_path, lossless, frames_THWC):
    """With the frames 5-14 dropped, the header of the AVI still counts them as repeats."""
    path = tmp_path / "vfr.avi"
    dropped = "select='not(between(n,5,14))'"
    ffmpeg("-i", lossless, "-vf", dropped, "-fps_mode", "vfr", "-c:v", "ffv1", "-pix_fmt", "bgr0", path)
    assert count_frames(path) == 20
    assert np.array_equal(read_frames(path, [4, 5, 19]), frames_THWC[[4, 15, 29]])


def test_only_what_is_needed_is_decoded(lossless, monkeypatch):
    decoded = []
    decode = video.decode_all

    def counting(path):
        for frame in decode(path):
            decoded.append(frame)
            yield frame

    monkeypatch.setattr(video, "decode_all", counting)
    read_frames(lossless, [7, 2])
    assert len(decoded) == 8


def test_folder_of_images_in_natural_order(tmp_path, frames_THWC):
    for index in range(12):
        Image.fromarray(frames_THWC[index]).save(tmp_path / f"img_{index}.{'PNG' if index % 2 else 'png'}")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "._img_0.png").write_bytes(b"left by a file manager")
    assert count_frames(tmp_path) == 12
    assert np.array_equal(read_frames(tmp_path, [11, 2, 10, 2]), frames_THWC[[11, 2, 10, 2]])
    with pytest.raises(VideoError, match="frame 12 was asked for, the video has 12 frames"):
        read_frames(tmp_path, [3, 12])
    Image.fromarray(frames_THWC[0, :20]).convert("L").save(tmp_path / "img_99.jpg")
    with pytest.raises(VideoError, match="not all of one size"):
        read_frames(tmp_path, [0, 12])
    (tmp_path / "img_3.PNG").write_bytes((tmp_path / "img_3.PNG").read_bytes()[:60])
    with pytest.raises(VideoError, match=r"img_3\.PNG: cannot be read as an image"):
        read_frames(tmp_path, [3])


@pytest.mark.parametrize("decoder", DECODERS)
def test_indices_out_of_range_give_the_count(lossless, decoder):
    with pytest.raises(VideoError, match=r"lossless\.avi: frame 30 was asked for, the video has 30 frames"):
        read_frames(lossless, [0, 30], decoder)
    for indices in ([], [-1, 2]):
        with pytest.raises(VideoError, match=r"lossless\.avi: frame indices must be"):
            read_frames(lossless, indices, decoder)


@pytest.mark.parametrize("decoder", DECODERS)
def test_files_that_are_no_videos(tmp_path, frames_THWC, decoder):
    (tmp_path / "zero.mp4").touch()
    (tmp_path / "text.avi").write_text("this is not a video\n" * 100)
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:9,\n/dev/null\n")
    Image.fromarray(frames_THWC[0]).save(tmp_path / "image.mp4", "png")
    (tmp_path / "folder").mkdir()
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", tmp_path / "sound.mkv")
    reasons = {
        "missing.mp4": "no such file",
        "zero.mp4": r"the file is empty \(0 bytes\)",
        "text.avi": "cannot be decoded as a video",
        "list.mp4": "cannot be decoded as a video",
        "image.mp4": "cannot be decoded as a video",
        "folder": "must hold images",
        "sound.mkv": "holds no video stream",
    }
    for name, reason in reasons.items():
        with pytest.raises(VideoError, match=f"{name}: .*{reason}"):
            count_frames(tmp_path / name, decoder)
    for name in reasons.keys() - {"image.mp4"}:  # OpenCV reads an image whatever its name
        with pytest.raises(VideoError, match=name):
            read_frames(tmp_path / name, [0], decoder)


@pytest.mark.parametrize(("suffix", "codec"), CODECS)
def test_a_cut_file_is_never_a_shorter_video(tmp_path, frames_THWC, suffix, codec):
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    write_video(whole, frames_THWC, codec=codec)
    content = whole.read_bytes()
    for share in (0.2, 0.5, 0.8, 0.95):
        cut.write_bytes(content[: int(share * len(content))])
        with pytest.raises(VideoError, match=rf"cut{suffix}: "):
            count_frames(cut)


def test_a_streaming_mp4_cut_between_two_frames(tmp_path, frames_THWC):
    """The index stands in front and every frame left is whole: only the announced size tells."""

    plain, path = tmp_path / "plain.mp4", tmp_path / "streaming.mp4"
    write_video(plain, frames_THWC)
    ffmpeg("-i", plain, "-c", "copy", "-movflags", "+faststart", path)
    assert count_frames(path) == 30
    with av.open(str(path)) as container:
        positions = sorted(packet.pos for packet in container.demux(video=0) if packet.pos is not None)
    content = path.read_bytes()
    path.write_bytes(content[: positions[20]])
    with pytest.raises(VideoError, match=rf"cut short, {positions[20]} bytes of the {len(content)} "):
        count_frames(path)


def test_padding_behind_a_file_is_harmless(tmp_path, frames_THWC):
    for suffix, _ in CODECS[:3]:
        path = tmp_path / f"padded{suffix}"
        write_video(path, frames_THWC)
        path.write_bytes(path.read_bytes() + bytes(1000))
        assert count_frames(path) == 30


def test_damage_inside_is_reported_where_it_is(tmp_path, frames_THWC):
    path = tmp_path / "damaged.avi"
    write_video(path, frames_THWC)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = b"\xff" * 400
    path.write_bytes(content)
    with pytest.raises(VideoError, match=r"damaged\.avi: corrupt (at|after) frame \d+"):
        count_frames(path)
    with pytest.raises(VideoError, match=r"damaged\.avi: corrupt"):
        read_frames(path, [0, 29])
    # Before the damage the frames are good.
    assert read_frames(path, [0]).shape == (1, 48, 64, 3)


def test_missing_decord_says_what_to_install(lossless, monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(InputError, match=r"pip install mindvideo\[decord\]"):
        read_frames(lossless, [0], "decord")


def test_optional_decoders_are_imported_only_when_chosen():
    check = "import sys, mindvideo.data.video; sys.exit('decord' in sys.modules or 'cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


@pytest.mark.parametrize(
    ("frames", "settings", "message"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), {}, r"uint8 \[T, H, W, 3\], got float32"),
        (np.zeros((2, 3, 8, 8), np.uint8), {}, r"got uint8 \[2, 3, 8, 8\]"),
        (np.zeros((0, 8, 8, 3), np.uint8), {}, r"got uint8 \[0, 8, 8, 3\]"),
        (np.zeros((2, 7, 8, 3), np.uint8), {}, "must be even, got 7 x 8"),
        (np.zeros((2, 8, 8, 3), np.uint8), {"codec": "h265"}, "unknown codec 'h265', choose from mpeg4"),
        (np.zeros((2, 8, 8, 3), np.uint8), {"codec": "ffv1"}, "cannot be written with codec ffv1"),
    ],
)
def test_mistakes_in_writing_are_named(tmp_path, frames, settings, message):
    with pytest.raises(InputError, match=message):
        write_video(tmp_path / "out.mov", frames, **settings)


def test_unknown_decoder(lossless):
    with pytest.raises(InputError, match="unknown decoder 'gstreamer', choose from pyav, decord, opencv"):
        count_frames(lossless, "gstreamer")


def test_a_video_of_a_codec_that_nobody_knows(tmp_path, frames_THWC):
    path = tmp_path / "unknown.mp4"
    write_video(path, frames_THWC)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    for reading in (lambda: count_frames(path), lambda: read_frames(path, [3])):
        with pytest.raises(VideoError, match=r"unknown\.mp4: holds no video stream that can be decoded"):
            reading()
