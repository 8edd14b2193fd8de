# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: nothing lost on the way to the disk and back, and the last good one never harmed."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from safetensors.numpy import load_file

from mindvideo.engine import checkpoint
from mindvideo.engine.checkpoint import TrainingState, load_checkpoint, load_part, read_checkpoint, save_checkpoint
from mindvideo.engine.step import Average
from mindvideo.errors import InputError

STATE = TrainingState("small", step=7, seconds=1.5, best=0.625, best_step=4, config={"seed": 3, "name": "ä"})
Usage = namedtuple("Usage", "total used free")


def small_model(seed: int = 0, width: int = 3) -> nn.Cell:
    rng = np.random.default_rng(seed)
    model = nn.SequentialCell(nn.Dense(4, width), nn.Dense(width, 1))
    for parameter in model.get_parameters():
        parameter.set_data(Tensor(rng.standard_normal(parameter.shape).astype(np.float32)))
    return model


def trained(seed: int = 0) -> tuple[nn.Cell, nn.Optimizer]:
    """A model and an Adam after one step with one rate a step, so that all of its state is in use."""
    model = small_model(seed)
    optimizer = nn.Adam(model.trainable_params(), learning_rate=Tensor(np.array([0.1, 0.2, 0.3], np.float32)))
    optimizer(tuple(Tensor(np.full(p.shape, 0.5, np.float32)) for p in model.trainable_params()))
    return model, optimizer


def values(cell: nn.Cell) -> dict[str, np.ndarray]:
    return {p.name: p.asnumpy().copy() for p in cell.get_parameters()}


def assert_equal(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name], err_msg=name)


@pytest.fixture
def saved(tmp_path) -> Path:
    save_checkpoint(tmp_path / "last.ckpt", *shuffled(trained()))
    return tmp_path / "last.ckpt"


def shuffled(pair: tuple[nn.Cell, nn.Optimizer]) -> tuple[nn.Cell, TrainingState, nn.Optimizer]:
    return pair[0], STATE, pair[1]


def test_all_of_it_comes_back(saved):
    expected = trained()
    model, optimizer = trained(seed=1)
    assert load_checkpoint(saved, model, "small", optimizer) == STATE
    assert_equal(values(model), values(expected[0]))
    assert_equal(values(optimizer), values(expected[1]))
    assert int(optimizer.global_step.asnumpy()[0]) == 1


def test_the_weights_alone_are_beside_it(saved):
    model = small_model(1)
    weights = {name: p.asnumpy() for name, p in trained()[0].parameters_and_names()}
    assert_equal(load_file(saved.with_suffix(".safetensors")), weights)
    assert load_checkpoint(saved.with_suffix(".safetensors"), model, "small").step == 0
    assert_equal({name: p.asnumpy() for name, p in model.parameters_and_names()}, weights)
    assert {path.name for path in saved.parent.iterdir()} == {"last.ckpt", "last.safetensors"}


