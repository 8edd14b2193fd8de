# SPDX-License-Identifier: Apache-2.0
"""The parts of ARN against golden arrays made with its authors' code: every file of each family that is found is run.

Tolerances are those the arrays' own float32/float64 twins show: 3e-6 absolute for module outputs and maps, 2e-5
relative for gradients of single modules; where many sums follow one another, a few times as much.
"""

from __future__ import annotations

import re
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops
from scipy.special import softmax

from mindvideo.losses.fewshot import classification_loss, relation_loss
from mindvideo.metrics.fewshot import mean_interval
from mindvideo.models.arn import ARN, Discriminator, Pooling, SpatialAttention, TemporalAttention
from mindvideo.models.c3d import Conv4Encoder
from mindvideo.models.relation import MatrixRelation
from tests.parity import recipe
from tests.parity.checks import (
    check,
    check_buffers,
    check_gradients,
    check_relative,
    each,
    gradients,
    probe_loss,
    value,
)


@each("encoder_*.npz")
def test_encoder(path: Path):
    golden = np.load(path)
    encoder = Conv4Encoder(momentum=1.0)
    n, _, t, h, w = golden["input_shape"].tolist()
    x = recipe.clips(int(golden["input_seed"]), n, t, h, w)
    np.testing.assert_allclose(x.ravel()[:8], golden["input_first8"], atol=1e-7)
    for mode in [m for m in ("eval", "train") if f"{m}/out_mean_nc" in golden.files]:
        recipe.fill(encoder, int(golden["weight_seed"]), prefix="encoder.")
        encoder.set_train(mode == "train")
        y = encoder(Tensor(x)).asnumpy()
        assert y.shape == tuple(golden[f"{mode}/out_shape"])
        check(golden, f"{mode}/out" if f"{mode}/out" in golden.files else f"{mode}/out_slice", y, atol=2e-5)
        check(golden, f"{mode}/out_mean_nc", y.mean((2, 3, 4)), atol=3e-6)
        check(golden, f"{mode}/out_max_nc", y.max((2, 3, 4)), atol=2e-5)
        check(golden, f"{mode}/out_mean_hw", y.mean((0, 1, 2)), atol=3e-6)
        check_buffers(golden, mode, encoder, "encoder.")
        if f"{mode}/grad_names" in golden.files:
            recipe.fill(encoder, int(golden["weight_seed"]), prefix="encoder.")
            loss_of = probe_loss(encoder, golden["input_seed"], y.shape)
            loss, grads = gradients(loss_of, encoder, Tensor(x))
            assert float(loss) == pytest.approx(float(golden[f"{mode}/probe_loss_f64"]), abs=1e-6)
            check_gradients(golden, mode, grads, 1e-3, "encoder.")


def attention_input(golden) -> np.ndarray:
    n, c, t, h, w = golden["input_shape"].tolist()
    phi = recipe.features(int(golden["input_seed"]), n, c, t, h, w)
    np.testing.assert_allclose(phi.ravel()[:8], golden["input_first8"], atol=1e-7)
    return phi


@each("attention_*.npz")
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_attention_maps(path: Path, mode: str):
    """Each unit as a graph, and all three output functions of the authors' variants from the logits."""
    golden = np.load(path)
    phi = attention_input(golden)
    for unit, prefix, letter, axis in (
        (SpatialAttention(phi.shape[1], momentum=1.0), "spatial_attention.", "S", 1),
        (TemporalAttention(phi.shape[1], momentum=1.0), "temporal_attention.", "T", 2),
    ):
        recipe.fill(unit, int(golden["weight_seed"]), prefix=prefix)
        unit.set_train(mode == "train")
        check(golden, f"{mode}/sigmoid/{letter}", unit(Tensor(phi)), atol=3e-6)
        check_buffers(golden, f"{mode}/sigmoid", unit, prefix)
        logits = unit.logits(Tensor(phi)).asnumpy()
        check(golden, f"{mode}/linear/{letter}", logits, atol=1e-5)
        # The authors' softmax is over time for the temporal unit, and over the one channel for the spatial unit.
        check(golden, f"{mode}/softmax/{letter}", softmax(logits, axis=axis), atol=3e-6)


