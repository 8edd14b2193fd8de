# SPDX-License-Identifier: Apache-2.0
"""Methods are read as their files say, whatever does not fit is named, and known classes are no unknown ones."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from mindvideo.config import REPOSITORY
from mindvideo.errors import InputError
from mindvideo.metrics import openset
from mindvideo.metrics.openmax import OpenMax
from mindvideo.metrics.uncertainty import uncertainties
from mindvideo.tasks.openset_methods import HMDB51_KNOWN, OVERLAP, by_protocol, clean, load_methods, shared_classes
from mindvideo.tasks.openset_scores import Scores, load_scores
from tests.conftest import outside_folder

CLASSES = ("Archery", "Punch", "JumpRope", "Typing", "Diving", "YoYo")
UNKNOWN = {"hmdb51": ("shoot_bow", "punch", "jump", "wave"), "mit": ("juggling", "typing")}


def make_scores(
    names: Sequence[str], *, per_class: int, gap: float, method: str = "edlnokl", draws: int = 0, seed: int = 0
) -> Scores:
    """Logits of noise, and `gap` more for the class that a video shows if it is a known one; three videos a source."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(names)), per_class)
    logits = rng.normal(size=(len(labels), len(CLASSES)))
    if names == CLASSES:
        logits[np.arange(len(labels)), labels] += gap
    alpha = np.exp(logits) + 1
    evidential = method.startswith("edl")
    probabilities = alpha / alpha.sum(axis=1, keepdims=True) if evidential else softmax(logits, axis=1)
    found = uncertainties(
        logits, probabilities, alpha_NK=alpha if evidential else None,
        mutual_information_N=rng.random(len(labels)) if draws else None,
    )  # fmt: skip
    features = np.concatenate([logits, rng.normal(size=(len(labels), 2))], axis=1)
    return Scores(
        classes=list(CLASSES), label_names=list(names), labels=labels,
        videos=[f"{names[label]}/{i}.avi" for i, label in enumerate(labels)],
        groups=[f"{names[label]}/g{i // 3}" for i, label in enumerate(labels)],
        logits=logits, probabilities=probabilities, features=features, uncertainties=found,
        model_hash="weights", data_hash="videos",
        settings={"name": "run", "method": method, "model": "i3d_r18", "draws": draws},
    )  # fmt: skip


def write_run(folder: Path, method: str = "edlnokl", draws: int = 0) -> Path:
    """A run's folder with scores of 6 known classes and two sets of unknown ones."""
    options = {"method": method, "draws": draws}
    scores = folder / "scores"
    make_scores(CLASSES, per_class=40, gap=4, seed=1, **options).save(scores / "train.npz")
    make_scores(CLASSES, per_class=10, gap=3, seed=9, **options).save(scores / "val.npz")
    make_scores(CLASSES, per_class=30, gap=3, seed=2, **options).save(scores / "known.npz")
    for number, (name, classes) in enumerate(UNKNOWN.items()):
        unknown = make_scores(classes, per_class=20, gap=0, seed=3 + number, **options)
        unknown.save(scores / f"unknown_{name}.npz")
    return folder


def write_result(path: Path, **arrays: object) -> Path:
    """A result file of 3 known and 2 unknown classes, with other arrays instead where they are given."""
    result = {
        "ind_conf": np.float32([0.9, 0.8, 0.7, 0.6]), "ind_unctt": np.float32([0.1, 0.2, 0.3, 0.4]),
        "ind_pred": np.int16([0, 1, 2, 0]), "ind_label": np.int16([0, 1, 2, 2]),
        "ood_conf": np.float32([0.5, 0.4, 0.95]), "ood_unctt": np.float32([0.5, 0.6, 0.05]),
        "ood_pred": np.int16([1, 1, 2]), "ood_label": np.int16([0, 1, 1]),
    } | arrays  # fmt: skip
    np.savez(path, **{key: values for key, values in result.items() if values is not None})
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "dear")


@pytest.fixture
def spoilt(tmp_path, run):
    """`spoilt("known", field=...)`: the scores folder of a run, one file of which has something else."""

    def spoil(name: str, **changes: object) -> Path:
        write_run(tmp_path / "run")
        path = tmp_path / "run" / "scores" / f"{name}.npz"
        replace(load_scores(path), **changes).save(path)
        return path

    return spoil