def test_a_run_without_a_best_is_strict_json(tmp_path):
    model = small_model()
    save_checkpoint(tmp_path / "a.ckpt", model, TrainingState("small"))
    stored = ms.load_checkpoint(str(tmp_path / "a.ckpt"))["training_state"]
    json.loads(str(stored), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert read_checkpoint(tmp_path / "a.ckpt")[1].best == float("-inf")


def test_a_compiled_graph_sees_the_loaded_weights(saved):
    """Parameter.set_data would not reach a graph that was compiled before."""
    model = small_model(1)
    x = Tensor(np.ones((2, 4), np.float32))

    @ms.jit
    def forward(x):
        return model(x)

    before = forward(x).asnumpy()
    load_checkpoint(saved, model, "small")
    expected = small_model()
    load_checkpoint(saved, expected, "small")
    np.testing.assert_array_equal(forward(x).asnumpy(), expected(x).asnumpy())
    assert not np.allclose(forward(x).asnumpy(), before)


def test_the_optimizer_is_needed_only_to_resume(tmp_path):
    model, optimizer = trained()
    save_checkpoint(tmp_path / "best.ckpt", model, STATE)
    assert load_checkpoint(tmp_path / "best.ckpt", model, "small") == STATE
    with pytest.raises(InputError, match="holds no optimizer state"):
        load_checkpoint(tmp_path / "best.ckpt", model, "small", optimizer)


def test_another_model_is_refused_and_nothing_loaded(saved):
    for other in (small_model(2, width=5), nn.SequentialCell(nn.Dense(4, 3))):
        before = values(other)
        with pytest.raises(InputError, match=r"does not fit model 'other': it holds a 'small' model") as caught:
            load_checkpoint(saved, other, "other")
        assert "\n" not in str(caught.value)
        assert_equal(values(other), before)


class Pair(nn.Cell):
    """Two parts by name."""

    def __init__(self, seed: int, width: int = 3, classes: int = 2):
        super().__init__()
        self.body, self.head = small_model(seed, width), nn.Dense(width, classes)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_one_part_comes_from_a_checkpoint_whose_others_do_not_fit(tmp_path, suffix):
    given, model = Pair(1), Pair(2, classes=5)
    save_checkpoint(tmp_path / "given.ckpt", given, STATE, nn.Adam(given.trainable_params()))
    before = values(model)
    load_part(tmp_path / f"given{suffix}", model, "pair", "body.")
    assert_equal(values(model.body), values(given.body))
    assert_equal(values(model.head), {name: before[name] for name in values(model.head)})


def test_another_number_of_classes_is_told_how_to_take_the_rest(tmp_path):
    save_checkpoint(tmp_path / "given.ckpt", Pair(1), STATE)
    for other, hinted in ((Pair(2, classes=5), True), (Pair(2, width=5), False)):
        with pytest.raises(InputError) as caught:
            load_checkpoint(tmp_path / "given.ckpt", other, "small")
        assert ("train.backbone takes the backbone alone" in str(caught.value)) == hinted


def test_a_part_that_is_not_there_or_of_another_shape_is_refused_and_nothing_loaded(tmp_path):
    save_checkpoint(tmp_path / "given.ckpt", Pair(1), STATE)
    for model, prefix, message in (
        (Pair(2, width=5), "body.", r"3 differences: body.0.weight is \(3, 4\), the model needs \(5, 4\)"),
        (nn.SequentialCell(Pair(2)), "0.body.", r"4 differences: missing 0.body.0.weight"),
    ):
        before = values(model)
        with pytest.raises(InputError, match=rf"given.ckpt does not fit model 'pair': it holds a 'small' .*{message}"):
            load_part(tmp_path / "given.ckpt", model, "pair", prefix)
        assert_equal(values(model), before)
    with pytest.raises(InputError, match=r"absent\.ckpt: no such checkpoint"):
        load_part(tmp_path / "absent.ckpt", Pair(2), "pair", "body.")


def no_space(monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1000, 990, 10))


def broken_flush(monkeypatch) -> None:
    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)


def broken_write(monkeypatch) -> None:
    def fail(_, name, **__):
        Path(name).write_bytes(b"half a checkpoint")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.ms, "save_checkpoint", fail)


@pytest.mark.parametrize("fault", [no_space, broken_flush, broken_write])
def test_a_failed_write_leaves_the_last_good_checkpoint(saved, monkeypatch, fault):
    before = {path.name: path.read_bytes() for path in saved.parent.iterdir()}
    model, optimizer = trained(seed=1)
    fault(monkeypatch)
    with pytest.raises(InputError) as caught:
        save_checkpoint(saved, model, STATE, optimizer)
    assert str(caught.value).startswith(f"{saved}: cannot write the checkpoint of step 7")
    assert f"the last good checkpoint stays: {saved}" in str(caught.value)
    assert {path.name: path.read_bytes() for path in saved.parent.iterdir()} == before
    with pytest.raises(InputError, match="no checkpoint was written yet"):
        save_checkpoint(saved.with_name("first.ckpt"), model, STATE, optimizer)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_not_saved(saved, value):
    before = saved.read_bytes()
    model = small_model()
    model[1].bias.set_data(Tensor(np.array([value], np.float32)))
    with pytest.raises(InputError, match=r"step 7 made the weight 1\.bias infinite or nan"):
        save_checkpoint(saved, model, STATE)
    assert saved.read_bytes() == before


