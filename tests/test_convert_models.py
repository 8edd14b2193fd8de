# SPDX-License-Identifier: Apache-2.0
"""Every model to PyTorch's form and back, bit by bit; what other programs call its parts, and what is told."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from mindspore import nn
from safetensors.numpy import load_file, save_file

from mindvideo import cli
from mindvideo.convert.families import FAMILIES
from mindvideo.convert.files import convert
from mindvideo.convert.torch_file import read_torch, write_torch
from mindvideo.engine.checkpoint import TrainingState, save_checkpoint
from mindvideo.errors import InputError
from mindvideo.models import create_model, list_models
from tests.test_convert import randomize

SMALL: dict[str, dict[str, object]] = {
    "arn": {"width": 16, "attention": "both"},
    "actionnet": {"width": 16, "length": 8, "decoder_width": 16, "num_classes": 7, "num_groups": 3},
    "convnext_tiny": {"width": 8, "depth": 1, "patch": 2, "num_classes": 5, "head": "linear"},
    "c3d": {"width": 4, "num_classes": 3},
    "densenet121": {"num_classes": 3},
} | {name: {"width": 16} for name in ("protonet", "relationnet", "sosn", "two_stream")}
SMALL |= {name: {"width": 4, "num_classes": 3} for name in list_models() if re.search("i3d|slow|tsm|ircsn_r50", name)}
SMALL |= {"tpn_r18": {"width": 8, "num_classes": 3}, "slowfast_r18": {"width": 8, "fast_width": 2, "num_classes": 5}}
VARIANTS: list[tuple[str, dict[str, object]]] = [
    ("convnext_tiny", {"width": 8, "depth": 2, "num_classes": 5, "head": "fc"}),
    ("convnext_tiny", {"width": 8, "depth": 1, "num_classes": 150, "head": "ml_decoder"}),
    ("i3d_r18", {"width": 4, "num_classes": 3, "head": "rpl"}),
    ("i3d_r18", {"width": 4, "num_classes": 3, "head": "gcpl"}),
    ("tsm_r18", {"width": 4, "num_classes": 3, "head": "bayesian"}),
    ("actionnet", {"width": 16, "decoder_width": 16, "num_classes": 4, "motion": 3}),
    ("arn", {"width": 16, "attention": "none", "pooling": "max"}),
    ("arn", {"width": 16, "attention": "temporal", "pooling": "none"}),
    ("arn", {"width": 16, "comparator": "cosine", "pooling": "grid"}),
]


def saved(name: str, path: Path, **options: object) -> nn.Cell:
    model = create_model(name, **options)
    randomize(model)
    save_checkpoint(path, model, TrainingState(name))
    return model


def there_and_back(folder: Path, suffix: str, name: str, **options: object) -> dict[str, np.ndarray]:
    """A model's arrays under PyTorch's names, having checked that they come back as they were."""
    saved(name, folder / "ours.ckpt", **options)
    convert(folder / "ours.safetensors", folder / f"theirs{suffix}", name)
    report = convert(folder / f"theirs{suffix}", folder / "back.ckpt", name)
    assert report.problems() == report.filled == report.fresh == []
    before, after = load_file(folder / "ours.safetensors"), load_file(folder / "back.safetensors")
    assert before.keys() == after.keys()
    for key, array in before.items():
        assert array.tobytes() == after[key].tobytes(), key
        assert array.shape == after[key].shape, key
    return dict(np.load(folder / "theirs.npz")) if suffix == ".npz" else read_torch(folder / f"theirs{suffix}")


@pytest.mark.parametrize("name", SMALL)
def test_every_model_there_and_back(tmp_path, name):
    there_and_back(tmp_path, ".pth", name, **SMALL[name])


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=lambda value: value if isinstance(value, str) else "")
def test_variants_there_and_back(tmp_path, name, options):
    there_and_back(tmp_path, ".npz", name, **options)


def test_every_model_has_a_family():
    assert set(list_models()) == FAMILIES.keys()


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b4"])
def test_image_classifiers_are_recognised(name):
    """Their names alone: the networks are large."""
    shapes = {key: tuple(p.shape) for key, p in create_model(name, num_classes=3).parameters_and_names()}
    assert FAMILIES[name].first in shapes
    assert FAMILIES[name].options(FAMILIES[name].written(shapes), shapes) == {"num_classes": 3}


NAMES = {  # of a converted model: those of the other program's modules, with their shapes
    "actionnet": {
        "map.weight": (16, 144), "lstm.Q.weight": (16, 16), "lstm.fc.0.weight": (16, 16),
        "decoder.decoder.embed_standart.bias": (16,), "decoder.decoder.query_embed.weight": (3, 16),
        "decoder.decoder.duplicate_pooling": (3, 16, 3), "decoder.decoder.duplicate_pooling_bias": (7,),
        "decoder.decoder.layers.0.multihead_attn.in_proj_weight": (48, 16),
        "decoder.decoder.layers.0.multihead_attn.in_proj_bias": (48,),
        "decoder.decoder.layers.0.multihead_attn.out_proj.weight": (16, 16),
        "decoder.decoder.layers.0.linear1.weight": (2048, 16), "decoder.decoder.layers.0.norm3.bias": (16,),
    },
    "convnext_tiny": {
        "features.0.0.weight": (8, 3, 2, 2), "features.0.1.bias": (8,), "features.1.0.block.0.weight": (8, 1, 7, 7),
        "features.1.0.block.2.weight": (8,), "features.5.2.block.3.weight": (128, 32),
        "features.7.0.block.5.bias": (64,), "features.7.0.layer_scale": (64, 1, 1),
        "features.6.0.weight": (32,), "features.6.1.weight": (64, 32, 2, 2),
        "classifier.0.weight": (64,), "classifier.2.weight": (5, 64),
    },
    "tsm_r18": {"backbone.layer1.0.conv1.conv.net.weight": (4, 4, 3, 3), "cls_head.fc_cls.weight": (3, 32)},
    "arn": {"feature_encoder.layer1.0.weight": (16, 3, 3, 3, 3), "temporal_detector.td1.8.bias": (1,)},
    "c3d": {"backbone.conv1a.weight": (4, 3, 3, 3, 3)},
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_other_program_s_names_and_shapes(tmp_path, name):
    saved(name, tmp_path / "ours.ckpt", **SMALL[name])
    convert(tmp_path / "ours.ckpt", tmp_path / "theirs.npz", name)
    shapes = {key: array.shape for key, array in np.load(tmp_path / "theirs.npz").items()}
    assert NAMES[name].items() <= shapes.items()
    if name == "actionnet":
        assert len(shapes) == 25  # as many as published


def test_the_thirds_of_a_stacked_tensor(tmp_path):
    there_and_back(tmp_path, ".npz", "actionnet", **SMALL["actionnet"])
    theirs, ours = np.load(tmp_path / "theirs.npz"), load_file(tmp_path / "ours.safetensors")
    stacked = [ours[f"decoder.attention.{part}.weight"] for part in ("query", "key", "value")]
    np.testing.assert_array_equal(theirs["decoder.decoder.layers.0.multihead_attn.in_proj_weight"], np.vstack(stacked))


def spoilt(folder: Path, name: str, change) -> str:
    """What is told of a model's PyTorch file with some tensors changed."""
    saved(name, folder / "ours.ckpt", **SMALL[name])
    convert(folder / "ours.ckpt", folder / "whole.pth", name)
    write_torch(folder / "spoilt.pth", change(read_torch(folder / "whole.pth")))
    with pytest.raises(InputError) as caught:
        convert(folder / "spoilt.pth", folder / "new.ckpt", name)
    assert not (folder / "new.ckpt").exists()
    return str(caught.value)