# Folders of scores


def test_a_run_has_a_method_for_each_unknown_set(run):
    methods = load_methods(run)
    assert [(m.name, m.score, m.unknown_set) for m in methods] == [
        ("dear", "vacuity", "hmdb51"),
        ("dear", "vacuity", "mit"),
    ]
    assert [m.unknown_title for m in methods] == ["hmdb51, 4 classes", "mit, 2 classes"]
    known = load_scores(run / "scores" / "known.npz")
    method = methods[0]
    np.testing.assert_array_equal(method.known.labels, known.labels)
    np.testing.assert_array_equal(method.known.uncertainty, known.uncertainties["vacuity"])
    np.testing.assert_array_equal(method.known.confidence, known.probabilities.max(axis=1))
    assert method.known.sources.tolist() == known.groups
    assert method.known_classes == list(CLASSES)
    assert method.unknown_classes == list(UNKNOWN["hmdb51"])
    assert (method.unknown.labels == np.repeat(range(4), 20)).all()


def test_folders_of_scores_are_named_after_the_run_or_themselves(run, tmp_path):
    assert load_methods(run / "scores")[0].name == "dear"
    assert load_methods(run, name="mine")[0].name == "mine"
    copied = tmp_path / "copied"
    copied.mkdir()
    for path in (run / "scores").iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    assert load_methods(copied)[0].name == "copied"


def test_the_threshold_is_the_one_of_the_training_videos(run):
    train = load_scores(run / "scores" / "train.npz").uncertainties["vacuity"]
    method = load_methods(run)[0]
    # DEAR's: the 12th largest of 240, so that 229 are kept.
    assert method.threshold == np.sort(train)[-12]
    assert method.threshold_from == "keeps 95 % of 240 training videos"
    assert (~openset.rejects(train, method.threshold)).sum() == 229
    given = load_methods(run, threshold=0.25)[0]
    assert (given.threshold, given.threshold_from) == (0.25, "as given")
    assert given.rejected(given.known).tolist() == (given.known.uncertainty > 0.25).tolist()


def test_of_equal_probabilities_the_last_class_is_predicted(spoilt):
    half = np.zeros((180, 6))
    half[:, [1, 3]] = 0.5
    path = spoilt("known", probabilities=half)
    assert (load_methods(path.parent)[0].known.predicted == 3).all()


@pytest.mark.parametrize(
    ("method", "draws", "score"),
    [
        ("dnn", 0, "max_probability"), ("dnn", 10, "mutual_information"), ("bnn", 10, "mutual_information"),
        ("rpl", 0, "max_probability"), ("gcpl", 0, "max_probability"), ("edlloss", 0, "vacuity"),
        ("edlnokl_avuc_debias", 0, "vacuity"),
    ],
)  # fmt: skip
def test_every_method_has_its_own_score(tmp_path, method, draws, score):
    assert {m.score for m in load_methods(write_run(tmp_path, method, draws))} == {score}


def test_other_scores_are_there_on_request(run):
    known = load_scores(run / "scores" / "known.npz")
    everything = load_methods(run, score="all")
    assert [m.score for m in everything] == 2 * list(known.uncertainties)
    energy = load_methods(run, score="energy", unknown="mit")
    assert [(m.score, m.unknown_set) for m in energy] == [("energy", "mit")]
    np.testing.assert_array_equal(energy[0].known.uncertainty, known.uncertainties["energy"])


def test_openmax_is_fitted_on_the_training_videos(run):
    train, known = (load_scores(run / "scores" / f"{name}.npz") for name in ("train", "known"))
    revised = OpenMax.fit(train.features, train.logits, train.labels).probabilities(known.features, known.logits)
    method = load_methods(run, score="openmax", unknown="mit")[0]
    np.testing.assert_array_equal(method.known.uncertainty, revised[:, 6])
    np.testing.assert_array_equal(method.known.predicted, revised[:, :6].argmax(axis=1))
    np.testing.assert_array_equal(method.known.confidence, revised[:, :6].max(axis=1))


