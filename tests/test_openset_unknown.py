# SPDX-License-Identifier: Apache-2.0
"""Scoring known, training and unknown videos for the open-set experiments: what is written, kept and refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from mindvideo.config import load_config
from mindvideo.data.video import write_video
from mindvideo.engine.checkpoint import TrainingState, save_checkpoint
from mindvideo.errors import InputError
from mindvideo.tasks import openset, openset_data
from mindvideo.tasks.openset_data import check_videos, find_unknown, find_videos
from mindvideo.tasks.openset_objective import Objective, check_fit, make_model
from mindvideo.tasks.openset_scores import Scores, load_scores
from mindvideo.tasks.openset_views import Scorer, Views, average_views

KNOWN, UNKNOWN = ("Archery", "Biking", "Diving"), ("sit", "wave")
CONFIG = """
task: openset
device: cpu
model: {name: i3d_r18, width: 4, dropout: 0.5}
data: {dataset: ucf101, split: groups, validation: 0.25, workers: 1, length: 8, stride: 1, short_side: 36, size: 32}
unknown: {dataset: folder, split: all}
loss: {name: dnn}
eval: {clips: 2, crops: center, size: 32, batch: 4}
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Iterator[Path]:
    """Videos of three known classes, two clips of each of five sources, and of two unknown classes."""
    root = tmp_path_factory.mktemp("tree")
    rng = np.random.default_rng(0)
    places = [f"known/{c}/v_{c}_g{g:02d}_c{i:02d}.avi" for c in KNOWN for g in (1, 8, 9, 10, 11) for i in (1, 2)]
    for place in [*places, *(f"unknown/{name}/{i}.avi" for name in UNKNOWN for i in range(3))]:
        frames = rng.integers(0, 256, (10, 4, 6, 3), np.uint8)
        write_video(root / place, frames.repeat(8, axis=1).repeat(8, axis=2))
    (root / "tiny.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINDVIDEO_CACHE", str(root / "cache"))
        yield root


@pytest.fixture(scope="module")
def settings(tree) -> Callable:
    """The config with more settings."""

    def load(*more: str):
        roots = (f"data.root={tree / 'known'}", f"unknown.root={tree / 'unknown'}")
        return load_config(tree / "tiny.yaml", [*roots, *more])

    return load


@pytest.fixture(scope="module")
def checkpoint(settings, tree) -> Path:
    """Fresh weights of the linear classifier."""
    path = tree / "fresh.ckpt"
    save_checkpoint(path, make_model(settings(), 3), TrainingState(model="i3d_r18", config={}))
    return path


@pytest.fixture(scope="module")
def folder(settings, checkpoint, tmp_path_factory) -> Path:
    return openset.predict(settings(), checkpoint, tmp_path_factory.mktemp("run"))


def test_every_data_set_has_a_file(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        *("known.npz", "train.npz", "unknown_folder.npz", "val.npz")
    ]
    found = {path.stem: load_scores(path) for path in folder.iterdir()}
    assert {name: len(scores.videos) for name, scores in found.items()} == {
        "known": 6, "train": 18, "val": 6, "unknown_folder": 6,
    }  # fmt: skip
    unknown = found["unknown_folder"]
    assert (unknown.classes, unknown.label_names) == (list(KNOWN), list(UNKNOWN))
    assert unknown.labels.tolist() == [0, 0, 0, 1, 1, 1]
    known = found["known"]
    assert (known.label_names, known.labels.tolist()) == (list(KNOWN), [0, 0, 1, 1, 2, 2])
    assert known.features.shape == (6, 32)
    assert {Path(video).stem[-7:-4] for video in known.videos} == {"g01"}
    assert not set(found["train"].groups) & set(found["val"].groups)
    assert len({scores.model_hash for scores in found.values()}) == 1
    assert len({scores.data_hash for scores in found.values()}) == 4


def test_scores_follow_from_the_logits(folder):
    known = load_scores(folder / "known.npz")
    assert list(known.uncertainties) == ["max_probability", "entropy", "max_logit", "energy"]
    np.testing.assert_allclose(known.probabilities, softmax(known.logits, axis=1), rtol=1e-5)
    np.testing.assert_allclose(known.uncertainties["max_probability"], 1 - known.probabilities.max(axis=1), rtol=1e-6)
    np.testing.assert_allclose(known.uncertainties["energy"], -np.log(np.exp(known.logits).sum(axis=1)), rtol=1e-5)


