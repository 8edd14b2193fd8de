# SPDX-License-Identifier: Apache-2.0
"""How time and memory grow: with clips, with episodes, and with the number of videos.

    python benchmarks/costs.py [clips] [episodes] [videos] [--network NAME] [--repeats N]

`clips` takes training steps of a network (I3D R50) with other numbers of frames, pixels and clips, `episodes` those of
ARN with other N, K and Q; every row is a process of its own. `videos` draws episodes and training batches from lists
of 100 to 1,000,000 videos of 100 classes, whose clips are constant, so that nothing is decoded.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from twins.problems import PROBLEMS, Problem

SECTIONS = ("clips", "episodes", "videos")
BATCH, FRAMES, SIDE = 2, 16, 112  # of which one is changed at a time
EPISODE = (5, 1, 1)  # N, K, Q
NUM_CLASSES = 100
LONGEST = 2.0  # seconds; where building a sampler takes longer, that of ten times the videos may take minutes


def clip_problem(network: str, batch: int, frames: int, side: int) -> Problem:
    return replace(PROBLEMS[network], shapes=((batch, 3, frames, side, side),))


def episode_problem(way: int, shot: int, query: int) -> Problem:
    arn = PROBLEMS["arn"]
    clip = (3, FRAMES, SIDE, SIDE)
    settings = (*arn.settings, f"episode.way={way}", f"episode.shot={shot}", f"episode.query={query}")
    return replace(arn, shapes=((way, shot, *clip), (way * query, *clip)), num_classes=way, settings=settings)


def take_steps(problem: Problem, repeats: int) -> dict[str, float]:
    """What a few training steps cost in this process."""
    from mindvideo.engine.device import use_device

    use_device("cpu")
    from twins import ours

    started = time.perf_counter()
    step = ours.train_step(problem)
    step()
    compiled = time.perf_counter() - started
    seconds = [timed(step) for _ in range(repeats)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": statistics.median(seconds), "first": compiled, "peak": peak}


def timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def ask(*words: object) -> dict[str, float]:
    """What another process says of a row."""
    command = [sys.executable, __file__, "--here", *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_steps(title: str, rows: list[tuple[str, int, tuple[object, ...]]], repeats: int) -> None:
    """A row says what is different, how many clips it has, and what the other process needs to know."""
    print(f"\n### {title}\n\n| | ms a step | ms a clip | first step, s | memory, MiB |\n|---|---|---|---|---|")
    for label, clips, words in rows:
        told = ask(repeats, *words)
        milliseconds = 1e3 * told["seconds"]
        print(
            f"| {label} | {milliseconds:.0f} | {milliseconds / clips:.0f} | {told['first']:.1f} | {told['peak']:.0f} |",
            flush=True,
        )


def clips(network: str, repeats: int) -> None:
    shapes = {
        "batch": [(batch, FRAMES, SIDE) for batch in (1, 2, 4, 8)],
        "frames": [(BATCH, frames, SIDE) for frames in (8, 16, 32, 64)],
        "pixels": [(BATCH, FRAMES, side) for side in (56, 112, 168, 224)],
    }
    for number, (what, chosen) in enumerate(shapes.items()):
        rows = [(f"{shape[number]} {what}", shape[0], (network, *shape)) for shape in chosen]
        print_steps(f"{PROBLEMS[network].title}, training, against {what}", rows, repeats)


def episodes(repeats: int) -> None:
    way, shot, query = EPISODE
    chosen = {(way, shot, query): None}
    chosen |= {(n, shot, query): None for n in (10, 20)}
    chosen |= {(way, k, query): None for k in (2, 5)}
    chosen |= {(way, shot, q): None for q in (3, 5)}
    rows = [(f"N {n}, K {k}, Q {q}", n * (k + q), ("arn", n, k, q)) for n, k, q in chosen]
    print_steps("ARN, training, against the episode", rows, repeats)


def videos() -> None:
    for per_source in (1, 4):
        print(f"\n### Lists of videos, {per_source} of a source\n")
        print("| videos | list, MiB | sampler built, ms | an episode, ms | a batch of 8, ms | the first, ms |")
        print("|---|---|---|---|---|---|")
        for count in (10**power for power in range(2, 7)):
            told = ask(1, "videos", count, per_source)
            print("| " + " | ".join([f"{count:,}", *(f"{number:.2f}" for number in told.values())]) + " |", flush=True)
            if told["sampler"] > 1e3 * LONGEST:
                print("\nLonger lists are left out: building their samplers may take minutes.")
                break


def list_videos(count: int, per_source: int) -> dict[str, float]:
    """Costs of a list of videos, in milliseconds and MiB."""
    from mindvideo.data.episodes import EpisodeSampler
    from mindvideo.data.loader import load_batches
    from mindvideo.data.manifest import Sample

    classes = [f"class{number}" for number in range(min(NUM_CLASSES, count // 20))]
    before = resident()
    samples = [
        Sample(
            Path(f"videos/{i}.avi"), classes[i % len(classes)], f"{i % len(classes)}/{i // len(classes) // per_source}"
        )
        for i in range(count)
    ]
    size = resident() - before
    clip = np.zeros((3, 1, 1, 1), np.float32)
    started = time.perf_counter()
    sampler = EpisodeSampler(samples, way=5, shot=1, query=3, seed=1)
    building = time.perf_counter() - started
    drawing = statistics.median(timed(partial(sampler.episode, number)) for number in range(20))
    batches = load_batches(
        samples, classes, lambda sample, rng=None: clip,
        batch=8, seed=1, numbers=range(200), per_epoch=count // 8, workers=1,
    )  # fmt: skip
    first = timed(lambda: next(batches))
    rest = timed(lambda: list(batches)) / 199
    costs = {"sampler": building, "episode": drawing, "batch": rest, "first": first}
    return {"list": size} | {name: 1e3 * seconds for name, seconds in costs.items()}


def resident() -> float:
    """MiB of memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def here(words: list[str]) -> dict[str, float]:
    """A row, in this process."""
    repeats, what, *numbers = words
    if what == "videos":
        return list_videos(*map(int, numbers))
    problem = episode_problem(*map(int, numbers)) if what == "arn" else clip_problem(what, *map(int, numbers))
    return take_steps(problem, int(repeats))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)}; all without")
    parser.add_argument("--network", choices=("i3d", "tsm", "slowfast", "tpn"), default="i3d", help="of `clips`")
    parser.add_argument("--repeats", type=int, default=5, help="measured steps of a row (default 5)")
    parser.add_argument("--here", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(here(arguments.here)))
        return
    sections = arguments.sections or SECTIONS
    if unknown := sorted(set(sections) - set(SECTIONS)):
        parser.error(f"SECTION must be of {', '.join(SECTIONS)}, not {', '.join(unknown)}")
    if "clips" in sections:
        clips(arguments.network, arguments.repeats)
    if "episodes" in sections:
        episodes(arguments.repeats)
    if "videos" in sections:
        videos()


if __name__ == "__main__":
    main()
