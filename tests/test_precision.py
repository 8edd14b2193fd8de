# SPDX-License-Identifier: Apache-2.0
"""Mixed precision: what computes in float16 and what does not, on MindSpore's own operators; the scale of the loss."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from mindvideo.config import parse_config
from mindvideo.engine.optim import LossScale, make_adam
from mindvideo.engine.step import Step
from mindvideo.errors import InputError
from mindvideo.models import create_model
from mindvideo.models.layers import BatchNorm, Float32, initialize, initialize_kaiming, portable_operators
from mindvideo.tasks.setup import make_step
from tests.tiny import train

RATES = np.full(100, 1e-2, np.float32)


class Network(nn.Cell):
    """A dense layer in float16 and one in float32; the loss is the mean square."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Dense(6, 16).to_float(ms.float16), nn.Dense(16, 3).to_float(ms.float32)

    def construct(self, x):
        y = self.second(self.first(x))
        return (y * y).mean(), y


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_without_finite_gradients_is_left_out_and_halves_the_scale(accumulate):
    network, scale = Network(), LossScale(start=2.0**10, patience=2)
    step = Step(network, make_adam([network], RATES), accumulate=accumulate, scale=scale, clip_norm=1.0)
    rng = np.random.default_rng(0)
    scales, moved = [], []
    for number in range(6):
        size = 1e5 if number == 3 else 1.0  # beyond float16
        before = network.first.weight.asnumpy().copy()
        step([(Tensor(size * rng.standard_normal((4, 6)), ms.float32),) for _ in range(accumulate)])
        moved.append(bool((network.first.weight.asnumpy() != before).any()))
        assert np.isfinite(network.first.weight.asnumpy()).all()
        scales.append(float(scale.value.asnumpy()))
    assert moved == [True, True, True, False, True, True]
    assert scales == [2.0**10, 2.0**11, 2.0**11, 2.0**10, 2.0**10, 2.0**11]
    assert [parameter.name for parameter in step.kept] == ["loss_scale", "loss_scale_good"]


def test_the_scale_does_not_change_a_step():
    weights = []
    for scale in (None, LossScale(start=2.0**8)):
        network = Network()
        network.first.to_float(ms.float32)
        initialize(network, 1)
        step = Step(network, make_adam([network], RATES), scale=scale, clip_norm=0.5)
        step([(Tensor(np.linspace(-1, 1, 24).reshape(4, 6), ms.float32),)])
        weights.append(network.first.weight.asnumpy())
    np.testing.assert_allclose(weights[1], weights[0], rtol=1e-6)


class Half:
    """A network of each task, the part of it that mixed precision may take to float16, and an input."""

    @staticmethod
    def openset():
        network = create_model("i3d_r18", num_classes=5, width=8, head="evidential")
        initialize_kaiming(network, 1)
        return network, network.backbone, [(2, 3, 8, 32, 32)]

    @staticmethod
    def fewshot():
        network = create_model("arn", width=16, attention="both", comparator="distance", sigma=5.0)
        initialize(network, 1)
        return network, network, [(2, 1, 3, 8, 32, 32), (3, 3, 8, 32, 32)]

    @staticmethod
    def pose():
        network = create_model("actionnet", num_classes=4, width=32, length=6, decoder_width=32, motion=2)
        network.initialize(1)
        return network, network, [(2, 9, 24, 6)]

    @staticmethod
    def robust():
        network = create_model("convnext_tiny", num_classes=4, width=8, depth=1, layer_scale=1.0, head="fc")
        network.initialize(1)
        return network, network, [(2, 3, 32, 32)]


@pytest.mark.parametrize("task", ["openset", "fewshot", "pose", "robust"])
def test_networks_compute_in_float16_but_for_their_float32_parts(task):
    rng = np.random.default_rng(0)
    with portable_operators():
        # Two of the same: a compiled one would stay as it is.
        full, _, shapes = getattr(Half, task)()
        network, half, _ = getattr(Half, task)()
        for own, other in zip(network.get_parameters(), full.get_parameters(), strict=True):
            ops.assign(own, other)
        inputs = [Tensor(rng.standard_normal(shape), ms.float32) for shape in shapes]
        config = parse_config({"task": task, "train": {"amp": "O2"}}, "here")
        step = make_step(config, "gpu", network, network, make_adam([network], RATES), half=half)
        expected = full.set_train(False)(*inputs).asnumpy()
        found = network.set_train(False)(*inputs)
    assert [parameter.name for parameter in step.kept] == ["loss_scale", "loss_scale_good"]
    flags = {cell_name: cell.get_flags() for cell_name, cell in half.cells_and_names() if cell_name}
    kept = [cell_name for cell_name, cell in half.cells_and_names() if isinstance(cell, Float32)]
    assert kept
    assert all(flags[cell_name].get("fp32") and not flags[cell_name].get("fp16") for cell_name in kept)
    assert any(flag.get("fp16") for flag in flags.values())
    values = found.astype(ms.float32).asnumpy()
    difference = np.abs(values - expected).max() / np.abs(expected).max()
    assert 1e-7 < difference < 0.02


def test_norms_give_float32():
    norm = BatchNorm(3)
    norm.to_float(ms.float16)
    assert norm.get_flags()["fp32"]
    assert not norm.get_flags()["fp16"]


def test_mindcv_norms_stay_in_float32():
    with portable_operators():
        network = create_model("resnet50", num_classes=3)
        config = parse_config({"task": "robust", "train": {"amp": "auto"}}, "here")
        make_step(config, "ascend", network, network, make_adam([network], RATES))
    kinds = {type(cell): cell.get_flags() for _, cell in network.cells_and_names()}
    assert kinds[nn.BatchNorm2d]["fp32"]
    assert kinds[nn.Conv2d]["fp16"]


@pytest.mark.parametrize(("amp", "device"), [("off", "gpu"), ("auto", "cpu")])
def test_nothing_changes_without_mixed_precision(amp, device):
    network = Network()
    config = parse_config({"task": "pose", "train": {"amp": amp}}, "here")
    assert make_step(config, device, network, network, make_adam([network], RATES)).kept == []


def test_native_operators_refuse_float16(experiment, tmp_path, capsys):
    assert train(experiment, tmp_path, "train.amp=O2") == 2
    error = capsys.readouterr().err
    assert error == (
        "mindvideo: error: train.amp is O2: a CPU's native operators compute in float32 alone; choose off or auto.\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("word", ["off", False, "O2", "auto"])
def test_yaml_s_off_is_no_truth_value(word):
    config = parse_config({"task": "pose", "train": {"amp": word}}, "here")
    assert config.train.amp == (word or "off")
    with pytest.raises(InputError, match=r"train\.amp is True; it must be one of off, O2, auto"):
        parse_config({"task": "pose", "train": {"amp": True}}, "here")
