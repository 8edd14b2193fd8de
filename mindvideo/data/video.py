# SPDX-License-Identifier: Apache-2.0
"""Videos to RGB frames and back: a video file, or a folder of images, read by frame number.

Frame n is the n-th frame that the decoder puts out, in presentation order, whatever its time stamp
says; so a variable frame rate needs no special care. Frame counts come from decoding: headers are
wrong for HMDB51 (one too many), for edit lists, and absent in Matroska and MPEG. Where it is certain that frame n stays
the same, what the wanted frames do not need is left out (seek.py).

PyAV is the default decoder and the only one that reports damage: a frame that cannot be decoded or that
FFmpeg had to patch up, and an AVI, MP4 or Matroska file shorter than it says it is. Beyond anyone's sight
are changed bits that still spell a valid stream (VP8 carries no check at all) and an MPEG program stream
cut exactly between two frames. decord and OpenCV are there for parity with pipelines published on them.
"""

import heapq
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter
from PIL import Image

from mindvideo.data.seek import Uncertain, needed
from mindvideo.errors import InputError, VideoError

VIDEO_SUFFIXES = (
    *(".avi", ".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm"),
    *(".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".ogv"),
)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")

# FFmpeg also opens text, playlists and still images as "videos"; only real containers may pass.
_OPEN_OPTIONS = {
    "format_whitelist": "avi,mov,mp4,3gp,matroska,webm,mpeg,mpegvideo,mpegts,asf,flv,ogg",
    "protocol_whitelist": "file",
}

# codec -> pixel format and quality. bgr0 keeps RGB as it is, so ffv1 is lossless.
_ENCODERS = {
    "mpeg4": ("yuv420p", {"qmin": "2", "qmax": "3", "b": "20M"}),
    "libx264": ("yuv420p", {"crf": "18", "preset": "veryfast"}),
    "libvpx": ("yuv420p", {"crf": "6", "b": "20M", "deadline": "realtime", "cpu-used": "4"}),
    "ffv1": ("bgr0", {}),
}
# Where files of H.264 and MPEG-4 part 2 are found, of which not everything need be decoded.
_SEEKABLE_SUFFIXES = (".avi", ".mp4", ".m4v", ".mov", ".mkv")
_UNEQUAL = "the frames are not all of one size"
_SUFFIX_ENCODER = {".mp4": "libx264", ".mov": "libx264", ".webm": "libvpx"}


def count_frames(path: str | Path, decoder: str = "pyav") -> int:
    """How many frames `path` holds, by decoding it all; for a folder, its number of images.

    Whichever decoder is chosen, PyAV first looks through the whole file for damage. decord is asked for
    its own number of frames, which counts packets: more than can be decoded where headers are wrong.
    Raises VideoError when the file is missing, empty, cut short, corrupt or no video.
    """
    path = existing(path)
    read = _reader(decoder)
    if path.is_dir():
        return len(frame_files(path))
    _, count = _read_pyav(path, [])
    return count if decoder == "pyav" else read(path, [])[1]


def read_frames(path: str | Path, indices: Sequence[int] | np.ndarray, decoder: str = "pyav") -> np.ndarray:
    """The frames at `indices` (any order, repeats allowed), uint8 RGB `[T, H, W, 3]`, upright.

    PyAV decodes only what these frames need, so damage elsewhere goes unseen: `count_frames` sees it.
    Raises VideoError as `count_frames` does, and for an index the video does not have.
    """
    path = existing(path)
    read = _read_folder if path.is_dir() else _reader(decoder)
    wanted, order = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
    if wanted.size == 0 or wanted[0] < 0:
        raise VideoError(f"{path}: frame indices must be 0 or more and at least one, got {list(indices)}")
    frames, seen = read(path, wanted.tolist())
    if len(frames) < len(wanted):
        raise VideoError(f"{path}: frame {wanted[-1]} was asked for, the video has {seen} frames")
    if isinstance(frames, list):
        if len({frame.shape for frame in frames}) > 1:
            raise VideoError(f"{path}: {_UNEQUAL}")
        frames = np.stack(frames)
    return frames if np.array_equal(order, np.arange(len(wanted))) else frames[order]


def write_video(path: str | Path, frames_THWC: np.ndarray, fps: int = 25, codec: str | None = None) -> None:
    """Encode uint8 RGB frames, without sound, in high quality; with mpeg4 and ffv1 the same input gives the same bytes.

    `codec` is mpeg4, libx264, libvpx or ffv1 (lossless); by default libx264 for .mp4 and .mov, libvpx for
    .webm and mpeg4 for the rest. Height and width must be even.
    """
    path = Path(path)
    codec = codec or _SUFFIX_ENCODER.get(path.suffix.lower(), "mpeg4")
    if codec not in _ENCODERS:
        raise InputError(f"{path}: unknown codec {codec!r}, choose from {', '.join(_ENCODERS)}")
    shape = frames_THWC.shape
    if frames_THWC.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise InputError(f"{path}: frames must be uint8 [T, H, W, 3], got {frames_THWC.dtype} {list(shape)}")
    if shape[1] % 2 or shape[2] % 2:
        raise InputError(f"{path}: height and width must be even, got {shape[1]} x {shape[2]}")

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _encode(path, frames_THWC, fps, codec)
    except ValueError as error:
        raise InputError(f"{path}: cannot be written with codec {codec} ({error})") from error


def _encode(path: Path, frames_THWC: np.ndarray, fps: int, codec: str) -> None:
    pixel_format, quality = _ENCODERS[codec]
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(codec, rate=fps, options={"flags": "+bitexact", **quality})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = *frames_THWC.shape[1:3], pixel_format
        stream.codec_context.thread_count = 1
        for frame_HWC in frames_THWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        container.mux(stream.encode())


# Each reader takes a path and ascending frame numbers, and returns the frames at those numbers that exist
# and how many frames it went through: all of the video, unless the last wanted one came before the end.
Reader = Callable[[Path, list[int]], tuple[list[np.ndarray] | np.ndarray, int]]


class _Clip:
    """The `wanted` frames (ascending numbers) out of those it is shown, as RGB in one array.

    Written there one by one: a fresh array for each frame and a copy of all took as long as the conversion itself.
    """

    def __init__(self, path: Path, wanted: list[int]):
        self.path, self.wanted, self.count = path, wanted, 0
        self.frames_THWC = np.empty((0, 0, 0, 3), np.uint8)
        self.reformatter = VideoReformatter()

    @property
    def is_full(self) -> bool:
        return self.count == len(self.wanted)

    def show(self, number: int, frame: av.VideoFrame) -> None:
        if self.is_full or number != self.wanted[self.count]:
            return
        image_HWC = upright(frame, self.reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray())
        if not self.count:
            self.frames_THWC = np.empty((len(self.wanted), *image_HWC.shape), np.uint8)
        if image_HWC.shape != self.frames_THWC.shape[1:]:
            raise VideoError(f"{self.path}: {_UNEQUAL}")
        self.frames_THWC[self.count] = image_HWC
        self.count += 1


def _read_pyav(path: Path, wanted: list[int]) -> tuple[np.ndarray, int]:
    if wanted and path.suffix.lower() in _SEEKABLE_SUFFIXES:
        try:
            return _read_needed(path, wanted), wanted[-1] + 1
        except (Uncertain, FFmpegError):
            pass  # decoding everything tells what is wrong, if anything is
    clip = _Clip(path, wanted)
    seen = 0
    with closing(decode_all(path)) as decoded:
        for frame in decoded:
            clip.show(seen, frame)
            seen += 1
            if wanted and clip.is_full:
                break
    return clip.frames_THWC[: clip.count], seen


def _read_needed(path: Path, wanted: list[int]) -> np.ndarray:
    """The frames `wanted`, from the packets that they need; FFmpegError or Uncertain at anything unexpected."""
    clip = _Clip(path, wanted)
    awaited: list[tuple[int, int | None]] = []  # a heap of the numbers and times of the frames sent in

    def take(decoded: list[av.VideoFrame]) -> None:
        for frame in decoded:
            number, pts = heapq.heappop(awaited) if awaited else (-1, None)
            if frame.is_corrupt or frame.pts != pts:
                raise Uncertain
            clip.show(number, frame)

    with _opened(path) as container:
        stream = _video_stream(container)
        if stream is None:
            raise Uncertain
        for packet, number in needed(stream, container.demux(stream), wanted):
            heapq.heappush(awaited, (number, packet.pts))
            take(stream.codec_context.decode(packet))
        take(stream.codec_context.decode(None))
    if awaited or not clip.is_full:
        raise Uncertain
    return clip.frames_THWC


def _read_opencv(path: Path, wanted: list[int]) -> tuple[list[np.ndarray], int]:
    import cv2

    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    if not capture.isOpened():
        raise VideoError(f"{path}: OpenCV cannot open it as a video")
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
    frames: list[np.ndarray] = []
    seen = 0
    while not (wanted and len(frames) == len(wanted)) and capture.grab():
        if len(frames) < len(wanted) and seen == wanted[len(frames)]:
            frames.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
        seen += 1
    capture.release()
    return frames, seen


def _read_decord(path: Path, wanted: list[int]) -> tuple[list[np.ndarray], int]:
    try:
        import decord
    except ModuleNotFoundError as error:
        raise InputError("decoder decord is not installed: pip install mindvideo[decord]") from error

    try:
        video = decord.VideoReader(str(path), num_threads=1)
        count = len(video)
        known = [index for index in wanted if index < count]
        return (list(video.get_batch(known).asnumpy()) if known else []), count
    except (decord.DECORDError, RuntimeError) as error:
        raise VideoError(f"{path}: decord cannot decode it ({str(error).splitlines()[0]})") from error


def _read_folder(path: Path, wanted: list[int]) -> tuple[list[np.ndarray], int]:
    images = frame_files(path)
    return [read_frame_file(images[index]) for index in wanted if index < len(images)], len(images)


_READERS: dict[str, Reader] = {"pyav": _read_pyav, "decord": _read_decord, "opencv": _read_opencv}
DECODERS = tuple(_READERS)


def _reader(decoder: str) -> Reader:
    if decoder not in _READERS:
        raise InputError(f"unknown decoder {decoder!r}, choose from {', '.join(DECODERS)}")
    return _READERS[decoder]


def existing(path: str | Path) -> Path:
    """The path, once it is known to be there and, if a file, to be as long as it says it is."""
    path = Path(path)
    if not path.exists():
        raise VideoError(f"{path}: no such file or folder")
    if path.is_file():
        size, announced = path.stat().st_size, _announced_size(path)
        if size == 0:
            raise VideoError(f"{path}: the file is empty (0 bytes)")
        if size < announced:
            raise VideoError(f"{path}: cut short, {size} bytes of the {announced} that its header announces")
    return path


def frame_files(folder: Path) -> list[Path]:
    """The images of a frame folder, in natural order: img_2 before img_10."""
    images = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != "."]
    if not images:
        raise VideoError(f"{folder}: a frame folder must hold images ({', '.join(IMAGE_SUFFIXES)})")
    parts = {p: re.split(r"([0-9]+)", p.name) for p in images}
    return sorted(images, key=lambda p: ([int(s) if i % 2 else s for i, s in enumerate(parts[p])], p.name))


