# SPDX-License-Identifier: Apache-2.0
"""Predictions from checkpoints: the numbers of the network itself, whatever the batch, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor
from safetensors.numpy import load_file, save_file
from scipy.special import softmax

from mindvideo.cli import main
from mindvideo.config import load_config, parse_config, to_yaml
from mindvideo.data.loader import ViewReader
from mindvideo.data.manifest import Sample
from mindvideo.data.pose import parse_pose
from mindvideo.data.transforms import ViewTransform
from mindvideo.engine.checkpoint import TrainingState, save_checkpoint
from mindvideo.errors import InputError, VideoError
from mindvideo.losses.evidential import EVIDENCE
from mindvideo.models import create_model
from mindvideo.predict import LENGTHS, PosePredictor, VideoPredictor, load_predictor
from mindvideo.tasks import openset_objective
from mindvideo.tasks.openset_views import Scorer, average_views, score_views
from tests.parity.recipe_actionnet import each, fill, stored
from tests.serving import (
    POSE_CLASSES,
    POSES,
    VIDEO_CLASSES,
    clip,
    make_video,
    npy,
    pose_predictor,
    video_predictor,
    write_pose_checkpoint,
    write_video_checkpoint,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_pose_checkpoint(tmp_path_factory.mktemp("poses"))


@pytest.fixture
def poses() -> PosePredictor:
    return pose_predictor()


@pytest.fixture
def videos() -> VideoPredictor:
    return video_predictor()


def test_a_prediction_is_what_the_network_says(poses, tmp_path):
    array = clip(37)
    (tmp_path / "clip.npy").write_bytes(npy(array))
    seen = parse_pose(npy(array), "here")
    logits = poses.model(Tensor(seen[None])).asnumpy()[0]
    for found in poses.predict([array, npy(array), tmp_path / "clip.npy", seen]):
        np.testing.assert_allclose(found.logits, logits, atol=2e-6)
        np.testing.assert_allclose(found.probabilities, softmax(logits), atol=1e-6)
        assert found.label == POSE_CLASSES[int(logits.argmax())]
        assert found.uncertainty_name == "max_probability"
        assert found.uncertainty == pytest.approx(1 - found.probabilities.max())
        np.testing.assert_allclose(found.seen, seen, atol=1e-7)
        assert found.as_json()["class_scores"] == {"action_class": found.logits.tolist()}


def test_a_batch_gives_what_single_clips_give(poses):
    """Clips of two lengths of graphs, in numbers that fill no batch."""
    arrays = [clip(n, seed) for seed, n in enumerate([1, 32, 256, 257, 5, 100, 255, 17, 200, 33, 31, 30])]
    together = poses.predict(arrays)
    for array, found in zip(arrays, together, strict=True):
        (alone,) = poses.predict([array])
        np.testing.assert_allclose(found.logits, alone.logits, atol=5e-6)
        assert len(found.seen) == len(array)
    assert len({tuple(found.logits) for found in together}) == len(arrays)


def test_graphs_are_few_and_small():
    """No batch has more frames than the longest clip, nor more attention than was measured to fit."""
    models = {length: create_model("actionnet", width=16, length=length, decoder_width=16) for length in (8, 400, 800)}
    predictors = {n: PosePredictor(model, None, ("a",) * 10) for n, model in models.items()}
    shapes = {n: [predictor._batches(length) for length in LENGTHS] for n, predictor in predictors.items()}
    assert shapes == {8: [[16, 4, 1], [16, 4, 1], [1]], 400: [[4, 1], [4, 1], [1]], 800: [[1], [1], [1]]}


def test_what_is_no_pose_is_refused(poses, tmp_path):
    with pytest.raises(InputError, match=r"^poses: an array of shape \(5, 71\); allowed are"):
        poses.predict([clip(5)[:, 1:]])
    with pytest.raises(InputError, match=r"^poses: an array of object; allowed are floating-point"):
        poses.predict([np.array([{}])])
    with pytest.raises(InputError, match=r"nothing\.npy: no such file"):
        poses.predict([tmp_path / "nothing.npy"])


@each("service*.npz")
def test_the_published_service(path, tmp_path):
    golden = np.load(path)
    weights = stored(np.load(path.with_name("actnet_small_T37.npz")), "sd/")
    network = create_model("actionnet", num_classes=10, width=64, length=16, decoder_width=64)
    fill(network, weights)
    config = parse_config({"task": "pose", "model": {"width": 64, "length": 16, "decoder_width": 64}}, "here")
    save_checkpoint(tmp_path / "golden.ckpt", network, TrainingState("actionnet", config=config.to_dict()))
    predictor = load_predictor(tmp_path / "golden.ckpt", "actionnet", device="cpu")
    assert predictor.labels == tuple("0123456789")
    for found in predictor.predict([golden["axis_angle_72"], golden["rot6d"]]):
        np.testing.assert_allclose(found.logits, golden["response_action_class"], atol=2e-5)


def test_weights_alone_take_their_config_and_classes_from_beside_them(checkpoint, tmp_path):
    weights = load_file(checkpoint.with_suffix(".safetensors"))
    assert load_predictor(checkpoint.with_suffix(".safetensors"), device="cpu").labels == tuple(POSE_CLASSES)
    alone = tmp_path / "alone.safetensors"
    save_file(weights, alone)
    (tmp_path / "config.yaml").write_text(to_yaml(parse_config(POSES, "here")))
    found = load_predictor(alone, device="cpu")
    assert (found.labels, found.config.model.motion) == (("0", "1", "2", "3"), 2)
    labels = tmp_path / "labels.txt"
    labels.write_text("one\ntwo\nthree\nfour\n")
    assert load_predictor(alone, device="cpu", labels=labels).labels == ("one", "two", "three", "four")
    labels.write_text("one\ntwo\n")
    with pytest.raises(InputError, match=r"labels.txt: 2 class names, one a line, for 4 classes\.$"):
        load_predictor(alone, device="cpu", labels=labels)


def test_weights_of_the_published_shape_need_no_config(tmp_path):
    network = create_model("actionnet", num_classes=7, width=24, decoder_width=16)
    save_checkpoint(tmp_path / "bare.ckpt", network, TrainingState("actionnet"))
    found = load_predictor(tmp_path / "bare.safetensors", device="cpu")
    settings = found.config.model
    assert (settings.width, settings.decoder_width, settings.length, len(found.labels)) == (24, 16, 800, 7)


def test_a_checkpoint_that_predicts_nothing_is_refused(checkpoint, tmp_path):
    with pytest.raises(InputError, match="holds the model 'actionnet', not 'arn'"):
        load_predictor(checkpoint, "arn", device="cpu")
    network = create_model("arn", width=16)
    few = tmp_path / "few.ckpt"
    save_checkpoint(few, network, TrainingState("arn", config=parse_config({}, "here").to_dict()))
    with pytest.raises(InputError, match="is of task fewshot; only models of tasks pose and openset"):
        load_predictor(few, device="cpu")
    save_checkpoint(few, network, TrainingState("arn"))
    with pytest.raises(InputError, match="does not say how it was trained"):
        load_predictor(few, device="cpu")
    with pytest.raises(InputError, match="no such checkpoint"):
        load_predictor(tmp_path / "none.ckpt", device="cpu")
    other = tmp_path / "other.yaml"
    other.write_text("task: pose\nmodel: {width: 32, length: 8, decoder_width: 16}\n")
    with pytest.raises(InputError, match="does not fit model 'actionnet'"):
        load_predictor(checkpoint, config=other, device="cpu")


def test_a_video_is_scored_as_the_open_set_task_does(videos, tmp_path):
    path = make_video(tmp_path / "a.avi")
    (found,) = videos.predict([path])
    reader = ViewReader(ViewTransform(32, 36, "three"), "dense", 4, {path: 12}, num_clips=2)
    views = score_views(Scorer(videos.model), [Sample(path, "", "")], reader, batch=4, workers=1)
    logits, probabilities, scores = average_views(views, average="score", evidence="exp")
    np.testing.assert_allclose(found.logits, logits[0], atol=1e-5)
    np.testing.assert_allclose(found.probabilities, probabilities[0], atol=1e-6)
    alpha = EVIDENCE["exp"](Tensor(found.logits)).asnumpy() + 1
    assert found.uncertainty_name == "vacuity"
    assert found.uncertainty == pytest.approx(3 / alpha.sum(), abs=1e-5)
    assert found.uncertainty == pytest.approx(scores["vacuity"][0], abs=1e-5)
    assert found.label == VIDEO_CLASSES[int(probabilities.argmax())]
    assert (found.seen.shape, found.seen.dtype) == ((4, 32, 32, 3), np.uint8)


def test_a_broken_video_is_refused(videos, tmp_path):
    path = make_video(tmp_path / "a.avi")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(VideoError, match="cut short"):
        videos.predict([path])


def test_a_softmax_classifier_is_unsure_by_its_largest_probability(tmp_path):
    predictor = load_predictor(write_video_checkpoint(tmp_path, name="dnn"), device="cpu")
    (found,) = predictor.predict([make_video(tmp_path / "a.avi")])
    np.testing.assert_allclose(found.probabilities, softmax(found.logits), atol=1e-6)
    assert found.uncertainty_name == "max_probability"
    assert found.uncertainty == pytest.approx(1 - found.probabilities.max())


def test_a_config_under_which_the_network_cannot_see_is_refused(tmp_path):
    texts = {name: f"task: openset\nmodel: {{name: i3d_r18, width: 8}}\ndata: {{length: {length}, size: 32}}\n"
             "eval: {size: 32}\n" for name, length in (("own", 24), ("short", 4))}  # fmt: skip
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    config = load_config(tmp_path / "own.yaml")
    checkpoint = tmp_path / "i3d.ckpt"
    save_checkpoint(checkpoint, openset_objective.make_model(config, 3), TrainingState("i3d_r18"))
    assert load_predictor(checkpoint, config=tmp_path / "own.yaml", device="cpu").labels == ("0", "1", "2")
    with pytest.raises(InputError, match=r"model\.name: i3d_r18 cannot see clips of data\.length 4 and eval\.size"):
        load_predictor(checkpoint, config=tmp_path / "short.yaml", device="cpu")


def test_the_command_line(checkpoint, tmp_path, capsys):
    (tmp_path / "clip.npy").write_bytes(npy(clip(37)))
    words = ["predict", "--ckpt", str(checkpoint), "--labels", str(tmp_path / "labels.txt"), "--device", "cpu"]
    (tmp_path / "labels.txt").write_text("walk\nwalk\nwalk\nwalk\n")
    assert main([*words, str(tmp_path / "clip.npy"), str(tmp_path / "clip.npy")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"{tmp_path / 'clip.npy'}: walk 0.")
    assert "uncertainty (max_probability 0." in lines[0]
    assert main(["predict", "--ckpt", str(checkpoint), "--model", "arm", "x.npy", "--device", "cpu"]) == 2
    assert capsys.readouterr().err == f"mindvideo: error: {checkpoint} holds the model 'actionnet', not 'arm'.\n"
