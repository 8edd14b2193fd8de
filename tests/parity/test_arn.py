# SPDX-License-Identifier: Apache-2.0
"""ARN against golden arrays made with its authors' code: every file of each family that is found is run.

Tolerances are those the arrays' own float32/float64 twins show: 3e-6 absolute for module outputs and scores, 2e-5
relative for gradients of single modules, 2e-2 for gradients of whole training episodes.
"""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from mindvideo.losses.fewshot import relation_loss
from mindvideo.metrics.fewshot import episode_accuracy, mean_interval
from mindvideo.models.arn import ARN, Comparator, SecondOrderPooling, SpatialAttention
from mindvideo.models.c3d import Conv4Encoder
from tests.parity import recipe


def each(pattern: str):
    files = recipe.golden_files("arn", pattern)
    return pytest.mark.parametrize(
        "path", files or [pytest.param(None, marks=pytest.mark.skip(reason="no golden arrays"))],
        ids=lambda p: p.stem if p else "absent",
    )  # fmt: skip


def gradients(loss_of, model, *inputs):
    """Loss, and gradients by our parameter names."""
    parameters = [p for p in model.get_parameters() if p.requires_grad]
    loss, grads = ms.value_and_grad(loss_of, None, parameters)(*inputs)
    return loss, {p.name: g.asnumpy() for p, g in zip(parameters, grads, strict=True)}


def probe_loss(model, input_seed, shape):
    """mean(model(x) * R), the files' way to a scalar."""
    weights = Tensor(recipe.probe(input_seed, shape).astype(np.float32))

    def loss_of(x):
        return (model(x) * weights).mean()

    return loss_of


def episode_loss(model):
    def loss_of(support, query, target):
        return relation_loss(model(support, query), target)

    return loss_of


def feeds_a_norm(reference_name: str) -> bool:
    """Conv biases in front of a train-mode BatchNorm: their true gradient is zero, what is left is rounding."""
    return reference_name.endswith((".0.bias", "sd1.4.bias"))


def check_gradients(golden, key: str, grads: dict[str, np.ndarray], tolerance: float, prefix: str = ""):
    checked = 0
    for name in golden.files:
        if not name.startswith(f"{key}/grad/") or name.endswith("_f64"):
            continue
        reference = name.split("/grad/")[1]
        expected = golden[name + "_f64"] if name + "_f64" in golden.files else golden[name]
        own = recipe.ours(reference).removeprefix(prefix)
        assert recipe.relative_error(grads[own], expected) < tolerance, reference
        checked += 1
    norms = "grad_norms_f64" if f"{key}/grad_norms_f64" in golden.files else "grad_norms"
    for reference, expected in zip(golden[f"{key}/grad_names"], golden[f"{key}/{norms}"], strict=True):
        if feeds_a_norm(str(reference)):
            continue
        norm = np.linalg.norm(grads[recipe.ours(str(reference)).removeprefix(prefix)])
        assert norm == pytest.approx(expected, rel=tolerance), reference
        checked += 1
    assert checked > 0


def check_buffers(golden, key: str, model, prefix: str = "", tolerance: float = 1e-5):
    own = {name: p.asnumpy() for name, p in model.parameters_and_names()}
    buffers = [n for n in golden.files if n.startswith(f"{key}/after/") and "running" in n]
    for name in [n for n in buffers if not n.endswith("_f64")]:
        reference = recipe.ours(name.split("/after/")[1]).removeprefix(prefix)
        np.testing.assert_allclose(own[reference], golden[name], rtol=1e-4, atol=tolerance)


