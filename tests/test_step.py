# SPDX-License-Identifier: Apache-2.0
"""A training step of several batches, and the moving average of the weights, by one process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from mindvideo.engine.checkpoint import read_checkpoint
from mindvideo.engine.optim import make_adam, make_sgd
from mindvideo.engine.step import Average, Batch, Step
from tests.test_train import assert_same_run, terminate_at_once
from tests.tiny import logged, train

INPUTS, OUTPUTS, BATCH = 4, 3, 6
RATES = np.array([0.1, 0.2, 0.05, 0.1], np.float32)


class Regression(nn.Cell):
    """Mean squared error of a linear map, behind batch normalisation if asked for."""

    def __init__(self, normed: bool = False):
        super().__init__()
        rng = np.random.default_rng(1)
        self.norm = nn.BatchNorm1d(INPUTS, momentum=0.9) if normed else None
        weight, bias = Tensor(normal(rng, OUTPUTS, INPUTS)), Tensor(normal(rng, OUTPUTS))
        self.dense = nn.Dense(INPUTS, OUTPUTS, weight_init=weight, bias_init=bias)

    def construct(self, x_BI: Tensor, y_BO: Tensor) -> tuple[Tensor, Tensor]:
        found_BO = self.dense(x_BI if self.norm is None else self.norm(x_BI))
        return ops.square(found_BO - y_BO).mean(), found_BO


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def batches(number: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [(normal(rng, BATCH, INPUTS) + place, normal(rng, BATCH, OUTPUTS)) for place in range(number)]


def tensors(group: list[tuple[np.ndarray, np.ndarray]]) -> list[Batch]:
    return [tuple(map(Tensor, batch)) for batch in group]


def joined(group: list[tuple[np.ndarray, np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [tuple(np.concatenate(arrays) for arrays in zip(*group, strict=True))]


def values(cell: nn.Cell) -> dict[str, np.ndarray]:
    return {p.name: p.asnumpy().copy() for p in cell.get_parameters()}


def momentum(objective: nn.Cell) -> nn.Optimizer:
    return make_sgd([objective], RATES, momentum=0.9, nesterov=False, weight_decay=0.01)


@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
@pytest.mark.parametrize("make", [momentum, lambda objective: make_adam([objective], RATES)])
def test_three_batches_are_a_step_of_all_their_items(make, clip_norm):
    steps, found = [batches(3, seed) for seed in range(4)], []
    for accumulate in (3, 1):
        objective = Regression()
        optimizer = make(objective)
        objective.set_train()
        step = Step(objective, optimizer, clip_norm=clip_norm, accumulate=accumulate)
        assert step.batches == accumulate
        for group in steps:
            told = step(tensors(group if accumulate == 3 else joined(group)))
            assert len(told) == accumulate
        found.append(values(optimizer))
    assert found[0].keys() == found[1].keys()
    for name in found[0]:
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=0, atol=1e-6, err_msg=name)


def test_it_is_the_mean_gradient_that_is_clipped():
    """By hand: not the sum, and not each batch's own."""
    group, most, objective = batches(3), 0.5, Regression()
    weight, bias = (p.asnumpy().copy() for p in objective.get_parameters())
    errors = [x @ weight.T + bias - y for x, y in group]
    slopes = [
        (np.mean([2 * error.T @ x for error, (x, _) in zip(errors, group, strict=True)], axis=0) / errors[0].size),
        (np.mean([2 * error.sum(axis=0) for error in errors], axis=0) / errors[0].size),
    ]
    norm = np.sqrt(sum((slope**2).sum() for slope in slopes))
    assert norm > 2 * most
    optimizer = make_sgd([objective], RATES, momentum=0.0, nesterov=False, weight_decay=0.0)
    told = Step(objective, optimizer, clip_norm=most, accumulate=3)(tensors(group))
    for parameter, before, slope in zip(objective.get_parameters(), (weight, bias), slopes, strict=True):
        expected = before - RATES[0] * slope * most / norm
        np.testing.assert_allclose(parameter.asnumpy(), expected, atol=1e-6)
    losses = [float(loss.asnumpy()) for loss, _ in told]
    np.testing.assert_allclose(losses, [np.square(error).mean() for error in errors], rtol=1e-6)