def test_openmax_of_a_class_that_is_never_right_is_refused(spoilt):
    path = spoilt("train", logits=np.eye(6)[np.zeros(240, int)])
    with pytest.raises(InputError, match=r"scores: OpenMax: 0 of 40 training videos of class 1 are predicted right"):
        load_methods(path.parent, score="openmax")


def test_without_training_videos_there_is_no_threshold(tmp_path):
    write_run(tmp_path / "run")
    (tmp_path / "run" / "scores" / "train.npz").unlink()
    method = load_methods(tmp_path / "run")[0]
    assert method.threshold is None
    with pytest.raises(InputError, match=r"no threshold, .*scores has no train.npz"):
        method.rejected(method.known)
    with pytest.raises(InputError, match=r"OpenMax is fitted on training videos, but train.npz is missing"):
        load_methods(tmp_path / "run", score="openmax")


def test_what_is_missing_is_named(run, tmp_path):
    with pytest.raises(InputError, match=r"nowhere: no such folder or \.npz file"):
        load_methods(tmp_path / "nowhere")
    (tmp_path / "run" / "scores").mkdir(parents=True)
    with pytest.raises(InputError, match=r"known.npz is missing; `mindvideo openset predict .*/run unknown.dataset"):
        load_methods(tmp_path / "run")
    source = run / "scores" / "known.npz"
    (tmp_path / "run" / "scores" / "known.npz").write_bytes(source.read_bytes())
    (tmp_path / "run" / "scores" / "unknown_mit.unfinished.npz").write_bytes(b"cut short")
    with pytest.raises(InputError, match=r"no unknown videos were scored, unknown_NAME.npz is missing; `mindvideo"):
        load_methods(tmp_path / "run")
    with pytest.raises(InputError, match=r"no unknown set 'ucf101'; there are: hmdb51, mit\."):
        load_methods(run, unknown="ucf101")
    with pytest.raises(InputError, match=r"it has no score 'vacancy'; there are: vacuity, max_probability, entropy, "):
        load_methods(run, score="vacancy")
    with pytest.raises(InputError, match="--threshold goes with one score"):
        load_methods(run, score="all", threshold=0.5)


NONE = {
    "label_names": list(CLASSES), "labels": np.zeros(0, int), "videos": [], "groups": [],
    "logits": np.zeros((0, 6)), "probabilities": np.zeros((0, 6)), "features": np.zeros((0, 8)), "uncertainties": {},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("train", {"classes": list("abcdef")}, "train.npz: its 6 known classes are not the 6 of known.npz"),
        ("unknown_mit", {"model_hash": "others"}, "unknown_mit.npz: scored with other weights or settings"),
        ("train", {"settings": {"method": "dnn"}}, "train.npz: scored with other weights or settings"),
        ("train", {"label_names": list("abcdef")}, "train.npz: its videos show other classes than the known ones"),
        ("known", NONE, "known.npz: there is no video in it"),
        ("unknown_mit", NONE, "unknown_mit.npz: there is no video in it"),
        ("known", {"features": np.full((180, 2), np.nan)}, r"known.npz: array 'features' holds nan at \[0, 0\]"),
    ],
)
def test_files_that_do_not_fit_are_named(spoilt, name, changes, told):
    path = spoilt(name, **changes)
    with pytest.raises(InputError, match=told):
        load_methods(path.parent)


def test_files_of_other_scores_are_named(spoilt):
    path = spoilt("unknown_mit", uncertainties={"energy": np.zeros(40)})
    with pytest.raises(InputError, match=r"unknown_mit.npz: its scores energy are not those of known.npz"):
        load_methods(path.parent)


# Result files of DEAR


def test_a_result_file_has_its_uncertainty_and_the_confidence(tmp_path):
    path = write_result(tmp_path / "TSM_DEAR.npz", threshold=0.3)
    own, confidence = load_methods(path, score="all")
    assert (own.name, own.score, own.threshold, own.threshold_from) == ("TSM_DEAR", "uncertainty", 0.3, "the file's")
    assert (len(own.known_classes), len(own.unknown_classes)) == (3, 2)
    # Equal to the threshold in the file's precision: not rejected, nor left without a decision.
    assert own.rejected(own.known).tolist() == [False, False, False, True]
    assert own.hits.tolist() == [True, True, True, False]
    assert (confidence.score, confidence.threshold) == ("max_probability", None)
    np.testing.assert_allclose(confidence.known.uncertainty, [0.1, 0.2, 0.3, 0.4], rtol=1e-6)
    assert [m.score for m in load_methods(path)] == ["uncertainty"]


