# SPDX-License-Identifier: Apache-2.0
"""What `mindvideo prepare` gains and loses: seconds an epoch of reading, decoding and prepared in turn, and pixels.

    python -m benchmarks.prepared configs/arn/arn_ucf101_small.yaml data.root=/path/to/ucf101
    python -m benchmarks.prepared configs/dear/ucf101_small/i3d_dnn.yaml data.root=/path/to/ucf101 \
        data.length=32 data.size=112 data.short_side=128 eval.size=112

An epoch takes about as many clips as there are training videos, through the whole loader and into this process:
few-shot in training episodes, open-set in training batches. One loader reads EPOCHS of them, as in training, of which
nothing else is done. Both ways read the same frames of the same videos. Processor seconds are those of all processes;
they say more than the clock where a machine has other work. Without `--to FOLDER` the frames are prepared in a
temporary folder first. Pixels are those of the decoded frames after shrinking and of their JPEGs, 16 frames of every
20th video; inputs are what a network sees of these videos without augmentation, either way.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np

from mindvideo.config import Config, load_config
from mindvideo.data.loader import ClipReader, load_batches, load_episodes
from mindvideo.data.manifest import Sample
from mindvideo.data.prepared import Prepared
from mindvideo.data.sampling import uniform
from mindvideo.data.video import read_frames
from mindvideo.tasks import fewshot_data, openset_data
from mindvideo.tasks.prepare import prepare, shrink

Epochs = Callable[[int], Iterator[tuple[np.ndarray, ...]]]
EPOCHS = 3


def epochs_of(config: Config) -> tuple[Epochs, int, ClipReader]:
    """What reads EPOCHS with so many workers, the clips in one of them, and the reader of clips."""
    if config.task == "fewshot":
        data = fewshot_data.prepare_data(config)
        shape, samples = config.episode, data.training
        clips = shape.way * (shape.shot + shape.query)
        count = len(samples) // clips

        def episodes(workers: int) -> Iterator[tuple[np.ndarray, ...]]:
            return load_episodes(
                data.samplers["train"], samples, data.train_reader, numbers=range(EPOCHS * count), workers=workers
            )

        return episodes, count * clips, data.train_reader
    found = openset_data.check_videos(config, openset_data.find_videos(config))
    samples, batch = found.parts["train"], config.train.batch
    per_epoch = len(samples) // batch

    def batches(workers: int) -> Iterator[tuple[np.ndarray, ...]]:
        return load_batches(
            samples, found.classes, found.train_reader,
            batch=batch, seed=1, numbers=range(EPOCHS * per_epoch), per_epoch=per_epoch, workers=workers,
        )  # fmt: skip

    return batches, per_epoch * batch, found.train_reader


def seconds(epochs: Epochs, workers: int) -> np.ndarray:
    """Of an epoch, by the clock and of processors, from the start of the loader to the end of its processes."""
    started = np.array([time.perf_counter(), _processor()])
    for _ in epochs(workers):
        pass
    return (np.array([time.perf_counter(), _processor()]) - started) / EPOCHS


def _processor() -> float:
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def tell_pixels(prepared: Prepared, decoder: str) -> None:
    """What JPEG changed."""
    squares, total, largest, count = 0.0, 0.0, 0, 0
    for path in list(prepared.names)[::20]:
        video = prepared.index.videos[prepared.names[path]]
        indices = uniform(video.frames, 16) if video.frames >= 16 else np.arange(video.frames)
        frames = np.stack([shrink(frame, prepared.index.storage) for frame in read_frames(path, indices, decoder)])
        difference = np.abs(frames.astype(int) - prepared.frames(path, indices))
        squares += float(np.square(difference).sum())
        total += float(difference.sum())
        largest, count = max(largest, int(difference.max())), count + difference.size
    psnr = 10 * np.log10(255**2 / (squares / count))
    print(f"JPEG: mean difference of a pixel {total / count:.2f}, largest {largest}, PSNR {psnr:.1f} dB")


def tell_inputs(reader: ClipReader, prepared: Prepared) -> None:
    """What JPEG and shrinking before cropping changed in all."""
    differences, deviations = [], []
    for path in list(prepared.names)[::20]:
        indices = reader.indices(Sample(path, "", ""), np.random.default_rng(0))
        decoded = reader.transform(read_frames(path, indices, reader.decoder), None)
        differences.append(np.abs(decoded - reader.transform(prepared.frames(path, indices), None)).mean())
        deviations.append(decoded.std())
    share = np.mean(differences) / np.mean(deviations)
    print(f"inputs: mean difference {np.mean(differences):.3f}, {share:.1%} of a clip's standard deviation")


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare reading prepared frames with decoding videos.")
    parser.add_argument("settings", nargs="+", metavar="CONFIG KEY.SUB=VALUE")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="where the frames are prepared, or are already")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="epochs each way (default: %(default)s)")
    parsed = parser.parse_args()
    config = load_config(parsed.settings[0], parsed.settings[1:])
    with tempfile.TemporaryDirectory() as temporary:
        folder = parsed.to or Path(temporary) / "frames"
        started = time.perf_counter()
        prepare(config, folder)
        print(f"prepare: {time.perf_counter() - started:.1f} s")
        decoding, clips, _ = epochs_of(config)
        cached, _, reader = epochs_of(
            load_config(parsed.settings[0], [*parsed.settings[1:], f"data.prepared={folder}"])
        )
        assert reader.prepared is not None
        tell_pixels(reader.prepared, config.data.decoder)
        tell_inputs(reader, reader.prepared)
        print(f"an epoch of {clips} clips, median seconds of {parsed.repeats}")
        for workers in (1, 2):
            pairs = [(seconds(decoding, workers), seconds(cached, workers)) for _ in range(parsed.repeats)]
            for place, kind in enumerate(("clock", "processor")):
                slow, fast = (median(float(one[place]) for one in side) for side in zip(*pairs, strict=True))
                ratio = median(float(one[place] / other[place]) for one, other in pairs)
                print(f"workers {workers}, {kind}: decoding {slow:.2f}, prepared {fast:.2f}, {ratio:.1f} times as fast")


if __name__ == "__main__":
    main()
