# SPDX-License-Identifier: Apache-2.0
"""Decoding beside decord and OpenCV, and the clip transforms: processor time (user + system) of one process.

    python benchmarks/decode.py [--repeats N]

ours is `read_frames`; decord is VideoReader(num_threads=1).get_batch, its own fastest; OpenCV is
`read_frames(decoder="opencv")`, as seeking there gives other frames. Each opens the file for every clip. They run in
turn, repeat after repeat, so that other work on the machine strikes all alike: medians in milliseconds a clip, and
how many times ours the others take, as a median and a range over the repeats. decord counts packets without decoding
them, the others count frames. Last, clips a second (16 frames in a row) of worker processes, one up to all cores.

The videos are made here: noise that drifts behind moving blocks, 320 x 240, as MPEG-4 part 2 in AVI with a key frame
every 12 frames and every 250, and as H.264. Where MINDVIDEO_DATA (default ../shared/data) has them, also UCF101's and
HMDB51's own AVI files of odd/ and 24 of the mp4 files of ucf101/.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np

from mindvideo.data.sampling import consecutive, uniform
from mindvideo.data.transforms import ClipTransform, TrainTransform, ViewTransform
from mindvideo.data.video import count_frames, read_frames

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {
    "MPEG-4 AVI, key every 12": (".avi", "mpeg4", {"g": "12"}),
    "MPEG-4 AVI, key every 250": (".avi", "mpeg4", {"g": "250"}),
    "H.264 mp4": (".mp4", "libx264", {}),
}
CLIPS = 24  # of each kind a source and repeat

Task = tuple[Path, np.ndarray]


def read_decord(path: Path, indices: np.ndarray) -> np.ndarray:
    import decord

    return decord.VideoReader(str(path), num_threads=1).get_batch(indices).asnumpy()


def count_decord(path: Path) -> int:
    import decord

    return len(decord.VideoReader(str(path), num_threads=1))


def count_opencv(path: Path) -> int:
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    count = 0
    while capture.grab():
        count += 1
    capture.release()
    return count


READERS = {"ours": read_frames, "decord": read_decord, "OpenCV": partial(read_frames, decoder="opencv")}
COUNTERS = {"ours": count_frames, "decord": count_decord, "OpenCV": count_opencv}
if importlib.util.find_spec("decord") is None:
    del READERS["decord"], COUNTERS["decord"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        sources = make_videos(Path(folder)) | real_videos()
        others = [name for name in READERS if name != "ours"]
        print(f"{'processor time a clip':27}{'frames':18}{'ours, ms':>10}" + "".join(f"{n:>26}" for n in others))
        for name, paths in sources.items():
            compare_source(name, paths, others, repeats)
        print("\nclips a second by worker processes, 16 frames in a row")
        for name, paths in sources.items():
            rates = worker_rates(tasks_of(paths, partial(in_a_row, 16)), max(1, repeats // 3))
            print(f"{name:27}" + "   ".join(f"{contestant} {rate}" for contestant, rate in rates.items()))
    print("\ntransforms, 16 frames of 320 x 240, processor time")
    compare_transforms(repeats)


def compare_source(name: str, paths: Sequence[Path], others: Sequence[str], repeats: int) -> None:
    modes = {
        "16 spread": lambda count, rng: uniform(count, 16),
        "16 in a row": partial(in_a_row, 16),
        "32 in a row": partial(in_a_row, 32),
    }
    for mode, choose in modes.items():
        tasks = tasks_of(paths, choose)
        show(name, mode, measure({n: partial(run, read, tasks) for n, read in READERS.items()}, repeats), others)
    counts = {n: partial(count_all, count, paths) for n, count in COUNTERS.items()}
    show(name, "count", measure(counts, repeats), others)


def in_a_row(length: int, count: int, rng: np.random.Generator) -> np.ndarray:
    return consecutive(count, length, rng=rng)


def tasks_of(paths: Sequence[Path], choose: Callable[[int, np.random.Generator], np.ndarray]) -> list[Task]:
    """CLIPS clips, dealt among the videos."""
    rng = np.random.default_rng(0)
    counts = [count_frames(path) for path in paths]
    chosen = [i % len(paths) for i in range(max(CLIPS, len(paths)))]
    return [(paths[i], choose(counts[i], rng)) for i in chosen]


def run(read: Callable[[Path, np.ndarray], np.ndarray], tasks: Sequence[Task]) -> int:
    for path, indices in tasks:
        read(path, indices)
    return len(tasks)


def count_all(count: Callable[[Path], int], paths: Sequence[Path]) -> int:
    for path in paths:
        count(path)
    return len(paths)


def measure(contestants: dict[str, Callable[[], int]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of processor time a clip of each contestant's repeats; each returns how many clips it made."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in range(repeats + 1):
        for name, work in contestants.items():
            start = time.process_time()
            clips = work()
            if repeat:  # the first warms up
                times[name].append(1000 * (time.process_time() - start) / clips)
    return times


def show(name: str, mode: str, times: dict[str, list[float]], others: Sequence[str]) -> None:
    cells = [f"{name:27}{mode:18}{statistics.median(times['ours']):10.2f}"]
    for other in others:
        ratios = [theirs / ours for theirs, ours in zip(times[other], times["ours"], strict=True)]
        spread = f"x {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        cells.append(f"{statistics.median(times[other]):8.2f} {spread:>17}")
    print("".join(cells), flush=True)


def worker_rates(tasks: Sequence[Task], repeats: int) -> dict[str, str]:
    """Clips a second of each contestant with 1 to all cores' processes: the median of the repeats."""
    context = multiprocessing.get_context("spawn")
    sizes = range(1, (os.cpu_count() or 1) + 1)
    rates: dict[str, list[str]] = {name: [] for name in READERS}
    for workers in sizes:
        with context.Pool(workers) as pool:
            seconds: dict[str, list[float]] = {name: [] for name in READERS}
            for repeat in range(repeats + 1):
                for name in READERS:
                    start = time.perf_counter()
                    pool.starmap(read_task, [(name, task) for task in tasks * 2], chunksize=4)
                    if repeat:
                        seconds[name].append(time.perf_counter() - start)
        for name, taken in seconds.items():
            rates[name].append(f"{2 * len(tasks) / statistics.median(taken):.0f}")
    return {name: " / ".join(values) for name, values in rates.items()}


