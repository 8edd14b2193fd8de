# SPDX-License-Identifier: Apache-2.0
"""The losses of open-set recognition: sums of their parts, learnt on one batch, and the same in both modes."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from scipy.special import log_softmax

from mindvideo.config import REPOSITORY, Config, load_config
from mindvideo.engine.device import operator_by_operator
from mindvideo.engine.optim import make_sgd, make_step
from mindvideo.errors import InputError
from mindvideo.losses.debias import debias_loss
from mindvideo.losses.evidential import EvidenceLoss
from mindvideo.models import resnet3d
from mindvideo.noise import Dropout
from mindvideo.tasks.openset_objective import Objective, TrainingInputs, check_fit, make_model

CLIPS, CLASSES, SIDE, STEPS = 8, 4, 32, 30
LABELS = (np.arange(CLIPS) % CLASSES).astype(np.int32)
BACKBONES = ("i3d_r18", "tsm_r18", "slowfast_r18", "tpn_r18")
DEAR = "edlnokl_avuc_debias"
METHODS = ("dnn", "edlnokl_avuc", DEAR)


@pytest.fixture(scope="module", autouse=True)
def _one_block_a_stage() -> Iterator[None]:
    """Half of a ResNet-18, which still has blocks of every kind: twelve steps of training are compiled here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet3d.DEPTHS, 18, (resnet3d.BasicBlock3d, (1, 1, 1, 1)))
        yield


def configure(name: str, method: str, *overrides: str) -> Config:
    """The published setting with a tiny network on tiny clips, without dropout, debiased as corrected."""
    # The map has an eighth, a quarter or all of the clip's frames, and debiasing takes three of them or more.
    each = {"i3d": 8, "slowfast": 4}.get(name.split("_")[0], 1)
    frames = max(4, each * (3 if "debias" in method else 1))
    tiny = ["model.width=8", "model.dropout=0", f"train.batch={CLIPS}"]
    tiny += [f"data.length={frames}", f"data.size={SIDE}", f"eval.size={SIDE}"]
    tiny += ["model.fast_width=4"] if name.startswith("slowfast") else []
    chosen = (f"model.name={name}", f"loss.name={method}", "loss.debias=corrected", *tiny, *overrides)
    return load_config(REPOSITORY / "configs" / "dear" / "base.yaml", chosen)


def objective_of(config: Config, steps_per_epoch: int = 1) -> tuple[Objective, TrainingInputs]:
    """The objective, with weights that are the same at every call, and what gives its inputs."""
    ms.set_seed(3)
    objective = Objective(make_model(config, CLASSES), config, CLASSES)
    map_frames = check_fit(config, objective)
    return objective.set_train(), TrainingInputs(objective, config, steps_per_epoch, map_frames)


def batch_of(inputs: TrainingInputs, step: int = 0) -> list[Tensor]:
    """What the objective takes: always the same clips, and what belongs to the step."""
    shape = (CLIPS, 3, inputs.config.data.length, SIDE, SIDE)
    clips = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return [Tensor(array) for array in (clips, LABELS, *inputs(step))]


def step_of(objective: Objective, config: Config):
    """A training step of the published optimizer, at a rate at which a batch is learnt in a few of them; only DEAR's
    gradients are clipped, which takes long to compile."""
    rate = 0.02 if config.model.name.startswith("tpn") else 0.05
    optimizer = make_sgd(
        [objective.model, *objective.heads], np.full(STEPS, rate, np.float32),
        momentum=0.9, nesterov=True, weight_decay=1e-4,
    )  # fmt: skip
    return make_step(objective, optimizer, clip_norm=40.0 if config.loss.name == DEAR else 0.0)


def weights_of(objective: Objective) -> dict[str, np.ndarray]:
    """All of them, running statistics and the heads of training too."""
    return {p.name: p.asnumpy().copy() for part in (objective.model, *objective.heads) for p in part.get_parameters()}


class Learnt(NamedTuple):
    """Losses `[N]` and logits `[N, B, K]` of all steps, and the weights after the first."""

    losses: np.ndarray
    logits: np.ndarray
    weights: dict[str, np.ndarray]


@functools.cache
def learnt(name: str, method: str) -> Learnt:
    """One batch learnt in graph mode; cached, so that a step is compiled once."""
    config = configure(name, method)
    objective, inputs = objective_of(config)
    step, weights, rows = step_of(objective, config), {}, []
    for number in range(STEPS):
        loss, logits = step(*batch_of(inputs, number))
        rows.append((float(loss), logits.asnumpy()))
        weights = weights or weights_of(objective)
    losses, logits = zip(*rows, strict=True)
    return Learnt(np.array(losses), np.stack(logits), weights)


def cross_entropy(logits: np.ndarray) -> float:
    return float(-log_softmax(logits.astype(np.float64), axis=1)[np.arange(CLIPS), LABELS].mean())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", BACKBONES)
