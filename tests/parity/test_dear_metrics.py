# SPDX-License-Identifier: Apache-2.0
"""Open-set numbers against golden arrays made with DEAR's evaluation scripts, all of every file found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mindvideo.metrics import openset
from mindvideo.metrics.calibration import eavuc, expected_calibration_error, open_set_hits, reliability
from mindvideo.metrics.openmax import SHIFT, Distance, OpenMax, distances, fit_weibull
from mindvideo.metrics.uncertainty import entropy, mutual_information
from tests.parity.checks import ABSENT
from tests.parity.recipe import golden_files

NUMBERS = ("auroc", "aupr", "fpr95")


def each(pattern: str, having: str) -> pytest.MarkDecorator:
    """Every golden file of the pattern that has an array of this name."""
    files = [path for path in golden_files("dear", pattern) if having in np.load(path).files]
    return pytest.mark.parametrize("path", files or [pytest.param(None, marks=ABSENT)], ids=lambda p: p and p.stem)


def close(actual, expected, atol: float = 1e-6, rtol: float = 0.0) -> None:
    np.testing.assert_allclose(actual, expected, atol=atol, rtol=rtol)


def printed(fraction: float, percent: np.ndarray) -> None:
    """The same to three decimals of a percentage; the reference rounds what it has added up in float32."""
    close(100 * fraction, percent, atol=0.5e-3 + 1e-5)


class Case:
    """Labels and predictions of a file, for known videos (`ind`) and unknown ones (`ood`)."""

    def __init__(self, golden, prefix: str = ""):
        self.golden, self.prefix = golden, prefix
        self.labels = [self.array(f"{side}_label") for side in ("ind", "ood")]
        self.num_known, self.num_unknown = (
            int(self.array(f"{side}_ncls")) if f"{prefix}{side}_ncls" in golden.files else int(labels.max()) + 1
            for side, labels in zip(("ind", "ood"), self.labels, strict=True)
        )

    def array(self, name: str) -> np.ndarray:
        return self.golden[self.prefix + name]

    def pair(self, name: str) -> list[np.ndarray]:
        """An array of the known and of the unknown videos."""
        return [self.array(f"{side}_{name}") for side in ("ind", "ood")]

    def counts(self, predicted, rejected) -> np.ndarray:
        sides = zip(self.labels, predicted, rejected, strict=True)
        arrays = [array for side in sides for array in side]
        return openset.open_set_counts(*arrays, num_known=self.num_known, num_unknown=self.num_unknown)


def rejected_by(uncertainty: list[np.ndarray], threshold: np.ndarray) -> list[np.ndarray]:
    return [openset.rejects(u, float(threshold)) for u in uncertainty]


def unsure(confidence: list[np.ndarray], threshold: np.ndarray) -> list[np.ndarray]:
    """Rejected for a confidence below the threshold."""
    return rejected_by([-c for c in confidence], -threshold)


def check_numbers(golden, key: str, known: np.ndarray, unknown: np.ndarray) -> None:
    for name in NUMBERS:
        close(getattr(openset, name)(known, unknown), golden[f"{key}/{name}"])
    numbers = openset.Ranking(known, np.ones(len(known), bool), unknown).detection()
    close([numbers[name] for name in NUMBERS], [golden[f"{key}/{name}"] for name in NUMBERS])


@each("metrics*.npz", having="thresholds")
def test_thresholded_numbers_and_openness(path: Path):
    golden = np.load(path)
    case = Case(golden, "in/")
    predicted, uncertainty = case.pair("pred"), case.pair("unctt")
    subsets = [[np.flatnonzero(drawn) for drawn in sets] for sets in openset.draw_subsets(case.num_unknown)]
    expected = [[np.sort(row[row >= 0]) for row in sets] for sets in golden["subsets_seed123"]]
    for ours, theirs in zip(subsets, expected, strict=True):
        assert [s.tolist() for s in ours] == [s.tolist() for s in theirs]
    for i, threshold in enumerate(golden["thresholds"]):
        key, rejected = f"old/thr{i}", rejected_by(uncertainty, threshold)
        printed((predicted[0] == case.labels[0]).mean(), golden[f"{key}/closed_acc_pct"])
        printed(openset.binary_auc(*uncertainty, float(threshold)), golden[f"{key}/openset_auc_binary_pct"])
        curve = openset.openness_curve(case.counts(predicted, rejected))
        printed(curve.open_macro_f1, golden[f"{key}/open_maF1_pct"])
        printed(curve.open_macro_f1_spread, golden[f"{key}/open_maF1_std_pct"])
        close(curve.openness, golden[f"{key}/openness_pct"] / 100)
        close(curve.openness, golden[f"{key}/curve_uncertainty_openness"] / 100)
        close(curve.macro_f1, golden[f"{key}/macroF1_pct"] / 100)
        close(curve.macro_f1, golden[f"{key}/curve_uncertainty_maF1_pct"] / 100)


@each("metrics*.npz", having="thresholds")
def test_other_scores_along_openness(path: Path):
    """Confidences rejected below a threshold, and OpenMax, whose "unknown" is one more class."""
    golden = np.load(path)
    case = Case(golden, "in/")
    softmax, openmax = case.pair("softmax"), [np.argmax(p, axis=1) for p in case.pair("openmax")]
    rejected = unsure([p.max(axis=1) for p in softmax], golden["softmax_threshold"])
    curve = openset.openness_curve(case.counts([np.argmax(p, axis=1) for p in softmax], rejected))
    close(curve.macro_f1, golden["curve_softmax_maF1_pct"] / 100)
    curve = openset.openness_curve(case.counts(openmax, [p == case.num_known for p in openmax]))
    close(curve.macro_f1, golden["curve_openmax_maF1_pct"] / 100)


@each("metrics*.npz", having="thresholds")
def test_detection(path: Path):
    golden = np.load(path)
    case = Case(golden, "in/")
    uncertainty, softmax = case.pair("unctt"), case.pair("softmax")
    confidence = [p.max(axis=1) for p in softmax]
    openmax = [np.argmax(p, axis=1) for p in case.pair("openmax")]
    scores = {"uncertainty/free": uncertainty, "softmax/free": [1 - c for c in confidence]}
    scores |= {f"uncertainty/thr{i}": rejected_by(uncertainty, t) for i, t in enumerate(golden["thresholds"])}
    scores |= {"softmax/thr": unsure(confidence, golden["softmax_threshold"])}
    scores |= {"openmax_binary": [p == case.num_known for p in openmax]}
    predicted = {
        "uncertainty": case.pair("pred")[0],
        "softmax": softmax[0].argmax(axis=1),
        "openmax_binary": openmax[0],
    }
    assert {f"new/{key}/auroc" for key in scores} == {key for key in golden.files if key.endswith("/auroc")}
    for key, (known, unknown) in scores.items():
        check_numbers(golden, f"new/{key}", known, unknown)
        close((predicted[key.split("/")[0]] == case.labels[0]).mean(), golden[f"new/{key}/acc"])


@each("metrics*.npz", having="thresholds")
def test_calibration(path: Path):
    golden = np.load(path)
    case = Case(golden, "in/")
    uncertainty, largest, predicted = case.pair("unctt"), case.pair("conf"), case.pair("pred")
    hits_N = predicted[0] == case.labels[0]
    all_bins = sorted({int(key.split("/")[1][1:]) for key in golden.files if key.startswith("cal/")})
    assert all_bins
    for bins in all_bins:
        found = reliability(1 - uncertainty[0], hits_N, bins)
        for name, values in (("acc", found.accuracy), ("conf", found.confidence), ("count", found.count)):
            close(values, golden[f"cal/M{bins}/bins/{name}"])
        ece = expected_calibration_error(reliability(largest[0], hits_N, bins))
        close(ece, golden[f"cal_maxprob/M{bins}/ece"])
        variants = {}
        for i, threshold in enumerate(golden["thresholds"]):
            hits = open_set_hits(hits_N, *rejected_by(uncertainty, threshold))
            variants["closed"] = hits["closed"]
            variants |= {f"thr{i}/open_Kp1": hits["open"], f"thr{i}/open_2": hits["binary"]}
        for name, hits in variants.items():
            key = f"cal/M{bins}/{name}"
            u, p = (pair[0] if name == "closed" else np.concatenate(pair) for pair in (uncertainty, largest))
            found = reliability(1 - u, hits, bins)
            close(expected_calibration_error(found), golden[f"{key}/ece"])
            # The reference takes ln(1 - u) in float32.
            close(eavuc(p, u, hits), golden[f"{key}/eavuc"], atol=len(u) * np.spacing(np.float32(0.5)), rtol=1e-6)
            if f"{key}/acc_per_bin" in golden.files:
                close(found.accuracy, golden[f"{key}/acc_per_bin"])


@each("metrics*.npz", having="thresholds")
def test_confusion(path: Path):
    golden = np.load(path)
    case = Case(golden, "in/")
    keys = sorted({key.rsplit("/", 1)[0] for key in golden.files if key.startswith("confmat/")})
    assert keys
    predicted, uncertainty, known = case.pair("pred"), case.pair("unctt"), case.num_known
    for key in keys:
        threshold = golden["thresholds"][int(key.removeprefix("confmat/thr"))]
        counts = case.counts(predicted, rejected_by(uncertainty, threshold))
        for by_class in (False, True):
            confusion = openset.published_confusion(counts, by_class=by_class)
            close(confusion, golden[f"{key}/known{by_class:d}_norm0"])
            close(openset.normalise_confusion(confusion), golden[f"{key}/known{by_class:d}_norm1"])
        means = openset.block_means(openset.normalise_confusion(openset.published_confusion(counts)), known)
        close(list(means.values()), golden[f"{key}/UUC_UKC_KUC_KKC"])
        # Its upper part by itself: shares of known, and of unknown, videos strictly below the threshold. The reference
        # counts them down from 1 in float32.
        counts = case.counts(predicted, [~(u < np.float32(threshold)) for u in uncertainty])
        sizes = np.repeat([len(labels) for labels in case.labels], [known, case.num_unknown])
        top = 1 - counts[:, :known].T / sizes
        digits = counts.max() * np.spacing(np.float32(0.5)) / np.ptp(top)
        close((top - top.min()) / (np.ptp(top) + 1e-6), golden[f"{key}/top"], atol=1e-6 + 2 * digits)


@each("thirdparty/real_*.npz", having="ind_conf")
def test_the_authors_own_results(path: Path):
    """Uncertainties, or where a file has none confidences, of DEAR's authors at their published thresholds."""
    golden = np.load(path)
    case = Case(golden)
    predicted, threshold = case.pair("pred"), golden["threshold"]
    hits_N = predicted[0] == case.labels[0]
    if "ind_unctt" in golden.files:
        uncertainty, prefix = case.pair("unctt"), "new_"
        rejected = rejected_by(uncertainty, threshold)
        printed(hits_N.mean(), golden["old_closed_acc_pct"])
        printed(openset.binary_auc(*uncertainty, float(threshold)), golden["old_openset_auc_binary_pct"])
        variants = open_set_hits(hits_N, *rejected)
        values = {"closed": 1 - uncertainty[0], "open": 1 - np.concatenate(uncertainty)}
        values["binary"] = values["open"]
        eces = [expected_calibration_error(reliability(values[name], hits)) for name, hits in variants.items()]
        close(eces, golden["ece_M15_closed_openKp1_open2"])
    else:
        uncertainty, prefix = [1 - c for c in case.pair("conf")], ""
        rejected = unsure(case.pair("conf"), threshold)
    for name, scores in (("free", uncertainty), ("thr", rejected)):
        numbers = [hits_N.mean()] + [getattr(openset, number)(*scores) for number in NUMBERS]
        close(numbers, golden[f"{prefix}{name}_acc_auroc_aupr_fpr95"])
    curve = openset.openness_curve(case.counts(predicted, rejected))
    close(curve.openness, golden["openness_pct"] / 100)
    close(curve.macro_f1, golden["macroF1_pct"] / 100)
    printed(curve.open_macro_f1, golden["open_maF1_pct"])
    if "open_maF1_std_pct" in golden.files:
        printed(curve.open_macro_f1_spread, golden["open_maF1_std_pct"])


