# SPDX-License-Identifier: Apache-2.0
"""What faults do to a training run: each strikes a real one, which is then resumed and compared with an unbroken one.

    python -m benchmarks.faults [NAME ...] [--kills N] [--seed S] [--keep FOLDER]

Without names all faults of FAULTS are played; `--kills N` plays in their stead one run killed N times. The run is the
few-shot experiment of the tests, 80 steps of two batches: a minute or so for each fault. Shown are what the user reads
last, the exit status, the seconds from the fault to the end, the steps that were taken and not in a checkpoint, and
whether all weights and the optimizer's state end bit-equal to those of the unbroken run, one process from start to end.
A fault of two processes strikes a run of scripts/run_distribute_train.sh, which one process continues; "one-then-two"
is the other way round.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from mindvideo.engine.checkpoint import read_checkpoint
from mindvideo.errors import InputError
from tests.environment import OURS, REPOSITORY, make_environment
from tests.tiny import write_experiment

SETTINGS = (
    *("device=cpu", "train.accumulate=2", "train.episodes=160", "train.save_every=8", "train.validate_every=40"),
    *("data.workers=2", "eval.episodes=5", "eval.gifs=0", "train.resume=auto"),
)
LONGEST = 120  # seconds that a run may take to end
# Runs mindvideo with a wall clock that is a day ahead or behind, another at each look.
JUMPING_CLOCK = """
import itertools, runpy, time
clock, jumps = time.time, itertools.cycle((0, 86400, -86400))
time.time = lambda: clock() + next(jumps)
runpy.run_module("mindvideo", run_name="__main__", alter_sys=True)
"""


class Run:
    """A training run in `folder`, which may hold an unfinished one, started at once."""

    def __init__(self, root: Path, folder: Path, processes: int = 1, port: int | None = None, clock: bool = False):
        self.folder, self.videos = folder, folder / "videos"
        if not self.videos.exists():
            shutil.copytree(root / "videos", self.videos)
        script = ["bash", str(REPOSITORY / "scripts" / "run_distribute_train.sh"), str(processes), "0,1"]
        program = ["-c", JUMPING_CLOCK] if clock else ["-m", "mindvideo"]
        words = [sys.executable, *program, "train"] if processes == 1 else script
        places = (f"data.root={self.videos}", f"data.split={root / 'split'}", "output=train/ckpt")
        self.out, self.err = (folder / f"{name}.txt" for name in ("out", "err"))
        environment = os.environ | {
            "OMP_NUM_THREADS": "1", "MINDVIDEO_CACHE": str(root / "cache"), "MINDVIDEO_VENV": str(root / "environment"),
        }  # fmt: skip
        if port:
            environment["MASTER_PORT"] = str(port)
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [*words, str(root / "tiny.yaml"), *places, *SETTINGS],
                cwd=folder, env=environment, stdout=out, stderr=err, start_new_session=True,
            )  # fmt: skip
        self.ended = 0.0

    def step(self) -> int:
        """The last step that it told of."""
        steps = re.findall(r"^step (\d+)/", self.out.read_text(), re.MULTILINE)
        return int(steps[-1]) if steps else 0

    def reach(self, step: int) -> None:
        """Wait until it is there."""
        while self.step() < step:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.folder}: ended before step {step}: {self.err.read_text()}")
            time.sleep(0.02)

    def family(self) -> list[psutil.Process]:
        """All processes that belong to it, those that lost their parent too."""
        return [p for p in psutil.process_iter() if _folder_of(p) == self.folder]

    def wait(self) -> int | None:
        """Its exit status, after it and all its family are gone; None if that takes too long, and they are killed."""
        until = time.monotonic() + LONGEST
        while (family := self.family()) and time.monotonic() < until:
            self.process.poll()
            time.sleep(0.1)
        self.ended = time.monotonic()
        for process in family:
            process.kill()
        status = self.process.wait()
        return None if family else status

    def said(self) -> str:
        """The last lines that it told on its error output, MindSpore's own aside."""
        lines = [line for line in self.err.read_text().splitlines() if line and not line.startswith(("[", "Traceback"))]
        return " / ".join(lines[-2:]).replace(f"{self.folder}/", "")

    def saved(self) -> int:
        """The step of the newest whole checkpoint; 0 without one."""
        for name in ("last", "previous"):
            try:
                return read_checkpoint(self.folder / "train" / "ckpt" / "tiny" / f"{name}.ckpt")[1].step
            except InputError:
                continue
        return 0