def test_one_batch_is_learnt(name, method):
    losses, logits, _ = learnt(name, method)
    right = logits.argmax(axis=2) == LABELS
    assert right[0].mean() <= 0.5
    assert right[-1].all()
    assert losses[-1] < 0.2 * losses[0]
    if method == "dnn":
        return
    evidence = np.exp(np.clip(logits.astype(np.float64), -10, 10)).sum(axis=2)
    vacuity = CLASSES / (evidence + CLASSES)
    assert evidence[-1].mean() > 100 * evidence[0].mean()
    assert vacuity[0].mean() == pytest.approx(0.5, abs=0.1)  # logits near 0: evidence 1 for each class
    assert vacuity[-1].max() < 0.05


@pytest.mark.parametrize("name", BACKBONES)
def test_a_step_in_graph_mode_equals_one_by_one(name):
    """Loss, logits and every weight after a step of SGD, the debiasing and the auxiliary head's too."""
    config, compiled = configure(name, DEAR), learnt(name, DEAR)
    objective, inputs = objective_of(config)
    before = weights_of(objective)
    with operator_by_operator():
        loss, logits = step_of(objective, config).__wrapped__(*batch_of(inputs))
    after = weights_of(objective)
    assert compiled.losses[0] == pytest.approx(float(loss), rel=1e-5)
    np.testing.assert_allclose(compiled.logits[0], logits.asnumpy(), atol=1e-5)
    parts = {"backbone", "head", "debias"} | ({"auxiliary"} if name.startswith("tpn") else set())
    assert {key.split(".")[0] for key in after} == parts
    assert compiled.weights.keys() == after.keys()
    for key, value in after.items():
        np.testing.assert_allclose(compiled.weights[key], value, atol=2e-5, err_msg=key)
    assert [key for key in after if (after[key] == before[key]).all()] == []


@pytest.mark.usefixtures("pynative")
@pytest.mark.parametrize("method", ["dnn", "bnn", "rpl", "gcpl", "edlloss", "edlnokl_avuc"])
def test_the_loss_is_that_of_the_method_and_what_its_head_adds(method, monkeypatch):
    config = configure("i3d_r18", method, "data.length=8", "model.width=4")
    objective, inputs = objective_of(config)
    head = objective.model.head
    batch = batch_of(inputs, step=20)
    vectors = objective.model.backbone(batch[0])[0]
    if method == "bnn":
        noise = Tensor(np.random.default_rng(1).standard_normal((2, CLASSES, 33)).astype(np.float32))
        monkeypatch.setattr(type(head), "_noise", lambda self, seed, draws: noise[:draws])
        head.complexity = 1e-3
    if method == "rpl":
        head.radius.set_data(Tensor([0.4], ms.float32))
    loss, logits = objective(*batch)
    expected, penalty = head.outputs(vectors, batch[1], batch[3])
    np.testing.assert_array_equal(logits.asnumpy(), expected.asnumpy())
    if method.startswith("edl"):
        of_method = EvidenceLoss(kl=method == "edlloss", avu="none" if method == "edlloss" else "avu")
        weight = 0.01 ** (1 - 20 / 50)
        assert float(loss) == pytest.approx(float(of_method(logits, batch[1], Tensor(weight, ms.float32))), rel=1e-6)
        assert float(of_method(logits, batch[1], Tensor(0.9, ms.float32))) != pytest.approx(float(loss), rel=1e-3)
        return
    assert float(loss) == pytest.approx(cross_entropy(logits.asnumpy()) + float(penalty), rel=1e-5)
    added = {"dnn": 0.0, "bnn": float(head.penalty_of(noise)) if method == "bnn" else 0.0}
    features = vectors.asnumpy()[:, 0].astype(np.float64)
    added["rpl"] = 0.05 * ((features - 0.4) ** 2).mean()
    if method == "gcpl":
        added["gcpl"] = 0.05 * ((features - head.centers.asnumpy()[LABELS]) ** 2).mean()
    assert float(penalty) == pytest.approx(added[method], rel=1e-5)
    assert (abs(added[method]) > 1e-3) == (method != "dnn")


@pytest.mark.usefixtures("pynative")
def test_a_bayesian_classifier_has_no_dropout_and_others_have_that_of_the_config():
    for method, expected in (("bnn", 0.0), ("dnn", 0.25)):
        objective, _ = objective_of(configure("i3d_r18", method, "model.dropout=0.25"))
        assert objective.model.head.dropout.p == expected
    debiased, _ = objective_of(configure("tpn_r18", DEAR, "model.dropout=0.25"))
    rates = [cell.p for _, cell in debiased.cells_and_names() if isinstance(cell, Dropout)]
    assert rates == [0.25] * 5


