# SPDX-License-Identifier: Apache-2.0
"""The folder of a run and what is logged into it."""

import csv
import hashlib
import json
import platform
import resource
import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest

from mindvideo.engine import log, run
from mindvideo.engine.log import RunLog, progress_bar, read_log, say
from mindvideo.engine.run import check_same_run, current_commit, latest_run, new_run, write_result
from mindvideo.errors import InputError

CONFIG = {
    "seed": 1,
    "output": "output",
    "device": "cpu",
    "data": {"root": "/a", "workers": 2, "length": 8},
    "optim": {"lr": 1e-3},
    "train": {"episodes": 10, "resume": "never", "log_every": 5},
    "eval": {"episodes": 600, "way": 5},
}


def test_runs_of_one_name_are_numbered(tmp_path):
    output = tmp_path / "deep" / "output"
    assert latest_run(output, "arn") is None
    folders = [new_run(output, "arn", f"name: arn\nseed: {i}\n") for i in range(3)]
    assert [folder.name for folder in folders] == ["arn", "arn-2", "arn-3"]
    assert [(folder / "config.yaml").read_text() for folder in folders] == [
        "name: arn\nseed: 0\n",
        "name: arn\nseed: 1\n",
        "name: arn\nseed: 2\n",
    ]
    assert latest_run(output, "arn") == folders[2]
    assert new_run(output, "arn-7", "name: arn-7").name == "arn-7"
    assert latest_run(output, "arn") == folders[2]


def test_a_config_that_the_disk_had_no_room_for_is_no_run(tmp_path):
    """Nor is one that a crash cut short: what is half written has another name."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            new_run(tmp_path, "arn", "name: arn\nseed: 3\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "arn" / "config.yaml").exists()
    assert latest_run(tmp_path, "arn") is None


def test_a_file_in_the_way_is_left_alone(tmp_path):
    (tmp_path / "arn").write_text("mine")
    assert new_run(tmp_path, "arn", "").name == "arn-2"
    assert (tmp_path / "arn").read_text() == "mine"
    with pytest.raises(InputError, match=r"output: cannot make the folder .*arn/run"):
        new_run(tmp_path / "arn", "run", "")


def changed(*path_and_value) -> dict:
    *path, value = path_and_value
    config = json.loads(json.dumps(CONFIG))
    entry = config
    for key in path[:-1]:
        entry = entry[key]
    entry[path[-1]] = value
    return config


@pytest.fixture
def started(tmp_path):
    return new_run(tmp_path, "arn", json.dumps(CONFIG))  # JSON is YAML


@pytest.mark.parametrize(
    "free",
    [
        ("device", "gpu"),
        ("output", "elsewhere"),
        ("data", "root", "/b"),
        ("data", "workers", 9),
        ("eval", "episodes", 20),
        ("eval", "gifs", 1),
        ("train", "resume", "auto"),
        ("train", "log_every", 1),
    ],
)
def test_some_settings_may_change_at_resume(started, free):
    check_same_run(started, changed(*free))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seed", 2), "seed was 1, is 2"),
        (("optim", "lr", 0.01), "optim.lr was 0.001, is 0.01"),
        (("data", "length", 16), "data.length was 8, is 16"),
        (("train", "episodes", 20), "train.episodes was 10, is 20"),
        (("data", "new", True), "data.new was None, is True"),
    ],
)
def test_other_settings_may_not(started, change, message):
    with pytest.raises(InputError) as caught:
        check_same_run(started, changed(*change))
    assert str(caught.value).startswith(f"{started}: cannot resume with other settings: {message}.")


def test_all_changes_are_listed(started):
    config = changed("seed", 2) | {"data": {"root": "/b", "workers": 2}}
    with pytest.raises(InputError, match=r"data\.length was 8, is None; seed was 1, is 2") as caught:
        check_same_run(started, config)
    assert "data.root" not in str(caught.value)


def test_result_says_what_made_it(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "current_commit", lambda: "0123456789ab")
    given = {"task": "fewshot", "metrics": {"accuracy": {"mean": 0.5, "n": 600}}, "class": "läuft"}
    result = write_result(tmp_path, given, "seed: 1\n")
    assert json.loads((tmp_path / "result.json").read_text(encoding="utf-8")) == result
    assert "läuft" in (tmp_path / "result.json").read_text(encoding="utf-8")
    assert {key: result[key] for key in given} == given
    assert result["config_sha256"] == hashlib.sha256(b"seed: 1\n").hexdigest()
    assert result["commit"] == "0123456789ab"
    assert result["versions"]["python"] == platform.python_version()
    assert result["versions"]["numpy"] == np.__version__
    for name in ("mindspore", "av", "opencv-python-headless"):
        assert result["versions"][name] == metadata.version(name)
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository of one commit that the module believes to live in."""

    def git(*words):
        identity = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    (tmp_path / "run.py").write_text("1\n")
    git("init", "-q")
    git("add", "run.py")
    git("commit", "-q", "-m", "first")
    monkeypatch.setattr(run, "__file__", str(tmp_path / "run.py"))
    return tmp_path, git("rev-parse", "HEAD")


