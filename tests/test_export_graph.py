# SPDX-License-Identifier: Apache-2.0
"""MINDIR and ONNX files give what the networks give, for every model and every head; what is written beside them, and
what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from mindvideo.cli import main
from mindvideo.engine.checkpoint import TrainingState, save_checkpoint
from mindvideo.errors import InputError
from mindvideo.export import Trained, export_graph, graph, load_trained, onnx_graph
from mindvideo.export.graph import run_network
from mindvideo.export.interface import interface_of
from mindvideo.models.layers import is_native, portable_operators
from mindvideo.tasks.openset_objective import evidence_of
from mindvideo.tasks.openset_views import Scorer, Views, average_views
from tests.conftest import REPOSITORY
from tests.exported import CLASSES, differences, families, small, trained
from tests.serving import (
    POSE_CLASSES,
    VIDEO_CLASSES,
    clip,
    pose_predictor,
    write_pose_checkpoint,
    write_video_checkpoint,
)

TOLERANCE = 1e-5
HEADS = {
    "softplus": {"loss": {"name": "edlnokl", "evidence": "softplus"}},
    "relu": {"loss": {"name": "edlnokl", "evidence": "relu"}},
    "probability": {"loss": {"name": "edlnokl"}, "eval": {"average": "probability"}},
    "linear": {"loss": {"name": "dnn"}},
    "dropout": {"loss": {"name": "dnn"}, "eval": {"draws": 3}},
    "bayesian": {"loss": {"name": "bnn"}},
    "bayesian, draws": {"loss": {"name": "bnn"}, "eval": {"draws": 3}},
    "rpl": {"loss": {"name": "rpl"}},
    "gcpl": {"loss": {"name": "gcpl"}},
}
COMPARATORS = {
    "evidential": {"attention": "both", "comparator": "evidential", "shots": "max"},
    "distance": {"attention": "temporal", "comparator": "distance", "pooling": "average"},
    "cosine": {"comparator": "cosine", "pooling": "grid", "input": "differences"},
    "vectors": {"pooling": "max", "joint": True},
}


# The logits of an evidential network are those of a linear one: what goes with evidence goes without.
@pytest.mark.parametrize("name", families())
def test_every_model(name, tmp_path):
    found = differences(trained(small(name)), tmp_path, frames=9 if name == "actionnet" else 0)
    assert max(found.values()) < TOLERANCE, found


def test_a_network_of_mindcv(tmp_path):
    """In a process of its own, see `MINDCV`; the others are larger than a test should be."""
    script = (
        "import sys; from pathlib import Path; from mindvideo.engine.device import use_device; use_device('cpu')\n"
        "from tests.exported import differences, small, trained\n"
        "print(max(differences(trained(small('resnet50')), Path(sys.argv[1])).values()))"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert float(done.stdout.splitlines()[-1]) < TOLERANCE


@pytest.mark.parametrize("name", HEADS)
def test_every_head(name, tmp_path):
    """Dropout falls on a vector a frame, where the backbone gives these."""
    found = differences(trained(small("tsm_r18" if name == "dropout" else "slowonly_r18", **HEADS[name])), tmp_path)
    assert max(found.values()) < TOLERANCE, found


@pytest.mark.parametrize("name", COMPARATORS)
def test_every_comparator(name, tmp_path):
    found = differences(trained(small("arn", model=COMPARATORS[name])), tmp_path)
    assert max(found.values()) < TOLERANCE, found


def test_positions_and_motion_of_poses(tmp_path):
    subject = trained(small("actionnet", model={"positional": True, "motion": 2, "num_groups": 2}))
    found = differences(subject, tmp_path, frames=12)
    assert max(found.values()) < TOLERANCE, found


@pytest.mark.parametrize("head", ["linear", "ml_decoder"])
def test_image_networks_behind_their_defence(head, tmp_path):
    config = small(
        "convnext_tiny", model={"head": head, "normalize": True}, defence={"concealment": True, "padding": 28}
    )
    found = differences(trained(config), tmp_path)
    assert max(found.values()) < TOLERANCE, found


@pytest.mark.parametrize("name", ["relu", "probability", "linear", "dropout", "bayesian", "bayesian, draws"])
def test_the_scores_are_those_of_predictions(name):
    """Of one view, the first of a test: `Scorer` and `average_views` are what `predict` and reports use."""
    subject = trained(small("slowonly_r18", **HEADS[name]))
    interface, config = interface_of(subject.config), subject.config
    (view,) = (value.draw(np.random.default_rng(3)) for value in interface.inputs.values())
    logits, features, *drawn = Scorer(subject.network)(view, config.eval.draws)
    views = Views(logits[None], features, drawn[0][None] if drawn else None)
    logits, probabilities, found = average_views(views, average=config.eval.average, evidence=evidence_of(config))
    outputs = dict(zip(interface.outputs, run_network(interface, subject, [view]), strict=True))
    np.testing.assert_allclose(outputs["logits"], logits, rtol=0, atol=1e-5)
    np.testing.assert_allclose(outputs["probabilities"], probabilities, rtol=0, atol=1e-6)
    kind = interface.outputs["uncertainty"].split()[1].rstrip(":,")
    np.testing.assert_allclose(outputs["uncertainty"], found[kind], rtol=0, atol=1e-6)


def test_networks_are_built_on_either_operators():
    before = is_native()
    with portable_operators():
        assert not is_native()
    assert is_native() == before
    with pytest.raises(ZeroDivisionError), portable_operators():
        raise ZeroDivisionError
    assert is_native() == before


def test_an_onnx_file_by_command(tmp_path, capsys):
    """It has the network's names, knows of itself what its user must know, and gives what predictions say."""
    checkpoint, file = write_pose_checkpoint(tmp_path), tmp_path / "poses.onnx"
    words = ["export", "--format", "onnx", "--ckpt", str(checkpoint), str(file), "--batch", "2", "--frames", "10"]
    assert main([*words, "--device", "cpu"]) == 0
    said = json.loads((tmp_path / "poses.onnx.json").read_text(encoding="utf-8"))
    assert 0 <= said["largest_difference"] < 1e-5
    assert capsys.readouterr().out == (
        f"written: {file} (largest difference from the network {said['largest_difference']:.1e})\n"
    )
    assert {path.name for path in tmp_path.iterdir()} == {
        "poses.ckpt", "poses.safetensors", "poses.onnx", "poses.onnx.json"
    }  # fmt: skip
    assert (said["model"], said["task"], said["classes"]) == ("actionnet", "pose", POSE_CLASSES)
    assert said["inputs"]["poses"]["shape"] == [2, 10, 24, 6]
    assert (said["inputs"]["lengths"]["shape"], said["inputs"]["lengths"]["dtype"]) == ([2], "int32")
    assert [(name, x["shape"]) for name, x in said["outputs"].items()] == [
        ("logits", [2, 4]), ("probabilities", [2, 4]), ("uncertainty", [2])
    ]  # fmt: skip
    model = onnx.load(str(file))
    assert json.loads({entry.key: entry.value for entry in model.metadata_props}["classes"]) == POSE_CLASSES
    weights = {weight.name for weight in model.graph.initializer}
    assert {name for name, _ in pose_predictor().model.parameters_and_names()} <= weights
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    predictor = pose_predictor()
    clips = [predictor.read(clip(frames, seed)) for seed, frames in enumerate((10, 7))]
    filled = np.zeros((2, 10, 24, 6), np.float32)
    for place, poses in enumerate(clips):
        filled[place, : len(poses)] = poses
    lengths = np.array([10, 7], np.int32)
    logits, probabilities, uncertainty = session.run(None, {"poses": filled, "lengths": lengths})
    for place, prediction in enumerate(predictor.classify(clips)):
        np.testing.assert_allclose(logits[place], prediction.logits, rtol=0, atol=1e-5)
        np.testing.assert_allclose(probabilities[place], prediction.probabilities, rtol=0, atol=1e-6)
        assert uncertainty[place] == pytest.approx(prediction.uncertainty, abs=1e-6)


