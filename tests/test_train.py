# SPDX-License-Identifier: Apache-2.0
"""Whole runs on made videos: what they leave behind, and that breaking off and going on changes no bit."""

from __future__ import annotations

import csv
import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor
from safetensors.numpy import load_file

from mindvideo import cli
from mindvideo.data.video import write_video
from mindvideo.engine.checkpoint import read_checkpoint
from mindvideo.engine.step import Step
from mindvideo.tasks import fewshot, setup
from tests.conftest import REPOSITORY
from tests.tiny import EPISODES, evaluate, settings, train, write_experiment


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def series(folder: Path, name: str) -> list[float]:
    return [row[name] for row in rows(folder) if name in row]


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def assert_same_run(folder: Path, straight: Path) -> None:
    """Weights, optimizer state are those of the unbroken run bit for bit, and nothing is logged twice."""
    for file in ("best.safetensors", "last.ckpt"):
        own, expected = (read_checkpoint(f / file)[0] for f in (folder, straight))
        assert own.keys() == expected.keys()
        for name in expected:
            np.testing.assert_array_equal(own[name], expected[name], err_msg=f"{file}: {name}")
    assert [row.keys() for row in rows(folder)] == [row.keys() for row in rows(straight)]
    for name in ("step", "accuracy", "val_accuracy"):
        assert series(folder, name) == series(straight, name)
    # MindSpore's cross entropy adds up in an order of its own: its value, not its gradient, varies in the last bit.
    assert series(folder, "loss") == pytest.approx(series(straight, "loss"), rel=1e-6)
    assert result(folder)["metrics"] == result(straight)["metrics"]


