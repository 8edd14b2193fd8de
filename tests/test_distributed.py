# SPDX-License-Identifier: Apache-2.0
"""Training by several processes: the same run as by one, and how they deal and gather.

Runs are started as users do, by scripts/run_distribute_train.sh. What the processes tell one another is tested without
any: threads stand for them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindvideo.config import load_config
from mindvideo.engine import distributed
from mindvideo.engine.checkpoint import read_checkpoint
from mindvideo.engine.distributed import (
    after_first,
    exchange,
    from_first,
    gather_rows,
    own_batches,
    shard,
    sum_over_processes,
)
from mindvideo.errors import InputError
from mindvideo.tasks.setup import settle_accumulation
from tests.conftest import REPOSITORY
from tests.environment import OURS, make_environment
from tests.test_openset import stem, write_tree
from tests.test_pose import write_movements
from tests.test_train import rows
from tests.tiny import result, write_experiment

STEPS = 10


def fewshot(root: Path) -> list[str]:
    """The few-shot experiment, of 9 test videos, and its average; settings for STEPS steps of two batches."""
    write_experiment(root)
    shorter = ("train.episodes=20", "train.validate_every=10", "eval.episodes=5", "eval.gifs=0", "train.ema=0.9")
    return [f"data.root={root / 'videos'}", f"data.split={root / 'split'}", "data.workers=1", *shorter]


def openset(root: Path) -> list[str]:
    """The open-set experiment, which loses a test video: 11 are left."""
    write_tree(root)
    (root / "videos" / "Diving" / f"{stem('Diving', 2, 1)}.avi").unlink()
    # 18 training videos in batches of 6: one step of two batches an epoch, one batch being left over.
    fewer = (f"train.epochs={STEPS}", "train.validate_every=5", "loss.name=edlnokl_avuc")
    return [f"data.root={root / 'videos'}", *fewer]


def pose(root: Path) -> list[str]:
    """One fold of the pose experiment, which loses a test clip: 11 are left."""
    write_movements(root)
    lines = (root / "clips.csv").read_text().splitlines()
    (root / "clips.csv").write_text("\n".join(line for line in lines if "anna_nod_1" not in line) + "\n")
    return [f"data.root={root / 'clips.csv'}", "data.fold=1", f"train.epochs={STEPS}"]


def trained(command: list[str], folder: Path, environment: dict[str, str]) -> Path:
    """The folder of the run that a command makes when started in `folder`."""
    folder.mkdir()
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert "Installing" not in done.stdout
    return folder / "train" / "ckpt" / "tiny"


@pytest.mark.parametrize("write", [fewshot, openset, pose])
def test_two_processes_train_as_one_does(write, tmp_path):
    """Each has as many threads as the other: how numbers are rounded depends on that."""
    settings = [str(tmp_path / "tiny.yaml"), *write(tmp_path)]
    make_environment(tmp_path / "environment", OURS)
    environment = {
        "MINDVIDEO_VENV": str(tmp_path / "environment"),
        "MINDVIDEO_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    one = [sys.executable, "-m", "mindvideo", "train", *settings, "output=train/ckpt", "train.accumulate=2"]
    two = ["bash", str(REPOSITORY / "scripts" / "run_distribute_train.sh"), "2", "0,1", *settings]
    alone = trained(one, tmp_path / "alone", environment)
    together = trained(two, tmp_path / "together", environment)
    assert "train.accumulate=2" in (tmp_path / "together" / "train" / "train.log").read_text()
    assert {path.name for path in together.iterdir()} == {path.name for path in alone.iterdir()}
    for name in ("last.ckpt", "best.ckpt"):
        (expected, state), (found, other) = (read_checkpoint(folder / name) for folder in (alone, together))
        assert (state.best, state.best_step, state.step) == (other.best, other.best_step, other.step)
        assert found.keys() == expected.keys()
        for key, array in expected.items():
            np.testing.assert_allclose(found[key], array, rtol=0, atol=1e-6, err_msg=f"{name}: {key}")
    assert read_checkpoint(together / "last.ckpt")[1].step == STEPS
    assert_same_log(rows(together), rows(alone))
    found, expected = result(together), result(alone)
    assert found["metrics"] == expected["metrics"]
    assert found.get("controls") == expected.get("controls")
    if write is not fewshot:
        assert {n["n"] for n in found["metrics"].values()} == {11}


TIMES = ("seconds", "waiting", "working")


def assert_same_log(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    """But for the time. Processes tell one another such numbers as float32."""
    assert [row.keys() for row in found] == [row.keys() for row in expected]
    for row, other in zip(found, expected, strict=True):
        numbers, others = ({k: v for k, v in r.items() if k not in TIMES} for r in (row, other))
        assert numbers == pytest.approx(others, rel=1e-6, abs=1e-5)


class Processes:
    """`number` threads, each of which takes itself for a process."""

    def __init__(self, patch: pytest.MonkeyPatch, number: int):
        self.number, self._own = number, threading.local()
        self._meeting, self._given = threading.Barrier(number, timeout=20), [np.zeros(0, np.float32)] * number
        patch.setattr(distributed, "rank", lambda: self._own.rank)
        patch.setattr(distributed, "size", lambda: number)
        patch.setattr(distributed, "_gather", self._gather)

    def _gather(self, numbers_N: np.ndarray) -> np.ndarray:
        assert numbers_N.dtype == np.float32
        self._given[self._own.rank] = numbers_N.copy()
        self._meeting.wait()
        gathered = np.stack(self._given)  # fails where one gives more than another, as real processes would
        self._meeting.wait()
        return gathered

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """What `work` gives, or raises, in each process; it is told which one that is."""
        found: list[Any] = [None] * self.number

        def process(rank: int) -> None:
            self._own.rank = rank
            try:
                found[rank] = work(rank)
            except Exception as error:
                found[rank] = error

        threads = [threading.Thread(target=process, args=(rank,)) for rank in range(self.number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found


SIZES = [1, 2, 3, 4]


@pytest.mark.parametrize("size", SIZES)
def test_every_batch_is_dealt_once(monkeypatch, size):
    processes = Processes(monkeypatch, size)
    for accumulate in range(size, 9):
        for start, stop in ((0, 1), (3, 7), (5, 5)):
            dealt = processes.run(lambda _: own_batches(start, stop, accumulate))  # noqa: B023
            assert sorted(number for own in dealt for number in own) == list(
                range(start * accumulate, stop * accumulate)
            )
            # Step by step, the same number in each.
            for own in dealt:
                steps = [number // accumulate for number in own]
                assert steps == sorted(steps)
                assert {steps.count(step) for step in steps} <= {len(own) // max(1, stop - start)}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8])
def test_rows_come_back_in_the_order_of_the_items(monkeypatch, size, count):
    """Shards may be uneven or empty, and a process with none may not know what a row is."""
    items = np.random.default_rng(count).integers(0, 256, (count, 3, 2)).astype(np.uint8)
    names = np.array([f"item {i}" for i in range(count)], "U8")

    def work(_: int) -> tuple[np.ndarray, np.ndarray]:
        own = shard(range(count))
        assert list(own) == list(range(distributed.rank(), count, size))
        return gather_rows(items[list(own)] if own else np.zeros((0, 3, 2), np.uint8)), gather_rows(names[list(own)])

    for found, told in Processes(monkeypatch, size).run(work):
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, items)
        np.testing.assert_array_equal(told, names)


def test_a_process_without_rows_need_not_know_their_shape(monkeypatch):
    def work(rank: int) -> np.ndarray:
        return gather_rows(np.full((1, 5), rank, np.float32) if rank < 2 else np.zeros(0))

    for found in Processes(monkeypatch, 4).run(work):
        np.testing.assert_array_equal(found, [[0] * 5, [1] * 5])


@pytest.mark.parametrize("size", SIZES)
def test_bytes_of_any_length_are_exchanged(monkeypatch, size):
    """All patterns of bytes, those that are no numbers as float32 among them, and more than 2^20 of them."""
    rng = np.random.default_rng(0)
    given = [rng.bytes(length) + b"\0" for length in (2**20 + 3, 0, 5, 2**20)][:size]
    for found in Processes(monkeypatch, size).run(lambda rank: exchange(given[rank])):
        assert found == given
    for found in Processes(monkeypatch, size).run(lambda rank: exchange(b"")):
        assert found == [b""] * size


@pytest.mark.parametrize("size", SIZES)
def test_numbers_are_summed_by_name(monkeypatch, size):
    def work(rank: int) -> dict[str, float]:
        return sum_over_processes({"loss": 0.5 * rank, "batches": 2.0, "stop": float(rank == 0)})

    expected = {"loss": 0.5 * sum(range(size)), "batches": 2.0 * size, "stop": 1.0}
    assert Processes(monkeypatch, size).run(work) == [expected] * size


@pytest.mark.parametrize("size", SIZES)
def test_what_the_first_makes_all_have(monkeypatch, size):
    made: list[int] = []

    def work(rank: int) -> Any:
        return from_first(lambda: made.append(rank) or {"folder": "ä", "steps": [1, 2]})

    assert Processes(monkeypatch, size).run(work) == [{"folder": "ä", "steps": [1, 2]}] * size
    assert made == [0]


@pytest.mark.parametrize("function", [from_first, after_first])
def test_a_mistake_that_the_first_finds_is_every_process_s(monkeypatch, function):
    made: list[int] = []

    def work(rank: int) -> Any:
        def make() -> None:
            made.append(rank)
            raise InputError("optim.lr is -1.")

        return function(make)

    for error in Processes(monkeypatch, 3).run(work):
        assert isinstance(error, InputError)
        assert str(error) == "optim.lr is -1."
    assert made == [0]


def test_the_others_go_after_the_first(monkeypatch):
    made: list[int] = []

    def work(rank: int) -> Any:
        return after_first(lambda: made.append(rank) or rank)

    assert Processes(monkeypatch, 4).run(work) == [0, 1, 2, 3]
    assert made[0] == 0
    assert sorted(made) == [0, 1, 2, 3], "each once"


def settled(patch: pytest.MonkeyPatch, size: int, output: Path, *settings: str) -> int:
    """What `train.accumulate` becomes where there are so many processes."""
    patch.setattr(distributed, "size", lambda: size)
    config = load_config(REPOSITORY / "configs" / "arn" / "arn_sample.yaml", [f"output={output}", *settings])
    settle_accumulation(config)
    return config.train.accumulate


def test_a_step_has_a_batch_for_each_process_unless_told_otherwise(monkeypatch, tmp_path, capsys):
    assert settled(monkeypatch, 1, tmp_path) == 1
    assert settled(monkeypatch, 2, tmp_path, "train.accumulate=5") == 5
    assert capsys.readouterr().out == ""
    assert settled(monkeypatch, 3, tmp_path) == 3
    assert "train.accumulate=3: a step sees so many batches, dealt among 3 process(es)" in capsys.readouterr().out


def test_a_run_goes_on_with_the_batches_that_it_began_with(monkeypatch, tmp_path, capsys):
    (tmp_path / "arn_sample").mkdir()
    (tmp_path / "arn_sample" / "config.yaml").write_text("{name: arn_sample, train: {accumulate: 4}}")
    for size in (1, 2, 3, 4):
        assert settled(monkeypatch, size, tmp_path, "train.resume=auto") == 4
        assert f"dealt among {size} process(es)" in capsys.readouterr().out
    assert settled(monkeypatch, 2, tmp_path) == 2
    with pytest.raises(InputError, match=r"train\.accumulate is 4, and 5 processes are to share"):
        settled(monkeypatch, 5, tmp_path, "train.resume=auto")


def test_more_processes_than_batches_are_refused(monkeypatch, tmp_path):
    with pytest.raises(InputError, match=r"train\.accumulate is 2, and 3 processes are to share a step's batches"):
        settled(monkeypatch, 3, tmp_path, "train.accumulate=2")
