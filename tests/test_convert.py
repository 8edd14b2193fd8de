# SPDX-License-Identifier: Apache-2.0
"""Conversion of other programs' checkpoints: the same scores, every tensor accounted for, nothing written on error.

`Older` has the cells of the older MindSpore repository, so that MindSpore itself gives its names and its optimizer's,
and computes ARN by other means than ours: the oracle of names and scores.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from safetensors.numpy import load_file, save_file

from mindvideo import cli
from mindvideo.convert.families import FAMILIES
from mindvideo.convert.files import convert
from mindvideo.engine.checkpoint import load_checkpoint
from mindvideo.errors import InputError
from mindvideo.models import create_model

WIDTH, WAY, SHOT, QUERIES = 16, 2, 2, 3
OLDER, AUTHORS = FAMILIES["arn"].layouts


class Block(nn.Cell):
    """Convolution, batch norm, ReLU as one sequence called `features`."""

    def __init__(self, convolution: type[nn.Cell], norm: type[nn.Cell], in_channels: int, out_channels: int):
        super().__init__()
        layers = [convolution(in_channels, out_channels, 3, pad_mode="pad", padding=1), norm(out_channels), nn.ReLU()]
        self.features = nn.SequentialCell(layers)

    def construct(self, x):
        return self.features(x)


def block3d(in_channels: int, out_channels: int) -> Block:
    return Block(nn.Conv3d, nn.BatchNorm3d, in_channels, out_channels)


class Halve(nn.Cell):
    """2x2x2 max pooling, by reshaping."""

    def construct(self, x):
        b, c, t, h, w = x.shape
        return x.reshape((b, c, t // 2, 2, h // 2, 2, w // 2, 2)).max(axis=(3, 5, 7))


class Embedding(nn.Cell):
    def __init__(self, width: int):
        super().__init__()
        self.embedding = nn.SequentialCell(
            block3d(3, width), Halve(), block3d(width, width), Halve(), block3d(width, width), block3d(width, width)
        )

    def construct(self, x):
        return self.embedding(x)


class SpatialDetector(nn.Cell):
    def __init__(self, width: int):
        super().__init__()
        self.layer1 = block3d(width, 16)
        self.layer2 = block3d(16, 16)
        self.conv3d = nn.Conv3d(16, 1, kernel_size=1)

    def construct(self, x):
        """Features of T = 4 to maps: time is halved twice."""
        b, _, t, h, w = x.shape
        x = self.layer1(x).reshape((b, 16, t // 2, 2, h, w)).max(axis=3)
        x = self.layer2(x).max(axis=2, keepdims=True)
        return 1 / (1 + ops.exp(-self.conv3d(x)))


class Backbone(nn.Cell):
    def __init__(self, width: int):
        super().__init__()
        self.spatial_detector = SpatialDetector(width)

    def construct(self, x):
        return x * (1 + self.spatial_detector(x))


class RelationNetwork(nn.Cell):
    def __init__(self, width: int):
        super().__init__()
        self.layer1 = Block(nn.Conv2d, nn.BatchNorm2d, 2, width)
        self.layer2 = Block(nn.Conv2d, nn.BatchNorm2d, width, width)
        self.layer3 = Block(nn.Conv2d, nn.BatchNorm2d, width, width)
        self.layer4 = Block(nn.Conv2d, nn.BatchNorm2d, width, width)
        self.fc1 = nn.Dense(width * (width // 16) ** 2, 8)
        self.fc2 = nn.Dense(8, 1)

    def construct(self, x):
        x = self.pool(self.layer1(x))
        x = self.pool(x + self.layer2(x))
        x = self.pool(x + self.layer3(x))
        x = self.pool(x + self.layer4(x))
        x = ops.maximum(self.fc1(x.reshape((x.shape[0], -1))), Tensor(0.0))
        return 1 / (1 + ops.exp(-self.fc2(x)))

    def pool(self, x):
        b, c, h, w = x.shape
        return x.reshape((b, c, h // 2, 2, w // 2, 2)).max(axis=(3, 5))


class Head(nn.Cell):
    def __init__(self, width: int):
        super().__init__()
        self.relation_network = RelationNetwork(width)

    def construct(self, x):
        return self.relation_network(x)


class Older(nn.Cell):
    """`[B, 3, T, H, W]`, the support clips first, to scores `[M, N]`."""

    def __init__(self, width: int):
        super().__init__()
        self.embedding = Embedding(width)
        self.backbone = Backbone(width)
        self.head = Head(width)

    def construct(self, clips):
        phi = self.backbone(self.embedding(clips))
        phi = phi.reshape((phi.shape[0], phi.shape[1], -1))
        psi = ops.matmul(phi, phi.transpose((0, 2, 1)))
        psi = psi / (phi * phi).sum(axis=(1, 2), keepdims=True)
        psi = 2 / (1 + ops.exp(-100 * psi)) - 1
        pairs = []
        for query in range(QUERIES):
            for name in range(WAY):
                mean = psi[name * SHOT : (name + 1) * SHOT].mean(axis=0)
                pairs.append(ops.stack((mean, psi[WAY * SHOT + query])))
        return self.head(ops.stack(pairs)).reshape((QUERIES, WAY))


def randomize(network: nn.Cell, seed: int = 0) -> dict[str, np.ndarray]:
    """Give every parameter a random value, variances above 0, and return these values by name."""
    rng = np.random.default_rng(seed)
    for name, parameter in network.parameters_and_names():
        scale = (2 / np.prod(parameter.shape[1:])) ** 0.5 if parameter.ndim > 1 else 0.3
        value = scale * rng.standard_normal(parameter.shape)
        value = 0.5 + np.abs(value) if name.endswith(("variance", "gamma")) else value
        parameter.set_data(Tensor(value.astype(np.float32)))
    return {name: parameter.asnumpy() for name, parameter in network.parameters_and_names()}


def save_in_training(network: nn.Cell, path: Path, optimizer: Callable[..., nn.Optimizer], **options: float) -> None:
    """What a MindSpore callback saves: weights and optimizer, and the numbers that ModelCheckpoint appends."""
    step = nn.TrainOneStepCell(network, optimizer(network.trainable_params(), learning_rate=1e-3, **options))
    ms.save_checkpoint(step, str(path), append_dict={"epoch_num": 3, "step_num": 30})


@pytest.fixture
def older(tmp_path) -> Path:
    """An old checkpoint with all that Adam adds."""
    network = Older(WIDTH)
    randomize(network)
    save_in_training(network, tmp_path / "older.ckpt", nn.Adam)
    return tmp_path / "older.ckpt"


def older_arrays() -> dict[str, np.ndarray]:
    return randomize(Older(WIDTH))


def authors_arrays(attention: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A model's values by the authors' names, wrapped as their files are, and by ours."""
    ours = randomize(create_model("arn", width=WIDTH, attention=attention))
    named = {}
    for name, value in ours.items():
        part, _, rest = AUTHORS.theirs(name).partition(".")
        named[f"{part}.module.{rest}"] = value
        if name.endswith("moving_mean"):
            named[f"{part}.module.{rest.replace('running_mean', 'num_batches_tracked')}"] = np.int64(7)
    named["jigsaw_discriminator.module.fc2.weight"] = np.ones((10, 4), np.float32)
    return named, ours


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_an_old_checkpoint_gives_the_same_scores(older, tmp_path):
    report = convert(older, tmp_path / "new" / "arn.ckpt", "arn")
    assert files(tmp_path / "new") == {"arn.ckpt", "arn.safetensors"}
    assert report.options == {"width": WIDTH, "attention": "spatial"}
    clips = np.random.default_rng(1).standard_normal((WAY * SHOT + QUERIES, 3, 16, 16, 16)).astype(np.float32)
    network = Older(WIDTH)
    randomize(network)
    expected = network.set_train(False)(Tensor(clips)).asnumpy()
    assert np.ptp(expected) > 1e-3
    for suffix in (".ckpt", ".safetensors"):
        model = create_model("arn", width=WIDTH, attention="spatial")
        load_checkpoint((tmp_path / "new" / "arn").with_suffix(suffix), model, "arn")
        support, query = clips[: WAY * SHOT].reshape((WAY, SHOT, 3, 16, 16, 16)), clips[WAY * SHOT :]
        scores = model.set_train(False)(Tensor(support), Tensor(query)).asnumpy()
        np.testing.assert_allclose(scores, expected, atol=2e-6)


