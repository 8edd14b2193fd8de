# SPDX-License-Identifier: Apache-2.0
"""Whole open-set runs on made videos: what they leave behind, going on after a stop, and what is refused."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mindvideo.cli import main
from mindvideo.data.manifest import Sample
from mindvideo.data.video import write_video
from mindvideo.engine.checkpoint import read_checkpoint
from mindvideo.engine.step import Step
from mindvideo.errors import InputError
from mindvideo.tasks import setup
from mindvideo.tasks.openset_data import hold_out
from mindvideo.tasks.openset_views import Views, average_views
from tests.tiny import logged, result

CLASSES = ("Archery", "Biking", "Diving")
TRAIN_GROUPS, TEST_GROUPS = range(8, 12), (1, 2)
# 24 videos to train on, of which data.validation takes 6; 12 to test on. 3 steps of 6 an epoch.
EPOCHS, STEPS = 20, 60
MEASURED = ("vacuity", "evidence_right", "evidence_wrong")
CONFIG = f"""
task: openset
device: cpu
model: {{name: i3d_r18, width: 8, dropout: 0.25}}
data: {{dataset: ucf101, split: groups, validation: 0.25, workers: 1,
  length: 24, stride: 1, short_side: 36, size: 32, flip: false}}
loss: {{name: edlnokl_avuc_debias}}
optim: {{lr: 0.02, schedule: cosine, warmup: 1}}
train: {{epochs: {EPOCHS}, batch: 6, validate_every: 10, save_every: 4, log_every: 1}}
eval: {{clips: 2, crops: center, size: 32, batch: 5}}
"""


def write_tree(root: Path) -> None:
    """tiny.yaml and a tree of videos like UCF101's, each class in its own colour."""
    (root / "tiny.yaml").write_text(CONFIG)
    rng = np.random.default_rng(0)
    for name, color in zip(CLASSES, 60 + 140 * np.eye(3, dtype=int), strict=True):
        for group in (*TRAIN_GROUPS, *TEST_GROUPS):
            for clip in (1, 2):
                noisy = color + rng.integers(-50, 50, (28, 4, 6, 3))
                frames_THWC = noisy.astype(np.uint8).repeat(8, axis=1).repeat(8, axis=2)
                write_video(root / "videos" / name / f"{stem(name, group, clip)}.avi", frames_THWC)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Iterator[Path]:
    """The folder of that experiment; frame counts are cached beside it."""
    root = tmp_path_factory.mktemp("tree")
    write_tree(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINDVIDEO_CACHE", str(root / "cache"))
        yield root


def stem(name: str, group: int, clip: int) -> str:
    return f"v_{name}_g{group:02d}_c{clip:02d}"


def run(command: str, tree: Path, output: Path, *more: str) -> int:
    """`mindvideo train` or `eval` in this process; its exit status."""
    return main([command, str(tree / "tiny.yaml"), f"data.root={tree / 'videos'}", f"output={output}", *more])


def lists(tree: Path, folder: Path, classes: tuple[str, ...], groups: tuple[int, ...]) -> list[str]:
    """Settings that name lists of these classes' videos instead of the split: `groups` to train on."""
    for name, chosen in (("train", groups), ("test", TEST_GROUPS)):
        rows = [f"{c}/{stem(c, group, 1)}.avi {number}" for number, c in enumerate(classes) for group in chosen]
        (folder / f"{name}.txt").write_text("\n".join(rows) + "\n")
    (folder / "classes.txt").write_text("\n".join(classes) + "\n")
    keys = {"train_list": "train", "test_list": "test", "class_names": "classes"}
    return [f"data.{key}={folder / name}.txt" for key, name in keys.items()]


@pytest.fixture(scope="module")
def straight(tree, tmp_path_factory) -> Path:
    """The folder of a run from start to end without a break."""
    output = tmp_path_factory.mktemp("straight")
    assert run("train", tree, output) == 0
    return output / "tiny"


def test_a_run_leaves_all_its_files(straight):
    assert {path.name for path in straight.iterdir()} == {
        *("config.yaml", "log.csv", "log.jsonl", "scores", "result.json", "report.html", "figures"),
        *("best.ckpt", "best.safetensors", "last.ckpt", "last.safetensors", "previous.ckpt"),
    }
    figures = {path.name: path.stat().st_size for path in (straight / "figures").iterdir()}
    assert figures.keys() == {"known-classes-0.png", "training-0.png", "training-1.png"}
    assert all(figures.values())
    assert list(logged(straight, "loss")) == list(range(1, STEPS + 1))
    assert list(logged(straight, "val_accuracy")) == [30, 60]
    assert [path.name for path in (straight / "scores").iterdir()] == ["known.npz"]
    first, last = ({name: logged(straight, name)[step] for name in MEASURED} for step in (1, STEPS))
    assert first["vacuity"] > last["vacuity"] > 0
    assert last["evidence_right"] > first["evidence_right"] >= 0
    assert last["evidence_wrong"] < last["evidence_right"]
    heads = {key.split(".")[0] for key in load_file(straight / "best.safetensors")}
    assert heads == {"backbone", "head"}, "the debiasing head serves training alone"


def test_the_result_says_all_that_the_numbers_need(straight):
    found = result(straight)
    assert (found["task"], found["model"], found["method"]) == ("openset", "i3d_r18", "edlnokl_avuc_debias")
    assert (found["dataset"], found["split"], found["views"]) == ("ucf101", "groups", "2 x center")
    assert found["classes"] == list(CLASSES)
    assert found["chance"] == pytest.approx(1 / 3)
    assert found["videos"] == {"train": 18, "val": 6, "test": 12}
    assert (found["train_steps"], found["checkpoint"]) == (STEPS, "best.ckpt")
    validated = logged(straight, "val_accuracy")
    assert found["checkpoint_step"] == max(validated, key=lambda step: validated[step])
    numbers = found["metrics"]
    assert numbers.keys() == {"top1", "top5", "mean_class_accuracy", "vacuity"}
    for name, number in numbers.items():
        assert number["n"] == 12
        assert 0 <= number["value"] <= 1, name
    for name in ("top1", "top5"):
        assert 0 < numbers[name]["low_95"] <= numbers[name]["value"] <= numbers[name]["high_95"] <= 1
    assert numbers["top1"]["value"] >= 0.9  # each class has its own colour
    assert numbers["top5"]["value"] == 1  # of three classes
    assert numbers["vacuity"]["value"] < 0.5  # 3 classes, and more evidence than none
    assert {"seed", "commit", "versions", "config_sha256", "train_seconds", "test_seconds"} <= found.keys()


def test_the_scores_are_those_that_the_numbers_come_from(straight, tree):
    numbers, scores = result(straight)["metrics"], np.load(straight / "scores" / "known.npz")
    labels, probabilities = scores["labels"], scores["probabilities"]
    videos = [str(tree / "videos" / c / f"{stem(c, g, i)}.avi") for c in CLASSES for g in TEST_GROUPS for i in (1, 2)]
    assert scores["videos"].tolist() == videos
    assert scores["classes"].tolist() == list(CLASSES)
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert (probabilities.argmax(axis=1) == labels).mean() == numbers["top1"]["value"]
    alpha = np.exp(np.clip(scores["logits"].astype(np.float64), -10, 10)) + 1
    np.testing.assert_allclose(probabilities, alpha / alpha.sum(axis=1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(scores["uncertainty/vacuity"], 3 / alpha.sum(axis=1), rtol=1e-5)
    assert numbers["vacuity"]["value"] == pytest.approx(scores["uncertainty/vacuity"].mean())


def test_the_report_shows_the_numbers(straight):
    page, top1 = (straight / "report.html").read_text(), result(straight)["metrics"]["top1"]
    assert f"{100 * top1['value']:.2f} % of 12 videos" in page
    assert f"{100 * top1['low_95']:.2f} % to {100 * top1['high_95']:.2f} %" in page
    assert "edlnokl_avuc_debias on i3d_r18" in page
    assert "the best on training sources held out" in page


def test_evaluating_the_best_checkpoint_gives_the_run_s_numbers(straight, tree, tmp_path):
    """By the config.yaml beside it; the place of the videos is the run's own."""
    assert main(["eval", "--checkpoint", str(straight / "best.ckpt"), f"output={tmp_path}"]) == 0
    folder = tmp_path / "tiny-eval"
    assert result(folder)["metrics"] == result(straight)["metrics"]
    np.testing.assert_array_equal(*(np.load(f / "scores" / "known.npz")["logits"] for f in (folder, straight)))
    assert result(folder)["videos"] == {"test": 12}
    assert (folder / "report.html").is_file()


def fail_at(patch: pytest.MonkeyPatch, number: int, kind: str) -> None:
    """From the next training on, Ctrl-C comes in step `number` of it, or a crash before it ends."""
    calls = iter(range(1, STEPS + 1))

    class FailingStep(Step):
        def __call__(self, batches):
            if next(calls) == number:
                if kind == "crash":
                    raise RuntimeError("crashed")
                signal.raise_signal(signal.SIGINT)
            return super().__call__(batches)

    patch.setattr(setup, "Step", FailingStep)


def test_a_run_that_crashed_and_was_stopped_ends_with_the_same_weights(straight, tree, tmp_path, capsys):
    last = tmp_path / "tiny" / "last.ckpt"
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, 11, "crash")
        with pytest.raises(RuntimeError, match="crashed"):
            run("train", tree, tmp_path)
    assert read_checkpoint(last)[1].step == 8
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, 6, "stop")
        assert run("train", tree, tmp_path, "train.resume=auto") == 130
    assert f"interrupted; {last} holds step 14 of 60" in capsys.readouterr().err
    assert run("train", tree, tmp_path, "train.resume=auto") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"], "resumed in the same folder"
    for file in ("best.safetensors", "last.ckpt"):
        own, expected = (read_checkpoint(f / file)[0] for f in (tmp_path / "tiny", straight))
        assert own.keys() == expected.keys()
        assert [key for key in own if (own[key] != expected[key]).any()] == []
    for name in ("accuracy", "val_accuracy"):
        assert logged(tmp_path / "tiny", name) == logged(straight, name)
    # MindSpore's logarithm, off by up to 7e-6, rounds in ways of its own: the loss varies, not its gradient.
    assert logged(tmp_path / "tiny", "loss") == pytest.approx(logged(straight, "loss"), abs=1e-5)
    assert result(tmp_path / "tiny")["metrics"] == result(straight)["metrics"]


def test_a_finished_run_is_not_resumed(straight, tree, capsys):
    assert run("train", tree, straight.parent, "train.resume=auto") == 2
    assert f"{straight} is finished" in capsys.readouterr().err


def test_a_backbone_comes_from_a_checkpoint_of_other_classes(straight, tree, tmp_path):
    """At a rate of 0 it stays as it came; without held out sources the last checkpoint is tested."""
    two = lists(tree, tmp_path, CLASSES[1:], tuple(TRAIN_GROUPS))
    once = ["data.validation=0", "train.epochs=1", "optim.lr=0", "loss.name=dnn", "seed=5"]
    assert run("train", tree, tmp_path / "out", *two, *once, f"train.backbone={straight / 'best.ckpt'}") == 0
    folder = tmp_path / "out" / "tiny"
    given, own = load_file(straight / "best.safetensors"), load_file(folder / "last.safetensors")
    assert own["head.fc.weight"].shape[0] == 2
    kept = [key for key in given if key.startswith("backbone.") and "moving" not in key]
    assert len(kept) > 40
    for key in kept:
        np.testing.assert_array_equal(own[key], given[key])
    found = result(folder)
    assert found["videos"] == {"train": 8, "val": 0, "test": 4}
    assert (found["checkpoint"], found["checkpoint_step"], found["split"]) == (
        "last.ckpt",
        1,
        str(tmp_path / "test.txt"),
    )
    assert "vacuity" not in found["metrics"]
    assert "uncertainty/vacuity" not in np.load(folder / "scores" / "known.npz").files
    assert not (folder / "best.ckpt").exists()
    assert "the last, no source being held out" in (folder / "report.html").read_text()


def refusal(capsys, tree: Path, output: Path, *settings: str) -> str:
    """The one line that `mindvideo train` with these settings ends with, in status 2 and without a folder."""
    assert run("train", tree, output, *settings) == 2
    error = capsys.readouterr().err
    assert error.startswith("mindvideo: error: ")
    assert error.count("\n") == 1
    assert not output.exists()
    return error


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.name=i3d_r19", "unknown model 'i3d_r19', did you mean 'i3d_r18'?"),
        ("model.name=arn", "model.name: arn is no video classifier"),
        ("model.fast_width=4", "model.fast_width is 4, but i3d_r18 has no such option"),
        ("loss.name=softmax", "loss.name is 'softmax'; it must be one of dnn, bnn"),
        ("train.batch=19", "train.batch is 19, but there are 18 training videos"),
        ("data.split=1", "ucfTrainTestlist/trainlist01.txt: no such list"),
        ("data.test_list=test.txt", "data.train_list is not set"),
        ("data.length=16", "'corrected', takes feature maps of 3 frames or more; these have 2"),
        ("train.backbone=absent.ckpt", "absent.ckpt: no such checkpoint"),
        ("loss.kind=mse", "kind 'mse'"),
    ],
)
def test_a_mistake_is_one_sentence(setting, message, tree, tmp_path, capsys):
    assert message in refusal(capsys, tree, tmp_path / "out", setting)