@each("openmax*.npz", having="old_auc_pct")
def test_openmax_scored(path: Path):
    """The reference takes predictions of class 1 for "unknown" too; the file has the right numbers as well."""
    golden = np.load(path)
    case = Case(golden)
    probabilities = case.pair("openmax")
    case.num_known = probabilities[0].shape[1] - 1
    predicted = [np.argmax(p, axis=1) for p in probabilities]
    rejected = [p == case.num_known for p in predicted]
    close(openset.binary_auc(*rejected, 0.5), golden["correct_binary_auc_pct"] / 100)
    printed(openset.auroc(*((p == case.num_known) | (p == 1) for p in predicted)), golden["old_auc_pct"])
    close(openset.auroc(*(p[:, -1] for p in probabilities)), golden["unknown_score_auc_pct"] / 100)
    curve = openset.openness_curve(case.counts(predicted, rejected), seed=0)
    close(curve.openness, golden["openness_pct"] / 100)
    close(curve.macro_f1, golden["macroF1_seed0"])
    close(curve.spread, golden["std_seed0"])


def kinds(golden) -> list[Distance]:
    return [kind for kind in ("eucos", "eu", "cos") if f"{kind}/query_distance" in golden.files]


def train_features(golden) -> tuple[np.ndarray, np.ndarray]:
    """Features of the training videos, all of them predicted right, and their classes."""
    names = sorted((key for key in golden.files if key.startswith("train_feat/")), key=lambda n: int(n.split("/")[1]))
    features = [golden[name] for name in names]
    return np.concatenate(features), np.repeat(np.arange(len(features)), [len(f) for f in features])