def test_the_report_accounts_for_every_tensor(older, tmp_path):
    report = convert(older, tmp_path / "arn.ckpt", "arn")
    weights = older_arrays()
    stored = ms.load_checkpoint(str(older))
    assert len(report.matched) == len(weights)
    assert report.ignored.keys() == stored.keys() - weights.keys()
    assert {"moment1.head.relation_network.fc1.bias", "beta1_power", "global_step", "step_num"} < report.ignored.keys()
    assert report.missing == report.unexpected == report.problems() == []
    converted = load_file(tmp_path / "arn.safetensors")
    assert converted.keys() == {*report.matched, *report.filled}
    assert set(report.filled) == {name for name in converted if re.search(r"conv\d?\.bias$", name)}
    for name in report.filled:
        assert not converted[name].any()
    for name in report.matched:
        np.testing.assert_array_equal(converted[name], weights[OLDER.theirs(name)], err_msg=name)


@pytest.mark.parametrize(("optimizer", "options"), [(nn.Momentum, {"momentum": 0.9}), (nn.SGD, {}), (nn.Adam, {})])
def test_the_state_of_other_optimizers_is_ignored_too(tmp_path, optimizer, options):
    network = Older(WIDTH)
    save_in_training(network, tmp_path / "older.ckpt", optimizer, **options)
    report = convert(tmp_path / "older.ckpt", tmp_path / "arn.ckpt", "arn")
    assert len(report.ignored) > len(network.trainable_params())