@each("encoder_*.npz")
def test_encoder(path: Path):
    golden = np.load(path)
    encoder = Conv4Encoder(momentum=1.0)
    n, _, t, h, w = golden["input_shape"].tolist()
    x = recipe.clips(int(golden["input_seed"]), n, t, h, w)
    np.testing.assert_allclose(x.ravel()[:8], golden["input_first8"], atol=1e-7)
    for mode in [m for m in ("eval", "train") if f"{m}/out_mean_nc" in golden.files]:
        recipe.fill(encoder, golden["weight_seed"], prefix="encoder.")
        encoder.set_train(mode == "train")
        y = encoder(Tensor(x)).asnumpy()
        assert y.shape == tuple(golden[f"{mode}/out_shape"])
        np.testing.assert_allclose(y.mean((2, 3, 4)), golden[f"{mode}/out_mean_nc"], atol=3e-6)
        np.testing.assert_allclose(y.max((2, 3, 4)), golden[f"{mode}/out_max_nc"], atol=2e-5)
        np.testing.assert_allclose(y.mean((0, 1, 2)), golden[f"{mode}/out_mean_hw"], atol=3e-6)
        check_buffers(golden, mode, encoder, prefix="encoder.")
        if f"{mode}/grad_names" in golden.files:
            recipe.fill(encoder, golden["weight_seed"], prefix="encoder.")
            loss_of = probe_loss(encoder, golden["input_seed"], y.shape)
            loss, grads = gradients(loss_of, encoder, Tensor(x))
            assert float(loss) == pytest.approx(float(golden[f"{mode}/probe_loss_f64"]), abs=1e-6)
            check_gradients(golden, mode, grads, 1e-3, prefix="encoder.")


@each("attention_*.npz")
def test_spatial_attention(path: Path):
    golden = np.load(path)
    n, c, t, h, w = golden["input_shape"].tolist()
    phi = recipe.features(int(golden["input_seed"]), n, c, t, h, w)
    unit = SpatialAttention(c, momentum=1.0)
    for mode in ("eval", "train"):
        recipe.fill(unit, golden["weight_seed"], prefix="spatial_attention.")
        unit.set_train(mode == "train")
        attention = unit(Tensor(phi)).asnumpy()
        assert attention.shape == (n, 1, 1, h, w)
        np.testing.assert_allclose(attention, golden[f"{mode}/sigmoid/S"], atol=5e-6)
        mean_nc = ((1 + attention) * phi).mean((2, 3, 4))
        np.testing.assert_allclose(mean_nc, golden[f"{mode}/sigmoid/sa_1plusS/phi_mean_nc"], atol=5e-6)


@each("pooling*.npz")
def test_second_order_pooling(path: Path):
    golden = np.load(path)
    for group in sorted({name.split("/")[0] for name in golden.files}):
        n, c, t, h, w = golden[f"{group}/input_shape"].tolist()
        if f"{group}/phi" in golden.files:
            phi = golden[f"{group}/phi"]
        else:
            phi = recipe.features(int(golden[f"{group}/input_seed"]), n, c, t, h, w)
        shots = int(golden[f"{group}/Z"])
        for sigma in golden[f"{group}/sigmas"]:
            key = f"{group}/sigma{sigma:g}"
            pooling = SecondOrderPooling(sigma=float(sigma))
            psi = pooling(Tensor(phi)).asnumpy()
            np.testing.assert_allclose(psi, golden[f"{key}/psi"], atol=3e-6)
            mean = psi.reshape(-1, shots, c, c).mean(1)
            np.testing.assert_allclose(mean, golden[f"{key}/proto_mean"], atol=3e-6)
            loss_of = probe_loss(pooling, golden[f"{group}/input_seed"], psi.shape)
            grad = ms.grad(loss_of)(Tensor(phi)).asnumpy() * psi.size  # the file's probe is a sum
            if grad.size > 40_000:
                grad = grad[:, ::4, :, ::2, ::2]
            assert recipe.relative_error(grad, golden[f"{key}/grad_phi_slice_f64"]) < 5e-5


@each("comparator*.npz")
def test_comparator(path: Path):
    golden = np.load(path)
    comparator = Comparator(golden["pairs"].shape[-1], momentum=1.0)
    pairs, target = Tensor(golden["pairs"]), Tensor(golden["eval/target"])
    for mode in ("eval", "train"):
        recipe.fill(comparator, golden["weight_seed"], prefix="comparator.")
        comparator.set_train(mode == "train")
        np.testing.assert_allclose(comparator(pairs).asnumpy(), golden[f"{mode}/scores"], atol=3e-6)
        check_buffers(golden, mode, comparator, prefix="comparator.")
        recipe.fill(comparator, golden["weight_seed"], prefix="comparator.")

        def loss_of(pairs, target):
            return ops.square(comparator(pairs) - target).mean()

        loss, grads = gradients(loss_of, comparator, pairs, target)
        assert float(loss) == pytest.approx(float(golden[f"{mode}/mse_mean_f64"]), abs=1e-6)
        check_gradients(golden, mode, grads, 1e-3, prefix="comparator.")


