# SPDX-License-Identifier: Apache-2.0
"""Whole pose runs on made movements: what they leave behind, going on after a stop, testing a fold, what is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from safetensors.numpy import load_file

from mindvideo.cli import main
from mindvideo.config import REPOSITORY, load_config
from mindvideo.data.manifest import Sample, write_csv
from mindvideo.data.pose import axis_angle_to_rotation6d, collate, read_pose
from mindvideo.data.pose_sets import csig_clips, make_folds
from mindvideo.engine.checkpoint import TrainingState, load_checkpoint, read_checkpoint
from mindvideo.metrics.pose import CONTROLS, nearest_neighbour
from mindvideo.models.actionnet import ActionNet
from mindvideo.tasks import pose
from mindvideo.tasks.pose_data import load_batches, prepare_data
from tests.tiny import logged, result

CLASSES, PERFORMERS, TAKES = ("clap", "nod", "wave"), ("anna", "bert", "cara"), 4
# Each fold trains on 12 clips, 3 steps an epoch.
EPOCHS, STEPS = 10, 90
CONFIG = f"""
task: pose
device: cpu
model: {{width: 32, length: 6, decoder_width: 32, dropout: 0.3, motion: 4, positional: true}}
data: {{dataset: csv, validation: true}}
optim: {{lr: 0.004, decay_every: 8}}
train: {{epochs: {EPOCHS}, batch: 4, validate_every: 5, save_every: 5, log_every: 1}}
eval: {{batch: 5}}
"""


def movement(label: int, rng: np.random.Generator) -> np.ndarray:
    """Axis-angle `[T, 72]`: every class swings joints of its own, from a posture and at a pace of the clip's own."""
    num_frames = int(rng.integers(12, 32))
    angles_TJ3 = np.tile(rng.normal(0, 0.1, (24, 3)), (num_frames, 1, 1))
    angles_TJ3[:, label::3] += np.sin(rng.uniform(0.4, 0.8) * np.arange(num_frames))[:, None, None]
    return angles_TJ3.reshape(num_frames, 72).astype(np.float32)


def write_movements(root: Path) -> None:
    """tiny.yaml, and clips.csv with its files: half of them axis-angle, half rotation-6D."""
    rng, samples = np.random.default_rng(0), []
    (root / "tiny.yaml").write_text(CONFIG)
    for performer in PERFORMERS:
        for label, name in enumerate(CLASSES):
            for take in range(TAKES):
                array, path = movement(label, rng), Path(f"{performer}_{name}_{take}.npy")
                np.save(root / path, array if take % 2 else axis_angle_to_rotation6d(array.reshape(-1, 24, 3)))
                samples.append(Sample(path, name, performer))
    write_csv(root / "clips.csv", samples)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The folder of that experiment."""
    root = tmp_path_factory.mktemp("made")
    write_movements(root)
    return root


def run(command: str, made: Path, output: Path, *more: str) -> int:
    """`mindvideo train` or `eval` in this process; its exit status."""
    return main([command, str(made / "tiny.yaml"), f"data.root={made / 'clips.csv'}", f"output={output}", *more])


@pytest.fixture(scope="module")
def straight(made, tmp_path_factory) -> Path:
    """The folder of a run from start to end without a break."""
    output = tmp_path_factory.mktemp("straight")
    assert run("train", made, output) == 0
    return output / "tiny"


def test_a_run_leaves_all_its_files(straight):
    weights = [
        f"{name}.{suffix}" for name in ("fold1", "fold2", "fold3", "best", "last") for suffix in ("ckpt", "safetensors")
    ]
    others = ("previous.ckpt", "config.yaml", "log.csv", "log.jsonl", "result.json", "report.html", "figures")
    assert {path.name for path in straight.iterdir()} == {*weights, *others}
    figures = {path.name: path.stat().st_size for path in (straight / "figures").iterdir()}
    assert figures.keys() == {
        f"{name}.png" for name in ("accuracy-0", "accuracy-1", *(f"training-{i}" for i in range(3)))
    }
    assert all(figures.values())
    assert list(logged(straight, "loss")) == list(range(1, STEPS + 1))
    assert list(logged(straight, "val_accuracy")) == [15, 30, 45, 60, 75, 90]


def test_the_result_says_all_that_the_numbers_need(straight):
    found = result(straight)
    assert (found["task"], found["model"], found["dataset"], found["protocol"]) == ("pose", "actionnet", "csv", "logo")
    assert found["classes"] == list(CLASSES)
    assert found["chance"] == pytest.approx(1 / 3)
    assert [fold["tests"] for fold in found["folds"]] == [f"performer {name}" for name in PERFORMERS]
    validated = logged(straight, "val_accuracy")
    for number, fold in enumerate(found["folds"], start=1):
        assert (fold["fold"], fold["checkpoint"]) == (number, f"fold{number}.ckpt")
        assert fold["clips"] == {"train": 12, "val": 12, "test": 12}
        of_fold = {step: value for step, value in validated.items() if 30 * (number - 1) < step <= 30 * number}
        assert fold["checkpoint_step"] == max(of_fold, key=lambda step: of_fold[step])
    for name, own in [("model", found["metrics"]), *found["controls"].items()]:
        shares = [fold["accuracy"] if name == "model" else fold["controls"][name] for fold in found["folds"]]
        numbers = own["accuracy"]
        assert numbers["value"] == pytest.approx(np.mean(shares))
        assert numbers["std_over_folds"] == pytest.approx(np.std(shares, ddof=1))
        assert numbers["low_95"] <= numbers["value"] <= numbers["high_95"]
        assert numbers["n"] == 36
    assert found["metrics"]["accuracy"]["value"] > 0.8  # each class moves joints of its own
    assert found["controls"]["motion"]["accuracy"]["value"] > 0.9
    assert found["strongest_control"] == "motion"
    assert {
        "seed",
        "commit",
        "versions",
        "config_sha256",
        "train_steps",
        "train_seconds",
        "test_seconds",
    } <= found.keys()


@pytest.fixture
def pynative_model() -> Iterator[ActionNet]:
    """A network of the run's shape, run line by line."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield ActionNet(3, width=32, length=6, decoder_width=32, motion=4, positional=True)
    ms.set_context(mode=ms.GRAPH_MODE)


