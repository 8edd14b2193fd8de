# SPDX-License-Identifier: Apache-2.0
"""The command line as a person meets it: every mistake is one clear message and status 2, before any work."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mindvideo import __version__, cli
from mindvideo.data.video import write_video
from tests.conftest import REPOSITORY
from tests.tiny import evaluate, settings, train, write_experiment


@pytest.fixture
def root(tmp_path, cache) -> Path:
    """An experiment of the test's own, to spoil."""
    write_experiment(tmp_path)
    return tmp_path


@pytest.fixture
def refused(capsys) -> Callable[..., str]:
    """`refused(train, ...)`: the message of a command that must fail as an error of the user."""

    def run(command: Callable[..., int], *arguments: object) -> str:
        capsys.readouterr()
        assert command(*arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("mindvideo: error: ")
        assert error.count("mindvideo: error:") == 1
        assert "Traceback" not in error
        return error.removeprefix("mindvideo: error: ").rstrip("\n")

    return run


def video(root: Path, name: str) -> Path:
    return root / "videos" / name


MISTAKES = {
    "optm.lr=1": "unknown key 'optm', did you mean 'optim'?",
    "optim.lrr=1": "unknown key 'optim.lrr', did you mean 'optim.lr'?",
    "data.lenght=4": "unknown key 'data.lenght', did you mean 'data.length'?",
    "model.attention=spacial": "did you mean 'spatial'?",
    "optim.lr=fast": "optim.lr is 'fast'; it must be a number from 0 to 100",
    "optim.lr=1e30": "optim.lr is '1e30'; it must be a number from 0 to 100",
    "optim.lr=.nan": "optim.lr is nan; it must be a number from 0 to 100",
    "train.episodes=1.5": "train.episodes is 1.5; it must be a whole number",
    "data.flip=1": "data.flip is 1; it must be true or false",
    "data.flip=[": "not valid YAML",
    "data=4": "data is 4; it must hold the keys",
    "seed": "write key.sub=value",
    "name=../else": "not a plain folder name",
}


@pytest.mark.parametrize("setting", MISTAKES)
def test_a_wrong_setting_is_named(experiment, tmp_path, refused, setting):
    error = refused(train, experiment, tmp_path, setting)
    assert MISTAKES[setting] in error
    assert setting.partition("=")[0] in error
    assert "\n" not in error
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_file_is_named(tmp_path, refused):
    path = tmp_path / "mine.yaml"
    assert refused(cli.main, ["train", str(path)]) == f"config {path}: no such file."
    path.write_text("optim: {lrr: 1}\n")
    assert refused(cli.main, ["train", str(path)]).startswith(f"{path}: unknown key 'optim.lrr'")
    path.write_text("train:\n  episodes: many\n")
    assert f"{path}: train.episodes is 'many'" in refused(cli.main, ["train", str(path)])


def test_an_unknown_model_is_named(experiment, tmp_path, refused):
    error = refused(train, experiment, tmp_path, "model.name=arm")
    assert "unknown model 'arm', did you mean 'arn'?" in error


def test_a_missing_data_root_or_split_is_named(root, refused):
    nowhere = root / "nowhere"
    error = refused(train, root, root / "out", f"data.root={nowhere}")
    assert f"data.root: {nowhere} is not a folder" in error
    error = refused(train, root, root / "out", f"data.split={nowhere}")
    assert f"data.split: {nowhere / 'train.txt'} does not exist" in error
    (root / "split" / "val.txt").unlink()
    assert "val.txt does not exist" in refused(train, root, root / "out")
    assert "data.split is not set" in refused(train, root, root / "out", "data.split=''")
    error = refused(train, root, root / "out", "data.dataset=csv")
    assert f"{root / 'videos'}: no such CSV file" in error
    assert not (root / "out").exists()


def test_an_empty_class_folder_is_named(root, refused):
    video(root, "z").mkdir()
    assert f"{video(root, 'z')}: the class folder is empty" in refused(train, root, root / "out")


def test_a_class_in_two_parts_is_named(root, refused):
    (root / "split" / "test.txt").write_text("f\ng\nh\nb\n")
    assert "b stand in both train.txt and test.txt" in refused(train, root, root / "out")


@pytest.mark.parametrize(("part", "name"), [("train", "b"), ("val", "e"), ("test", "g")])
def test_a_class_with_too_few_sources_is_named_before_training(root, refused, part, name):
    for number in (1, 2):
        video(root, f"{name}/{number}.avi").unlink()
    error = refused(train, root, root / "out")
    assert error.startswith(f"{part} part: class '{name}' has 1 clips of 1 sources")
    assert not (root / "out").exists()


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("episode.way=4", "train part: 4-way episodes need 4 classes; there are 3: a, b, c."),
        ("eval.way=4", "test part: 4-way episodes need 4 classes; there are 3: f, g, h."),
    ],
)
def test_too_few_classes_are_named_before_training(root, refused, setting, told):
    assert refused(train, root, root / "out", setting) == told


