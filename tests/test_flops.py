# SPDX-License-Identifier: Apache-2.0
"""Multiply-adds and parameters: small layers multiplication by multiplication, whole networks as others count them."""

from __future__ import annotations

import itertools
import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from mindvideo.models import create_model, flops, layers
from mindvideo.models.flops import CONVOLUTION, DENSE, PRODUCT, Layer, count, count_parameters, undrawn
from mindvideo.models.layers import Attention, BatchNorm, Conv, ConvNorm, LayerNorm, MaxPool, enter
from mindvideo.models.tpn import AuxiliaryHead


def zeros(*shape: int) -> Tensor:
    return Tensor(np.zeros(shape, np.float32))


def multiplications(extents, weight, stride, padding) -> int:
    """Of a convolution, counted while it slides: every place, output channel, input channel and tap."""
    out_channels, in_channels, *kernel = weight
    total = 0
    for start in itertools.product(
        *(range(-p, n + p - k + 1, s) for n, p, k, s in zip(extents, padding, kernel, stride, strict=True))
    ):
        assert all(place >= -p for place, p in zip(start, padding, strict=True))
        total += sum(out_channels * in_channels for _ in itertools.product(*map(range, kernel)))
    return total


CONVOLUTIONS = [  # channels in and out, groups, kernel, stride, padding, extents
    (6, 4, 1, (3, 3), (1, 1), (1, 1), (5, 7)),
    (6, 4, 2, (3, 5), (2, 1), (0, 2), (9, 6)),
    (6, 6, 6, (7, 7), (3, 2), (3, 3), (8, 8)),
    (6, 9, 3, (3, 1, 2), (1, 2, 3), (1, 0, 1), (4, 5, 6)),
    (4, 8, 1, (5, 3, 3), (2, 2, 2), (2, 1, 1), (8, 6, 7)),
]