def test_a_fold_s_number_is_that_of_its_checkpoint_on_its_performer(straight, made, pynative_model):
    for fold, performer in zip(result(straight)["folds"], PERFORMERS, strict=True):
        state = load_checkpoint(straight / fold["checkpoint"], pynative_model, "actionnet")
        assert state.classes == list(CLASSES)
        assert state.config["data"]["fold"] == fold["fold"]
        clips = [read_pose(made / f"{performer}_{name}_{take}.npy") for name in CLASSES for take in range(TAKES)]
        logits = pynative_model(*map(Tensor, collate(clips, 32))).asnumpy()
        assert (logits.argmax(axis=1) == np.repeat(range(3), TAKES)).mean() == pytest.approx(fold["accuracy"])


def test_best_ckpt_is_the_fold_of_best_validation(straight):
    states = [read_checkpoint(straight / f"fold{number}.ckpt")[1] for number in (1, 2, 3)]
    best = max(states, key=lambda state: state.best)
    assert read_checkpoint(straight / "best.ckpt")[1] == best
    weights, expected = (
        load_file(straight / f"{name}.safetensors") for name in ("best", f"fold{best.config['data']['fold']}")
    )
    assert all((weights[name] == expected[name]).all() for name in expected)


def test_the_report_shows_the_numbers(straight):
    page, numbers = (straight / "report.html").read_text(), result(straight)["metrics"]["accuracy"]
    assert f"{100 * numbers['value']:.2f} ± {100 * numbers['std_over_folds']:.2f} %, 36 clips in 3 folds" in page
    for text in ("performer bert", "fold2.ckpt, step", "motion", "posture", "the best on the next fold"):
        assert text in page


def test_a_run_that_crashed_and_was_resumed_is_the_same_to_the_bit(straight, made, tmp_path, monkeypatch):
    """In the second fold, after checkpoint 45, with dropout."""
    batches = pose.load_batches

    def failing(*arguments, **options):
        for number, batch in enumerate(batches(*arguments, **options)):
            if options["start"] + number == 48:
                raise RuntimeError("crashed")
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(pose, "load_batches", failing)
        with pytest.raises(RuntimeError, match="crashed"):
            run("train", made, tmp_path)
    folder = tmp_path / "tiny"
    assert read_checkpoint(folder / "last.ckpt")[1].step == 45
    assert run("train", made, tmp_path, "train.resume=auto") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    for file in ("last.ckpt", "fold1.ckpt", "fold2.ckpt", "fold3.ckpt", "best.ckpt"):
        own, expected = (read_checkpoint(f / file)[0] for f in (folder, straight))
        assert own.keys() == expected.keys()
        assert [key for key in own if (own[key] != expected[key]).any()] == [], file
    assert any(key.startswith("optimizer.norm") for key in read_checkpoint(folder / "last.ckpt")[0])
    for name in ("accuracy", "val_accuracy"):
        assert logged(folder, name) == logged(straight, name)
    assert logged(folder, "loss") == pytest.approx(logged(straight, "loss"), abs=1e-5)
    for part in ("metrics", "controls", "folds"):
        assert result(folder)[part] == result(straight)[part]