def episode(golden, variant: str):
    """Model with the file's weights, support, query and one-hot target."""
    way, shot, queries = (int(golden[k]) for k in ("way", "shot", "query_per_class"))
    shape = tuple(int(v) for v in golden["clip_shape"])
    relation_seed = golden["relation_seed"] if "relation_seed" in golden.files else None
    attention = "none" if variant == "none" else "spatial"
    model = ARN(sigma=float(golden["sigma"]), attention=attention, momentum=1.0)
    recipe.fill(model, golden["weight_seed"], relation_seed)
    support = recipe.clips(int(golden["support_seed"]), way * shot, *shape[1:])
    query = recipe.clips(int(golden["query_seed"]), way * queries, *shape[1:])
    target = np.eye(way, dtype=np.float32)[golden["query_labels"]]
    return model, Tensor(support.reshape(way, shot, *shape)), Tensor(query), Tensor(target)


@each("episode_*.npz")
@pytest.mark.parametrize("variant", ["none", "sa"])
def test_episode(path: Path, variant: str):
    golden = np.load(path)
    for mode in [m for m in ("eval", "train") if f"{variant}/{m}/scores" in golden.files]:
        key = f"{variant}/{mode}"
        model, support, query, target = episode(golden, variant)
        model.set_train(mode == "train")
        scores = model(support, query)
        np.testing.assert_allclose(scores.asnumpy(), golden[f"{key}/scores"], atol=2e-5)
        accuracy = episode_accuracy(scores.asnumpy(), golden["query_labels"])
        assert accuracy == pytest.approx(float(golden[f"{key}/accuracy"]), abs=1e-6)
        if f"{key}/grad_names" in golden.files:
            recipe.fill(model, golden["weight_seed"], golden["relation_seed"])

            loss, grads = gradients(episode_loss(model), model, support, query, target)
            assert float(loss) == pytest.approx(float(golden[f"{key}/mse_mean_f64"]), abs=2e-6)
            check_gradients(golden, key, grads, 2e-2)
            check_buffers(golden, key, model)


@each("train_step_*.npz")
def test_training_step(path: Path):
    """One Adam step on the main loss, in graph mode."""
    golden = np.load(path)
    key = "mse_only"
    if f"{key}/scores" not in golden.files:
        pytest.skip("this file has no step on the main loss alone")
    model, support, query, target = episode(golden, "sa")
    model.set_train()
    parameters = model.trainable_params()
    optimizer = nn.Adam(parameters, learning_rate=float(golden["lr"]))

    value_and_grad = ms.value_and_grad(episode_loss(model), None, optimizer.parameters)

    @ms.jit
    def step(support, query, target):
        loss, grads = value_and_grad(support, query, target)
        optimizer(grads)
        return loss

    assert float(step(support, query, target)) == pytest.approx(float(golden[f"{key}/L"]), abs=2e-6)
    own = {name: p.asnumpy() for name, p in model.parameters_and_names()}
    for name in [n for n in golden.files if n.startswith(f"{key}/after/")]:
        reference = name.split("/after/")[1]
        if name.endswith("_f64") or feeds_a_norm(reference) or "running" in reference:
            continue
        far = np.abs(own[recipe.ours(reference)] - golden[name]) > 2e-5
        assert far.sum() <= max(1, 0.01 * far.size), reference


@each("accuracy_stats*.npz")
def test_interval(path: Path):
    golden = np.load(path)
    for key in sorted({n.split("/")[0] for n in golden.files if "/" in n}):
        mean, half = mean_interval(golden["accuracies_f64"][: int(key[1:])])
        assert mean == pytest.approx(float(golden[f"{key}/mean_f64"]), abs=1e-12)
        assert half == pytest.approx(float(golden[f"{key}/half_width95_f64"]), abs=1e-12)