def test_a_csv_file_with_too_few_sources_is_refused(root, refused):
    rows = [f"videos/{name}/{i}.avi,{name},film" for name in "abcdefgh" for i in range(3)]
    (root / "list.csv").write_text("path,label,group\n" + "\n".join(rows))
    error = refused(train, root, root / "out", "data.dataset=csv", f"data.root={root / 'list.csv'}")
    assert "class 'a' has 3 clips of 1 sources" in error
    (root / "list.csv").write_text("path,label\nvideos/a/9.avi,a\n")
    error = refused(train, root, root / "out", "data.dataset=csv", f"data.root={root / 'list.csv'}")
    assert f"{video(root, 'a/9.avi')}: no such video" in error


def test_broken_and_short_videos_are_named(root, refused):
    empty, cut, text = (video(root, f"{name}/1.avi") for name in "adg")
    empty.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[:-700])
    text.write_text("no video")
    error = refused(train, root, root / "out")
    assert error.startswith("3 of 24 videos cannot be decoded:")
    assert f"{empty}: the file is empty (0 bytes)" in error
    assert f"{cut}: cut short" in error
    assert f"{text}: " in error
    assert "data.broken=exclude" in error


def test_a_video_shorter_than_the_clip_is_named(root, refused):
    short = video(root, "h/2.avi")
    write_video(short, np.zeros((3, 32, 32, 3), np.uint8))
    error = refused(train, root, root / "out")
    assert error.startswith("1 videos are shorter than a clip:")
    assert f"{short}: the video has 3 frames, the clip needs 4" in error
    assert "data.short=repeat" in error


def test_excluding_may_leave_too_little(root, refused):
    for number in (0, 2):
        video(root, f"c/{number}.avi").write_bytes(b"")
    error = refused(train, root, root / "out", "data.broken=exclude")
    assert "class 'c' has 1 clips of 1 sources" in error


def test_a_checkpoint_of_another_model_is_refused(straight, experiment, tmp_path, refused):
    best = straight / "best.ckpt"
    error = refused(evaluate, experiment, tmp_path, best, "model.width=32")
    assert error.startswith(f"{best} does not fit model 'arn': ")
    assert "encoder.block1.conv.weight is (16, 3, 3, 3, 3), the model needs (32, 3, 3, 3, 3)" in error
    error = refused(evaluate, experiment, tmp_path, best, "model.attention=none")
    assert "unexpected spatial_attention." in error
    error = refused(train, experiment, tmp_path, f"train.pretrained={best}", "model.width=32")
    assert "does not fit model 'arn'" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_damaged_or_missing_checkpoint_is_refused(straight, experiment, tmp_path, refused, suffix):
    whole = (straight / f"best{suffix}").read_bytes()
    other = ".safetensors" if suffix == ".ckpt" else ".ckpt"
    damaged = {
        "empty": b"",
        "garbage": np.random.default_rng(0).bytes(5000),
        "truncated": whole[: len(whole) // 2],
        "misnamed": (straight / f"best{other}").read_bytes(),
        "text": b"device: cpu\n" * 100,
    }
    for name, content in damaged.items():
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(content)
        error = refused(evaluate, experiment, tmp_path / "out", path)
        assert error.startswith(f"{path}: not a readable checkpoint"), name
        assert "\n" not in error
    missing = tmp_path / f"missing{suffix}"
    assert refused(evaluate, experiment, tmp_path / "out", missing) == f"{missing}: no such checkpoint."


def test_settings_may_stand_after_options(experiment, tmp_path, refused):
    words = ["eval", "--checkpoint", str(tmp_path / "a.ckpt"), *settings(experiment, tmp_path)]
    assert refused(cli.main, words) == f"{tmp_path / 'a.ckpt'}: no such checkpoint."
    config, *rest = settings(experiment, tmp_path)
    words = ["eval", config, "--checkpoint", str(tmp_path / "a.ckpt"), *rest]
    assert refused(cli.main, words) == f"{tmp_path / 'a.ckpt'}: no such checkpoint."


@pytest.mark.parametrize(
    "words", [[], ["trian"], ["eval"], ["train", "--fast"], ["models", "arn", "sosn"], ["eval", "--checkpoint"]]
)
def test_wrong_words_show_the_usage(capsys, words):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("usage: mindvideo")
    assert "mindvideo" in error.splitlines()[-1]
    assert "error: " in error.splitlines()[-1]


def test_models_are_listed(capsys):
    assert cli.main(["models"]) == 0
    assert any(line.startswith("arn ") for line in capsys.readouterr().out.splitlines())


def test_help_and_version(capsys):
    for words, told in ((["--help"], "COMMAND"), (["--version"], __version__), (["train", "-h"], "KEY.SUB=VALUE")):
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        assert stop.value.code == 0
        assert told in capsys.readouterr().out


def test_a_mistake_is_told_without_loading_mindspore():
    """And so at once; the process's whole standard error is the one line."""
    script = "import sys; from mindvideo.cli import main; main(['train', 'seed=x']); print('mindspore' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("mindvideo: error: override 'seed=x': seed is 'x'")


def test_the_module_is_the_command(tmp_path):
    command = [sys.executable, "-m", "mindvideo", "train", str(tmp_path / "no.yaml")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"mindvideo: error: config {tmp_path / 'no.yaml'}: no such file.\n"