def test_a_finished_run_is_not_resumed(straight, made, capsys):
    assert run("train", made, straight.parent, "train.resume=auto") == 2
    assert f"{straight} is finished" in capsys.readouterr().err


def test_evaluating_a_checkpoint_tests_its_own_fold(straight, tmp_path):
    assert main(["eval", "--checkpoint", str(straight / "fold2.ckpt"), f"output={tmp_path}"]) == 0
    found, before = result(tmp_path / "tiny-eval"), result(straight)["folds"][1]
    assert found["folds"] == [before | {"checkpoint": str(straight / "fold2.ckpt")}]
    assert found["metrics"]["accuracy"]["value"] == before["accuracy"]
    assert found["metrics"]["accuracy"]["n"] == 12
    assert load_config(tmp_path / "tiny-eval" / "config.yaml").data.fold == 2
    assert "performer bert" in (tmp_path / "tiny-eval" / "report.html").read_text()


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        (
            "fold2.ckpt",
            ["data.fold=1"],
            "fold2.ckpt is of fold 2: it was trained on the clips that data.fold would test",
        ),
        ("fold2.ckpt", ["data.validation=false"], "was trained with data.validation=True; with another it has seen"),
        ("fold2.safetensors", [], "fold2.safetensors does not say which fold it is of: set data.fold, 1 to 3"),
        ("fold2.ckpt", ["model.motion=0"], "does not fit model 'actionnet'"),
        ("fold4.ckpt", [], "fold4.ckpt: no such checkpoint"),
    ],
)
def test_a_checkpoint_is_not_tested_on_what_it_has_seen(file, settings, message, straight, made, tmp_path, capsys):
    assert run("eval", made, tmp_path / "out", "--checkpoint", str(straight / file), *settings) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def refusal(capsys, made: Path, output: Path, *settings: str) -> str:
    """The one line that `mindvideo train` with these settings ends with, in status 2 and without a folder."""
    assert run("train", made, output, *settings) == 2
    error = capsys.readouterr().err
    assert error.startswith("mindvideo: error: ")
    assert error.count("\n") == 1
    assert not output.exists()
    return error


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.name=two_stream", "but two_stream has no such option"),
        ("model.name=actionet", "unknown model 'actionet', did you mean 'actionnet'?"),
        ("model.width=12", "attention of width 12 cannot have 8 heads"),
        ("model.motion=-1", "model.motion is -1; it must be a whole number from 0 to 1000"),
        ("data.protocol=loso", "data.protocol is 'loso'; it must be one of logo, loco, variant; did you mean 'logo'?"),
        ("data.protocol=loco", "these clips have no take; allowed here is logo"),
        ("data.fold=4", "data.fold is 4; data.protocol logo has 3 here"),
        ("data.folds=2", "3 performers in 2 folds; there must be 3 folds or more with data.validation"),
        ("train.batch=13", "train.batch is 13, but fold of performer anna trains on 12"),
        ("data.root=absent.csv", "absent.csv: no such CSV file"),
        ("train.pretrained=absent.ckpt", "absent.ckpt: no such checkpoint"),
    ],
)
def test_a_mistake_is_one_sentence(setting, message, made, tmp_path, capsys):
    assert message in refusal(capsys, made, tmp_path / "out", setting)


def test_a_broken_clip_is_named_before_any_work(made, tmp_path, capsys):
    np.save(tmp_path / "bad.npy", np.full((5, 72), np.nan, np.float32))
    rows = (made / "clips.csv").read_text().splitlines()[1:]
    lines = ["path,label,group", *(f"{made}/{row}" for row in rows), f"{tmp_path}/bad.npy,nod,anna"]
    (tmp_path / "clips.csv").write_text("\n".join(lines) + "\n")
    error = refusal(capsys, made, tmp_path / "out", f"data.root={tmp_path / 'clips.csv'}")
    assert "bad.npy: frame 0, joint 0 (pelvis), number 0 is nan" in error


def test_a_clip_under_two_names_cannot_be_trained_and_tested(made, tmp_path, capsys):
    (tmp_path / "copy.npy").write_bytes((made / "anna_nod_1.npy").read_bytes())
    rows = (made / "clips.csv").read_text().splitlines()[1:]
    lines = ["path,label,group", *(f"{made}/{row}" for row in rows), f"{tmp_path}/copy.npy,nod,bert"]
    (tmp_path / "clips.csv").write_text("\n".join(lines) + "\n")
    error = refusal(capsys, made, tmp_path / "out", f"data.root={tmp_path / 'clips.csv'}", "data.validation=false")
    assert re.search(
        r"anna_nod_1\.npy and \S+/copy\.npy hold the same poses|copy\.npy and \S+anna_nod_1\.npy hold", error
    )