def test_same_weights_videos_and_settings_are_not_scored_again(folder, settings, checkpoint, capsys, monkeypatch):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(openset, "score_videos", None)  # would fail if it were called
        openset.predict(settings(), checkpoint, folder.parent)
    assert capsys.readouterr().out.count("kept, of the same weights, videos and settings") == 4
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("change", ["weights", "videos", "settings"])
def test_a_stale_file_is_made_anew(folder, settings, checkpoint, tree, change, capsys, tmp_path):
    config, weights = settings(), checkpoint
    if change == "weights":
        weights = tmp_path / "other.ckpt"
        model = make_model(settings("seed=2"), 3)
        save_checkpoint(weights, model, TrainingState(model="i3d_r18", config={}))
    elif change == "videos":
        video = tree / "unknown" / UNKNOWN[0] / "0.avi"
        write_video(video, np.full((10, 32, 48, 3), 77, np.uint8))
    else:
        config = settings("eval.clips=1")
    openset.predict(config, weights, folder.parent)
    made_anew = capsys.readouterr().out.count("made anew, as weights, videos or settings are others")
    assert made_anew == (1 if change == "videos" else 4)
    openset.predict(settings(), checkpoint, folder.parent)  # as it was, for the other tests
    assert load_scores(folder / "known.npz").settings["clips"] == 2


def test_monte_carlo_dropout_draws_at_the_head_alone(settings):
    config = settings("eval.draws=6")
    model = make_model(config, 3)
    clips = np.random.default_rng(0).standard_normal((4, 3, 8, 32, 32)).astype(np.float32)
    scorer = Scorer(model)
    logits, features, draws = scorer(clips, draws=6)
    np.testing.assert_array_equal(logits, scorer(clips)[0])
    assert draws.shape == (4, 6, 3)
    weight, bias = model.head.fc.weight.asnumpy(), model.head.fc.bias.asnumpy()
    np.testing.assert_allclose(logits, features @ weight.T + bias, atol=1e-5)
    assert len(np.unique(draws[0, :, 0])) == 6, "each pass drops other features"
    np.testing.assert_allclose(draws.sum(axis=2), 1.0, atol=1e-6)
    np.testing.assert_array_equal(scorer(clips, draws=6)[2], draws)
    assert (scorer(clips, draws=6, number=1)[2] != draws).any(), "each batch draws others"


def test_dropout_keeps_the_mean_of_the_logits(settings):
    """Over many passes the mean logit is that without dropout: features are scaled up as others are dropped."""
    model = make_model(settings("model.dropout=0.3"), 3)
    model.head.fc.weight.set_data(model.head.fc.weight * 100)  # logits of the size of 1
    clips = np.random.default_rng(0).standard_normal((2, 3, 8, 32, 32)).astype(np.float32)
    logits, _, draws = Scorer(model)(clips, draws=400)
    drawn = np.log(draws) - np.log(draws).mean(axis=2, keepdims=True)
    bound = 5 * drawn.std(axis=1).max() / np.sqrt(400)
    assert 0.01 < bound < np.abs(logits).max() / 4
    np.testing.assert_allclose(drawn.mean(axis=1), logits - logits.mean(axis=1, keepdims=True), atol=bound)


def test_a_bayesian_head_draws_its_weights(settings):
    model = make_model(settings("loss.name=bnn"), 3)
    clips = np.zeros((2, 3, 8, 32, 32), np.float32)
    draws = Scorer(model)(clips, draws=5)[2]
    assert draws.shape == (2, 5, 3)
    assert len(np.unique(draws[0, :, 0])) == 5
    np.testing.assert_allclose(draws[0], draws[1], rtol=1e-5)  # one draw of the weights is one for the batch


def test_draws_are_averaged_over_views_only_after_their_spread_is_taken():
    """Two views on which all passes agree, but not with each other: no spread, though the mean over the views is even
    (DEAR's order of averaging would not show it either, but takes views that differ between passes for agreement)."""
    sure = np.array([[0.9, 0.1], [0.1, 0.9]])
    same = np.stack([np.stack([view] * 4) for view in sure])[None]  # [1, V, P, K]
    crossed = np.stack([np.stack([sure[0], sure[1]]), np.stack([sure[1], sure[0]])])[None]
    for draws, expected in ((same, 0.0), (crossed, np.log(2) + 0.9 * np.log(0.9) + 0.1 * np.log(0.1))):
        logits = np.zeros((1, draws.shape[1], 2), np.float32)
        _, probabilities, found = average_views(Views(logits, logits, draws), average="probability", evidence="")
        np.testing.assert_allclose(probabilities, [[0.5, 0.5]])
        np.testing.assert_allclose(found["mutual_information"], [expected], atol=1e-12)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["eval.draws=5", "model.dropout=0.0"], "eval.draws is 5, but model.dropout is 0: nothing is random"),
        (["eval.draws=5", "loss.name=edlnokl"], "eval.draws is 5; loss.name edlnokl is tested by one pass, 0"),
        (["model.name=i3d_r81"], "model.name: unknown model 'i3d_r81', did you mean 'i3d_r18'?"),
        (["unknown.list=x.txt"], "unknown.class_names is not set; it goes with unknown.list"),
        (["unknown.leave_out=wave, sitt"], "unknown.leave_out: no unknown video shows 'sitt'; the closest is 'sit'"),
        (["unknown.split=2"], "unknown.dataset folder has no official lists: set unknown.split=all"),
    ],
)
def test_mistakes_are_told_before_any_video_is_opened(settings, checkpoint, tmp_path, more, message, monkeypatch):
    monkeypatch.setattr(openset, "check_videos", None)
    with pytest.raises(InputError) as error:
        openset.predict(settings(*more), checkpoint, tmp_path)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "more",
    [
        ["model.name=tsm_r18", "model.width=4"],
        ["model.name=tpn_r18", "model.width=12"],
        ["model.name=slowfast_r18", "model.fast_width=1", "data.length=6"],
        ["model.name=c3d", "model.width=4", "data.length=8"],
    ],
    ids=lambda more: more[0].removeprefix("model.name="),
)
def test_a_network_that_cannot_see_such_clips_is_refused_in_one_line(settings, more):
    config = settings(*more)
    with pytest.raises(InputError, match=r"model\.name: \w+ cannot see clips of data\.length") as error:
        check_fit(config, Objective(make_model(config, 3), config, 3))
    assert "\n" not in str(error.value)