def test_a_head_of_another_number_of_classes(tmp_path):
    told = spoilt(tmp_path, "i3d_r18", lambda arrays: arrays | {"cls_head.fc_cls.bias": np.zeros(400, np.float32)})
    assert "1 differences: cls_head.fc_cls.bias is (400,), the model needs (3,)." in told
    assert told.endswith("of a whole file train.backbone=FILE takes the backbone alone.")


def test_what_does_not_fit_is_told_by_the_file_s_names(tmp_path):
    name = "decoder.decoder.layers.0.multihead_attn.in_proj_bias"
    told = spoilt(tmp_path, "actionnet", lambda arrays: arrays | {name: arrays[name][:40]})
    assert f"{name} is (40,), the model needs (16,)" in told


def test_the_command_writes_for_pytorch(tmp_path, capsys):
    model = saved("actionnet", tmp_path / "ours.ckpt", **SMALL["actionnet"])
    words = ["convert", str(tmp_path / "ours.ckpt"), str(tmp_path / "theirs.pt"), "--model", "actionnet"]
    assert cli.main(words) == 0
    told = capsys.readouterr().out
    assert "from MindVideo, by the names of ActionNet's authors (PyTorch)\n" in told
    assert f"  {len(list(model.get_parameters()))} tensors matched\n" in told
    assert told.endswith(f"written: {tmp_path / 'theirs.pt'}\n")
    assert cli.main(words) == 2
    assert (
        capsys.readouterr().err == f"mindvideo: error: {tmp_path / 'theirs.pt'} exists already: choose a free name.\n"
    )
    assert cli.main(["convert", str(tmp_path / "theirs.pt"), str(tmp_path / "b.ckpt"), "--model", "actionnet"]) == 0
    assert "tensors matched, 6 of them reshaped" in capsys.readouterr().out