def test_a_mindir_file_by_command(tmp_path, capsys):
    checkpoint, file = write_video_checkpoint(tmp_path), tmp_path / "videos.mindir"
    words = ["export", "--format", "mindir", "--ckpt", str(checkpoint), str(file), "--device", "cpu"]
    assert main(words) == 0
    assert "written: " in capsys.readouterr().out
    said = json.loads((tmp_path / "videos.mindir.json").read_text(encoding="utf-8"))
    assert said["inputs"]["clips"]["shape"] == [1, 3, 4, 32, 32]
    assert list(said["outputs"]) == ["logits", "probabilities", "evidence", "uncertainty"]
    assert said["classes"] == VIDEO_CLASSES
    assert said["preprocessing"] == {
        "order": "RGB", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "frames": 4, "stride": 1,
        "short_side": 36, "crop": 32,
    }  # fmt: skip
    assert main(words) == 2
    assert capsys.readouterr().err == f"mindvideo: error: {file} exists: name a new file.\n"


def saved(config, folder: Path, **state) -> Path:
    """A checkpoint of a small network."""
    subject = trained(config)
    kept = TrainingState(config.model.name, config=config.to_dict(), **state)
    save_checkpoint(folder / "a.ckpt", subject.network, kept)
    return folder / "a.ckpt"


