# SPDX-License-Identifier: Apache-2.0
"""ConvNeXt and its heads, gradient concealment, random padding and mixing against golden arrays made with the authors'
code, all of every file found."""

from __future__ import annotations

import json
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from mindvideo.convert.files import match
from mindvideo.data.mixing import cutmix, mixup
from mindvideo.losses.fewshot import classification_loss
from mindvideo.models.layers import leave
from mindvideo.models.robust import GradientConcealment, ResizedPadding, placements
from tests.parity import recipe
from tests.parity.recipe_actionnet import each

pytestmark = pytest.mark.usefixtures("pynative")
LOGITS = 1e-4  # largest difference in networks of true size


def drawn(shapes: dict[str, list[int]], seed: int) -> dict[str, np.ndarray]:
    """The recipe's weights: of standard normal numbers drawn name by name in order."""
    rs, arrays = np.random.RandomState(seed), {}
    for name in sorted(shapes):
        z = rs.standard_normal(shapes[name])
        if name.endswith("layer_scale"):
            value = 0.5 + 0.1 * z
        elif name.endswith("query_embed.weight"):
            value = z
        elif name.endswith("duplicate_pooling"):
            value = z / np.sqrt(shapes[name][1])
        elif z.ndim == 1:
            value = 1 + 0.1 * z if name.endswith("weight") else 0.1 * z
        else:
            value = z / np.sqrt(np.prod(shapes[name][1:]))
        arrays[name] = value.astype(np.float32)
    return arrays


def network(path: Path, golden) -> nn.Cell:
    """The file's network with the recipe's weights, every one of which is used."""
    manifest = path.with_name(f"manifest_{path.stem.removesuffix('_recipe')}.json")
    shapes = json.loads(manifest.read_text())["params"]
    model, weights, report = match(path, drawn(shapes, int(golden["recipe_seed"])), "convnext_tiny")
    assert report.problems() == report.fresh == report.filled == []
    for name, parameter in model.parameters_and_names():
        parameter.set_data(Tensor(weights[name]))
    return model


@each("convnext*.npz")
def test_network(path: Path):
    golden = np.load(path)
    x = np.random.RandomState(int(golden["x_seed"])).uniform(0, 1, golden["x_shape"]).astype(np.float32)
    model, images = network(path, golden), Tensor(x)
    plain = "logits" if "logits" in golden.files else "logits_nopad"
    np.testing.assert_allclose(model(images).asnumpy(), golden[plain], atol=LOGITS, rtol=0)
    if "last_map_slice" in golden.files:
        features = leave(model.features(images)).asnumpy()
        np.testing.assert_allclose(features[:, ::64, ::2, ::2], golden["last_map_slice"], atol=LOGITS, rtol=0)
        np.testing.assert_allclose(features.mean((2, 3)), golden["pooled_feature_nopad"], atol=LOGITS, rtol=0)
        final = [features.mean(), features.std(), np.abs(features).max()]
        np.testing.assert_allclose(final, golden["stage_mean_std_absmax"][-1], rtol=1e-4)
    if "logits_gcm_pad" in golden.files:
        left, _, top, _ = golden["pad_left_right_top_bottom"]
        places = [Tensor(np.full(len(x), place, np.int32)) for place in (golden["l"], left, top)]
        padded = ResizedPadding().place(GradientConcealment()(images), *places)
        np.testing.assert_allclose(model(padded).asnumpy(), golden["logits_gcm_pad"], atol=LOGITS, rtol=0)


@each("gcm*.npz")
@pytest.mark.parametrize("mode", [ms.PYNATIVE_MODE, ms.GRAPH_MODE], ids=["pynative", "graph"])
def test_concealment(path: Path, mode: int):
    """Forward, and the concealed gradient: relative to the golden one, or absolute where that is small."""
    golden = np.load(path)
    ms.set_context(mode=mode)
    frequency, epsilon = float(golden["w"]), float(golden["epsilon"])
    layer, upstream = GradientConcealment(frequency, epsilon), Tensor(golden["upstream_grad"])
    honest = GradientConcealment(frequency, epsilon, identity_gradient=True)

    def of_layer(x):
        return (layer(x) * upstream).sum()

    def of_honest(x):
        return (honest(x) * upstream).sum()

    x = Tensor(golden["x"])
    rounding = 0.0 if frequency * epsilon > 1e6 else 1e-7
    np.testing.assert_allclose(layer(x).asnumpy(), golden["y"], atol=rounding, rtol=0)
    np.testing.assert_array_equal(honest(x).asnumpy(), layer(x).asnumpy())
    absolute = 0.0 if frequency * epsilon > 1e6 else 1e-4
    np.testing.assert_allclose(ms.grad(of_layer)(x).asnumpy(), golden["grad_x"], rtol=1e-5, atol=absolute)
    np.testing.assert_array_equal(ms.grad(of_honest)(x).asnumpy(), golden["upstream_grad"])


@each("resizedpad_*.npz", holding="y")
def test_padding(path: Path):
    golden = np.load(path)
    left, _, top, _ = golden["pad_left_right_top_bottom"]
    layer = ResizedPadding(golden["y"].shape[2], int(golden["l_min"]))
    places = [Tensor(np.full(len(golden["x"]), place, np.int32)) for place in (golden["l"], left, top)]
    np.testing.assert_array_equal(layer.place(Tensor(golden["x"]), *places).asnumpy(), golden["y"])


@each("resizedpad_draws*.npz")
def test_every_published_draw_is_one_of_ours(path: Path):
    draws = next(golden for golden in [np.load(path)])["seed_l_left_right_top_bottom"]
    ours = {tuple(place) for place in placements(224, 218)}
    assert len(ours) == 91
    for _, side, left, right, top, bottom in draws:
        assert (side, left, top) in ours
        assert side + left + right == side + top + bottom == 224


@each("mixup_cutmix*.npz")
def test_mixing(path: Path):
    golden = np.load(path)
    share = float(golden["mix_lam"])
    np.testing.assert_allclose(mixup(golden["x"], golden["mix_index"], share), golden["mix_x"], atol=1e-7)
    mixed, left = cutmix(golden["x"], golden["cut_index"], tuple(golden["cut_bbox_rows_cols"]))
    np.testing.assert_array_equal(mixed, golden["cut_x"])
    assert left == pytest.approx(float(golden["cut_lam_final"]), abs=1e-12)
    np.testing.assert_array_equal(golden["y"][golden["cut_index"]], golden["cut_yb"])
    losses = [
        float(classification_loss(Tensor(golden["mix_logits"]), Tensor(labels.astype(np.int32))))
        for labels in (golden["y"], golden["mix_yb"])
    ]
    assert share * losses[0] + (1 - share) * losses[1] == pytest.approx(float(golden["mix_loss"]), abs=5e-6)


def test_there_are_files_of_each_family():
    if not recipe.golden_files("actionnet", "*.npz"):
        pytest.skip("no golden arrays")
    for pattern in ("convnext*", "gcm*", "resizedpad*", "mixup_cutmix*"):
        assert recipe.golden_files("actionnet", f"{pattern}.npz"), pattern