def test_a_backbone_of_another_width_is_refused(straight, tree, tmp_path, capsys):
    wider = ["model.width=16", f"train.backbone={straight / 'best.ckpt'}", "loss.name=dnn"]
    error = refusal(capsys, tree, tmp_path / "out", *wider)
    assert f"{straight / 'best.ckpt'} does not fit model 'i3d_r18'" in error
    assert "backbone.conv1.conv.weight is (8, 3, 5, 7, 7), the model needs (16, 3, 5, 7, 7)" in error


def test_a_class_of_one_source_cannot_be_held_out_from(tree, tmp_path, capsys):
    settings = lists(tree, tmp_path, CLASSES, (8,))
    assert "data.validation is 0.25: no source of class 'Archery' is left" in refusal(
        capsys, tree, tmp_path / "out", *settings
    )


def test_a_missing_list_is_named(tree, tmp_path, capsys):
    settings = lists(tree, tmp_path, CLASSES, (8, 9))
    (tmp_path / "test.txt").unlink()
    assert f"{tmp_path / 'test.txt'}: no such list" in refusal(capsys, tree, tmp_path / "out", *settings)
    assert "data.class_names is not set; lists go together" in refusal(capsys, tree, tmp_path / "out", *settings[:2])


def test_no_video_to_test_on_is_found_before_training(tree, tmp_path, capsys):
    shutil.copytree(tree / "videos", tmp_path / "videos", ignore=shutil.ignore_patterns("*_g01_*", "*_g02_*"))
    error = refusal(capsys, tree, tmp_path / "out", f"data.root={tmp_path / 'videos'}")
    assert "no test video is on disk" in error