def test_networks_of_the_other_tasks_come_from_their_checkpoints(tmp_path):
    images = saved(small("convnext_tiny"), tmp_path, classes=list(CLASSES))
    subject = load_trained(images, "convnext_tiny")
    assert (subject.labels, subject.config.task) == (CLASSES, "robust")
    with pytest.raises(InputError, match=r"a\.ckpt holds the model 'convnext_tiny', not 'arn'\.$"):
        load_trained(images, "arn")
    state = load_trained(tmp_path / "a.safetensors")
    for mine, its in zip(state.network.get_parameters(), subject.network.get_parameters(), strict=True):
        np.testing.assert_array_equal(mine.asnumpy(), its.asnumpy())
    episodes = saved(small("protonet"), tmp_path)
    few = load_trained(episodes)
    assert (few.labels, few.config.model.name) == ((), "protonet")
    with pytest.raises(InputError, match=r"--labels does not go with few-shot networks, which know no classes\.$"):
        load_trained(episodes, labels=tmp_path / "labels.txt")


def test_image_networks_need_the_names_of_their_classes(tmp_path):
    checkpoint = saved(small("convnext_tiny"), tmp_path)
    with pytest.raises(InputError, match=r"does not name its classes: give a file of their names \(--labels\)\.$"):
        load_trained(checkpoint)
    with pytest.raises(InputError, match=r"labels\.txt: no such file of class names\.$"):
        load_trained(checkpoint, labels=tmp_path / "labels.txt")
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    assert load_trained(checkpoint, labels=tmp_path / "labels.txt").labels == ("a", "b", "c")


@pytest.fixture
def poses() -> Trained:
    predictor = pose_predictor()
    return Trained(predictor.model, predictor.config, predictor.labels)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--format", "onnx", "a.mindir"], "a.mindir: the file must end in .onnx."),
        (["--format", "mindir", "a"], "a: the file must end in .mindir."),
        (["--format", "onnx", "there.onnx"], "there.onnx.json exists: name a new file."),
        (["--format", "onnx", "no/a.onnx"], "no: no such folder."),
        (["--format", "onnx", "a.onnx", "--frames", "32769"], "32769 frames; allowed are 1 to 32768."),
        (
            ["--format", "modelarts", "a", "--batch", "2"],
            "--batch and --frames are for files; a ModelArts package takes clips of any length.",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_pose_checkpoint(Path())
    Path("there.onnx.json").touch()
    before = sorted(tmp_path.iterdir())
    assert main(["export", *words, "--ckpt", "poses.ckpt", "--device", "cpu"]) == 2
    assert capsys.readouterr().err == f"mindvideo: error: {told}\n"
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs onnx, which is not installed; `pip install mindvideo\[onnx\]`\.$"):
        graph.check_destination(tmp_path / "a.onnx")
    assert graph.check_destination(tmp_path / "a.mindir") == "mindir"


def test_frames_are_for_poses():
    with pytest.raises(InputError, match=r"^protonet sees as many frames as its config says"):
        interface_of(small("protonet"), frames=5)
    with pytest.raises(InputError, match=r"^a batch of 0: it must be at least 1\.$"):
        interface_of(small("protonet"), batch=0)


def test_a_file_that_differs_is_not_written(poses, tmp_path, monkeypatch):
    def other(file: Path, arrays) -> list[np.ndarray]:
        return [output + np.float32(2e-4) for output in graph.run_mindir(file, arrays)]

    monkeypatch.setitem(graph.RUNNERS, "mindir", other)
    with pytest.raises(
        InputError, match=r"a\.mindir is not written: its outputs differ .* by 2\.0e-04; at most 0\.0001"
    ):
        export_graph(poses, tmp_path / "a.mindir", frames=4)
    monkeypatch.setattr(graph, "MOST_BYTES", 1000)
    with pytest.raises(InputError, match=r"^actionnet has 0\.0 GB of weights; a file holds at most 1 GB\.$"):
        export_graph(poses, tmp_path / "a.mindir", frames=4)
    assert list(tmp_path.iterdir()) == []


def test_a_primitive_without_a_rule_is_named(poses, tmp_path, monkeypatch):
    monkeypatch.delitem(onnx_graph.RULES, "Softmax")
    with pytest.raises(
        InputError, match=r"^actionnet cannot be an ONNX file: there is no rule for Softmax of MindSpore"
    ):
        export_graph(poses, tmp_path / "a.onnx", frames=4)
    assert list(tmp_path.iterdir()) == []


def test_differences_are_shares_of_large_outputs():
    ones = np.ones(3, np.float32)
    assert graph.largest_difference([ones, 101 * ones], [ones, 100 * ones]) == pytest.approx(0.01)
    assert graph.largest_difference([ones, 0.2 * ones], [ones, 0.1 * ones]) == pytest.approx(0.1)
    assert graph.largest_difference([ones], [ones[:2]]) == float("inf")
    assert np.isnan(graph.largest_difference([ones, np.nan * ones], [ones, ones]))