def test_a_killed_write_is_no_checkpoint(saved):
    """What a crash leaves is a temporary file, which the next save replaces."""
    saved.with_name(".last.tmp.ckpt").write_bytes(b"half a checkpoint")
    model, optimizer = trained(seed=1)
    save_checkpoint(saved, model, STATE, optimizer)
    assert {path.name for path in saved.parent.iterdir()} == {"last.ckpt", "last.safetensors"}
    assert saved.stat().st_mode & 0o600 == 0o600


def refusal(path: Path) -> str:
    """What reading the checkpoint is refused with; empty if it is not."""
    try:
        read_checkpoint(path)
    except InputError as error:
        return str(error)
    return ""


def test_no_flipped_bit_of_an_array_goes_unseen(saved):
    """Anywhere else one is refused too, or changes nothing that is read."""
    good, (arrays, state) = saved.read_bytes(), read_checkpoint(saved)
    long = [array for array in arrays.values() if array.nbytes > 8]  # a short one's bytes may stand elsewhere too
    starts = [good.index(array.tobytes()) for array in long]
    inside = {start + i for start, array in zip(starts, long, strict=True) for i in range(array.nbytes)}
    assert len(inside) > 150
    rng = np.random.default_rng(0)
    for place in sorted(inside | set(rng.choice(len(good), 250, replace=False).tolist())):
        damaged = bytearray(good)
        damaged[place] ^= 1 << int(rng.integers(8))
        saved.write_bytes(damaged)
        told = refusal(saved)
        if told or place in inside:
            assert told.startswith(f"{saved}: not a readable checkpoint ("), place
            assert "\n" not in told
        else:
            found, found_state = read_checkpoint(saved)
            assert_equal(found, arrays)
            assert found_state == state


def test_a_checkpoint_cut_short_anywhere_is_refused(saved):
    good = saved.read_bytes()
    for length in np.linspace(1, len(good) - 1, 60).astype(int):
        saved.write_bytes(good[:length])
        with pytest.raises(InputError, match="not a readable checkpoint"):
            read_checkpoint(saved)


def test_what_stood_there_before_is_kept(saved):
    before, previous = saved.read_bytes(), saved.with_name("previous.ckpt")
    model, optimizer = trained(seed=1)
    save_checkpoint(saved, model, STATE, optimizer, previous=previous)
    assert previous.read_bytes() == before
    assert {path.name for path in saved.parent.iterdir()} == {"last.ckpt", "last.safetensors", "previous.ckpt"}
    again = saved.read_bytes()
    save_checkpoint(saved, model, STATE, optimizer, previous=previous)
    assert previous.read_bytes() == again


def test_an_average_goes_along_and_is_needed_to_go_on(tmp_path):
    model, optimizer = trained()
    average = Average(model, 0.9)
    save_checkpoint(tmp_path / "last.ckpt", model, STATE, optimizer, average.parameters)
    other, theirs = trained(seed=1)
    taken = Average(other, 0.9)
    load_checkpoint(tmp_path / "last.ckpt", other, "small", theirs, taken.parameters)
    for own, expected in zip(taken.parameters, average.parameters, strict=True):
        np.testing.assert_array_equal(own.asnumpy(), expected.asnumpy())
    save_checkpoint(tmp_path / "plain.ckpt", model, STATE, optimizer)
    with pytest.raises(InputError, match=r"holds no optimizer state \(optimizer\.average\."):
        load_checkpoint(tmp_path / "plain.ckpt", other, "small", theirs, taken.parameters)
