# SPDX-License-Identifier: Apache-2.0
"""DEAR's networks against golden arrays made with its authors' code: every file of a family that is found is run.

Float32 and float64 logits of the reference differ by 5e-6 at most.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor, nn
from safetensors.numpy import save_file

from mindvideo.convert import files
from mindvideo.convert.files import convert, match
from mindvideo.engine.checkpoint import read_checkpoint
from mindvideo.losses.evidential import EVIDENCE
from mindvideo.models import create_model
from mindvideo.models.layers import leave, time_axis
from mindvideo.models.resnet3d import TemporalShift
from mindvideo.models.tsm import SHIFT_DIV
from tests.parity import recipe_dear
from tests.parity.recipe import golden_files


def each(*patterns: str):
    files = [path for pattern in patterns for path in golden_files("dear", pattern)]
    absent = pytest.param(None, marks=pytest.mark.skip(reason="no golden arrays"))
    return pytest.mark.parametrize("path", files or [absent], ids=lambda path: path.stem if path else "absent")


@each("small_*.npz", "full_*.npz")
@pytest.mark.usefixtures("pynative")
def test_network(path: Path):
    golden = np.load(path)
    name, options = recipe_dear.made_of(golden, path.stem.split("_")[1])
    model = create_model(name, head="evidential", **options)
    recipe_dear.fill(model, name, golden["weight_seed"])
    model.set_train(False)
    clips = Tensor(recipe_dear.views(golden))
    maps = keep_maps(model, name)
    logits_VK = model(clips).asnumpy()
    np.testing.assert_allclose(logits_VK, golden["cls_score_f64"], atol=2e-5)
    average_NK = logits_VK.reshape(*golden["avg_score"].shape[:1], -1, logits_VK.shape[1]).mean(axis=1)
    alpha_NK = EVIDENCE["exp"](Tensor(average_NK)).asnumpy() + 1
    key = "avg/uncertainty" if "avg/uncertainty" in golden.files else "uncertainty"
    np.testing.assert_allclose(alpha_NK.shape[1] / alpha_NK.sum(axis=1), golden[key], rtol=1e-5)
    for place, features in enumerate(feature_maps(maps, name)):
        if f"feat{place}" in golden.files:
            np.testing.assert_allclose(features, golden[f"feat{place}"], atol=5e-6 * max(10, features.max()))
        elif f"backbone_out{place}_pooled" in golden.files:
            pooled = features.reshape(*features.shape[:2], -1).mean(axis=2)
            np.testing.assert_allclose(pooled.reshape(-1), golden[f"backbone_out{place}_pooled"].reshape(-1), atol=2e-5)


def keep_maps(model: nn.Cell, name: str) -> list[Tensor]:
    """A list for the maps of the model's last stages, which its next call puts there."""
    maps: list[Tensor] = []
    trunk = model.backbone.trunk if name.startswith("tpn") else model.backbone
    method = "pathways" if name.startswith("slowfast") else "last_maps"
    given = getattr(trunk, method)

    def kept(clips: Tensor) -> tuple[Tensor, ...]:
        maps.extend(given(clips))
        return tuple(maps)

    setattr(trunk, method, kept)
    return maps


def feature_maps(maps: list[Tensor], name: str) -> list[np.ndarray]:
    """What the reference calls the backbone's outputs."""
    if name.startswith("slowfast"):
        return [features.asnumpy() for features in maps]
    if name.startswith("tpn"):
        return [leave(features).asnumpy() for features in maps]
    features = leave(maps[1]).asnumpy()
    if name.startswith("tsm"):  # there the frames are in the batch
        features = features.swapaxes(1, 2).reshape(-1, features.shape[1], *features.shape[3:])
    return [features]