def test_the_commit_is_told_with_changes(checkout):
    folder, commit = checkout
    assert current_commit() == commit[:12]
    (folder / "untracked.txt").write_text("new")
    assert current_commit() == commit[:12]
    (folder / "run.py").write_text("2\n")
    assert current_commit() == f"{commit[:12]}+changes"


def test_outside_a_checkout_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "__file__", str(tmp_path / "run.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert current_commit() == ""
    monkeypatch.setenv("PATH", "")
    assert current_commit() == ""


def rows_of(path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_rows_go_to_jsonl_at_once_and_to_csv_at_the_end(tmp_path):
    with RunLog(tmp_path) as writer:
        writer.add(1, loss=0.5, lr=1e-3)
        assert read_log(tmp_path / "log.jsonl") == [{"step": 1, "loss": 0.5, "lr": 1e-3}]
        writer.add(2, val_accuracy=0.25)
        writer.add(2, loss=1 / 3, lr=1e-3)
        assert [row["loss"] for row in writer.rows if "loss" in row] == [0.5, 1 / 3]
    assert rows_of(tmp_path / "log.csv") == [
        {"step": "1", "loss": "0.5", "lr": "0.001", "val_accuracy": ""},
        {"step": "2", "loss": "", "lr": "", "val_accuracy": "0.25"},
        {"step": "2", "loss": str(1 / 3), "lr": "0.001", "val_accuracy": ""},
    ]
    assert len(read_log(tmp_path / "log.jsonl")) == 3


def test_csv_is_written_when_the_run_fails(tmp_path):
    def fail():
        with RunLog(tmp_path) as writer:
            writer.add(1, loss=float("nan"))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert rows_of(tmp_path / "log.csv") == [{"step": "1", "loss": "nan"}]
    assert np.isnan(read_log(tmp_path / "log.jsonl")[0]["loss"])


def test_a_new_log_starts_empty_and_a_resumed_one_where_it_was(tmp_path):
    with RunLog(tmp_path) as writer:
        for step in range(1, 8):
            writer.add(step, loss=float(step))
    with RunLog(tmp_path, step=4) as writer:
        assert [row["step"] for row in read_log(tmp_path / "log.jsonl")] == [1, 2, 3, 4]
        writer.add(5, loss=-5.0)
        assert [(row["step"], row["loss"]) for row in writer.rows] == [
            (1, 1.0),
            (2, 2.0),
            (3, 3.0),
            (4, 4.0),
            (5, -5.0),
        ]
    assert [row["step"] for row in rows_of(tmp_path / "log.csv")] == ["1", "2", "3", "4", "5"]
    with RunLog(tmp_path) as writer:
        assert writer.rows == []
    assert read_log(tmp_path / "log.jsonl") == []


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path):
    with RunLog(tmp_path) as writer:
        writer.add(1, loss=0.5)
        writer.add(2, loss=0.25)
    path = tmp_path / "log.jsonl"
    whole = path.read_text()
    for end in range(whole.index("\n") + 2, len(whole) - 1):
        path.write_text(whole[:end])
        assert read_log(path) == [{"step": 1, "loss": 0.5}]
    with RunLog(tmp_path, step=2) as writer:
        writer.add(2, loss=0.125)
    assert read_log(path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.125}]
    assert read_log(tmp_path / "none.jsonl") == []


def test_tensorboard_without_its_package_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    RunLog(tmp_path)
    message = r"train\.tensorboard: tensorboardX is not installed; `pip install mindvideo\[tensorboard\]`"
    with pytest.raises(InputError, match=message):
        RunLog(tmp_path, tensorboard=True)


def test_tensorboard_gets_every_number(tmp_path, monkeypatch):
    written = []

    class Writer:
        def __init__(self, folder):
            written.append(folder)

        def add_scalar(self, *values):
            written.append(values)

        def close(self):
            written.append("closed")

    monkeypatch.setitem(sys.modules, "tensorboardX", type(sys)("tensorboardX"))
    monkeypatch.setattr(sys.modules["tensorboardX"], "SummaryWriter", Writer, raising=False)
    with RunLog(tmp_path, tensorboard=True) as writer:
        writer.add(3, loss=0.5, lr=0.1)
    assert written == [str(tmp_path / "tensorboard"), ("loss", 0.5, 3), ("lr", 0.1, 3), "closed"]


def test_tensorboard_files_are_made(tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    with RunLog(tmp_path, tensorboard=True) as writer:
        writer.add(1, loss=0.5)
    assert [path.name.startswith("events") for path in (tmp_path / "tensorboard").iterdir()] == [True]


def test_lines_are_plain_and_whole(capsys):
    message = "[red]not markup[/red] :smile: " + "long " * 60
    say(message)
    assert capsys.readouterr().out == message + "\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_the_progress_bar_shows_on_a_terminal_alone(capsys, monkeypatch, terminal):
    console = log.Console(force_terminal=terminal, width=120)
    monkeypatch.setattr(log, "console", console)
    with progress_bar("train", 10, start=4) as update:
        update(7, "loss 0.5")
    shown = capsys.readouterr().out
    assert ("train" in shown) == ("7/10" in shown) == ("loss 0.5" in shown) == terminal