def samples_of(groups: dict[str, int], clips: int = 3) -> list[Sample]:
    """Each class with this many sources of its own."""
    return [
        Sample(Path(f"{label}/{group}/{clip}.avi"), label, f"{label}/g{group:02d}")
        for label, count in groups.items()
        for group in range(count)
        for clip in range(clips)
    ]


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.1, {"a": 1, "b": 1, "c": 2}), (0.25, {"a": 1, "b": 2, "c": 5}), (0.5, {"a": 2, "b": 4, "c": 10})],
)
def test_sources_are_held_out_whole_and_of_every_class(share, expected):
    samples = samples_of({"a": 3, "b": 8, "c": 20})
    kept, held = hold_out(samples, share, seed=1)
    assert sorted(kept + held, key=samples.index) == samples
    assert {s.group for s in kept}.isdisjoint({s.group for s in held})
    assert {label: len({s.group for s in held if s.label == label}) for label in "abc"} == expected
    assert hold_out(samples, share, seed=1) == (kept, held)
    assert hold_out(samples, share, seed=2) != (kept, held)


def test_a_source_that_classes_share_is_held_out_for_all():
    shared = [Sample(Path(f"{label}/{group}.avi"), label, f"g{group}") for label in "abc" for group in range(8)]
    kept, held = hold_out(shared, 0.25, seed=1)
    assert {s.group for s in kept}.isdisjoint({s.group for s in held})
    assert len({s.group for s in held}) == 2
    assert hold_out(shared, 0, seed=1) == (shared, [])


