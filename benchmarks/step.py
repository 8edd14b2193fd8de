# SPDX-License-Identifier: Apache-2.0
"""Times of whole networks beside the same networks in PyTorch: training steps, inference, start-up and memory.

    python benchmarks/step.py [NAME ...] [--only train|inference] [--repeats N] [--cores N] [--plain]
    python benchmarks/step.py [NAME ...] --check

NAME is of arn, i3d, tsm, slowfast, tpn, actionnet and convnext; without names all are measured. `--plain` adds the
networks on MindSpore's own operators. `--check` measures nothing: it proves that both sides are the same networks, by
their parameters and by what they give. benchmarks/README.md says what is measured and how.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from twins.problems import MODES, PROBLEMS

WARM_UP = 2  # steps; the first one compiles


def num_cores() -> int:
    """That this process may use; the contestants inherit it, and have as many threads."""
    return len(os.sched_getaffinity(0))


def make_work(contestant: str, name: str, mode: str) -> Callable[[], object]:
    problem = PROBLEMS[name]
    if contestant == "torch":
        import torch
        from twins import theirs

        torch.set_num_threads(num_cores())
        return (theirs.train_step if mode == "train" else theirs.inference)(name, problem)
    from mindvideo.engine.device import use_device

    use_device("cpu")  # MindVideo, loaded before MindSpore, sets how its threads wait
    from twins import ours

    return (ours.train_step if mode == "train" else ours.inference)(problem)


def work(contestant: str, name: str, mode: str) -> None:
    """The process of one contestant: a step for every line read, and a line on it."""
    step = make_work(contestant, name, mode)
    for _ in sys.stdin:
        start, busy = time.perf_counter(), time.process_time()
        step()
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print("step", json.dumps({"seconds": seconds, "busy": busy, "peak": peak}), flush=True)


class Contestant:
    """A process that makes one step at a time and is stopped in between.

    `start_up` are the seconds from its start to the end of its first step, `peak` is the most memory that it held, in
    MiB, and `seconds` and `busy` are the wall and processor time of the steps that count.
    """

    def __init__(self, kind: str, name: str, mode: str):
        started = time.perf_counter()
        environment = dict(os.environ, MINDVIDEO_NATIVE="0" if kind == "plain" else "1")
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--work", kind, name, mode],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.seconds: list[float] = []
        self.busy: list[float] = []
        self.peak = 0.0
        self._step()
        self.start_up = time.perf_counter() - started
        for _ in range(WARM_UP - 1):
            self._step()

    def step(self) -> None:
        told = self._step()
        self.seconds.append(told["seconds"])
        self.busy.append(told["busy"])

    def _step(self) -> dict[str, float]:
        self.process.send_signal(signal.SIGCONT)
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("step"):
                self.process.send_signal(signal.SIGSTOP)
                told = json.loads(line.removeprefix("step"))
                self.peak = told["peak"]
                return told
        raise SystemExit(f"{' '.join(map(str, self.process.args))} ended with status {self.process.wait()}")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        fastest, slowest = 1e3 * min(self.seconds), 1e3 * max(self.seconds)
        cores = sum(self.busy) / sum(self.seconds)
        return (
            f"{1e3 * self.median:7.0f} ms ({fastest:.0f} to {slowest:.0f})  {cores:.1f} cores  "
            f"first step after {self.start_up:.1f} s  {self.peak:.0f} MiB"
        )


def measure(name: str, mode: str, kinds: list[str], repeats: int) -> dict[str, Contestant]:
    contestants: dict[str, Contestant] = {}
    try:
        for kind in kinds:
            contestants[kind] = Contestant(kind, name, mode)
        for _ in range(repeats):
            for contestant in contestants.values():
                contestant.step()
    finally:
        for contestant in contestants.values():
            contestant.end()
    for kind, contestant in contestants.items():
        print(f"{name:9} {mode:9} {kind:6} {contestant}", flush=True)
    return contestants


def table_row(name: str, mode: str, ours: Contestant, other: Contestant) -> str:
    """Medians with the fastest step, their ratio with the quartiles of neighbouring steps' ratios, start-up, memory."""
    ratios = [own / others for own, others in zip(ours.seconds, other.seconds, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    cells = [
        PROBLEMS[name].title, mode, *(f"{1e3 * c.median:.0f} ({1e3 * min(c.seconds):.0f})" for c in (ours, other)),
        f"**{ours.median / other.median:.2f}** ({low:.2f}-{high:.2f})",
        f"{1e3 * statistics.median(ours.busy):.0f} / {1e3 * statistics.median(other.busy):.0f}",
        f"{ours.start_up:.1f} / {other.start_up:.1f}", f"{ours.peak:.0f} / {other.peak:.0f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def print_table(results: dict[tuple[str, str], dict[str, Contestant]], other: str) -> None:
    print(f"\nMindVideo beside {'PyTorch' if other == 'torch' else 'MindSpore operators'}\n")
    print(
        "| network | mode | ours (fastest), ms | theirs | ratio (quartiles) | CPU, ms | first step, s | memory, MiB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for (name, mode), contestants in results.items():
        print(table_row(name, mode, contestants["native"], contestants[other]))


def describe(repeats: int) -> str:
    """What the numbers hold for."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=10"],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    versions = ", ".join(
        f"{package} {metadata.version(package)}"
        for package in ("mindspore", "torch", "numpy")
        if importlib.util.find_spec(package)
    )
    return (
        f"commit {done.stdout.strip() or 'unknown'}; {processor()}, {num_cores()} of {os.cpu_count()} cores; "
        f"{versions}, Python {platform.python_version()}; {repeats} steps of each, in turn"
    )


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PROBLEMS))
    parser.add_argument("--only", choices=MODES, help="measure this alone")
    parser.add_argument("--repeats", type=int, default=15, help="measured steps of each contestant (default 15)")
    parser.add_argument("--cores", type=int, default=num_cores(), help="that each side may use (default: all)")
    parser.add_argument("--plain", action="store_true", help="measure MindSpore's own operators too")
    parser.add_argument("--check", action="store_true", help="prove that both sides are the same networks")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(*arguments.work)
        return
    unknown = sorted(set(arguments.names) - set(PROBLEMS))
    if unknown or arguments.repeats < 1 or not 1 <= arguments.cores <= num_cores():
        known = ", ".join(PROBLEMS)
        parser.error(f"NAME must be of {known}, --repeats at least 1, and --cores from 1 to {num_cores()}")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    if importlib.util.find_spec("torch") is None:
        parser.error("PyTorch is not installed: see benchmarks/README.md")
    names = arguments.names or list(PROBLEMS)
    if arguments.check:
        from mindvideo.engine.device import use_device

        use_device("cpu")
        from twins.check import check

        same = [check(name) for name in names]
        sys.exit(not all(same))
    others = ["torch", "plain"] if arguments.plain else ["torch"]
    modes = [arguments.only] if arguments.only else MODES
    problems = [(name, mode) for name in names for mode in modes]
    results = {problem: measure(*problem, ["native", *others], arguments.repeats) for problem in problems}
    for other in others:
        print_table(results, other)
    print(f"\n{describe(arguments.repeats)}")


if __name__ == "__main__":
    main()