def test_ours_are_no_checkpoints_to_convert_to_ours(tmp_path):
    saved("protonet", tmp_path / "a.ckpt", width=16)
    for suffix in (".ckpt", ".safetensors"):
        with pytest.raises(InputError, match="has our names already; use it as it is"):
            convert(tmp_path / f"a{suffix}", tmp_path / "b.ckpt", "protonet")


def test_the_optimizer_of_a_run_is_left_out(tmp_path):
    model = create_model("protonet", width=16)
    save_checkpoint(tmp_path / "last.ckpt", model, TrainingState("protonet"), nn.Adam(model.trainable_params()))
    report = convert(tmp_path / "last.ckpt", tmp_path / "theirs.pth", "protonet")
    assert set(report.ignored.values()) == {"tensors of the optimizer"}
    assert read_torch(tmp_path / "theirs.pth").keys() == {name for name, _ in model.parameters_and_names()}


def test_images_are_inflated_from_pytorch_s_own_file(tmp_path):
    """torchvision's ResNet-50, thin; one way, so what is written for PyTorch are the names of MMAction2."""
    saved("i3d_r50", tmp_path / "ours.ckpt", width=4, num_classes=3)
    images = FAMILIES["i3d_r50"].layouts[1]
    arrays = {}
    for name, array in load_file(tmp_path / "ours.safetensors").items():
        if name.startswith("backbone."):
            arrays[images.theirs(name)] = array.sum(axis=2) if array.ndim == 5 else array
    write_torch(tmp_path / "resnet.pth", arrays | {"fc.weight": np.ones((1000, 128), np.float32)})
    report = convert(tmp_path / "resnet.pth", tmp_path / "inflated.npz", "i3d_r50")
    assert report.layout is images
    assert len(report.reshaped) == 53
    stem = np.load(tmp_path / "inflated.npz")["backbone.conv1.conv.weight"]
    np.testing.assert_allclose(stem.sum(axis=2), arrays["conv1.weight"], rtol=1e-6)


def test_half_numbers_of_safetensors(tmp_path):
    saved("protonet", tmp_path / "ours.ckpt", width=16)
    halves = {name: array.astype(np.float16) for name, array in load_file(tmp_path / "ours.safetensors").items()}
    save_file(halves, tmp_path / "halves.safetensors")
    convert(tmp_path / "halves.safetensors", tmp_path / "theirs.pth", "protonet")
    for name, array in read_torch(tmp_path / "theirs.pth").items():
        np.testing.assert_array_equal(array, halves[name].astype(np.float32))


def test_bfloat16_numbers_of_safetensors(tmp_path):
    saved("protonet", tmp_path / "ours.ckpt", width=16)
    bits = {k: (a.view(np.uint32) >> 16).astype(np.uint16) for k, a in load_file(tmp_path / "ours.safetensors").items()}
    header, place = {}, 0
    for name, array in bits.items():
        header[name] = {"dtype": "BF16", "shape": array.shape, "data_offsets": [place, place + array.nbytes]}
        place += array.nbytes
    text = json.dumps(header).encode()
    parts = [len(text).to_bytes(8, "little"), text, *(array.tobytes() for array in bits.values())]
    (tmp_path / "halves.safetensors").write_bytes(b"".join(parts))
    convert(tmp_path / "halves.safetensors", tmp_path / "theirs.pth", "protonet")
    for name, array in read_torch(tmp_path / "theirs.pth").items():
        np.testing.assert_array_equal(array.view(np.uint32), bits[name].astype(np.uint32) << 16)
