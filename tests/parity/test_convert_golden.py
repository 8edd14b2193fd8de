# SPDX-License-Identifier: Apache-2.0
"""Checkpoints under the names of the authors' programs, converted by the command's way, give the golden outputs: all of
every file that holds or names weights. ConvNeXt's are in test_robust.py, DEAR's of published size in
test_dear_backbones.py."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor, nn

from mindvideo.convert.files import Report, convert
from mindvideo.convert.torch_file import write_torch
from mindvideo.engine.checkpoint import load_checkpoint
from mindvideo.models import create_model
from tests.parity import recipe, recipe_dear
from tests.parity.checks import ABSENT
from tests.parity.recipe_actionnet import stored
from tests.parity.test_arn_episode import ATTENTION, episode_clips, fill

pytestmark = pytest.mark.usefixtures("pynative")


def each(family: str, pattern: str, holding: str) -> pytest.MarkDecorator:
    """Run a test on the golden files of a family that have an array whose name starts with `holding`."""
    files = [
        path for path in recipe.golden_files(family, pattern)
        if any(name.startswith(holding) for name in np.load(path).files)
    ]  # fmt: skip
    return pytest.mark.parametrize("path", files or [pytest.param(None, marks=ABSENT)], ids=lambda p: p and p.stem)


def converted(arrays: dict[str, np.ndarray], folder: Path, form: str, name: str, **options: object) -> nn.Cell:
    """The model that a file of these arrays becomes; `options` are those that are not in a file."""
    source = folder / f"theirs{form}"
    if form == ".npz":
        np.savez(source, **arrays)
    else:
        write_torch(source, {f"module.{key}": array for key, array in arrays.items()})
    report: Report = convert(source, folder / "ours.ckpt", name)
    assert report.missing == report.unexpected == report.filled == report.fresh == []
    model = create_model(name, **{**report.options, **options})
    load_checkpoint(folder / "ours.ckpt", model, name)
    return model.set_train(False)


@each("actionnet", "actnet_small_T*.npz", "sd/")
@pytest.mark.parametrize("form", [".pth", ".npz"])
def test_actionnet(path: Path, form: str, tmp_path: Path):
    golden = np.load(path)
    heads = {"num_heads": int(golden["heads"])} if "heads" in golden.files else {}
    length = int(golden["action_length"])
    model = converted(stored(golden, "sd/"), tmp_path, form, "actionnet", length=length, **heads)
    logits = model(Tensor(golden["x"][None])).asnumpy()
    np.testing.assert_allclose(logits.reshape(golden["logits"].shape), golden["logits"], atol=2e-5)


@each("dear", "small_*.npz", "cls_score")
def test_video_networks(path: Path, tmp_path: Path):
    """Weights that the file holds, or else those of its names and shapes by the recipe."""
    golden = np.load(path)
    arrays = stored(golden, "sd/")
    if not arrays:
        for name, shape in zip(golden["param_names"].tolist(), golden["param_shapes"].tolist(), strict=True):
            if not name.endswith("num_batches_tracked"):
                arrays[name] = recipe_dear.weight(name, tuple(json.loads(shape)), int(golden["weight_seed"]))
    name, _ = recipe_dear.made_of(golden, path.stem.split("_")[1])
    model = converted(arrays, tmp_path, ".pth", name)
    logits = model(Tensor(recipe_dear.views(golden))).asnumpy()
    np.testing.assert_allclose(logits, golden["cls_score"], atol=2e-5)


@each("arn", "episode_*.npz", "sa/eval/scores")
def test_arn(path: Path, tmp_path: Path):
    golden = np.load(path)
    support, query = episode_clips(golden)
    for variant in [name.split("/")[0] for name in golden.files if name.endswith("/eval/scores")]:
        attention, alpha_temporal, alpha_spatial = ATTENTION[variant.partition("+")[0]]
        if variant in ("sa", "sata_hmdb51"):
            source = create_model("arn", attention=attention)
            fill(source, golden)
            arrays = {recipe.theirs(name): p.asnumpy() for name, p in source.parameters_and_names()}
            (tmp_path / variant).mkdir()
            options = {
                "alpha_temporal": alpha_temporal,
                "alpha_spatial": alpha_spatial,
                "sigma": float(golden["sigma"]),
            }
            model = converted(arrays, tmp_path / variant, ".pth", "arn", **options)
            np.testing.assert_allclose(model(support, query).asnumpy(), golden[f"{variant}/eval/scores"], atol=1e-5)