def attention_variants(golden) -> dict[str, tuple[str, float, float]]:
    """Attention, alpha_t and alpha_s of each variant in the file; the rows of `alphas` are the combined ones."""
    combined = dict.fromkeys(name.split("/")[2] for name in golden.files if "/sata_" in name)
    alphas = golden["alphas"].tolist()
    return {
        "sa_1plusS": ("spatial", 1.0, 1.0),
        "ta_1plusT": ("temporal", 1.0, 1.0),
        **{name: ("both", *row) for name, row in zip(combined, alphas, strict=True)},
    }


@each("attention_*.npz")
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.usefixtures("pynative")
def test_attended_features(path: Path, mode: str):
    golden = np.load(path)
    phi = attention_input(golden)
    for variant, (attention, alpha_temporal, alpha_spatial) in attention_variants(golden).items():
        key = f"{mode}/sigmoid/{variant}"
        model = ARN(
            width=phi.shape[1], attention=attention, alpha_temporal=alpha_temporal, alpha_spatial=alpha_spatial,
            momentum=1.0,
        )  # fmt: skip
        recipe.fill(model, int(golden["weight_seed"]))
        model.set_train(mode == "train")

        def attended(phi: Tensor, model: ARN = model) -> Tensor:
            return model.attend(phi)[0]

        weighted = attended(Tensor(phi)).asnumpy()
        check(golden, f"{key}/phi_slice", weighted, atol=1e-5)
        check(golden, f"{key}/phi_mean_nc", weighted.mean((2, 3, 4)), atol=3e-6)
        check(golden, f"{key}/phi_mean_nthw", weighted.mean(1), atol=3e-6)
        if mode == "train":
            recipe.fill(model, int(golden["weight_seed"]))
            loss, grads = gradients(probe_loss(attended, golden["input_seed"], phi.shape), model, Tensor(phi))
            assert float(loss) == pytest.approx(float(value(golden, f"{key}/probe_loss")), abs=1e-6)
            check_relative(golden, f"{key}/grad_phi_slice", grads["input"], 1e-4)
            check_gradients(golden, key, grads, 1e-3)


@each("pooling*.npz")
@pytest.mark.usefixtures("pynative")
def test_pooling(path: Path):
    golden = np.load(path)
    for group in sorted({name.split("/")[0] for name in golden.files}):
        n, c, t, h, w = golden[f"{group}/input_shape"].tolist()
        if f"{group}/phi" in golden.files:
            phi = golden[f"{group}/phi"]
        else:
            phi = recipe.features(int(golden[f"{group}/input_seed"]), n, c, t, h, w)
        formula = f"{group}/from_formula"
        check(golden, f"{formula}/average", Pooling("average")(Tensor(phi)), atol=3e-6)
        check(golden, f"{formula}/max", Pooling("max")(Tensor(phi)), atol=3e-6)
        matrices = Pooling("second_order")(Tensor(phi)).asnumpy()
        check(golden, f"{formula}/second_order_trace_no_pn", matrices, atol=3e-6)
        np.testing.assert_array_equal(Pooling("none")(Tensor(phi)).asnumpy(), phi)
        for sigma in golden[f"{group}/sigmas"].tolist():
            key = f"{group}/sigma{sigma:g}"
            averages = Pooling("average_pn", sigma=sigma)(Tensor(phi))
            check(golden, f"{formula}/sigma{sigma:g}/average_pn", averages, atol=1e-5)
            pooling = Pooling("second_order_pn", sigma=sigma)
            psi = pooling(Tensor(phi)).asnumpy()
            check(golden, f"{formula}/sigma{sigma:g}/second_order_trace_pn", psi, atol=3e-6)
            check(golden, f"{key}/psi", psi, atol=3e-6)
            by_class = psi.reshape(-1, int(golden[f"{group}/Z"]), c, c)
            check(golden, f"{key}/proto_mean", by_class.mean(1), atol=3e-6)
            if f"{group}/proto_max_sigma{sigma:g}" in golden.files:
                check(golden, f"{group}/proto_max_sigma{sigma:g}", by_class.max(1), atol=3e-6)
            loss_of = probe_loss(pooling, golden[f"{group}/input_seed"], psi.shape)
            grad = ms.grad(loss_of)(Tensor(phi)).asnumpy() * psi.size  # the file's probe is a sum
            check_relative(golden, f"{key}/grad_phi_slice", grad, 5e-5)