@each("openmax*.npz", having="tailsize")
def test_weibull_tails(path: Path):
    """The fit to the file's own distances, so that all its digits count."""
    golden = np.load(path)
    assert kinds(golden)
    for kind in kinds(golden):
        exact, libmr = golden[f"{kind}/weibull_exact_mle_scale_shape"], golden[f"{kind}/weibull_scale_shape_small"]
        for k in range(len(exact)):
            tail = np.sort(golden[f"{kind}/{k}"].astype(np.float64))[-int(golden["tailsize"]) :]
            found = fit_weibull(tail - tail[0] + SHIFT)
            close(found, exact[k], atol=0, rtol=1e-8)
            close([*found, tail[0]], libmr[k], atol=0, rtol=2e-5)  # libMR stops at 1e-6 on a scale of its own


@each("openmax*.npz", having="tailsize")
def test_openmax_from_features_to_probabilities(path: Path):
    golden = np.load(path)
    features, labels = train_features(golden)
    assert kinds(golden)
    for kind in kinds(golden):
        model = OpenMax.fit(
            features, np.eye(labels.max() + 1)[labels], labels, tail=int(golden["tailsize"]), distance=kind
        )
        exact = golden[f"{kind}/weibull_exact_mle_scale_shape"]
        close(model.scale, exact[:, 0], atol=0, rtol=1e-9)
        close(model.shape, exact[:, 1], atol=0, rtol=1e-5)
        close(model.smallest, golden[f"{kind}/weibull_scale_shape_small"][:, 2])
        for k, mean in enumerate(model.means):
            close(mean, golden[f"mav/{k}"])
            close(distances(features[labels == k], mean[None], kind)[:, 0], golden[f"{kind}/{k}"])
        check_openmax_tests(golden, kind, model)


