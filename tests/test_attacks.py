# SPDX-License-Identifier: Apache-2.0
"""Attacks: budgets, known best attacks on linear classifiers, another library's, and gradient masking shown up."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescentNumpy
from art.estimators import BaseEstimator, LossGradientsMixin
from art.estimators.classification import ClassifierMixin

from mindvideo import attacks
from mindvideo.attacks import NORMS, Network, Split
from mindvideo.attacks.apgd import checkpoints
from mindvideo.errors import InputError
from mindvideo.metrics.robustness import check_adaptive, check_iterations, check_losses, check_white_box
from tests.attacked import Concealed, Linear, Noisy, Small, predictions, samples

IMAGES, CLIPS = (3, 8, 6), (3, 4, 5, 6)
BUDGETS = {"linf": 0.05, "l2": 0.6, "l1": 5.0, "l1_dense": 5.0}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# name -> attack of (target, x, labels, epsilon), and its norms
ATTACKS = {
    "fgsm": (attacks.fgsm, NORMS),
    "pgd": (functools.partial(attacks.pgd, steps=5), NORMS),
    "mim": (functools.partial(attacks.mim, steps=5), ("linf", "l2")),
    "apgd": (functools.partial(attacks.apgd, steps=10), ("linf", "l2")),
    "apgd dlr": (functools.partial(attacks.apgd, steps=10, loss="dlr"), ("linf", "l2")),
    "apgd targeted": (functools.partial(attacks.apgd_targeted, steps=5, classes=2), ("linf", "l2")),
    "square": (functools.partial(attacks.square, queries=30), ("linf", "l2")),
}
DRAWING = ("pgd", "apgd", "apgd dlr", "apgd targeted", "square")


@functools.cache
def network(shape: tuple[int, ...], batch: int = 8) -> Network:
    return Network(Small(int(np.prod(shape))), batch=batch)


@pytest.mark.parametrize("shape", [IMAGES, CLIPS], ids=["images", "clips"])
@pytest.mark.parametrize(("name", "norm"), [(name, norm) for name, (_, norms) in ATTACKS.items() for norm in norms])
def test_budget_strength_and_repeatability(name, norm, shape):
    target, x, attack = network(shape), samples(10, *shape), ATTACKS[name][0]
    labels, epsilon = predictions(target, x), BUDGETS[norm]
    runs = [
        attack(target, x, labels, epsilon=epsilon, norm=norm, **({"rng": rng(seed)} if name in DRAWING else {}))
        for seed in (0, 0, 1)
    ]
    moved = runs[0]
    assert moved.dtype == np.float32
    assert moved.shape == x.shape
    assert moved.min() >= 0.0
    assert moved.max() <= 1.0
    assert (NORMS[norm].size(moved - x) <= epsilon * (1 + 1e-5) + 1e-6).all()
    gaps = [attacks.margins(target.logits(samples), labels) for samples in (x, moved)]
    assert gaps[1].mean() > gaps[0].mean() + 0.1
    np.testing.assert_array_equal(runs[0], runs[1])
    assert np.array_equal(runs[0], runs[2]) == (name not in DRAWING)


@pytest.mark.parametrize("name", ATTACKS)
def test_wrong_samples_and_no_budget_do_no_harm(name):
    target, x, attack = network(IMAGES), samples(6, *IMAGES), ATTACKS[name][0]
    labels = predictions(target, x)
    wrong = (labels + 1) % 5
    settings = {"rng": rng()} if name in DRAWING else {}
    still = attack(target, x, labels, epsilon=0.0, **settings)
    np.testing.assert_array_equal(still, x)
    moved = attack(target, x, wrong, epsilon=0.05, **settings)
    assert attacks.is_broken(target.logits(moved), wrong).all()
    if name not in ("fgsm", "pgd", "mim"):
        np.testing.assert_array_equal(moved, x)


@pytest.mark.parametrize("name", ["fgsm", "pgd", "mim"])
def test_targeted(name):
    target, x, attack = network(IMAGES), samples(10, *IMAGES), ATTACKS[name][0]
    wanted = (predictions(target, x) + 2) % 5
    before = target.gradient(x, wanted)[0]
    moved = attack(target, x, wanted, epsilon=0.05, targeted=True)
    assert (target.gradient(moved, wanted)[0] < before).all()
    if name == "pgd":
        assert attacks.is_broken(target.logits(moved), wanted, targeted=True).mean() >= 0.5


def test_the_best_attack_on_a_linear_classifier_is_found():
    """Two classes: the margin grows by the budget times the dual norm of the difference of their weights."""
    weights = rng(3).standard_normal((144, 2))
    target, x = Linear(weights), 0.5 + 0.1 * samples(4, *IMAGES)
    labels = predictions(target, x)
    difference = np.abs(weights[:, 1] - weights[:, 0])
    most = {"linf": 0.05 * difference.sum(), "l2": 0.6 * np.linalg.norm(difference), "l1": None}
    before = attacks.margins(target.logits(x), labels)
    for norm in ("linf", "l2"):
        found = [
            attacks.fgsm(target, x, labels, epsilon=BUDGETS[norm], norm=norm),
            attacks.pgd(target, x, labels, epsilon=BUDGETS[norm], norm=norm, rng=rng(), relative_step=0.2),
            attacks.mim(target, x, labels, epsilon=BUDGETS[norm], norm=norm),
        ]
        for moved in found:
            gained = attacks.margins(target.logits(moved), labels) - before
            np.testing.assert_allclose(gained, most[norm], rtol=2e-3)
    # In L1 the whole budget goes to the steepest values, each as far as the box lets it.
    moved = attacks.pgd(target, x, labels, epsilon=2.0, norm="l1", steps=60, relative_step=0.05)
    gained = attacks.margins(target.logits(moved), labels) - before
    for i, label in enumerate(labels):
        slope = (weights[:, 1 - label] - weights[:, label]).reshape(IMAGES)
        room, left, best = np.where(slope > 0, 1 - x[i], x[i]).ravel(), 2.0, 0.0
        for place in np.argsort(-np.abs(slope).ravel()):
            best += min(room[place], left) * np.abs(slope).ravel()[place]
            left -= min(room[place], left)
        assert gained[i] == pytest.approx(best, rel=0.02)


def test_carlini_wagner_finds_the_nearest_point_beyond_a_linear_border():
    weights = rng(3).standard_normal((144, 2))
    length = np.linalg.norm(weights[:, 1] - weights[:, 0])
    target, x = Linear(weights), 0.4 + 0.2 * samples(6, *IMAGES)
    target.bias[0] -= np.diff(-target.logits(x)).min() - 0.5 * length
    labels = predictions(target, x)
    distances = -attacks.margins(target.logits(x), labels) / length
    moved = attacks.carlini_wagner(target, x, labels)
    assert attacks.is_broken(target.logits(moved), labels).all()
    np.testing.assert_allclose(NORMS["l2"].size(moved - x), distances, rtol=0.05, atol=2e-3)
    budget = float(np.median(distances)) * 1.1
    within = attacks.carlini_wagner(target, x, labels, epsilon=budget)
    assert (NORMS["l2"].size(within - x) <= budget * (1 + 1e-5)).all()
    broken = attacks.is_broken(target.logits(within), labels)
    np.testing.assert_array_equal(broken, NORMS["l2"].size(moved - x) <= budget)
    sure = attacks.carlini_wagner(target, x, labels, confidence=2.0)
    assert (attacks.margins(target.logits(sure), labels) >= 2.0).all()
    assert (NORMS["l2"].size(sure - x) > NORMS["l2"].size(moved - x)).all()


def test_carlini_wagner_leaves_what_it_cannot_break():
    target, x = Linear(np.zeros((144, 2)), np.array([1.0, 0.0])), samples(2, *IMAGES)
    np.testing.assert_array_equal(attacks.carlini_wagner(target, x, np.array([0, 0]), searches=2, steps=3), x)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_is_at_least_as_strong_as_pgd(norm):
    target, x = network(IMAGES, 40), samples(40, *IMAGES)
    labels, epsilon = predictions(target, x), 0.3 * BUDGETS[norm]

    def right(moved: np.ndarray) -> int:
        return int((~attacks.is_broken(target.logits(moved), labels)).sum())

    by_pgd = right(attacks.pgd(target, x, labels, epsilon=epsilon, norm=norm, steps=20, rng=rng()))
    assert 0 < by_pgd < 40
    for loss in ("cross_entropy", "dlr"):
        assert right(attacks.apgd(target, x, labels, epsilon=epsilon, norm=norm, loss=loss, rng=rng())) <= by_pgd
    assert right(attacks.apgd_targeted(target, x, labels, epsilon=epsilon, norm=norm, rng=rng())) <= by_pgd


def test_checkpoints():
    """The paper's shares of 100 steps."""
    assert checkpoints(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(1) == [0, 1]


def test_restarts_help_and_keep_what_was_broken():
    target, x = network(IMAGES, 40), samples(40, *IMAGES)
    labels, settings = predictions(target, x), {"epsilon": 0.015, "steps": 2}
    runs = [attacks.pgd(target, x, labels, restarts=n, rng=rng(), **settings) for n in (1, 6)]
    (once, _, logits), (often, _, more_logits) = (target.gradient(moved, labels) for moved in runs)
    broken = attacks.is_broken(logits, labels)
    assert attacks.is_broken(more_logits, labels)[broken].all()
    np.testing.assert_array_equal(runs[1][broken], runs[0][broken])
    assert (often >= once - 1e-6).all()
    assert (often > once)[~broken].mean() > 0.5
    apgd = [attacks.apgd(target, x, labels, restarts=n, rng=rng(), **settings) for n in (1, 4)]
    assert np.diff([attacks.is_broken(target.logits(moved), labels).sum() for moved in apgd]) >= 0


class AsArt(ClassifierMixin, LossGradientsMixin, BaseEstimator):
    """A target as ART takes classifiers."""

    estimator_params = BaseEstimator.estimator_params

    def __init__(self, target: attacks.Target, shape: tuple[int, ...]):
        super().__init__(model=None, clip_values=(0.0, 1.0))
        self.target, self._input_shape, self.nb_classes = target, shape, 5

    @property
    def input_shape(self):
        return self._input_shape

    def predict(self, x, **kwargs):
        return self.target.logits(x)

    def fit(self, x, y, **kwargs):
        raise NotImplementedError

    def loss_gradient(self, x, y, **kwargs):
        return self.target.gradient(x.astype(np.float32), y.argmax(axis=1))[1]


@pytest.mark.parametrize("targeted", [False, True])
def test_as_another_library_does(targeted):
    target, x = network(IMAGES), samples(8, *IMAGES)
    labels = (predictions(target, x) + targeted) % 5
    classifier, one_hot = AsArt(target, IMAGES), np.eye(5, dtype=np.float32)[labels]
    theirs = FastGradientMethod(classifier, eps=0.05, targeted=targeted).generate(x, y=one_hot)
    ours = attacks.fgsm(target, x, labels, epsilon=0.05, targeted=targeted)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    theirs = ProjectedGradientDescentNumpy(
        classifier, eps=0.05, eps_step=0.05 * 3 / 40, max_iter=20, targeted=targeted, num_random_init=0, verbose=False
    ).generate(x, y=one_hot)
    ours = attacks.pgd(target, x, labels, epsilon=0.05, steps=20, relative_step=3 / 40, targeted=targeted)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_noise():
    x = samples(5, *CLIPS)
    for norm, epsilon in BUDGETS.items():
        noisy = attacks.uniform_noise(x, epsilon=epsilon, norm=norm, rng=rng())
        assert 0 < NORMS[norm].size(noisy - x).max() <= epsilon * (1 + 1e-5)
        assert (noisy.min() >= 0.0) & (noisy.max() <= 1.0)
    inside = 0.2 + 0.6 * x
    noisy = attacks.sign_noise(inside, epsilon=0.1, rng=rng())
    np.testing.assert_allclose(np.abs(noisy - inside), 0.1, atol=1e-6)


def test_n_fgsm_adds_a_step_to_noise():
    target, x = network(IMAGES), 0.3 + 0.4 * samples(6, *IMAGES)
    labels, epsilon = predictions(target, x), 0.04
    noise = np.float32(2 * epsilon) * rng(5).uniform(-1, 1, x.shape).astype(np.float32)
    step = np.float32(epsilon) * np.sign(target.gradient(x + noise, labels)[1])
    moved = attacks.n_fgsm(target, x, labels, epsilon=epsilon, rng=rng(5))
    np.testing.assert_allclose(moved, x + noise + step, atol=1e-6)


def test_trades_drives_predictions_apart():
    target, x = network(IMAGES), samples(6, *IMAGES)
    logits = target.logits(x)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    moved = attacks.trades(target, x, epsilon=0.03, rng=rng())
    assert np.abs(moved - x).max() <= 0.03 + 1e-6
    noisy = attacks.sign_noise(x, epsilon=0.03, rng=rng())
    assert (target.gradient(moved, probabilities, "kl")[0] > target.gradient(noisy, probabilities, "kl")[0]).all()


@pytest.mark.parametrize("concealed", [False, True])
def test_the_checks_show_up_hidden_gradients_and_nothing_else(concealed):
    inner = Small(int(np.prod(IMAGES)))
    x, epsilon = samples(60, *IMAGES), 0.03
    plain = Network(inner, batch=60)
    labels = predictions(plain, x)
    naive = Network(Concealed(inner), batch=60) if concealed else plain
    adaptive = Split(Network(Concealed(inner, is_open=True), batch=60), naive)
    losses: list[np.ndarray] = []

    def right(moved: np.ndarray) -> np.ndarray:
        return ~attacks.is_broken(naive.logits(moved), labels)

    clean = right(x)
    assert clean.all()
    one_step = right(attacks.fgsm(naive, x, labels, epsilon=epsilon))
    many = right(attacks.pgd(naive, x, labels, epsilon=epsilon, watch=losses.append))
    knowing = right(attacks.pgd(adaptive, x, labels, epsilon=epsilon))
    transferred = right(attacks.pgd(plain, x, labels, epsilon=epsilon))
    blind = right(attacks.square(naive, x, labels, epsilon=epsilon, queries=150, rng=rng()))
    assert knowing.mean() < 0.3
    findings = [
        check_adaptive(clean, many, knowing),
        check_white_box(clean, {"fgsm": one_step, "pgd": many}, {"square": blind, "transfer": transferred}),
        check_losses(np.array(losses)),
    ]
    assert check_iterations(clean, one_step, many).passed or concealed
    for finding in findings:
        assert finding.passed != concealed, finding.sentence
        assert ("gradient masking" in finding.sentence) == concealed
    if concealed:
        assert many.mean() > 0.8


def test_averaging_over_draws_beats_a_randomised_classifier():
    cell, x = Noisy(Small(int(np.prod(IMAGES))), IMAGES), samples(40, *IMAGES)
    victim = attacks.Averaged(Network(cell, batch=40, seed=0), 20)
    labels = predictions(victim, x)
    one_draw = Network(cell, batch=40, seed=1)
    naive = attacks.pgd(one_draw, x, labels, epsilon=0.03, steps=10)
    averaged = attacks.pgd(attacks.Averaged(one_draw, 10), x, labels, epsilon=0.03, steps=10)
    gaps = [attacks.margins(victim.logits(moved), labels).mean() for moved in (x, naive, averaged)]
    assert gaps[0] < gaps[1] <= gaps[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": samples(2, *IMAGES) * 255}, r"values in \[0, 1\]"),
        ({"x": np.full((2, *IMAGES), np.nan)}, r"values in \[0, 1\]"),
        ({"x": samples(0, *IMAGES)}, "N 1 or more"),
        ({"labels": np.array([0])}, "needs 2 integers"),
        ({"labels": np.array([0.0, 1.0])}, "needs 2 integers"),
        ({"epsilon": -0.1}, "epsilon -0.1"),
        ({"epsilon": np.inf}, "epsilon inf"),
        ({"norm": "l3"}, "norm 'l3'"),
        ({"steps": 0}, "0 steps"),
        ({"restarts": 2}, "give `rng`"),
    ],
)
@pytest.mark.parametrize("attack", [attacks.pgd, attacks.apgd])
def test_mistakes(attack, change, message):
    given = {"x": samples(2, *IMAGES), "labels": np.array([0, 1]), "epsilon": 0.1} | change
    with pytest.raises(InputError, match=message):
        attack(network(IMAGES), given.pop("x"), given.pop("labels"), **given)