def _folder_of(process: psutil.Process) -> Path | None:
    try:
        return Path(process.cwd()) if process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def workers_of(run: Run) -> list[psutil.Process]:
    """The training processes of a distributed run, by number, without their data processes and log readers."""
    processes = [p for p in run.family() if p.environ().get("MS_ROLE") == "MS_WORKER" and "mindvideo" in p.cmdline()]
    numbers = {p.pid for p in processes}
    return sorted((p for p in processes if p.ppid() not in numbers), key=lambda p: p.environ()["MS_NODE_ID"])


def kill_all(run: Run) -> None:
    for process in run.family():
        process.kill()


def full_disk(run: Run) -> None:
    """No file may grow beyond 64 KiB: checkpoints do, logs do not."""
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (64 * 1024, resource.RLIM_INFINITY))


def truncate(run: Run) -> None:
    kill_all(run)
    last = run.folder / "train" / "ckpt" / "tiny" / "last.ckpt"
    os.truncate(last, last.stat().st_size // 2)


def flip(run: Run) -> None:
    kill_all(run)
    last = run.folder / "train" / "ckpt" / "tiny" / "last.ckpt"
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes(data)


def lose_file(run: Run) -> None:
    (run.videos / "a" / "0.avi").rename(run.folder / "lost.avi")


def find_file(run: Run) -> None:
    (run.folder / "lost.avi").rename(run.videos / "a" / "0.avi")


def kill_loader(trainer: psutil.Process) -> None:
    min(trainer.children(), key=lambda p: p.pid).kill()


@dataclass(frozen=True)
class Fault:
    """What happens to a run of `processes` at step 10, how that is undone, and how many then continue the run."""

    strike: Callable[[Run], object]
    processes: int = 1
    after: int = 1
    undo: Callable[[Run], object] = field(default=lambda run: None)


FAULTS = {
    "worker": Fault(lambda run: workers_of(run)[1].kill(), 2),
    "first-worker": Fault(lambda run: workers_of(run)[0].kill(), 2),
    "all": Fault(kill_all, 2),
    "one-then-two": Fault(kill_all, 1, after=2),
    "sigterm": Fault(lambda run: run.process.terminate(), 2),
    "sigterm-family": Fault(lambda run: os.killpg(run.process.pid, signal.SIGTERM)),
    "ctrl-c": Fault(lambda run: os.killpg(run.process.pid, signal.SIGINT), 2),
    "ctrl-c-alone": Fault(lambda run: os.killpg(run.process.pid, signal.SIGINT)),
    "disk": Fault(full_disk),
    "truncated": Fault(truncate),
    "flipped": Fault(flip),
    "file": Fault(lose_file, undo=find_file),
    "loader": Fault(lambda run: kill_loader(psutil.Process(run.process.pid))),
    "loader-of-two": Fault(lambda run: kill_loader(workers_of(run)[1]), 2),
}


@dataclass
class Row:
    """A line of the table."""

    name: str
    said: str
    status: int | None
    seconds: float
    lost: int
    equal: bool

    def __str__(self) -> str:
        status = "hung" if self.status is None else self.status
        ends = "bit-equal" if self.equal else "DIFFERENT"
        return f"| {self.name} | {self.said} | {status} | {self.seconds:.1f} | {self.lost} | {ends} |"


def play(name: str, root: Path, folder: Path, unbroken: Path) -> Row:
    """Strike a run with a fault of FAULTS, continue it and compare."""
    fault, run = FAULTS[name], Run(root, folder, FAULTS[name].processes)
    run.reach(10)
    struck = time.monotonic()
    fault.strike(run)
    status = run.wait()
    said, seconds, lost = run.said(), run.ended - struck, run.step() - run.saved()
    fault.undo(run)
    resumed = Run(root, folder, fault.after)
    if resumed.wait() != 0:
        return Row(name, f"{said}; not resumed: {resumed.said()}", status, seconds, lost, False)
    told = re.findall(r"^.*Going on from.*$", resumed.out.read_text(), re.MULTILINE)
    said = " / ".join([said, *told] if said else told).replace(f"{folder}/", "")
    return Row(name, said, status, seconds, lost, same(folder, unbroken))


def port_taken(root: Path, folder: Path) -> Row:
    """Nothing starts where the port that is asked for is another program's."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        started = time.monotonic()
        run = Run(root, folder, 2, port=listener.getsockname()[1])
        status = run.wait()
    return Row("port", run.said(), status, run.ended - started, 0, not (folder / "train").exists())


def clock_jumps(root: Path, folder: Path, unbroken: Path) -> Row:
    """time.time() is wrong by a day all along; nothing else of the machine's clock can be set without being root."""
    run, started = Run(root, folder, clock=True), time.monotonic()
    status = run.wait()
    return Row("clock", run.said(), status, run.ended - started, 0, same(folder, unbroken))


def many_kills(kills: int, root: Path, folder: Path, unbroken: Path, rng: random.Random) -> Row:
    """Kill one run at random again and again, some steps after each start, and let it end."""
    lost, saved = [], 0
    for number in range(kills):
        run = Run(root, folder)
        run.reach(min(saved + rng.randint(2, 6), 79))
        time.sleep(rng.uniform(0, 0.3))
        kill_all(run)
        run.wait()
        saved = run.saved()
        lost.append(run.step() - saved)
        print(f"kill {number + 1}: at step {run.step()}, checkpoint of step {saved}", flush=True)
    run, started = Run(root, folder), time.monotonic()
    status = run.wait()
    said = f"at most {max(lost)} steps lost at once"
    return Row(f"{kills} kills", said, status, run.ended - started, sum(lost), same(folder, unbroken))


def same(folder: Path, unbroken: Path) -> bool:
    """Whether two runs ended with the same arrays in their checkpoints, bit for bit."""
    for name in ("last.ckpt", "best.ckpt"):
        own, other = (read_checkpoint(f / "train" / "ckpt" / "tiny" / name)[0] for f in (folder, unbroken))
        if own.keys() != other.keys() or any(not np.array_equal(own[key], other[key]) for key in own):
            return False
    return True


def rows(names: Iterable[str], kills: int, seed: int, root: Path) -> Iterable[Row]:
    def folder(name: str) -> Path:
        (root / name).mkdir()
        return root / name

    unbroken = folder("unbroken")
    run = Run(root, unbroken)
    if run.wait() != 0:
        raise RuntimeError(f"the unbroken run failed: {run.err.read_text()}")
    if kills:
        yield many_kills(kills, root, folder("kills"), unbroken, random.Random(seed))
        return
    for name in names:
        if name == "port":
            yield port_taken(root, folder(name))
        elif name == "clock":
            yield clock_jumps(root, folder(name), unbroken)
        else:
            yield play(name, root, folder(name), unbroken)


def main() -> None:
    known = (*FAULTS, "port", "clock")
    parser = argparse.ArgumentParser(description="Strike training runs with faults and tell what comes of it.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)} (default: all)")
    parser.add_argument("--kills", type=int, default=0, metavar="N", help="play one run killed N times instead")
    parser.add_argument("--seed", type=int, default=0, help="when it is killed (default: 0)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="new folder to leave the runs in")
    parsed = parser.parse_args()
    if unknown := set(parsed.names) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as temporary:
        root = (parsed.keep or Path(temporary)).resolve()
        root.mkdir(parents=True, exist_ok=True)
        write_experiment(root)
        make_environment(root / "environment", OURS)
        print("| fault | what the user reads | status | seconds to the end | steps lost | resumed run |")
        print("|---|---|---|---|---|---|", flush=True)
        for row in rows(parsed.names or known, parsed.kills, parsed.seed, root):
            print(row, flush=True)


if __name__ == "__main__":
    main()