def check_openmax_tests(golden, kind: Distance, model: OpenMax) -> None:
    features, logits = golden["test_feat"], golden["test_score"]
    found = distances(features, model.means, kind)
    close(found, golden[f"{kind}/query_distance"])
    # The reference has means and cosines in float32, of which the steep distribution makes more; so does libMR's stop.
    off = np.abs(found - golden[f"{kind}/query_distance"]).max()
    off += np.abs(model.smallest - golden[f"{kind}/weibull_scale_shape_small"][:, 2]).max()
    atol = 3e-6 + off * model.shape.max() / SHIFT
    close(model.outlier_probabilities(features), golden[f"{kind}/w_score"], atol=atol)
    ranks = [int(key.split("/")[1][4:]) for key in golden.files if key.startswith(f"{kind}/rank")]
    assert ranks
    for rank in ranks:
        expected = golden[f"{kind}/rank{rank}/openmax_prob"]
        close(model.probabilities(features, logits, rank), expected, atol=atol * np.abs(logits).max())


@each("threshold_bald*.npz", having="BALD")
def test_scores_of_random_draws(path: Path):
    golden = np.load(path)
    probabilities_NPK = golden["probs"].transpose(0, 2, 1)
    close(mutual_information(probabilities_NPK), golden["BALD"])
    close(entropy(probabilities_NPK.mean(axis=1)), golden["Entropy"])


@each("threshold_bald*.npz", having="BALD")
def test_thresholds(path: Path):
    golden = np.load(path)
    keys = [key.rsplit("/", 1)[0] for key in golden.files if key.startswith("thr/") and key.endswith("/uncertainty")]
    assert keys
    for key in keys:
        values = golden[f"{key}/uncertainty"]
        threshold = openset.threshold_keeping(values)
        assert threshold == golden[f"{key}/threshold_uncertainty"]
        falling = np.sort(values)[::-1]
        assert falling[int(golden[f"{key}/topk"]) - 1] == threshold
        # The rule for confidences keeps one video less than ours does with the confidences turned round.
        kept = np.count_nonzero(falling >= golden[f"{key}/threshold_confidence_rule"])
        assert -openset.threshold_keeping(-values) == falling[kept]
