# SPDX-License-Identifier: Apache-2.0
"""The numbers of open-set experiments: by hand, and those that DEAR's own scripts make of its authors' results."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mindvideo.metrics import openset
from mindvideo.report import Figures, Table, Text, figures, openset_figures
from mindvideo.tasks import openset_experiments as experiments
from mindvideo.tasks import openset_sections
from mindvideo.tasks.openset_methods import Method, by_protocol, load_methods
from mindvideo.tasks.openset_scores import load_scores
from mindvideo.tasks.openset_sections import (
    COLUMNS,
    as_json,
    measure,
    notes,
    open_set_sections,
    sections_of,
    table,
)
from tests.conftest import outside_folder
from tests.test_openset_methods import write_result, write_run


@pytest.fixture
def method(tmp_path) -> Method:
    """Three known classes and two unknown ones, small enough for a sheet of paper; threshold 0.3."""
    path = write_result(
        tmp_path / "paper.npz", threshold=0.3,
        ind_unctt=[0.1, 0.2, 0.3, 0.4], ind_pred=[0, 1, 2, 0], ind_label=[0, 1, 2, 2], ind_conf=[0.9, 0.8, 0.7, 0.6],
        ood_unctt=[0.5, 0.6, 0.2], ood_pred=[1, 1, 2], ood_label=[0, 1, 1], ood_conf=[0.5, 0.4, 0.95],
    )  # fmt: skip
    return load_methods(path)[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "dear")


@pytest.fixture
def sketched(monkeypatch) -> None:
    """Figures are made, but not painted, which takes most of the time."""
    number = itertools.count()
    for module in (figures, openset_figures):
        monkeypatch.setattr(module, "encode_png", lambda figure: b"%d" % next(number))


def values(numbers: experiments.Numbers) -> dict[str, float]:
    return {name: number["value"] for name, number in numbers.items()}


# By hand


def test_detection_by_hand(method):
    numbers = experiments.detection(method, 0)
    # Of 12 pairs of a known and an unknown video 9 are in order, and 1 is even; where the known one is right 7 and 1.
    expected = {"auroc": 9.5 / 12, "aupr": 2 / 3 + 1 / 3 * 0.5, "fpr95": 0.75, "oscr": 7.5 / 12}
    assert values(numbers) == pytest.approx(expected)
    assert all(number["n"] == 7 and "low_95" not in number for number in numbers.values())


def test_detection_has_intervals_over_sources(run):
    method = load_methods(run, unknown="hmdb51")[0]
    numbers = experiments.detection(method, 200)
    for number in numbers.values():
        assert number["low_95"] < number["value"] < number["high_95"]
    single = replace(method, known=replace(method.known, sources=np.zeros(180)))
    assert "low_95" not in experiments.detection(single, 200)["auroc"]


def test_closed_set_by_hand(method, run):
    numbers = experiments.closed_set(method, 0)
    assert values(numbers) == pytest.approx({"top1": 0.75, "mean_class_accuracy": (1 + 1 + 0.5) / 3})
    assert numbers["top1"]["low_95"] == pytest.approx(0.3006, abs=1e-4)
    with_probabilities = experiments.closed_set(load_methods(run)[0], 0)
    assert list(with_probabilities) == ["top1", "top5", "mean_class_accuracy"]


def test_decisions_by_hand(method, run):
    numbers = experiments.decisions(method, 0)
    assert values(numbers) == pytest.approx(
        {"threshold": 0.3, "known_kept": 0.75, "unknown_rejected": 2 / 3, "binary_auc": (0.75 + 2 / 3) / 2}
    )
    trained = experiments.decisions(load_methods(run)[0], 0)
    assert trained["train_kept"]["value"] == 229 / 240
    assert trained["threshold"]["n"] == 240
    held_out = load_scores(run / "scores" / "val.npz").uncertainties["vacuity"]
    assert trained["val_kept"]["value"] == (held_out <= trained["threshold"]["value"]).mean()
    assert trained["val_kept"]["n"] == 60
    assert trained["val_kept"]["value"] < trained["train_kept"]["value"]  # the network is surer of what it has seen


def test_openness_by_hand(method):
    # Class 2 has one of two right; the unknown: 1 of 1 and 1 of 2 found, and one known video rejected.
    first = (1 + 1 + 2 / 3 + 2 / 3) / 4  # class 0 alone is unknown: precision 1 / 2, recall 1
    second = (1 + 1 + 2 / 4 + 2 / 4) / 4
    both = (1 + 1 + 2 / 4 + 4 / 6) / 4
    curve = method.openness
    assert curve.macro_f1[2] == pytest.approx(both)
    assert min(first, second) <= curve.macro_f1[1] <= max(first, second)
    number = experiments.openness(method, 0)["open_macro_f1"]
    weights = 1 - np.sqrt(6 / np.array([7, 8]))
    assert number["value"] == pytest.approx(np.average([curve.macro_f1[1], both], weights=weights))
    assert number["spread"] == pytest.approx(np.average([curve.spread[1], 0], weights=weights))


def test_blocks_by_hand(method):
    # 3 known classes, 2 unknown: of a known class accepted counts 3, rejected 2; of an unknown one 2 and 1.
    assert values(experiments.blocks(method, 0)) == pytest.approx(
        {"unknown_as_unknown": 2, "unknown_as_known": 2 / 3, "known_as_unknown": 2 / 3, "known_as_known": 3}
    )


def test_calibration_by_hand(method):
    numbers = values(experiments.calibrations(method, 0))
    assert numbers["ece_closed_uncertainty"] == pytest.approx((0.1 + 0.2 + 0.3 + 0.6) / 4)
    # Known or not: right are three known and two unknown videos; 0.8 is the confidence of a known and an unknown one.
    assert numbers["ece_binary_uncertainty"] == pytest.approx((0.1 + 2 * 0.3 + 0.3 + 0.6 + 0.5 + 0.6) / 7)
    assert numbers["ece_closed_max_probability"] == pytest.approx(numbers["ece_closed_uncertainty"])
    assert numbers["aurc"] == pytest.approx((0 + 0 + 0 + 1 / 4) / 4)
    right = 0.9 * np.log(0.9) + 0.8 * np.log(0.8) + 0.7 * np.log(0.7)
    assert numbers["eavuc"] == pytest.approx(-right - 0.4 * np.log(0.4))


def test_an_uncertainty_that_is_no_fraction_is_no_confidence(method):
    logits = replace(method, known=replace(method.known, uncertainty=-10 * method.known.uncertainty))
    numbers = experiments.calibrations(logits, 0)
    assert "eavuc" not in numbers
    assert [name for name in numbers if "uncertainty" in name] == []
    assert "ece_closed_max_probability" in numbers


def test_uncertainties_of_0_and_1_leave_all_numbers_finite(method):
    """DEAR's EAvUC is infinite there."""
    known = replace(method.known, uncertainty=np.array([0.0, 1.0, 0.0, 0.0]))
    unknown = replace(method.unknown, uncertainty=np.array([1.0, 1.0, 0.0]))
    for numbers in measure("compare", [replace(method, known=known, unknown=unknown)], 0):
        assert np.isfinite(list(values(numbers).values())).all()
    # No evidence at all: every confidence is 0, in no bin.
    nothing = [replace(of, uncertainty=np.ones(len(of.labels))) for of in (method.known, method.unknown)]
    numbers = experiments.calibrations(replace(method, known=nothing[0], unknown=nothing[1]), 0)
    assert "ece_closed_uncertainty" not in numbers