@pytest.mark.parametrize("threshold", [0.7, 0.9, 0.999167])
def test_a_threshold_of_confidence_keeps_those_that_reach_it(tmp_path, threshold):
    near = np.nextafter(np.float32(threshold), np.float32([0, 1]))
    confidence = np.array([near[0], threshold, near[1], 0.1], np.float32)
    path = write_result(tmp_path / "r.npz", ind_conf=confidence, ind_unctt=None, ood_unctt=None, threshold=threshold)
    method = load_methods(path)[0]
    assert method.score == "max_probability"
    assert method.rejected(method.known).tolist() == [True, False, False, True]


def test_numbers_of_classes_are_the_files_or_those_that_labels_need(tmp_path):
    method = load_methods(write_result(tmp_path / "r.npz", ind_ncls=5, ood_ncls=4))[0]
    assert (len(method.known_classes), len(method.unknown_classes)) == (5, 4)


def test_only_one_more_than_the_classes_is_openmaxs_unknown(tmp_path):
    """A prediction of class 1 is one of class 1 (DEAR's evaluation of OpenMax took it for unknown)."""
    path = write_result(tmp_path / "r.npz", ind_pred=[0, 1, 3, 1], ood_pred=[3, 1, 2], threshold=9.0)
    counts = load_methods(path)[0].counts
    assert counts.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 1], [0, 1, 1, 0]]


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"ind_label": None}, "no result file of DEAR's, it has no array 'ind_label'"),
        ({"ood_unctt": None}, "it has no array 'ood_unctt'"),
        ({"ood_pred": [0, 1]}, "ood_pred has 2 entries, ood_conf has 3"),
        ({"ind_pred": [0, 1, 2, 4]}, "ind_pred holds 4; the unknown is 3"),
        ({"ind_pred": [0, 1, 2, 0.5]}, "ind_pred must hold class numbers from 0"),
        ({"ood_label": [0, -1, 1]}, "ood_label must hold class numbers from 0"),
        ({"ood_ncls": 1}, "ood_ncls is 1, but ood_label holds 1"),
        ({"ind_conf": list("abcd")}, r"ind_conf is <U1 of shape \(4,\)"),
        ({"ood_conf": np.zeros(0)}, r"ood_conf is float64 of shape \(0,\); it must hold one number a video"),
        ({"threshold": [0.1, 0.2]}, r"threshold is float64 of shape \(2,\); it must be one number"),
        ({"ood_unctt": [0.1, np.nan, 0.2]}, r"array 'ood_unctt' holds nan at \[1\]"),
    ],
)
def test_wrong_result_files_are_named(tmp_path, arrays, told):
    path = write_result(tmp_path / "r.npz", **arrays)
    with pytest.raises(InputError, match=f"r.npz: .*{told}"):
        load_methods(path)


def test_scores_of_a_run_are_no_result_file(run, tmp_path):
    with pytest.raises(InputError, match=r"no array 'ind_conf'; a run is named by its folder"):
        load_methods(run / "scores" / "known.npz")
    with pytest.raises(InputError, match="no such file"):
        load_methods(tmp_path / "none.npz")
    with pytest.raises(InputError, match=r"no score 'vacuity'; there are: uncertainty, max_probability\."):
        load_methods(write_result(tmp_path / "r.npz"), score="vacuity")


# Unknown classes that are known


def test_names_that_differ_in_spelling_alone_are_the_same():
    known = ["High Jump", "PullUps", "typing", "Golf_Swing"]
    sure, doubtful = shared_classes(known, ["highjump", "pull-up", "Typings", "golf swinging", "swim"])
    assert sure == {0: "highjump (High Jump)", 1: "pull-up (PullUps)", 2: "Typings (typing)"}
    assert doubtful == []