def read_frame_file(path: Path) -> np.ndarray:
    """An image of a frame folder, uint8 `[H, W, 3]`; VideoError if it is none."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise VideoError(f"{path}: cannot be read as an image ({error})") from error


def _opened(path: Path) -> InputContainer:
    # Titles in the wild are not always UTF-8, and nobody here reads them.
    return av.open(str(path), options=_OPEN_OPTIONS, metadata_errors="ignore")


def _video_stream(container: InputContainer) -> av.VideoStream | None:
    """The main video stream, to be decoded by one thread: data workers are the parallelism."""
    stream = container.streams.best("video")
    if not isinstance(stream, av.VideoStream) or stream.codec_context is None:  # None where the codec is unknown
        return None
    stream.codec_context.thread_count = 1
    return stream


def decode_all(path: Path) -> Generator[av.VideoFrame, None, None]:
    """Every frame of the video stream in presentation order; VideoError at the first sign of damage."""
    seen = 0
    try:
        with _opened(path) as container:
            stream = _video_stream(container)
            if stream is None:
                raise VideoError(f"{path}: holds no video stream that can be decoded")
            for packet in container.demux(stream):
                for frame in packet.decode():
                    # FFmpeg conceals damage: it marks the frame and paints over the hole.
                    if packet.is_corrupt or frame.is_corrupt:
                        raise VideoError(f"{path}: corrupt at frame {seen}")
                    yield frame
                    seen += 1
    except FFmpegError as error:
        where = f"corrupt after frame {seen - 1}" if seen else "cannot be decoded as a video"
        raise VideoError(f"{path}: {where} ({error.strerror})") from error
    if seen == 0:
        raise VideoError(f"{path}: holds no frame")


def upright(frame: av.VideoFrame, image_HWC: np.ndarray) -> np.ndarray:
    """Turn and mirror by the display matrix, in quarter turns, as players do."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image_HWC
    # A pixel (x, y) is shown at (a x + c y, b x + d y).
    a, b, _, c, d = np.frombuffer(matrix, dtype=np.int32)[:5].astype(int)
    if abs(a) >= abs(b):
        return image_HWC[:: 1 if d > 0 else -1, :: 1 if a > 0 else -1]
    return image_HWC.swapaxes(0, 1)[:: 1 if b > 0 else -1, :: 1 if c > 0 else -1]