# Tables, figures, notes


def test_without_a_threshold_its_numbers_are_absent_and_that_is_said(method):
    bare = replace(method, threshold=None, threshold_from="r.npz has none")
    numbers = measure("compare", [bare], 0)[0]
    wanting = {"threshold", "known_kept", "unknown_rejected", "binary_auc", "open_macro_f1", "ece_open_max_probability"}
    assert wanting & set(numbers) == set()
    assert {"auroc", "top1", "ece_closed_uncertainty", "eavuc", "aurc"} <= set(numbers)
    assert measure("confmat", [bare], 0) == [{}]
    for name in ("openness", "confmat"):
        assert not any(isinstance(section, Figures) for section in sections_of(name, [bare], [numbers]))
    assert notes([bare]) == [
        "paper: no threshold of uncertainty: r.npz has none; what needs one is not measured.",
        "paper: unknown classes that are known after all cannot be told, as classes have no names.",
    ]


def test_notes_name_the_classes_that_are_known(run):
    methods = by_protocol(load_methods(run, unknown="hmdb51", score="all"), "both")
    other = [replace(method, name="dnn") for method in methods]
    assert notes([*methods, *other]) == [
        "dear, dnn: threshold: keeps 95 % of 240 training videos.",
        "dear, dnn: unknown classes of hmdb51 that are known after all (2): shoot_bow (Archery), punch (Punch); "
        "`published` takes them for unknown all the same, `clean` leaves them out.",
        "dear, dnn: unknown classes of hmdb51 that may be known, and are not left out: jump (JumpRope).",
    ]


def test_a_table_has_every_method_and_every_number_in_order(run):
    methods = by_protocol(load_methods(run, unknown="mit", score="all"), "both")
    numbers = measure("compare", methods, 0)
    found = table("compare", methods, numbers, "")
    assert len(found.rows) == len(methods) == 14  # DEAR's openness figure drops the methods it has no style for
    assert [row[1] for row in found.rows] == [method.score for method in methods]
    headings = [heading for heading, _, _ in COLUMNS.values() if heading not in ("UUC", "UKC", "KUC", "KKC")]
    assert list(found.columns) == ["method", "score", "unknown", "protocol", *headings]
    row = dict(zip(found.columns, found.rows[0], strict=True))
    assert row["AUROC %"] == f"{100 * numbers[0]['auroc']['value']:.2f}"
    spread = numbers[0]["open_macro_f1"]
    assert row["open maF1 %"] == f"{100 * spread['value']:.2f} \u00b1 {100 * spread['spread']:.2f}"
    energy = dict(zip(found.columns, found.rows[-1], strict=True))
    assert (energy["score"], energy["ECE closed, 1 - u"]) == ("energy", "")