@each("comparator*.npz")
def test_comparator(path: Path):
    golden = np.load(path)
    comparator = MatrixRelation(golden["pairs"].shape[-1], momentum=1.0)
    pairs, target = Tensor(golden["pairs"]), Tensor(golden["eval/target"])
    swapped = Tensor(golden["pairs"][:, ::-1].copy())

    def scores(pairs: Tensor) -> Tensor:
        return ops.sigmoid(comparator(pairs))

    def loss_of(pairs: Tensor, target: Tensor) -> Tensor:
        return relation_loss(scores(pairs), target)

    for mode in ("eval", "train"):
        recipe.fill(comparator, int(golden["weight_seed"]), prefix="comparator.")
        comparator.set_train(mode == "train")
        check(golden, f"{mode}/logits", comparator(pairs), atol=2e-5)
        check(golden, f"{mode}/scores", scores(pairs), atol=3e-6)
        check_buffers(golden, mode, comparator, "comparator.")
        check(golden, f"{mode}/scores_swapped_channels", scores(swapped), atol=3e-6)
        recipe.fill(comparator, int(golden["weight_seed"]), prefix="comparator.")
        loss, grads = gradients(loss_of, comparator, pairs, target)
        assert float(loss) == pytest.approx(float(value(golden, f"{mode}/mse_mean")), abs=1e-6)
        check_gradients(golden, mode, grads, 1e-3, "comparator.")


@each("discriminator*.npz")
@pytest.mark.usefixtures("pynative")
def test_discriminator(path: Path):
    golden = np.load(path)
    groups = dict.fromkeys(name.rsplit("/", 1)[0] for name in golden.files if name.endswith("/feature_seed"))
    assert groups
    for group in groups:
        classes, size, mode = group.split("/")
        frames, height, width = (int(number) for number in re.findall(r"\d+", size))
        labels = golden[f"{group}/labels"]
        phi = Tensor(recipe.features(int(golden[f"{group}/feature_seed"]), len(labels), 64, frames, height, width))
        model = Discriminator(64, (frames, height, width), int(classes[1:]), momentum=1.0)
        recipe.fill(model, int(golden["weight_seed"]), prefix="discriminator.")
        model.set_train(mode == "train")
        assert model.fc1.weight.shape[1] == golden[f"{group}/fc1_in"]
        check(golden, f"{group}/logits", model(phi), atol=2e-5)
        check_buffers(golden, group, model, "discriminator.", module="jigsaw_discriminator.")

        def loss_of(phi: Tensor, labels: Tensor, model: Discriminator = model) -> Tensor:
            return classification_loss(model(phi), labels)

        recipe.fill(model, int(golden["weight_seed"]), prefix="discriminator.")
        loss, grads = gradients(loss_of, model, phi, Tensor(labels))
        assert float(loss) == pytest.approx(float(value(golden, f"{group}/L_ss_mean")), abs=1e-5)
        of_sum = {name: len(labels) * gradient for name, gradient in grads.items()}
        norm = np.linalg.norm(of_sum["input"])
        assert norm == pytest.approx(float(value(golden, f"{group}/grad_x_norm_of_sum")), rel=1e-3)
        check_gradients(golden, group, of_sum, 1e-3, "discriminator.")


@each("accuracy_stats*.npz")
def test_interval(path: Path):
    golden = np.load(path)
    for key in sorted({n.split("/")[0] for n in golden.files if "/" in n}):
        mean, half = mean_interval(golden["accuracies_f64"][: int(key[1:])])
        assert mean == pytest.approx(float(golden[f"{key}/mean_f64"]), abs=1e-12)
        assert half == pytest.approx(float(golden[f"{key}/half_width95_f64"]), abs=1e-12)