@pytest.mark.usefixtures("pynative")
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(("inputs", "outputs", "groups", "kernel", "stride", "padding", "extents"), CONVOLUTIONS)
def test_convolutions(monkeypatch, native, inputs, outputs, groups, kernel, stride, padding, extents):
    if not native:
        for module in (layers, flops):
            monkeypatch.setattr(module, "is_native", lambda: False)
    options = {"stride": stride, "padding": padding, "groups": groups}
    expected = multiplications(extents, (outputs, inputs // groups, *kernel), stride, padding)
    x = enter(zeros(2, inputs, *extents))
    for kind in (Conv, ConvNorm):
        network = kind(inputs, outputs, kernel, **options)
        network.set_train(False)
        assert count(network, x).layers == (Layer("", CONVOLUTION, 2 * expected),), kind
        shape = flops._convolved(network, x.shape)[0]
        if native or groups == 1:  # MindSpore's 3-D convolution on a CPU knows no groups
            assert shape == network(x).shape, kind


@pytest.mark.usefixtures("pynative")
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(
    "mode", [{"pad_mode": "same"}, {"pad_mode": "valid"}, {"pad_mode": "pad", "padding": 2},
             {"pad_mode": "pad", "padding": (0, 1, 2, 3)}, {"pad_mode": "valid", "dilation": 2}],
)  # fmt: skip
def test_mindspores_own_convolutions(mode, stride):
    network, x = nn.Conv2d(4, 6, 3, stride=stride, group=2, **mode), zeros(1, 4, 10, 11)
    y = network(x)
    assert flops._convolved(network, x.shape)[0] == y.shape
    assert count(network, x).macs == y.size * 2 * 9


def test_dense_layers_without_their_bias():
    assert count(nn.Dense(5, 7), zeros(3, 5)).layers == (Layer("", DENSE, 3 * 5 * 7),)
    assert count(nn.Dense(5, 7, has_bias=False), zeros(2, 3, 5)).macs == 2 * 3 * 5 * 7


def test_attention():
    network = Attention(12, 3, bias=True, dropout=0.1, stream=0)
    counted = count(network, zeros(2, 5, 12), zeros(2, 7, 12))
    assert counted.by_kind() == {DENSE: 2 * (2 * 5 + 2 * 7) * 12 * 12, PRODUCT: 2 * 3 * 2 * (5 * 7 * 4)}
    assert counted.by_part()["key"] == 2 * 7 * 12 * 12
    assert counted.parameters == 4 * (12 * 12 + 12)


@pytest.mark.parametrize(
    ("product", "left", "right", "macs"),
    [
        (ops.matmul, (2, 3, 4), (4, 5), 2 * 3 * 4 * 5), (ops.bmm, (2, 3, 4), (2, 4, 5), 2 * 3 * 4 * 5),
        (ops.MatMul(transpose_a=True), (4, 3), (4, 5), 3 * 4 * 5), (ops.matmul, (4,), (4,), 4),
        (ops.BatchMatMul(transpose_b=True), (6, 2, 3, 4), (6, 2, 5, 4), 12 * 3 * 4 * 5),
    ],
)  # fmt: skip
def test_products(product, left, right, macs):
    assert count(nn.ReLU(), zeros(*left), zeros(*right), call=product).macs == macs


def test_normalisation_activation_and_pooling_cost_nothing():
    network = nn.SequentialCell(BatchNorm(4, relu=True), LayerNorm(6), MaxPool((2, 2)), nn.GELU())
    counted = count(network, zeros(1, 6, 6, 4) if layers.is_native() else zeros(1, 4, 6, 6), call=network[0])
    assert counted.macs == 0
    assert counted.layers == ()
    assert counted.parameters == 2 * 4 + 2 * 6


class Wrong(nn.Cell):
    def construct(self, x: Tensor) -> Tensor:
        raise RuntimeError("wrong")


def test_all_is_as_before():
    before = [owner.__call__ for owner in (nn.Cell, ops.MatMul, ops.BatchMatMul)]
    right, wrong = nn.Dense(2, 2), Wrong()
    right.set_train()
    wrong.set_train()
    count(right, zeros(1, 2))
    with pytest.raises(RuntimeError, match="wrong"):
        count(wrong, zeros(1, 2))
    assert [owner.__call__ for owner in (nn.Cell, ops.MatMul, ops.BatchMatMul)] == before
    assert right.training
    assert wrong.training
    assert ms.get_context("mode") == ms.GRAPH_MODE


def test_parts_are_as_fine_as_sixteen():
    rows = tuple(Layer(f"a.b.{i}.conv", CONVOLUTION, i) for i in range(17))
    assert flops.Count(0, (*rows, Layer("head", DENSE, 5))).by_part() == {"a.b": 136, "head": 5}
    assert len(flops.Count(0, rows[:16]).by_part()) == 16
    assert flops.Count(0, ()).by_part() == {}
    many = tuple(Layer(str(i), CONVOLUTION, i) for i in range(20))
    assert len(flops.Count(0, many).by_part()) == 20


# MMAction2's metafiles: parameters and FLOPs with 400 classes (C3D: 101), and what its counter adds: the numbers that
# poolings and interpolations see, and TSM's classifier for seven more frames.
MMACTION2 = {
    "i3d_r50": ((32, 256, 256), 28_043_472, 43_564_040_192, 64 * 16 * 128**2 + 256 * 8 * 64**2 + 2048 * 4 * 8**2),
    "tsm_r50": ((8, 224, 224), 24_327_632, 32_965_562_368, 8 * (64 * 112**2 + 2048 * 7**2) + 7 * 2048 * 400),
    "slowfast_r50": (
        (32, 256, 256), 34_565_560, 66_222_034_944,
        (64 * 8 + 8 * 32) * 128**2 + (2048 * 8 + 256 * 32) * 8**2,
    ),
    "tpn_r50": (
        (8, 256, 256), 91_498_336, 66_014_576_640,
        64 * 8 * 128**2 + 2048 * 8**2 + 2 * 1024 * 8 * 8**2 + (1 + 4 + 1) * 1024 * 8**2,
    ),
    "c3d": (
        (16, 112, 112), 78_409_573, 38_615_475_200,
        64 * 16 * 112**2 + 128 * 16 * 56**2 + 256 * 8 * 28**2 + 512 * 4 * 14**2 + 512 * 2 * 7**2
        + 64 * 16 * 112**2 + 128 * 16 * 56**2 + 2 * (256 * 8 * 28**2 + 512 * 4 * 14**2 + 512 * 2 * 7**2) + 2 * 4096,
    ),
    "ircsn_r50": ((32, 256, 256), 13_131_152, 56_209_211_392, 64 * 32 * 128**2 + 2048 * 4 * 8**2),
    "ircsn_r152": ((32, 256, 256), 29_703_568, 98_096_676_864, 64 * 32 * 128**2 + 2048 * 4 * 8**2),
}  # fmt: skip


@pytest.mark.parametrize("name", MMACTION2)
def test_video_networks_as_mmaction2_counts_them(name):
    """To the last digit: 2 more for each number of a BatchNorm, 1 for ReLU's, 1 for each pooled, and biases."""
    extents, parameters, published, added = MMACTION2[name]
    classes = 101 if name == "c3d" else 400
    with undrawn():
        network = create_model(name, num_classes=classes)
    counted = count(network, zeros(1, 3, *extents))
    head = count_parameters(AuxiliaryHead(1024, classes)) if name == "tpn_r50" else 0
    assert counted.parameters + head == parameters
    assert counted.macs == pytest.approx(published, rel=0.02)
    cells = dict(network.cells_and_names())
    for layer in counted.layers:
        cell = cells[layer.name]
        if isinstance(cell, ConvNorm):
            added += layer.macs // math.prod(cell.conv.weight.shape[1:]) * (2 + cell.norm.relu)
        elif isinstance(cell, Conv) and cell.bias is not None:
            added += layer.macs // math.prod(cell.weight.shape[1:])
    assert counted.macs + added == published


def test_undrawn_weights_are_zeros_for_as_long_as_wanted():
    with undrawn():
        dense = nn.Dense(3, 4, bias_init="normal")
    assert not dense.weight.asnumpy().any()
    assert not dense.bias.asnumpy().any()
    assert nn.Dense(3, 4).weight.asnumpy().any()


@pytest.mark.parametrize(("name", "parameters"), [
    ("i3d_r50", 27_430_000), ("tsm_r50", 23_710_000), ("slowfast_r50", 33_880_000), ("tpn_r50", 71_190_000),
])  # fmt: skip
def test_parameters_of_dears_networks(name, parameters):
    assert count_parameters(create_model(name, num_classes=101)) == pytest.approx(parameters, abs=5_000)


@pytest.mark.parametrize(("width", "parameters"), [(512, 7_047_690), (1280, 13_253_898), (2048, 24_178_698)])
def test_parameters_of_actionnet(width, parameters):
    network = create_model("actionnet", width=width)
    assert count_parameters(network) == parameters
    assert count_parameters(create_model("actionnet", width=width, learned_queries=True)) == parameters


def test_parameters_of_arn_and_what_its_encoder_costs():
    """Encoder, comparator and attention unit; the older repository's 492,577 lack the convolutions' biases."""
    network = create_model("arn")
    assert count_parameters(network) == 337_728 + 120_721 + 34_673
    biases = [cell.bias.size for _, cell in network.cells_and_names() if isinstance(cell, Conv)]
    assert count_parameters(network) - sum(biases) == 492_577
    encoder = create_model("protonet").encoder  # pyright: ignore[reportAttributeAccessIssue]
    assert count(encoder, zeros(1, 3, 20, 128, 128)).macs == 27 * 64 * (
        3 * 20 * 128**2 + 64 * (10 * 64**2 + 2 * 5 * 32**2)
    )


def test_slow_only():
    assert count_parameters(create_model("slowonly_r50", num_classes=400)) == 32_454_096