def test_only_detection_shows_intervals(method):
    numbers = [{"auroc": {"value": 0.5, "low_95": 0.4, "high_95": 0.61, "n": 7}}]
    assert table("ood", [method], numbers, "").rows[0][-1] == "50.00 (40.00 to 61.00)"
    assert table("compare", [method], numbers, "").rows[0][-1] == "50.00"


@pytest.mark.parametrize(
    ("name", "number"),
    [("threshold", 3), ("ood", 7), ("openness", 2), ("confmat", 3), ("calibration", 7), ("compare", 2)],
)
def test_every_experiment_draws_each_method(run, sketched, name, number):
    methods = by_protocol(load_methods(run, unknown="mit", score="vacuity"), "both")
    methods.append(replace(methods[0], name="dnn"))
    numbers = measure(name, methods, 3)
    sections = sections_of(name, methods, numbers)
    assert [type(section) for section in sections] == [Table, Figures, Text]
    assert len({figure.data for figure in sections[1].figures}) == number
    assert all(number["n"] > 0 for of in numbers for number in of.values())


def test_the_section_of_a_runs_report(run, monkeypatch, sketched):
    monkeypatch.setattr(openset_sections, "RESAMPLES", 20)
    sections, numbers = open_set_sections(run / "scores")
    assert [section.heading for section in sections] == [
        "Known and unknown", "Scores", "Detection", "Openness", "Confusion", "Calibration",
        "What the open-set numbers are",
    ]  # fmt: skip
    assert len(sections[0].rows) == 4
    assert len(sections[1].rows) == len(numbers["methods"]) == 4 * 7
    assert [len(section.figures) for section in sections[2:6]] == [12, 4, 4, 9]
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
    first = numbers["methods"][0]
    assert (first["name"], first["score"], first["unknown"], first["protocol"]) == (
        "dear",
        "vacuity",
        "hmdb51",
        "published",
    )
    assert first["also_known"] == ["shoot_bow (Archery)", "punch (Punch)"]
    assert (first["known_videos"], first["unknown_videos"], first["unknown_classes"]) == (180, 80, 4)


def test_json_holds_the_numbers_unrounded(method):
    numbers = measure("threshold", [method], 0)
    written = json.loads(json.dumps(as_json([method], numbers)))[0]
    assert written["metrics"] == numbers[0]
    assert written["metrics"]["binary_auc"]["value"] == pytest.approx((0.75 + 2 / 3) / 2, abs=1e-15)


# The results of DEAR's authors


def thirdparty() -> Iterator[Path]:
    folder = outside_folder("MINDVIDEO_GOLDEN", "golden")
    if folder:
        yield from sorted((folder / "dear" / "thirdparty").glob("*.npz"))


@pytest.mark.parametrize("path", [*thirdparty()] or [None], ids=lambda path: path.stem if path else "none")
def test_the_results_of_dears_authors_give_what_their_scripts_print(path):
    if path is None:
        pytest.skip("no golden arrays: set MINDVIDEO_GOLDEN to run these tests")
    method = load_methods(path)[0]
    found = values(measure("compare", [method], 0)[0])
    expected = np.load(path)
    detection = ["top1", "auroc", "aupr", "fpr95"]
    free = next(key for key in expected.files if key.endswith("free_acc_auroc_aupr_fpr95"))
    np.testing.assert_allclose([found[key] for key in detection], expected[free], atol=1e-6)
    thresholded = [openset.rejects(videos.uncertainty, method.threshold) for videos in (method.known, method.unknown)]
    of_decisions = [found["top1"], *(f(*thresholded) for f in (openset.auroc, openset.aupr, openset.fpr95))]
    np.testing.assert_allclose(of_decisions, expected[free.replace("free", "thr")], atol=1e-6)
    np.testing.assert_allclose(found["binary_auc"], expected[free.replace("free", "thr")][1], atol=1e-6)
    assert found["auroc"] != pytest.approx(found["binary_auc"], abs=1e-4)
    curve = method.openness
    np.testing.assert_allclose(curve.openness, expected["openness_pct"] / 100, atol=1e-6)
    np.testing.assert_allclose(curve.macro_f1, expected["macroF1_pct"] / 100, atol=1e-6)  # made in float32
    assert 100 * found["open_macro_f1"] == pytest.approx(float(expected["open_maF1_pct"]), abs=5.1e-4)
    if "open_maF1_std_pct" in expected:  # printed with three digits, as are the next two
        assert round(100 * curve.open_macro_f1_spread, 3) == expected["open_maF1_std_pct"]
        assert round(100 * found["top1"], 3) == expected["old_closed_acc_pct"]
        assert round(100 * found["binary_auc"], 3) == expected["old_openset_auc_binary_pct"]
        errors = [found[f"ece_{variant}_uncertainty"] for variant in ("closed", "open", "binary")]
        np.testing.assert_allclose(errors, expected["ece_M15_closed_openKp1_open2"], atol=1e-6)