def test_a_class_without_a_source_left_is_named():
    with pytest.raises(InputError, match=r"data.validation is 0.1: no source of class 'b' is left"):
        hold_out(samples_of({"a": 4, "b": 1}), 0.1, seed=1)


def softmax(z: np.ndarray) -> np.ndarray:
    return np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)


EVIDENCE = {
    "exp": lambda z: np.exp(np.clip(z, -10, 10)), "relu": lambda z: np.maximum(z, 0),
    "softplus": lambda z: np.log1p(np.exp(z)),
}  # fmt: skip


@pytest.mark.parametrize(
    ("average", "evidence"),
    [
        ("score", ""), ("probability", ""), ("score", "exp"), ("score", "relu"), ("score", "softplus"),
        ("probability", "exp"), ("evidence", "exp"), ("evidence", "relu"), ("evidence", "softplus"),
    ],
)  # fmt: skip
def test_views_are_averaged_as_they_say(average, evidence):
    logits = np.random.default_rng(0).normal(0, 2, (5, 3, 4)).astype(np.float32)
    logits[0, 0, 0] = 14  # beyond what `exp` lets through
    views = Views(logits, np.zeros((5, 2)), None)
    mean_logits, probabilities, found = average_views(views, average=average, evidence=evidence)
    z = logits.astype(np.float64)

    def expected_of(z: np.ndarray) -> np.ndarray:
        alpha = EVIDENCE[evidence](z) + 1
        return alpha / alpha.sum(axis=-1, keepdims=True)

    of_views = softmax if average == "probability" or not evidence else expected_of
    expected = of_views(z.mean(axis=1)) if average == "score" else of_views(z).mean(axis=1)
    np.testing.assert_allclose(probabilities, expected, rtol=2e-5)
    np.testing.assert_allclose(mean_logits, z.mean(axis=1), rtol=1e-5, atol=1e-6)
    if evidence:
        total = EVIDENCE[evidence](z.mean(axis=1)).sum(axis=1) + 4
        np.testing.assert_allclose(found["vacuity"], 4 / total, rtol=2e-5)
    else:
        assert "vacuity" not in found