def test_the_frames_of_the_feature_map_are_told(settings):
    for name, frames in (("i3d_r18", 2), ("slowonly_r18", 16)):
        config = settings(f"model.name={name}", "data.length=16")
        assert check_fit(config, Objective(make_model(config, 3), config, 3)) == frames


def test_unknown_videos_of_the_sample_are_those_of_other_classes(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(openset_data, "sample_folder", lambda scene_bias: tmp_path)
    for name in ("jump", "sit", "wave"):
        write_video(tmp_path / "videos" / name / f"v_{name}_g01_c01.avi", np.zeros((2, 16, 16, 3), np.uint8))
    samples, notes = find_unknown(settings("unknown.dataset=stickfigures"), ["sit"])
    assert ([sample.label for sample in samples], notes) == (["jump", "wave"], [])


def test_classes_are_left_out(settings):
    samples, _ = find_unknown(settings("unknown.leave_out=sit"), KNOWN)
    assert [sample.label for sample in samples] == ["wave"] * 3


def test_a_list_names_unknown_videos(settings, tree, tmp_path):
    (tmp_path / "list.txt").write_text("wave/1.avi 1\nsit/0.avi 0\n")
    (tmp_path / "names.txt").write_text("sit\nwave\n")
    more = (f"unknown.list={tmp_path / 'list.txt'}", f"unknown.class_names={tmp_path / 'names.txt'}")
    found = find_videos(settings(*more))
    assert [(s.path.name, s.label) for s in found.parts["unknown"]] == [("1.avi", "wave"), ("0.avi", "sit")]
    assert check_videos(settings(*more), found, ("unknown",)).parts.keys() == {"unknown"}


@pytest.fixture
def scores() -> Scores:
    return Scores(
        classes=["a", "b"], label_names=["a", "b"], labels=np.array([1, 0]), videos=["x", "y"], groups=["g", "g"],
        logits=np.array([[0.0, 1.0], [2.0, 0.0]]), probabilities=np.array([[0.3, 0.7], [0.9, 0.1]]),
        features=np.ones((2, 3)), uncertainties={"entropy": np.array([0.1, 0.2])}, model_hash="m", data_hash="d",
        settings={"method": "dnn", "draws": 0},
    )  # fmt: skip


def test_scores_come_back_as_they_were_saved(scores, tmp_path):
    scores.save(tmp_path / "deep" / "scores.npz")
    again = load_scores(tmp_path / "deep" / "scores.npz")
    for name, value in vars(scores).items():
        np.testing.assert_equal(getattr(again, name), value)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["scores.npz"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": np.zeros((2, 3))}, r"logits have shape \(2, 3\), but there are 2 videos and 2 known classes"),
        ({"labels": np.array([0, 2])}, "a label lies outside the 2 names of labels"),
        ({"uncertainties": {"entropy": np.array([0.1, np.nan])}}, r"array 'uncertainty/entropy' holds nan at \[1\]"),
        ({"uncertainties": {"entropy": np.zeros(3)}}, "entropy has 3 entries for 2 videos"),
        ({"features": np.array([[1.0, np.inf, 0.0]] * 2)}, r"array 'features' holds inf at \[0, 1\]"),
    ],
)
def test_damaged_scores_are_refused(scores, tmp_path, change, message):
    for name, value in change.items():
        setattr(scores, name, value)
    scores.save(tmp_path / "scores.npz")
    with pytest.raises(InputError, match=message):
        load_scores(tmp_path / "scores.npz")


def test_files_that_are_no_scores_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file of scores"):
        load_scores(tmp_path / "missing.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(InputError, match="cannot be read as"):
        load_scores(tmp_path / "text.npz")
    np.savez(tmp_path / "objects.npz", labels=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="cannot be read as"):
        load_scores(tmp_path / "objects.npz")
    np.savez(tmp_path / "other.npz", labels=np.zeros(2))
    with pytest.raises(InputError, match="it has no array 'classes'"):
        load_scores(tmp_path / "other.npz")
