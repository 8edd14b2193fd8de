# SPDX-License-Identifier: Apache-2.0
"""The shell entry points: which command each form of their arguments becomes. Nothing is installed or trained."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

SCRIPTS = sorted((REPOSITORY / "scripts").glob("*.sh"))
SAMPLE = REPOSITORY / "configs" / "arn" / "arn_sample.yaml"
# Stands for the environment's Python: notes its arguments, one a line, and prints a line as a run would.
STUB = '#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done >"$(dirname "$0")/../called"\necho working\n'


class Shell:
    """Runs scripts in a folder of its own against a stub of the environment."""

    def __init__(self, folder: Path):
        self.folder = folder / "here"
        self.venv = folder / "venv"
        self.folder.mkdir()
        python = self.venv / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(STUB)
        python.chmod(0o755)
        files = [REPOSITORY / "requirements.txt", REPOSITORY / "pyproject.toml"]
        stamp = subprocess.run(f"cat {files[0]} {files[1]} | cksum", shell=True, capture_output=True, check=True)
        for extras in ("", "dev"):
            (self.venv / f".mindvideo-{extras}").write_text(stamp.stdout.decode().strip())

    def run(self, script: str, *words: object) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(REPOSITORY / "scripts" / script), *map(str, words)]
        environment = os.environ | {"MINDVIDEO_VENV": str(self.venv)}
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)

    def called(self, script: str, *words: object) -> list[str]:
        """What a script that succeeds gives to Python."""
        done = self.run(script, *words)
        assert done.returncode == 0, done.stderr
        assert "Installing" not in done.stdout
        return (self.venv / "called").read_text().splitlines()

    def refused(self, script: str, *words: object) -> str:
        """The one line of a script that refuses."""
        done = self.run(script, *words)
        assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
        assert not (self.venv / "called").exists()
        lines = done.stderr.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith(f"{script}: error: ")
        return lines[0]


@pytest.fixture
def shell(tmp_path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def ucf101(tmp_path) -> Path:
    video = tmp_path / "some data" / "Archery" / "v_Archery_g01_c01.avi"
    video.parent.mkdir(parents=True)
    video.touch()
    return video.parent.parent


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_syntax(script):
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    found = subprocess.run(
        ["shellcheck", "-x", *SCRIPTS, ".ci/run"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert found.stdout == ""


def test_train_without_arguments_takes_the_sample(shell):
    assert shell.called("run_standalone_train.sh") == ["-m", "mindvideo", "train", str(SAMPLE)]


def test_train_takes_config_pretrained_and_settings(shell):
    config = shell.folder / "my own.yaml"
    config.touch()
    train = ["-m", "mindvideo", "train"]
    assert shell.called("run_standalone_train.sh", config) == [*train, str(config)]
    assert shell.called("run_standalone_train.sh", "my own.yaml", "a b.ckpt", "optim.lr=1e-3") == [
        *train, "my own.yaml", "train.pretrained=a b.ckpt", "optim.lr=1e-3",
    ]  # fmt: skip
    settings = ["train.episodes=5", "train.resume=auto"]
    assert shell.called("run_standalone_train.sh", config, *settings) == [*train, str(config), *settings]
    assert shell.called("run_standalone_train.sh", *settings) == [*train, str(SAMPLE), *settings]


def test_train_takes_project_and_data_folders(shell, ucf101):
    train = ["-m", "mindvideo", "train"]
    assert shell.called("run_standalone_train.sh", REPOSITORY) == [*train, str(SAMPLE)]
    config = REPOSITORY / "configs" / "arn" / "arn_ucf101_small.yaml"
    assert shell.called("run_standalone_train.sh", REPOSITORY, ucf101) == [
        *train, str(config), f"data.root={ucf101}",
    ]  # fmt: skip
    (ucf101 / "Archery" / "v_Archery_g01_c01.avi").rename(ucf101 / "Archery" / "Film_wave_u_nm_np1_fr_med_0.avi")
    config = REPOSITORY / "configs" / "arn" / "arn_hmdb51_small.yaml"
    assert shell.called("run_standalone_train.sh", REPOSITORY, ucf101)[3] == str(config)


def test_train_refuses_what_is_not_there(shell, ucf101, tmp_path):
    assert "no.yaml does not exist" in shell.refused("run_standalone_train.sh", "no.yaml")
    assert "nowhere is not a folder" in shell.refused("run_standalone_train.sh", REPOSITORY, "nowhere")
    assert "is not the MindVideo repository" in shell.refused("run_standalone_train.sh", ucf101)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "neither UCF101 nor HMDB51" in shell.refused("run_standalone_train.sh", REPOSITORY, empty)


@pytest.mark.parametrize("script", ["run_standalone_eval.sh", "run_eval.sh"])
def test_eval_takes_device_config_checkpoint_and_data(shell, script):
    expected = ["-m", "mindvideo", "eval", str(SAMPLE), "--checkpoint", "a.ckpt", "output=eval"]
    assert shell.called(script, "CPU", SAMPLE, "a.ckpt") == [*expected, "device=cpu"]
    assert shell.called(script, "Ascend", SAMPLE, "a.ckpt", "my data", "eval.shot=5") == [
        *expected, "device=ascend", "data.root=my data", "eval.shot=5",
    ]  # fmt: skip
    assert (shell.folder / "eval" / "eval.log").read_text() == "working\n"


def test_eval_of_folders_takes_the_newest_best_checkpoint(shell, ucf101):
    for age, name in enumerate(["new run", "old run"]):
        run = shell.folder / "output" / name
        run.mkdir(parents=True)
        (run / "config.yaml").touch()
        (run / "best.ckpt").touch()
        os.utime(run / "best.ckpt", (1e9 - age, 1e9 - age))
    run = "output/new run"
    expected = ["-m", "mindvideo", "eval", f"{run}/config.yaml", "--checkpoint", f"{run}/best.ckpt", "output=eval"]
    assert shell.called("run_standalone_eval.sh", REPOSITORY) == expected
    assert shell.called("run_standalone_eval.sh", REPOSITORY, ucf101) == [*expected, f"data.root={ucf101}"]


def test_eval_refuses_what_is_missing(shell):
    assert "expected [device] [config] [load_ckpt]" in shell.refused("run_standalone_eval.sh")
    assert "got 2 arguments" in shell.refused("run_standalone_eval.sh", "CPU", SAMPLE)
    assert "no.yaml does not exist" in shell.refused("run_standalone_eval.sh", "CPU", "no.yaml", "a.ckpt")
    assert "no best.ckpt under ./output" in shell.refused("run_standalone_eval.sh", REPOSITORY)


def test_a_failed_evaluation_fails_the_script(shell):
    (shell.venv / "bin" / "python").write_text("#!/bin/sh\necho broken >&2\nexit 2\n")
    assert shell.run("run_standalone_eval.sh", "CPU", SAMPLE, "a.ckpt").returncode == 2
    assert (shell.folder / "eval" / "eval.log").read_text() == "broken\n"


def test_distributed_training_refuses_clearly(shell):
    script = "run_distribute_train.sh"
    told = shell.refused(script, 2, "0,1", SAMPLE, "a.ckpt")
    assert "not available yet" in told
    assert "run_standalone_train.sh" in told
    assert "not available yet" in shell.refused(script, REPOSITORY)
    assert "expected [DEVICE_NUM]" in shell.refused(script)
    assert "DEVICE_NUM two is not a number" in shell.refused(script, "two", "0,1")
    assert "DEVICE_NUM is 8, but VISIBLE_DEVICES 0,1 lists 2" in shell.refused(script, 8, "0,1")
    assert "no.yaml does not exist" in shell.refused(script, 2, "0,1", "no.yaml")


def test_run_tests_hands_its_arguments_to_pytest(shell):
    command = shell.called("run_tests.sh", "-k", "a b")
    assert command[:2] + command[4:] == ["-m", "pytest", "-k", "a b"]
    processes, distribution = command[2:4]
    assert int(processes.removeprefix("--numprocesses=")) >= 1
    assert distribution == "--dist=loadfile"