@each("small_tsm*.npz")
@pytest.mark.usefixtures("pynative")
def test_temporal_shift(path: Path):
    golden = np.load(path)
    groups = {name.split("/")[1] for name in golden.files if name.startswith("shift/")}
    assert groups
    for group in groups:
        x, y = golden[f"shift/{group}/x"], golden[f"shift/{group}/y"]
        segments, div = golden[f"shift/{group}/segments_div"].tolist()

        def apart(frames: np.ndarray, segments: int = segments) -> np.ndarray:
            return frames.reshape(-1, segments, *frames.shape[1:]).swapaxes(1, 2)

        clips = apart(x)
        layout = clips if time_axis() == 2 else clips.transpose(0, 2, 3, 4, 1)
        shifted = leave(TemporalShift(x.shape[1], div)(Tensor(np.ascontiguousarray(layout)))).asnumpy()
        np.testing.assert_array_equal(shifted, apart(y))
    assert SHIFT_DIV == 8


@each("inflate_*.npz")
@pytest.mark.usefixtures("pynative")
def test_inflation(path: Path, tmp_path: Path):
    """Weights of images become ours by the command's way, and the head is filled by the recipe."""
    golden = np.load(path)
    images = {name.removeprefix("sd2d/"): golden[name] for name in golden.files if name.startswith("sd2d/")}
    save_file({name: np.ascontiguousarray(array) for name, array in images.items()}, tmp_path / "images.safetensors")
    name = f"{golden['kind']}_r50"
    report = convert(tmp_path / "images.safetensors", tmp_path / "inflated.ckpt", name)
    assert set(report.fresh) == {"head.fc.weight", "head.fc.bias"}
    arrays, _ = read_checkpoint(tmp_path / "inflated.ckpt")
    sums = [key for key in golden.files if key.startswith("abs_sum3d/")]
    assert sums
    ours = {recipe_dear.theirs(name, own).removeprefix("backbone."): array for own, array in arrays.items()}
    for key in sums:
        total = np.abs(ours[key.removeprefix("abs_sum3d/")].astype(np.float64)).sum()
        assert total == pytest.approx(float(golden[key]), rel=1e-6), key
    for key in [key for key in golden.files if key.startswith("sd3d/")]:
        np.testing.assert_allclose(ours[key.removeprefix("sd3d/")], golden[key], rtol=1e-6)
    model = create_model(name, num_classes=golden["cls_score"].shape[1], width=report.options["width"])
    recipe_dear.fill(model, name, golden["seed3d"])
    for parameter in model.get_parameters():
        if parameter.name.startswith("backbone."):
            parameter.set_data(Tensor(arrays[parameter.name]))
    model.set_train(False)
    scores = model(Tensor(recipe_dear.views(golden))).asnumpy()
    np.testing.assert_allclose(scores, golden["cls_score"], atol=2e-5)


def test_every_published_name_has_a_place(monkeypatch):
    """The state dicts of all published models, shape by shape, become ours with nothing missing or left over."""
    listing = golden_files("dear", "param_names_full.json")
    if not listing:
        pytest.skip("no golden arrays")
    # Models that differ in what ours leave out follow each other, and share a network.
    monkeypatch.setattr(files, "create_model", functools.lru_cache(maxsize=1)(files.create_model))
    kinds = json.loads(listing[0].read_text())
    for kind in sorted(kinds, key=lambda kind: (kind.split("_")[0], kind.split("_")[1] in ("bnn", "rpl"), kind)):
        listed = kinds[kind]
        # One number in all places takes no memory; half a billion of them are debiasing's.
        arrays = {name: np.broadcast_to(np.float32(1), shape) for name, shape in listed["tensors"].items()}
        network, weights, report = match(Path(kind), arrays, f"{kind.split('_')[0]}_r50")
        assert report.problems() == report.fresh == report.filled == [], kind
        assert weights.keys() == {parameter.name for parameter in network.get_parameters()}
        assert (report.options["num_classes"], report.options["width"]) == (101, 64)
        rest = sum(np.prod(arrays[name].shape) for name in report.ignored)
        assert rest + sum(array.size for array in weights.values()) == sum(array.size for array in arrays.values())