def test_running_statistics_are_the_mean_of_what_each_batch_makes_of_them():
    objective = Regression(normed=True)
    objective.set_train()
    assert objective.norm is not None
    step = Step(objective, momentum(objective), accumulate=3)
    mean, variance = np.zeros(INPUTS), np.ones(INPUTS)
    for seed in range(3):
        group = batches(3, seed)
        step(tensors(group))
        mean = np.mean([0.9 * mean + 0.1 * x.mean(axis=0) for x, _ in group], axis=0)
        variance = np.mean([0.9 * variance + 0.1 * x.var(axis=0, ddof=1) for x, _ in group], axis=0)
        np.testing.assert_allclose(objective.norm.moving_mean.asnumpy(), mean, atol=1e-6)
        np.testing.assert_allclose(objective.norm.moving_variance.asnumpy(), variance, rtol=1e-5)


def test_every_batch_is_normalised_by_itself():
    group, first = batches(3), []
    for chosen in (group, [group[0], group[0], group[0]]):
        objective = Regression(normed=True)
        objective.set_train()
        first.append(Step(objective, momentum(objective), accumulate=3)(tensors(chosen))[0][1].asnumpy())
    np.testing.assert_array_equal(*first)


@pytest.mark.parametrize("decay", [0.9, 0.3])
def test_the_average_is_that_of_the_formula(decay):
    model, rng = Regression(normed=True), np.random.default_rng(0)
    average = Average(model, decay)
    average.restart()
    expected = values(model)
    for step in range(1, 25):
        kept = min(decay, (1 + step) / (10 + step))
        for parameter in model.get_parameters():
            array = normal(rng, *parameter.shape)
            ops.assign(parameter, Tensor(array))
            expected[parameter.name] = kept * expected[parameter.name] + (1 - kept) * array
        average.follow(step)
    assert {"norm.moving_mean", "norm.moving_variance"} < expected.keys()
    for parameter in average.parameters:
        name = parameter.name.removeprefix("average.")
        np.testing.assert_allclose(parameter.asnumpy(), expected.pop(name), atol=1e-6)
    assert not expected


def test_the_averaged_weights_are_lent_and_taken_back_to_the_bit():
    model = Regression(normed=True)
    average, own = Average(model, 0.9), values(model)
    for parameter in average.parameters:
        ops.assign(parameter, Tensor(parameter.asnumpy() + np.float32(1 / 3)))
    with average.applied():
        for name, array in values(model).items():
            np.testing.assert_array_equal(array, own[name] + np.float32(1 / 3))
    with pytest.raises(RuntimeError, match="in between"), average.applied():
        raise RuntimeError("in between")
    for name, array in values(model).items():
        np.testing.assert_array_equal(array, own[name])


AVERAGED = ("train.ema=0.9", "train.episodes=6", "train.validate_every=3", "eval.episodes=4", "eval.gifs=0")


def test_a_resumed_run_with_an_average_is_a_straight_one(experiment, tmp_path, capsys):
    assert train(experiment, tmp_path / "straight", *AVERAGED) == 0
    with pytest.MonkeyPatch.context() as patch:
        terminate_at_once(patch)
        assert train(experiment, tmp_path / "broken", *AVERAGED) == 130
    assert "holds step 1 of 6" in capsys.readouterr().err
    assert train(experiment, tmp_path / "broken", *AVERAGED, "train.resume=auto") == 0
    folder = tmp_path / "straight" / "tiny"
    assert_same_run(tmp_path / "broken" / "tiny", folder)
    assert_the_best_is_averaged(folder)


def assert_the_best_is_averaged(folder: Path) -> None:
    """best.ckpt holds no step's own weights; that of the last step holds the average there was then."""
    validated = logged(folder, "val_accuracy")
    best, last = (read_checkpoint(folder / f"{name}.ckpt") for name in ("best", "last"))
    assert best[1].step == max(validated, key=lambda step: validated[step])
    averages = {key.removeprefix("optimizer.average."): key for key in last[0] if ".average." in key}
    assert averages.keys() == best[0].keys()
    for name, array in best[0].items():
        assert (array == last[0][averages[name]]).all() == (best[1].step == 6), name
    assert any((best[0][name] != last[0][name]).any() for name in best[0])