@pytest.mark.usefixtures("pynative")
@pytest.mark.parametrize("method", ["dnn", DEAR])
def test_tpn_adds_half_the_cross_entropy_of_its_auxiliary_head(method):
    config = configure("tpn_r18", method)
    objective, inputs = objective_of(config)
    batch = batch_of(inputs)
    loss, _ = objective(*batch)
    auxiliary = objective.auxiliary_head
    logits = auxiliary(objective.model.backbone(batch[0])[1]).asnumpy()
    objective.auxiliary_head = None
    without, _ = objective(*batch)
    assert logits.shape == (CLIPS, CLASSES)
    assert float(loss) - float(without) == pytest.approx(0.5 * cross_entropy(logits), rel=1e-5)
    assert auxiliary in objective.heads


@pytest.mark.usefixtures("pynative")
@pytest.mark.parametrize(
    ("method", "form", "debiasing"),
    [
        (DEAR, "published", "joint"), (DEAR, "head", "joint"), (DEAR, "corrected", "minimax"),
        ("edlnokl_avuc_ced", "head", "alternating"), ("edlnokl_davuc_debias", "published", "joint"),
    ],
)  # fmt: skip
def test_debiasing_is_added(method, form, debiasing):
    config = configure("tsm_r18", method, f"loss.debias={form}")
    objective, inputs = objective_of(config)
    for step in (6, 7):
        batch = batch_of(inputs, step)
        clips, labels, annealing, *_, orders, turn = batch
        assert float(turn) == step % 2
        loss, logits = objective(*batch)
        features, of_branches = objective.debias_head(objective.model.backbone(clips)[1], orders)
        parts = [
            EvidenceLoss(avu="davu" if "davuc" in method else "avu")(logits, labels, annealing),
            debias_loss(features, of_branches, labels, debiasing, turn),
        ]
        assert all(float(part) > 0.1 for part in parts)
        assert float(loss) == pytest.approx(sum(float(part) for part in parts), rel=1e-6)


@pytest.fixture
def of_steps(pynative):
    """`of_steps(method, *overrides)`: the inputs that belong to steps, four an epoch, of a map of four frames."""

    def inputs(method: str = DEAR, *overrides: str) -> TrainingInputs:
        config = configure("tsm_r18", method, "data.length=4", "train.epochs=10", *overrides)
        return objective_of(config, steps_per_epoch=4)[1]

    return inputs


def test_inputs_depend_on_the_step_alone(of_steps):
    forwards, backwards = of_steps(), of_steps()
    there = [forwards(step) for step in range(12)]
    back = [backwards(step) for step in reversed(range(12))][::-1]
    for ours, theirs in zip(there, back, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)
    orders = np.stack([orders for *_, orders, _ in there])
    assert orders.shape == (12, CLIPS, 4)
    assert (np.sort(orders, axis=2) == np.arange(4)).all()
    assert len(np.unique(orders, axis=0)) == 12
    assert (of_steps(DEAR, "seed=2")(0)[2] != orders[0]).any()
    seeds = [int(seed) for _, seed, *_ in (*there, of_steps(DEAR, "seed=2")(0))]
    assert len(set(seeds)) == 13
    assert [float(turn) for *_, turn in there] == [0, 1] * 6
    epochs = [0] * 4 + [1] * 4 + [2] * 4
    assert [float(weight) for weight, *_ in there] == pytest.approx([0.01 ** (1 - e / 10) for e in epochs])


def test_without_debiasing_annealing_and_seed_are_all(of_steps):
    for method in ("dnn", "edlnokl"):
        assert len(of_steps(method)(5)) == 2
    weight, seed = of_steps("edlloss", "loss.annealing=step")(13)
    assert seed.dtype == np.uint32
    assert weight.dtype == np.float32
    assert float(weight) == pytest.approx(0.3)


def test_too_few_frames_for_the_form_are_refused_before_any_work(of_steps):
    with pytest.raises(InputError, match="'head', takes feature maps of 3 frames or more; these have 2"):
        of_steps(DEAR, "loss.debias=head", "data.length=2")
    assert of_steps(DEAR, "loss.debias=head", "data.length=3").num_frames == 3


def test_methods_models_and_options_that_do_not_fit_are_refused():
    for settings, message in (
        (("model.name=i3d_r18", "loss.name=edlnokl_avuc_ced", "loss.debias=corrected"), "edlnokl_avuc_ced alternates"),
        (("model.name=i3d_r18", "loss.name=dnn", "eval.average=evidence"), "eval.average is evidence, .* dnn does not"),
        (("model.name=arn",), "model.name: arn is no video classifier"),
        (("model.name=i3d_r19",), "unknown model 'i3d_r19', did you mean 'i3d_r18'"),
        (("model.name=i3d_r18", "model.fast_width=4"), "model.fast_width is 4, but i3d_r18 has no such option"),
    ):
        config = load_config(REPOSITORY / "configs" / "dear" / "base.yaml", settings)
        with pytest.raises(InputError, match=message):
            Objective(make_model(config, CLASSES), config, CLASSES)