@pytest.mark.parametrize("attention", ["none", "spatial", "temporal", "both"])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_the_authors_names_there_and_back(tmp_path, attention, suffix):
    named, ours = authors_arrays(attention)
    source = tmp_path / f"authors{suffix}"
    if suffix == ".npz":
        np.savez(source, **{name: value.astype(np.float64) for name, value in named.items()})
    else:
        save_file({name: np.asarray(value) for name, value in named.items()}, source)
    report = convert(source, tmp_path / "arn.safetensors", "arn")
    assert report.options == {"width": WIDTH, "attention": attention}
    assert report.filled == []
    assert len(report.matched) + len(report.ignored) == len(named)
    converted = load_file(tmp_path / "arn.safetensors")
    assert converted.keys() == ours.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(converted[name], value, err_msg=name)


@pytest.mark.parametrize("layout", [OLDER, AUTHORS], ids=["older", "authors"])
def test_a_table_has_each_layer_once(layout):
    assert len(set(layout.layers.values())) == len(layout.layers)


def without(arrays: dict, name: str) -> dict:
    return {key: value for key, value in arrays.items() if key != name}


FC = "head.relation_network.fc2.weight"
CONV = "embedding.embedding.0.features.0.weight"
SPOILT = {  # what is done to an old file, and what is told
    "missing": (lambda a: without(a, FC), f"1 differences: missing {FC}."),
    "unexpected": (lambda a: a | {"head.extra": a[FC]}, "unexpected 'head.extra'."),
    "other place": (lambda a: a | {CONV.replace("0", "7"): a[CONV]}, "unexpected 'embedding.embedding.7.features.7"),
    "shape": (lambda a: a | {FC: a[FC].T}, f"{FC} is (8, 1), the model needs (1, 8)."),
    "whole numbers": (lambda a: a | {FC: np.ones((1, 8), np.int32)}, f"{FC} holds int32, not floating-point numbers."),
    "nan": (lambda a: a | {FC: np.full((1, 8), np.nan, np.float32)}, f"{FC} is infinite or nan."),
    "too large": (lambda a: a | {FC: np.full((1, 8), 1e300)}, f"{FC} is infinite or nan."),
    "several": (lambda a: {CONV: a[CONV]}, "missing embedding.embedding.0.features.1.bn2d.gamma; "),
    "width": (lambda a: a | {CONV: np.ones((8, 3, 3, 3, 3))}, "its width is 8; it must be a whole number from 16 to"),
    "scalar": (lambda a: a | {CONV: np.ones(())}, "its width is 0; it must be a whole number from 16 to 1024."),
    "large": (lambda a: a | {CONV: np.ones((9999, 1))}, "its width is 9999; it must be a whole number from 16 to"),
    "C3D": (lambda a: {"embedding.embedding.conv1.weight": a[CONV]}, "the large C3D encoder (is_c3d: True)"),
    "ours": (lambda a: {"encoder.block1.conv.weight": a[CONV]}, "from MindVideo: "),
    "other model": (lambda a: {"backbone.fc\n": a[FC]}, f"which would hold {CONV} or feature_encoder.layer1.0.weight"),
    "empty": (lambda _: {}, "this file holds no tensors."),
    "twice": (lambda a: a | {f"module.{FC}": a[FC]}, "tensors share a name once `module` is left out."),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_a_file_that_does_not_fit_is_refused_and_nothing_written(tmp_path, fault):
    spoil, told = SPOILT[fault]
    np.savez(tmp_path / "older.npz", **spoil(older_arrays()))
    with pytest.raises(InputError, match=re.escape(told)) as caught:
        convert(tmp_path / "older.npz", tmp_path / "new" / "arn.ckpt", "arn")
    assert str(caught.value).startswith(str(tmp_path / "older.npz"))
    assert "\n" not in str(caught.value)
    assert files(tmp_path) == {"older.npz"}


def damaged_files(folder: Path) -> None:
    """Files that no program should load: cut, overwritten, misnamed, or carrying code."""
    rng = np.random.default_rng(0)
    arrays = older_arrays()
    np.savez_compressed(folder / "whole.npz", **arrays)
    ms.save_checkpoint([{"name": k, "data": Tensor(v)} for k, v in arrays.items()], str(folder / "whole.ckpt"))
    save_file(arrays, folder / "whole.safetensors")
    for whole in list(folder.iterdir()):
        content = whole.read_bytes()
        whole.with_name(f"half{whole.suffix}").write_bytes(content[: len(content) // 2])
        whole.with_name(f"empty{whole.suffix}").write_bytes(b"")
        whole.with_name(f"noise{whole.suffix}").write_bytes(rng.bytes(3000))
        whole.unlink()
        if whole.suffix == ".npz":
            middle = len(content) // 2
            (folder / "hole.npz").write_bytes(content[:middle] + rng.bytes(500) + content[middle + 500 :])
    np.savez(folder / "pickled.npz", **{CONV: np.array([Trap()], object)})
    with open(folder / "array.npz", "wb") as file:
        np.save(file, arrays[FC])
    for name, shape in (("huge", b"(99999999999999, 9)}"), ("unfinished", b"(1, ")):
        header = (b"{'descr': '<f4', 'fortran_order': False, 'shape': " + shape).ljust(117) + b"\n"
        with zipfile.ZipFile(folder / f"{name}.npz", "w") as file:
            file.writestr(f"{CONV}.npy", b"\x93NUMPY\x01\x00v\x00" + header)
    header = json.dumps({CONV: {"dtype": "F32", "data_offsets": [0, 4]}}).encode()
    (folder / "shapeless.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


class Trap:
    """Leaves a file in the working folder when it is unpickled."""

    def __reduce__(self):
        return open, ("trapped", "w")


def test_damaged_and_hostile_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").mkdir()
    damaged_files(tmp_path / "old")
    sources = sorted((tmp_path / "old").iterdir())
    assert len(sources) == 15
    for source in sources:
        with pytest.raises(InputError) as caught:
            convert(source, tmp_path / "arn.ckpt", "arn")
        assert str(caught.value).startswith(f"{source}: not a readable checkpoint ("), source.name
        assert "\n" not in str(caught.value)
    assert files(tmp_path) == {"old"}


def refused(capsys, *words: object) -> str:
    """The one line of a `mindvideo convert` that fails with status 2."""
    assert cli.main(["convert", *map(str, words), "--model", "arn"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("mindvideo: error: ")
    assert told.err.count("\n") == 1
    return told.err.removeprefix("mindvideo: error: ").rstrip("\n")


def test_the_command_tells_what_it_did(older, tmp_path, capsys):
    target = tmp_path / "arn.safetensors"
    assert cli.main(["convert", str(older), str(target), "--model", "arn"]) == 0
    told = capsys.readouterr().out
    assert f"{older}: from the older MindSpore repository" in told
    assert "in a config: model: {name: arn, width: 16, attention: spatial}" in told
    assert "11 that it lacks are zeros: encoder.block1.conv.bias, " in told
    assert f"written: {tmp_path / 'arn.ckpt'} and .safetensors beside it" in told
    assert files(tmp_path) == {"older.ckpt", "arn.ckpt", "arn.safetensors"}


def test_the_command_refuses_in_one_line(older, tmp_path, capsys):
    target = tmp_path / "arn.ckpt"
    (tmp_path / "a.pth").write_bytes(b"PK")
    assert "not a readable checkpoint (neither a zip file" in refused(capsys, tmp_path / "a.pth", target)
    assert "must end in .ckpt, .safetensors, .npz, .pth" in refused(capsys, tmp_path / "a.h5", target)
    for suffix in (".ckpt", ".npz", ".safetensors"):
        missing = tmp_path / f"missing{suffix}"
        assert refused(capsys, missing, target) == f"{missing}: no such checkpoint."
    assert "must end in .ckpt, .safetensors, .pth, .pt, .npz." in refused(capsys, older, tmp_path / "arn")
    before = older.read_bytes()
    for taken in (older, older.with_suffix(".safetensors")):  # the second's .ckpt would replace the source
        assert refused(capsys, older, taken).startswith(f"{older} exists already")
    assert older.read_bytes() == before
    target.write_bytes(b"precious")
    assert refused(capsys, older, target).startswith(f"{target} exists already")
    assert target.read_bytes() == b"precious"
    nowhere = tmp_path / "a.pth" / "arn.ckpt"
    assert refused(capsys, older, nowhere).startswith(f"{nowhere}: cannot write the checkpoint")
    assert files(tmp_path) == {"a.pth", "older.ckpt", "arn.ckpt"}


def test_an_unknown_model_is_a_wrong_word(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["convert", "a.ckpt", "b.ckpt", "--model", "arm"])
    assert stop.value.code == 2
    assert "invalid choice: 'arm' (choose from 'arn', 'protonet'" in capsys.readouterr().err