def test_pairs_of_ucf101_and_hmdb51_count_where_the_known_class_is_there():
    unknown = ["jump", "ride_horse", "shoot_ball", "golf"]
    assert shared_classes(["HorseRiding", "HorseRace", "BasketballDunk", "LongJump"], unknown) == (
        {1: "ride_horse (HorseRiding)"},
        ["jump (LongJump)", "shoot_ball (BasketballDunk)"],
    )
    assert shared_classes(["Typing"], unknown) == ({}, [])


def test_the_list_of_pairs_names_classes_of_ucf101_and_hmdb51():
    def classes(split: str) -> list[str]:
        files = (REPOSITORY / "data" / "splits" / split).glob("*.txt")
        return sorted(name for file in files for name in file.read_text().split())

    rows = list(csv.DictReader(line for line in OVERLAP.read_text().splitlines() if line[0] != "#"))
    assert {row["known"] for row in rows} <= set(classes("ucf101_arn"))
    assert {row["unknown"] for row in rows} <= set(classes("hmdb51_arn"))
    assert {row["why"] for row in rows} == {"PSL", "same name", "doubtful"}
    assert len({(row["known"], row["unknown"]) for row in rows}) == len(rows)
    numbers = {classes("hmdb51_arn").index(row["unknown"]): row["unknown"] for row in rows if row["why"] == "PSL"}
    assert numbers == HMDB51_KNOWN
    sure, _ = shared_classes(classes("ucf101_arn"), classes("hmdb51_arn"))
    assert set(sure) == {*HMDB51_KNOWN, classes("hmdb51_arn").index("fencing"), classes("hmdb51_arn").index("punch")}


def test_clean_leaves_known_classes_out(run):
    methods = load_methods(run)
    assert methods[0].also_known == {0: "shoot_bow (Archery)", 1: "punch (Punch)"}
    assert methods[0].doubtful == ["jump (JumpRope)"]
    assert methods[1].also_known == {1: "typing (Typing)"}
    both = by_protocol(methods, "both")
    assert [(m.unknown_title, m.protocol) for m in both] == [
        ("hmdb51, 4 classes", "published"), ("hmdb51, 2 classes", "clean"),
        ("mit, 2 classes", "published"), ("mit, 1 class", "clean"),
    ]  # fmt: skip
    published, cleaned = both[0], both[1]
    assert cleaned.unknown_classes == ["jump", "wave"]
    assert (cleaned.unknown.labels == np.repeat([0, 1], 20)).all()
    np.testing.assert_array_equal(cleaned.unknown.uncertainty, published.unknown.uncertainty[40:])
    assert cleaned.counts.sum() == 180 + 40
    assert [m.protocol for m in by_protocol(methods, "published")] == ["published", "published"]
    assert [m.protocol for m in by_protocol(methods, "clean")] == ["clean", "clean"]


def test_clean_is_refused_where_it_means_nothing(run, tmp_path):
    nameless = load_methods(write_result(tmp_path / "r.npz"))[0]
    with pytest.raises(InputError, match="classes have no names, so only --protocol published"):
        clean(nameless)
    assert by_protocol([nameless], "both") == [nameless]
    known = replace(load_methods(run)[1], also_known={0: "a", 1: "b"})
    with pytest.raises(InputError, match="all unknown classes are known, so only --protocol published"):
        by_protocol([known], "clean")
    assert by_protocol([known], "both") == [known]


PUBLISHED_CLEAN_AUROC = {"real_TSM_DEAR_HMDB": 84.16, "real_TSM_DNN_BALD_HMDB": 88.23}


@pytest.mark.parametrize("name", PUBLISHED_CLEAN_AUROC)
def test_the_clean_protocol_gives_psls_numbers(name):
    folder = outside_folder("MINDVIDEO_GOLDEN", "golden")
    if folder is None:
        pytest.skip("no golden arrays: set MINDVIDEO_GOLDEN to run these tests")
    method = clean(load_methods(folder / "dear" / "thirdparty" / f"{name}.npz")[0])
    auroc = openset.auroc(method.known.uncertainty, method.unknown.uncertainty)
    assert round(100 * auroc, 2) == PUBLISHED_CLEAN_AUROC[name]