def test_pretrained_weights_are_the_start_of_every_fold(straight, made, tmp_path):
    source = straight / "fold1.safetensors"
    config = load_config(made / "tiny.yaml", [f"data.root={made / 'clips.csv'}", f"train.pretrained={source}"])
    data = prepare_data(config)
    model = pose.make_model(config, 3)
    training = pose.Training(config, data, model, "cpu")
    expected, state = load_file(source), TrainingState("actionnet", config=config.to_dict(), best=0.5)
    for number in range(3):
        model.initialize(7)
        training._begin(state, number)
        assert all((p.asnumpy() == expected[name]).all() for name, p in model.parameters_and_names())
        assert (state.best, state.config["data"]["fold"]) == (float("-inf"), number + 1)


def test_one_fold_can_be_trained_alone(made):
    config = load_config(made / "tiny.yaml", [f"data.root={made / 'clips.csv'}", "data.fold=2"])
    training = pose.Training(config, prepare_data(config), pose.make_model(config, 3), "cpu")
    assert (training.numbers, training.ends) == ([1], [STEPS // 3])


def test_batches_depend_on_seed_and_step_alone_and_cover_an_epoch(made):
    config = load_config(made / "tiny.yaml", [f"data.root={made / 'clips.csv'}", "data.mirrored=0.5"])
    data = prepare_data(config)
    whole = [list(map(Tensor.asnumpy, batch)) for batch in load_batches(config, data, 1, first=24, start=24, stop=30)]
    later = [list(map(Tensor.asnumpy, batch)) for batch in load_batches(config, data, 1, first=24, start=27, stop=30)]
    for one, other in zip(whole[3:], later, strict=True):
        assert all((a == b).all() for a, b in zip(one, other, strict=True))
    assert sorted(label for batch in whole[:3] for label in batch[2]) == sorted([0, 1, 2] * 4)
    assert len({int(batch[3]) for batch in whole}) == 6
    assert {batch[0].shape for batch in whole} == {(4, data.longest, 24, 6)}
    config.seed = 2
    other = next(load_batches(config, data, 1, first=24, start=24, stop=25))
    assert (other[0].asnumpy() != whole[0][0]).any()


@pytest.mark.parametrize(
    ("protocol", "motion", "posture"),
    [("logo", [1, 1], [0.7, 0.9]), ("loco", [1] * 4, [1] * 4), ("variant", [0.9, 0.9], [0.9, 0.9])],
)
def test_controls_on_real_clips_are_as_known(protocol, motion, posture, real_data):
    """The numbers that the data's description gives for the nearest neighbour."""
    clips = csig_clips(real_data / "csig_angles")
    labels = np.array([int(clip.label[1:]) for clip in clips])
    poses = [read_pose(clip.path) for clip in clips]
    for name, expected in (("motion", motion), ("posture", posture)):
        of_clips = np.stack([CONTROLS[name](p) for p in poses])
        shares = []
        for fold in make_folds(clips, protocol):
            train, test = list(fold.train), list(fold.test)
            predicted = nearest_neighbour(of_clips[train], labels[train], of_clips[test])
            shares.append((predicted == labels[test]).mean())
        assert np.mean(shares) == pytest.approx(np.mean(expected))
        if protocol == "logo":
            assert shares == pytest.approx(expected)


CONFIGS = REPOSITORY / "configs" / "actionnet"


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_shipped_configs_build_their_model(path):
    config = load_config(path)
    assert config.task == "pose"
    model = pose.make_model(config, 10)
    improved = "improved" in path.stem or path.stem == "sample"
    assert (model.motion > 0, config.model.motion > 0) == (improved, improved)


@pytest.mark.parametrize("protocol", ["logo", "loco", "variant"])
def test_the_published_setting(protocol):
    config = load_config(CONFIGS / "csig" / f"{protocol}.yaml")
    assert (config.name, config.data.dataset, config.data.protocol) == (f"csig_{protocol}", "csig", protocol)
    model, optim, train = config.model, config.optim, config.train
    assert (model.width, model.length, model.dropout, model.decoder_width, model.num_groups) == (
        1280,
        800,
        0.5,
        768,
        100,
    )
    assert (model.learned_queries, model.positional, model.motion) == (False, False, 0)
    assert (optim.lr, optim.schedule, optim.decay_every, optim.decay_factor) == (2e-5, "step", 30, 0.5)
    assert (optim.weight_decay, optim.clip_norm, train.epochs, train.batch) == (0.0, 0.0, 100, 1)
    assert (config.data.cropped, config.data.mirrored, config.data.validation) == (0.5, 0.0, False)
    improved = load_config(CONFIGS / "csig" / f"{protocol}_improved.yaml")
    assert (improved.name, improved.data.protocol) == (f"csig_{protocol}_improved", protocol)
    assert (improved.data.validation, improved.data.folds, improved.data.fold) == (False, 0, 0)
