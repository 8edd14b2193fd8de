# SPDX-License-Identifier: Apache-2.0
"""ARN without golden arrays: shapes, numbers by hand, gradients, graph against PyNative, and that it can learn."""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from mindvideo.engine.optim import learning_rates, make_adam, make_step
from mindvideo.errors import InputError
from mindvideo.losses.fewshot import classification_loss, episode_loss
from mindvideo.losses.selfsupervised import alignment_loss
from mindvideo.models import create_model
from mindvideo.models.arn import (
    ARN,
    ATTENTION,
    POOLINGS,
    SHOTS,
    Discriminator,
    Pooling,
    SpatialAttention,
    TemporalAttention,
    power_normalize,
)
from mindvideo.models.c3d import Conv4Encoder
from mindvideo.models.layers import Conv, initialize


@pytest.fixture
def pynative():
    """Operators one by one: no compilation for each of many shapes."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield
    ms.set_context(mode=ms.GRAPH_MODE)


FAMILY = {  # name for the test: model, options
    "arn": ("arn", {}),
    "both": ("arn", {"attention": "both", "alpha_temporal": 0.5, "alpha_spatial": 1.5, "joint": True, "shots": "max"}),
    "evidential": ("arn", {"attention": "temporal", "comparator": "evidential"}),
    "average": ("arn", {"pooling": "average_pn", "sigma": 2.0}),
    "max": ("arn", {"pooling": "max", "comparator": "evidential"}),
    "relationnet": ("relationnet", {}),
    "protonet": ("protonet", {}),
}


def each(*names: str) -> pytest.MarkDecorator:
    """Run a test for these of the family."""
    return pytest.mark.parametrize(("name", "options"), [FAMILY[name] for name in names], ids=names)


def small(name: str = "arn", **options: object) -> ARN:
    model = create_model(name, width=16, **options)
    initialize(model, seed=1)
    assert isinstance(model, ARN)
    return model


def lively(name: str = "arn", **options: object) -> ARN:
    """Dense weights of 0.01, as the authors have them, would leave gradients of 1e-7 in front of them."""
    model = small(name, **options)
    for _, cell in model.comparator.cells_and_names():
        if isinstance(cell, nn.Dense):
            cell.weight.set_data(0.2 * noise(*cell.weight.shape, seed=2))
    return model


def noise(*shape: int, seed: int = 0) -> Tensor:
    return Tensor(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


@pytest.mark.usefixtures("pynative")
@each("both", "max", "relationnet", "protonet")
@pytest.mark.parametrize(
    ("way", "shot", "queries", "size"),
    [
        (2, 1, 1, (4, 16, 16)), (5, 1, 3, (8, 17, 23)), (3, 5, 2, (5, 32, 16)), (2, 2, 1, (6, 19, 31)),
        (4, 1, 2, (7, 16, 45)), (2, 3, 4, (9, 21, 21)), (2, 1, 2, (20, 16, 16)), (2, 1, 1, (37, 16, 18)),
    ],
)  # fmt: skip
def test_any_episode_shape_gives_scores(name, options, way, shot, queries, size):
    model = small(name, **options)
    support, query = noise(way, shot, 3, *size), noise(way * queries, 3, *size, seed=1)
    scores = model(support, query).asnumpy()
    assert scores.shape == (way * queries, way)
    assert ((scores > 0) & (scores < 1)).all()
    support_psi, query_psi, temporal, spatial = model.encode_episode_with_maps(support, query)
    clips, (frames, height, width) = way * (shot + queries), (extent // 4 for extent in size)
    assert temporal.shape == (clips, 1, frames, 1, 1)
    assert spatial.shape == (clips, 1, 1, height, width)
    assert model.to_vectors(query_psi).shape == (way * queries, 1, model.num_features)
    assert model.knownness(model.relate(support_psi, query_psi)).shape == (way * queries,)


@pytest.mark.usefixtures("pynative")
@pytest.mark.parametrize("size", [(4, 16, 16), (5, 17, 19), (7, 31, 20), (8, 16, 33), (9, 18, 18)])
def test_the_encoder_shortens_each_axis_fourfold(size):
    frames, height, width = size
    encoder = Conv4Encoder(width=16)
    features = encoder(noise(2, 3, *size))
    assert features.shape == (2, 16, frames // 4, height // 4, width // 4)
    assert encoder.num_features == 16


@pytest.mark.usefixtures("pynative")
@pytest.mark.parametrize("size", [*((frames, 5, 3) for frames in range(1, 10)), (4, 4, 4), (2, 9, 17), (3, 1, 1)])
def test_attention_is_one_map_for_features_of_any_size(size):
    frames, height, width = size
    spatial = SpatialAttention(4)(noise(2, 4, *size)).asnumpy()
    temporal = TemporalAttention(4)(noise(2, 4, *size)).asnumpy()
    assert spatial.shape == (2, 1, 1, height, width)
    assert temporal.shape == (2, 1, frames, 1, 1)
    assert ((spatial > 0) & (spatial < 1)).all()
    assert ((temporal > 0) & (temporal < 1)).all()


@pytest.mark.usefixtures("pynative")
def test_sosn_is_arn_without_attention():
    support, query = noise(2, 1, 3, 8, 16, 16), noise(2, 3, 8, 16, 16, seed=1)
    scores = small("sosn")(support, query).asnumpy()
    np.testing.assert_array_equal(scores, small(attention="none")(support, query).asnumpy())


@pytest.mark.usefixtures("pynative")
@pytest.mark.parametrize("attention", ATTENTION)
def test_maps_weigh_the_features(attention):
    model = small(attention=attention, alpha_temporal=0.25, alpha_spatial=2.0)
    phi = noise(2, 16, 5, 6, 7)
    weighted, temporal, spatial = (x.asnumpy() for x in model.attend(phi))
    has_temporal, has_spatial = attention in ("temporal", "both"), attention in ("spatial", "both")
    factor = (0.25 + temporal if has_temporal else 1) * (2 + spatial if has_spatial else 1)
    np.testing.assert_allclose(weighted, factor * phi.asnumpy(), rtol=1e-6)
    assert (np.ptp(temporal) > 0) == has_temporal
    assert (np.ptp(spatial) > 0) == has_spatial


@pytest.mark.usefixtures("pynative")
def test_poolings_are_their_formulas():
    phi = np.random.default_rng(0).standard_normal((2, 4, 3, 2, 5))
    flat = phi.reshape(2, 4, -1)
    autocorrelation = flat @ flat.transpose(0, 2, 1) / flat.shape[2]
    second_order = autocorrelation / np.trace(autocorrelation, axis1=1, axis2=2)[:, None, None]
    expected = {
        "none": phi, "average": flat.mean(2), "average_pn": np.tanh(3.5 * flat.mean(2)), "max": flat.max(2),
        "second_order": second_order, "second_order_pn": np.tanh(3.5 * second_order),
    }  # fmt: skip
    assert set(expected) == set(POOLINGS) - {"grid"}
    for kind, psi in expected.items():
        pooled = Pooling(kind, sigma=7.0)(Tensor(phi.astype(np.float32))).asnumpy()
        np.testing.assert_allclose(pooled, psi, atol=5e-7, err_msg=kind)


def test_power_normalisation_is_exact_and_smooth_from_end_to_end():
    x = np.concatenate([np.linspace(-8, 8, 2001), [-1e6, -300, -90, -40, 0, 40, 90, 300, 1e6]]).astype(np.float32)

    def total(x: Tensor) -> Tensor:
        return power_normalize(x, 2.0).sum()

    np.testing.assert_allclose(power_normalize(Tensor(x), 2.0).asnumpy(), np.tanh(x.astype(float)), atol=3e-7)
    slope = 1 - np.tanh(x.astype(float)) ** 2
    np.testing.assert_allclose(ms.grad(total)(Tensor(x)).asnumpy(), slope, atol=2e-5)


@pytest.mark.parametrize("kind", POOLINGS)
def test_clips_without_any_feature_give_zero_and_no_nan(kind):
    pooling = Pooling(kind)
    zeros = Tensor(np.zeros((2, 4, 2, 3, 3), np.float32))

    def total(phi: Tensor) -> Tensor:
        return pooling(phi).sum()

    assert np.isfinite(ms.grad(total)(zeros).asnumpy()).all()
    np.testing.assert_array_equal(pooling(zeros).asnumpy(), 0)


@pytest.mark.usefixtures("pynative")
@pytest.mark.parametrize("shots", SHOTS)
def test_shots_become_one_embedding_before_they_are_compared(shots):
    model = lively(shots=shots)
    support, query = noise(3, 2, 16, 16), noise(4, 16, 16, seed=1)
    combined = getattr(support.asnumpy(), shots)(axis=1, keepdims=True)
    scores = model.compare(support, query).asnumpy()
    np.testing.assert_allclose(model.compare(Tensor(combined), query).asnumpy(), scores, atol=1e-6)
    model.set_train(False)
    scores = model.compare(support, query).asnumpy()
    for m in range(4):  # without batch statistics each pair is scored for itself
        for n in range(3):
            alone = model.compare(support[n : n + 1], query[m : m + 1]).asnumpy()
            np.testing.assert_allclose(alone, scores[m : m + 1, n : n + 1], atol=1e-6)


@pytest.mark.usefixtures("pynative")
def test_joint_encoding_is_one_batch_for_the_batch_norms():
    support, query = noise(2, 2, 3, 4, 16, 16), noise(3, 3, 4, 16, 16, seed=1)
    together = Tensor(np.concatenate([support.asnumpy().reshape(4, 3, 4, 16, 16), query.asnumpy()]))
    joint, apart = small(joint=True).set_train(), small().set_train()
    support_psi, query_psi = joint.encode_episode(support, query)
    psi = apart.encode(together).asnumpy()
    np.testing.assert_array_equal(support_psi.asnumpy().reshape(4, 16, 16), psi[:4])
    np.testing.assert_array_equal(query_psi.asnumpy(), psi[4:])
    assert not np.allclose(apart.encode(query).asnumpy(), psi[4:], atol=1e-4)


@pytest.mark.usefixtures("pynative")
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 4, 5), (2, 2, 3), (3, 7, 4), (5, 9, 8)])
def test_the_discriminator_takes_features_of_any_size(size):
    discriminator = Discriminator(4, size, 6, hidden=8)
    assert discriminator(noise(3, 4, *size)).shape == (3, 6)
    left = [max(1, max(1, extent // 2) // 2) for extent in size]
    assert discriminator.fc1.weight.shape == (8, 4 * math.prod(left))


@pytest.mark.parametrize(
    ("option", "value"), [("attention", "temprol"), ("pooling", "sum"), ("comparator", "angle"), ("shots", "median")]
)
def test_an_unknown_choice_lists_those_there_are(option, value):
    with pytest.raises(InputError, match=f"model option {option} is '{value}'; it must be one of "):
        create_model("arn", **{option: value})


def test_matrices_too_small_to_compare_are_refused():
    with pytest.raises(InputError, match="width is 8; matrices are compared from width 16 on"):
        create_model("arn", width=8)
    assert create_model("protonet", width=8)


def test_parameters_keep_their_names_and_shapes():
    """Those of checkpoints that are out in the world."""
    shapes = {name: parameter.shape for name, parameter in create_model("arn").parameters_and_names()}
    trainable = create_model("arn").trainable_params()
    assert sum(p.size for p in trainable) == 337_728 + 34_673 + 120_721  # as the authors' networks
    expected = {f"encoder.block{i}.{part}" for i in range(1, 5) for part in ("conv", "norm")}
    expected |= {f"spatial_attention.{layer}" for layer in ("conv1", "norm1", "conv2", "norm2", "conv3")}
    expected |= {f"comparator.{part}{i}" for i in range(1, 5) for part in ("conv", "norm")}
    expected |= {"comparator.fc1", "comparator.fc2"}
    assert {name.rsplit(".", 1)[0] for name in shapes} == expected
    assert shapes["encoder.block1.conv.weight"] == (64, 3, 3, 3, 3)
    assert shapes["spatial_attention.conv3.bias"] == (1,)
    assert shapes["comparator.norm4.moving_variance"] == (64,)
    assert shapes["comparator.fc1.weight"] == (8, 1024)


def loss_and_gradients(model: ARN) -> tuple[float, dict[str, np.ndarray]]:
    """Of one training step with all losses: 2-way, 2-shot, 2 queries a class, one query of neither class."""
    discriminator = Discriminator(16, (2, 4, 4), 4, hidden=8)
    discriminator.update_parameters_name("discriminator.")
    initialize(discriminator, seed=3)
    discriminator.fc2.weight.set_data(0.2 * noise(4, 8, seed=4))
    target = Tensor(np.array([[1, 0], [1, 0], [0, 1], [0, 1], [0, 0]], np.float32))
    labels, order = Tensor([0, 1, 2, 3, 1, 2, 3, 0, 1], ms.int32), Tensor(np.tile([2, 0, 3, 1] * 4, (9, 1)), ms.int32)
    augmented = noise(9, 3, 8, 16, 16, seed=2)
    model.set_train()
    discriminator.set_train()
    parameters = [*model.trainable_params(), *discriminator.trainable_params()]

    def forward(support: Tensor, query: Tensor) -> Tensor:
        support_psi, query_psi, _, spatial = model.encode_episode_with_maps(support, query)
        loss = episode_loss(model.kind, model.relate(support_psi, query_psi), target, 0.1)
        phi_hat = model.encoder(augmented)
        _, _, spatial_hat = model.attend(phi_hat)
        loss = loss + 0.5 * classification_loss(discriminator(phi_hat), labels)
        return loss + 0.5 * alignment_loss(spatial.flatten(1), spatial_hat.flatten(1), order, 0.1)

    value_and_grad = ms.value_and_grad(forward, None, parameters)
    loss, grads = value_and_grad(noise(2, 2, 3, 8, 16, 16), noise(5, 3, 8, 16, 16, seed=1))
    return float(loss), {p.name: g.asnumpy() for p, g in zip(parameters, grads, strict=True)}


def before_a_norm(name: str) -> bool:
    """The bias of a convolution that BatchNorm follows: its gradient is zero but for rounding."""
    return name.endswith(".bias") and ("conv" in name and "attention.conv3" not in name)


@each("arn", "both", "evidential", "relationnet", "protonet")
def test_graph_mode_and_pynative_mode_give_every_parameter_the_same_gradient(name, options, request):
    graph_loss, graph = loss_and_gradients(lively(name, **options))
    request.getfixturevalue("pynative")
    model = lively(name, **options)
    loss, gradients = loss_and_gradients(model)
    assert loss == pytest.approx(graph_loss, abs=1e-6)
    assert {p.name for p in model.trainable_params()} < set(gradients)
    largest = max(np.abs(gradient).max() for gradient in graph.values())
    assert largest > 1e-3
    for parameter, gradient in gradients.items():
        scale = largest if before_a_norm(parameter) else np.abs(graph[parameter]).max()
        assert scale > 1e-7 * largest, parameter
        np.testing.assert_allclose(gradient, graph[parameter], atol=1e-3 * scale, err_msg=parameter)


@pytest.mark.parametrize(("name", "left"), [("arn", 0.05), ("max", 0.6), ("protonet", 0.1)])
def test_one_episode_can_be_learnt_by_heart(name, left):
    model_name, options = FAMILY[name]
    model = small(model_name, **options)
    optimizer = make_adam([model], learning_rates("constant", 1e-2, 60))
    target = Tensor(np.eye(2, dtype=np.float32)[[0, 0, 1, 1]])
    support, query = noise(2, 1, 3, 4, 16, 16), noise(4, 3, 4, 16, 16, seed=1)

    def forward(support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        outputs = model.relate(*model.encode_episode(support, query))
        return episode_loss(model.kind, outputs, target, 0.0), outputs

    step = make_step(forward, optimizer)
    model.set_train()
    losses = [float(step(support, query)[0]) for _ in range(60)]
    assert losses[0] > 0.2
    assert losses[-1] < left * losses[0]


def test_initial_weights_follow_the_seed_and_the_stated_spread():
    models = [create_model("arn") for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        initialize(model, seed)
    weights, same, other = ({n: p.asnumpy() for n, p in m.parameters_and_names()} for m in models)
    for name in weights:
        np.testing.assert_array_equal(weights[name], same[name])
    assert not np.array_equal(weights["encoder.block2.conv.weight"], other["encoder.block2.conv.weight"])
    for name, cell in models[0].cells_and_names():
        if isinstance(cell, Conv):
            out, _, first, second = cell.weight.shape[:4]
            expected, bias = math.sqrt(2 / (first * second * out)), 0
        elif isinstance(cell, nn.Dense):
            expected, bias = 0.01, 1
        else:
            continue
        weight = weights[f"{name}.weight"]
        error = 5 * expected / math.sqrt(weight.size)  # five standard errors of the mean; more than that of the spread
        assert abs(weight.mean()) < error, name
        assert weight.std() == pytest.approx(expected, abs=error), name
        np.testing.assert_array_equal(weights[f"{name}.bias"], bias)
