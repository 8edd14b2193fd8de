# SPDX-License-Identifier: Apache-2.0
"""Primitives of MindSpore in ONNX: odd cases, which few networks or none have, against MindSpore itself."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import onnx
import onnxruntime
import pytest
from mindspore import Tensor, nn, ops

from mindvideo.errors import InputError
from mindvideo.export.onnx_graph import translate


def translated(cell: nn.Cell, folder: Path, *arrays: np.ndarray, outputs: int) -> list[np.ndarray]:
    """The outputs of a cell's ONNX model."""
    ms.export(cell, *map(Tensor, arrays), file_name=str(folder / "a.mindir"), file_format="MINDIR")
    names = [f"x{i}" for i in range(len(arrays))]
    model = translate((folder / "a.mindir").read_bytes(), names, [f"y{i}" for i in range(outputs)], "it")
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip(names, arrays, strict=True)))


def compare(cell: nn.Cell, folder: Path, *arrays: np.ndarray) -> None:
    expected = [output.asnumpy() for output in cell(*map(Tensor, arrays))]
    found = translated(cell, folder, *arrays, outputs=len(expected))
    for number, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.dtype == b.dtype, number
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6, err_msg=f"output {number}")


class Slices(nn.Cell):
    def construct(self, x: Tensor) -> tuple[Tensor, ...]:
        return (
            x[:, 1],
            x[-1],
            x[:, -1, ::2],
            x[1:, :-1, 1:3],
            x[:, None, 2],
            ops.flip(x, (0, 2)),
            x.narrow(2, 1, 2),
            ops.unbind(x, 1)[2],
            ops.stack((x[0], x[1]), axis=1),
            ops.tile(x, (1, 2, 1)),
            ops.gather(x, Tensor([2, 0], ms.int32), 1),
        )


class Windows(nn.Cell):
    """Convolutions whose padding differs by side, and pooling as MindCV's networks have it."""

    def __init__(self):
        super().__init__()
        weight = np.random.default_rng(0).standard_normal((6, 2, 3, 3)).astype(np.float32)
        self.weight = Tensor(weight)
        self.convolve = ops.Conv2D(6, (3, 3), pad_mode="pad", pad=(0, 1, 2, 1), stride=(2, 1), group=2)
        self.spread = ops.Conv2D(6, (3, 3), pad_mode="valid", dilation=2, group=2)
        self.same = ops.Conv2D(6, (3, 3), pad_mode="same", stride=2, group=2)
        self.pad = nn.Pad(((0, 0), (0, 0), (1, 2), (0, 1)))
        self.largest, self.mean = nn.MaxPool2d(3, 2), nn.AvgPool2d(2, 2)
        self.largest_same, self.mean_same = nn.MaxPool2d(3, 2, pad_mode="same"), nn.AvgPool2d(3, 2, pad_mode="same")

    def construct(self, x: Tensor) -> tuple[Tensor, ...]:
        return (
            self.convolve(x, self.weight),
            self.spread(x, self.weight),
            self.same(x, self.weight),
            self.largest(self.pad(x)),
            self.mean(x),
            self.largest_same(x),
            self.mean_same(x),
            ops.max_pool3d(x.expand_dims(2), (1, 3, 3), (1, 2, 2), (0, 1, 1)).squeeze(2),
        )


class Sums(nn.Cell):
    def __init__(self):
        super().__init__()
        self.first = ops.BatchMatMul(transpose_a=True)
        self.second = ops.MatMul(transpose_b=True)
        self.gelu = nn.GELU(approximate=True)
        self.bias = Tensor(np.array([1.0, -2.0, 3.0], np.float32))

    def construct(self, x: Tensor) -> tuple[Tensor, ...]:
        largest, places = ops.max(x, axis=1, keepdims=True)
        doubled = 2.0 * x
        doubled += x
        return (
            x.sum(),
            x.mean(axis=(0, 2), keep_dims=True),
            x.max(axis=2),
            largest,
            places,
            self.first(x, x),
            self.second(x[0], x[1]),
            self.gelu(x),
            ops.bias_add(x, self.bias),
            ops.clamp(x, max=0.5),
            ops.clamp(x, min=-0.5, max=0.5),
            ops.softmax(x, axis=1),
            ops.expm1(x),
            ops.where(x > 0.1, x, 2.0 * x),
            doubled,
        )


class WholeNumbers(nn.Cell):
    def construct(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return x // y, (x >= y).astype(ms.int32), ops.logical_and(x < y, x == -7).astype(ms.float32)


@pytest.mark.parametrize(("cell", "shape"), [(Slices, (3, 4, 5)), (Windows, (2, 4, 7, 8)), (Sums, (2, 3, 4))])
def test_primitives_do_the_same(cell, shape, tmp_path):
    compare(cell(), tmp_path, np.random.default_rng(0).standard_normal(shape).astype(np.float32))


def test_whole_numbers_are_divided_downwards(tmp_path):
    compare(WholeNumbers(), tmp_path, np.array([-7, 7, -7, 7, 6], np.int32), np.array([2, -2, -2, 2, 3], np.int32))


class Odd(nn.Cell):
    def construct(self, x: Tensor) -> Tensor:
        return ops.digamma(x)


def test_what_has_no_rule_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"^it cannot be an ONNX file: there is no rule for Digamma of MindSpore\.$"):
        translated(Odd(), tmp_path, np.ones(3, np.float32), outputs=1)


class Twice(nn.Cell):
    def construct(self, x: Tensor) -> Tensor:
        return (x.reshape((2, 3)).swapaxes(0, 1).reshape((3, 2)) * 2.0).reshape((2, 3)) * 2.0


def test_equal_constants_are_stored_once_and_nothing_is_left_over(tmp_path):
    ms.export(Twice(), Tensor(np.ones(6, np.float32)), file_name=str(tmp_path / "a.mindir"), file_format="MINDIR")
    model = translate((tmp_path / "a.mindir").read_bytes(), ["x"], ["y"], "it")
    stored = [onnx.numpy_helper.to_array(weight) for weight in model.graph.initializer]
    assert len({(array.dtype.str, array.tobytes()) for array in stored}) == len(stored) == 2
    used = {name for node in model.graph.node for name in node.input}
    assert {weight.name for weight in model.graph.initializer} <= used
    assert [node.op_type for node in model.graph.node].count("Mul") == 2
    assert ([x.name for x in model.graph.input], [y.name for y in model.graph.output]) == (["x"], ["y"])