def _announced_size(path: Path) -> int:
    """The least size in bytes that the container says the file has; 0 where it does not say.

    A file cut between two frames decodes without complaint, so this is how truncation is seen.
    """
    with path.open("rb") as file:
        head = file.read(4096)
        if head[:4] == b"RIFF":
            size = int.from_bytes(head[4:8], "little")
            return 0 if size == 0xFFFFFFFF else 8 + size
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return _announced_matroska(head)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            end = 0
            while (step := _mp4_box_size(head)) > 0:
                end += step
                file.seek(end)
                head = file.read(16)
            return end
    return 0


def _mp4_box_size(header: bytes) -> int:
    """Size in bytes of the top-level box that starts with `header`; 0 at the end of the boxes."""
    if not header[4:8].isalnum():
        return 0
    size = int.from_bytes(header[:4], "big")
    return int.from_bytes(header[8:16], "big") if size == 1 else size


def _announced_matroska(head: bytes) -> int:
    """EBML header, then one segment that spans the file; each is an identifier, a size and a body."""

    def size_at(position: int) -> tuple[int, int]:
        length = 9 - head[position].bit_length()
        field = int.from_bytes(head[position : position + length], "big")
        return field - (1 << 7 * length), position + length

    size, body = size_at(4)
    segment = body + size
    if head[segment : segment + 4] != b"\x18\x53\x80\x67":
        return 0
    size, body = size_at(segment + 4)
    unknown = (1 << 7 * (body - segment - 4)) - 1
    return 0 if size == unknown else body + size