def test_a_run_leaves_all_its_files(straight):
    present = {path.name for path in straight.iterdir()}
    assert present == {
        *("config.yaml", "log.csv", "log.jsonl", "result.json", "report.html", "figures"),
        *("best.ckpt", "best.safetensors", "last.ckpt", "last.safetensors", "previous.ckpt"),
    }
    assert all(path.stat().st_size > 0 for path in (straight / "figures").iterdir())
    logged = rows(straight)
    assert [row["step"] for row in logged if "loss" in row] == list(range(1, EPISODES + 1))
    assert [row["step"] for row in logged if "val_accuracy" in row] == [10, 20]
    with (straight / "log.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [{k: float(v) for k, v in row.items() if v} for row in table] == logged


def test_the_result_says_all_that_the_numbers_need(straight):
    found = result(straight)
    assert found["task"] == "fewshot"
    assert found["model"] == "arn"
    assert found["dataset"] == "folder"
    assert (found["way"], found["shot"], found["query"]) == (2, 1, 1)
    assert set(found["controls"]) == {"thumbnails", "motion", "colours"}
    for method in (found["metrics"], *found["controls"].values()):
        accuracy = method["accuracy"]
        assert 0 <= accuracy["value"] <= 1
        assert accuracy["half_width_95"] >= 0
        assert accuracy["n"] == 10
    assert found["controls"]["thumbnails"]["accuracy"]["value"] == 1  # each class has its own picture
    strongest = found["controls"][found["strongest_control"]]["accuracy"]["value"]
    assert strongest == max(method["accuracy"]["value"] for method in found["controls"].values())
    assert found["classes"] == {"train": ["a", "b", "c"], "val": ["d", "e"], "test": ["f", "g", "h"]}
    assert found["chance"] == 0.5
    assert found["train_episodes"] == EPISODES
    assert found["checkpoint"] == "best.ckpt"
    validated = {row["step"]: row["val_accuracy"] for row in rows(straight) if "val_accuracy" in row}
    assert found["checkpoint_episode"] == max(validated, key=lambda step: validated[step])
    assert found["versions"]["mindspore"] == "2.8.0"
    assert {"split", "seed", "train_seconds", "test_seconds", "commit", "config_sha256"} <= found.keys()


def test_the_report_shows_the_numbers(straight):
    page = (straight / "report.html").read_text()
    accuracy = result(straight)["metrics"]["accuracy"]
    assert f"{100 * accuracy['value']:.2f} ± {100 * accuracy['half_width_95']:.2f} %" in page
    assert "image/gif" in page
    assert "validate_every: 10" in page


@pytest.mark.parametrize("name", ["best.ckpt", "best.safetensors"])
def test_evaluating_the_best_checkpoint_gives_the_run_s_numbers(straight, experiment, tmp_path, name):
    assert evaluate(experiment, tmp_path, straight / name) == 0
    found = result(tmp_path / "tiny-eval")
    for part in ("metrics", "controls"):
        assert found[part] == result(straight)[part]
    assert (tmp_path / "tiny-eval" / "report.html").is_file()


def learn_nothing(patch: pytest.MonkeyPatch, losses: Iterable[float]) -> None:
    """The next training's steps have these losses and do nothing: where only what is around them counts, no graph needs
    to be compiled."""

    class IdleStep(Step):
        left = iter(losses)

        def __call__(self, batches: list[tuple[Tensor, ...]]) -> list[tuple[Tensor, Tensor]]:
            ((support_NKCTHW, query_MCTHW, *_),) = batches
            scores_MN = np.zeros((query_MCTHW.shape[0], support_NKCTHW.shape[0]), np.float32)
            return [(Tensor(np.float32(next(self.left))), Tensor(scores_MN))]

    patch.setattr(setup, "Step", IdleStep)


def test_pretrained_weights_are_the_start(straight, experiment, tmp_path, monkeypatch):
    learn_nothing(monkeypatch, [1.0])
    pretrained = f"train.pretrained={straight / 'last.safetensors'}"
    assert train(experiment, tmp_path, pretrained, "train.episodes=1", "seed=5") == 0
    before, after = (load_file(f / "last.safetensors") for f in (straight, tmp_path / "tiny"))
    for name in before:
        np.testing.assert_array_equal(after[name], before[name])


def started_run(root: Path, output: Path, *more: str) -> subprocess.Popen[str]:
    """`mindvideo train` as a process and a process group of its own, as a shell starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "mindvideo", "train", *settings(root, output, *more)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_step(run: subprocess.Popen[str], step: int) -> None:
    assert run.stdout is not None
    while not (line := run.stdout.readline()).startswith(f"step {step}/"):
        assert line, f"the run ended before step {step}: {run.communicate()}"


def assert_stopped(status: int, errors: str, checkpoint: Path, *, after: int) -> None:
    """The run ended with one line and left the step it reached, `after` or a later one."""
    assert status == 130
    assert errors.count("\n") == 1, errors
    assert errors.startswith(f"mindvideo: interrupted; {checkpoint} holds step ")
    assert "train.resume=auto" in errors
    assert after <= read_checkpoint(checkpoint)[1].step < EPISODES


def terminate_at_once(patch: pytest.MonkeyPatch) -> None:
    """SIGTERM comes in the first step of the next training."""

    class TerminatedStep(Step):
        def __call__(self, batches):
            os.kill(os.getpid(), signal.SIGTERM)
            return super().__call__(batches)

    patch.setattr(setup, "Step", TerminatedStep)


def test_a_run_stopped_terminated_and_killed_goes_on_to_the_same_weights(straight, experiment, tmp_path, capsys):
    """The seed decides them alone: the worker count, which changes on the way, does not."""
    checkpoint = tmp_path / "tiny" / "last.ckpt"
    run = started_run(experiment, tmp_path)
    wait_for_step(run, 4)
    os.killpg(run.pid, signal.SIGINT)  # Ctrl-C on a terminal: the data workers get it too
    errors = run.communicate()[1]
    assert_stopped(run.returncode, errors, checkpoint, after=4)

    stopped = read_checkpoint(checkpoint)[1].step
    with pytest.MonkeyPatch.context() as patch:
        terminate_at_once(patch)
        status = train(experiment, tmp_path, "train.resume=auto", "data.workers=1")
    assert_stopped(status, capsys.readouterr().err, checkpoint, after=stopped + 1)

    least = stopped + 2
    step = random.randint(least, max(least, EPISODES - 5))  # any of them must do; pytest shows it on failure
    run = started_run(experiment, tmp_path, "train.resume=auto")
    wait_for_step(run, step)
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
    assert not (tmp_path / "tiny" / "result.json").exists()
    assert train(experiment, tmp_path, "train.resume=auto", "data.workers=1") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"], "resumed in the same folder"
    assert_same_run(tmp_path / "tiny", straight)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [truncate, Path.unlink])
def test_the_checkpoint_before_takes_over_from_one_that_is_damaged_or_missing(
    straight, experiment, tmp_path, capsys, damage
):
    shutil.copytree(straight, tmp_path / "tiny")
    (tmp_path / "tiny" / "result.json").unlink()
    last, previous = (tmp_path / "tiny" / f"{name}.ckpt" for name in ("last", "previous"))
    assert read_checkpoint(previous)[1].step == 18
    damage(last)
    assert train(experiment, tmp_path, "train.resume=auto") == 0
    told = next(line for line in capsys.readouterr().out.splitlines() if str(last) in line)
    assert told.startswith(f"{last}: {'not a readable' if damage is truncate else 'no such'} checkpoint")
    assert told.endswith(f" Going on from {previous}.")
    assert_same_run(tmp_path / "tiny", straight)


def test_two_damaged_checkpoints_are_one_line(straight, experiment, tmp_path, capsys):
    shutil.copytree(straight, tmp_path / "tiny")
    (tmp_path / "tiny" / "result.json").unlink()
    for name in ("last", "previous"):
        truncate(tmp_path / "tiny" / f"{name}.ckpt")
    assert train(experiment, tmp_path, "train.resume=auto") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"mindvideo: error: {tmp_path}/tiny/previous.ckpt: not a readable checkpoint (")


def test_resuming_with_other_settings_is_refused(straight, experiment, tmp_path, capsys):
    shutil.copytree(straight, tmp_path / "tiny")
    (tmp_path / "tiny" / "result.json").unlink()
    assert train(experiment, tmp_path, "train.resume=auto", "optim.lr=0.5", "episode.way=3") == 2
    error = capsys.readouterr().err
    assert "optim.lr was 0.001, is 0.5" in error
    assert "episode.way was 2, is 3" in error


def test_a_finished_run_is_not_resumed(straight, experiment, capsys):
    assert train(experiment, straight.parent, "train.resume=auto") == 2
    assert f"{straight} is finished" in capsys.readouterr().err


def test_a_run_whose_training_ended_goes_on_to_its_test(straight, experiment, tmp_path):
    shutil.copytree(straight, tmp_path / "tiny")
    (tmp_path / "tiny" / "result.json").unlink()
    assert train(experiment, tmp_path, "train.resume=auto") == 0
    assert_same_run(tmp_path / "tiny", straight)


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_last_checkpoint(experiment, tmp_path, monkeypatch, capsys):
    learn_nothing(monkeypatch, [1.0] * 4 + [np.nan])
    assert train(experiment, tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith("mindvideo: error: the loss of step 5 is nan")
    assert error.count("\n") == 1
    values, state = read_checkpoint(tmp_path / "tiny" / "last.ckpt")
    assert state.step == 3
    assert all(np.isfinite(value).all() for value in values.values())


def test_no_space_for_a_checkpoint(experiment, tmp_path, monkeypatch, capsys):
    """A limit on file size lets best.ckpt pass (0.2 MB) and stops last.ckpt (0.5 MB), which holds the moments."""
    learn_nothing(monkeypatch, [1.0] * 2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (350 * 1024, before[1]))
    try:
        status = train(experiment, tmp_path, "train.validate_every=1", "train.save_every=2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 2
    error = capsys.readouterr().err
    assert error.startswith(f"mindvideo: error: {tmp_path}/tiny/last.ckpt: cannot write the checkpoint of step 2")
    assert error.count("\n") == 1
    assert "File too large" in error
    left = {path.name for path in (tmp_path / "tiny").iterdir()}
    assert left == {"config.yaml", "log.csv", "log.jsonl", "best.ckpt", "best.safetensors"}
    assert read_checkpoint(tmp_path / "tiny" / "best.ckpt")[1].step == 1


def test_broken_videos_are_counted_and_named_and_short_ones_filled_up_when_asked(straight, tmp_path, cache, capsys):
    write_experiment(tmp_path)
    bad = tmp_path / "videos" / "g" / "1.avi"
    bad.write_bytes(b"")
    write_video(tmp_path / "videos" / "h" / "1.avi", np.full((2, 32, 32, 3), 90, np.uint8))
    asked = ["data.broken=exclude", "data.short=repeat"]
    assert evaluate(tmp_path, tmp_path / "out", straight / "best.ckpt", *asked) == 0
    assert str(bad) in capsys.readouterr().out
    assert result(tmp_path / "out" / "tiny-eval")["excluded_videos"] == [str(bad)]
    page = (tmp_path / "out" / "tiny-eval" / "report.html").read_text()
    assert "1 videos could not be decoded" in page


def test_a_full_disk_is_one_line_wherever_it_strikes(monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "log.jsonl")

    monkeypatch.setattr(fewshot, "train", full)
    assert cli.main(["train"]) == 2
    error = capsys.readouterr().err
    assert error == "mindvideo: error: [Errno 28] No space left on device: 'log.jsonl'\n"


def test_ctrl_c_before_the_loop_is_one_line(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(fewshot, "train", interrupted)
    assert cli.main(["train"]) == 130
    assert capsys.readouterr().err == "mindvideo: interrupted\n"