def read_task(name: str, task: Task) -> None:
    READERS[name](*task)


def make_videos(folder: Path) -> dict[str, list[Path]]:
    sources = {}
    for number, (name, (suffix, codec, options)) in enumerate(SOURCES.items()):
        sources[name] = [folder / f"{number}_{seed}{suffix}" for seed in range(4)]
        for seed, path in enumerate(sources[name]):
            encode(path, film(seed), codec, options)
    return sources


def film(seed: int, length: int = 180) -> np.ndarray:
    """uint8 `[T, 240, 320, 3]`: a smooth noise texture that drifts, some grain, and eight blocks that move."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    texture = cv2.resize(coarse, (320 + 160, 240 + 80), interpolation=cv2.INTER_CUBIC)
    texture = cv2.add(texture, rng.integers(0, 16, texture.shape, dtype=np.uint8))
    blocks = rng.integers(0, 180, (8, 2)), rng.integers(-3, 4, (8, 2)), rng.integers(0, 256, (8, 3))
    frames_THWC = np.empty((length, 240, 320, 3), np.uint8)
    for t, frame_HWC in enumerate(frames_THWC):
        shift = round(80 * (1 - np.cos(t / 30)) / 2)
        frame_HWC[:] = texture[shift : shift + 240, 2 * shift : 2 * shift + 320]
        for (y, x), (dy, dx), color in zip(*blocks, strict=True):
            top, left = (y + t * dy) % 200, (x + t * dx) % 280
            frame_HWC[top : top + 40, left : left + 40] = color
        grain = rng.integers(0, 8, frame_HWC.shape, dtype=np.uint8)
        cv2.add(frame_HWC, grain, dst=frame_HWC)
    return frames_THWC


def encode(path: Path, frames_THWC: np.ndarray, codec: str, options: dict[str, str]) -> None:
    """At 500 kbit a second in MPEG-4, as UCF101 has it; H.264 with the defaults of x264."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"b": "500k", **options} if codec == "mpeg4" else options)
        stream.height, stream.width, stream.pix_fmt = *frames_THWC.shape[1:3], "yuv420p"
        for frame_HWC in frames_THWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        container.mux(stream.encode())


def real_videos() -> dict[str, list[Path]]:
    data = Path(os.environ.get("MINDVIDEO_DATA", ROOT.parent / "shared/data"))
    avi = sorted(p for p in data.glob("odd/*.avi") if not p.name.startswith("person"))  # KTH's are 160 x 120
    mp4 = sorted(data.glob("ucf101/*/*.mp4"))
    found = {"UCF101, HMDB51 AVI": avi, "UCF101 mp4, 170 x 128": mp4[:: max(1, len(mp4) // 24)][:24]}
    return {name: paths for name, paths in found.items() if paths}


def compare_transforms(repeats: int) -> None:
    frames_THWC = np.random.default_rng(0).integers(0, 256, (16, 240, 320, 3), dtype=np.uint8)
    arn, plain, colored, view = (
        ClipTransform((112, 112), flip=True, crop_scale=(0.4, 1.0), color=0.4),
        TrainTransform(crop="multiscale_13"),
        TrainTransform(crop="resized", short_side=0, color=True),
        ViewTransform(views="three"),
    )
    crops_THWC = view.crop(frames_THWC)[0]
    steps: dict[str, Callable[[np.random.Generator], object]] = {
        "ClipTransform 112, all random": lambda rng: arn(frames_THWC, rng),
        "TrainTransform 224, multiscale_13": lambda rng: plain(frames_THWC, rng),
        "TrainTransform 224, resized, color": lambda rng: colored(frames_THWC, rng),
        "ViewTransform 224, three crops": lambda rng: view.crop(frames_THWC),
        "ViewTransform.normalize 224": lambda rng: view.normalize(crops_THWC),
    }

    def repeat(step: Callable[[np.random.Generator], object]) -> int:
        rng = np.random.default_rng(0)
        for _ in range(40):
            step(rng)
        return 40

    for name, times in measure({n: partial(repeat, step) for n, step in steps.items()}, repeats).items():
        print(f"{name:36}{statistics.median(times):8.2f} ms ({min(times):.2f}-{max(times):.2f})")


if __name__ == "__main__":
    main()
