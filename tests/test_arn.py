# SPDX-License-Identifier: Apache-2.0
"""ARN without golden arrays: shapes, numbers by hand, gradients, graph against PyNative, and that it can learn."""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from mindvideo.engine.optim import learning_rates, make_adam, make_step
from mindvideo.losses.fewshot import relation_loss
from mindvideo.models import create_model
from mindvideo.models.arn import ARN, SecondOrderPooling, SpatialAttention
from mindvideo.models.c3d import Conv4Encoder
from mindvideo.models.layers import initialize


@pytest.fixture
def pynative():
    """Operators one by one: no compilation for each of many shapes."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield
    ms.set_context(mode=ms.GRAPH_MODE)


def small_arn(attention: str = "spatial") -> ARN:
    model = create_model("arn", width=16, attention=attention)
    initialize(model, seed=1)
    assert isinstance(model, ARN)
    return model


def noise(*shape: int, seed: int = 0) -> Tensor:
    return Tensor(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


@pytest.mark.usefixtures("pynative")
@pytest.mark.parametrize("attention", ["none", "spatial"])
@pytest.mark.parametrize(
    ("way", "shot", "queries", "size"),
    [
        (2, 1, 1, (4, 16, 16)), (5, 1, 3, (8, 17, 23)), (3, 5, 2, (5, 32, 16)), (2, 2, 1, (6, 19, 31)),
        (4, 1, 2, (7, 16, 45)), (2, 3, 4, (9, 21, 21)), (2, 1, 2, (20, 16, 16)), (2, 1, 1, (37, 16, 18)),
    ],
)  # fmt: skip
def test_any_episode_shape_gives_scores(attention, way, shot, queries, size):
    scores = small_arn(attention)(noise(way, shot, 3, *size), noise(way * queries, 3, *size, seed=1)).asnumpy()
    assert scores.shape == (way * queries, way)
    assert ((scores > 0) & (scores < 1)).all()


@pytest.mark.usefixtures("pynative")
@pytest.mark.parametrize("size", [(4, 16, 16), (5, 17, 19), (7, 31, 20), (8, 16, 33), (9, 18, 18)])
def test_the_encoder_shortens_each_axis_fourfold(size):
    frames, height, width = size
    encoder = Conv4Encoder(width=16)
    features = encoder(noise(2, 3, *size))
    assert features.shape == (2, 16, frames // 4, height // 4, width // 4)
    assert encoder.num_features == 16


@pytest.mark.usefixtures("pynative")
@pytest.mark.parametrize("frames", range(1, 10))
def test_attention_is_one_map_for_any_clip_length(frames):
    attention = SpatialAttention(4)(noise(2, 4, frames, 5, 3)).asnumpy()
    assert attention.shape == (2, 1, 1, 5, 3)
    assert ((attention > 0) & (attention < 1)).all()


@pytest.mark.usefixtures("pynative")
def test_pooling_is_the_formula():
    phi = np.random.default_rng(0).random((2, 4, 3, 2, 5))
    flat = phi.reshape(2, 4, -1)
    autocorrelation = flat @ flat.transpose(0, 2, 1) / flat.shape[2]
    trace = np.trace(autocorrelation, axis1=1, axis2=2)[:, None, None]
    expected = np.tanh(7.0 / 2 * autocorrelation / trace)
    psi = SecondOrderPooling(sigma=7.0)(Tensor(phi.astype(np.float32))).asnumpy()
    np.testing.assert_allclose(psi, expected, atol=1e-6)


def test_clips_without_any_feature_give_zero_and_no_nan():
    pooling = SecondOrderPooling()
    zeros = Tensor(np.zeros((2, 4, 2, 3, 3), np.float32))

    def total(phi: Tensor) -> Tensor:
        return pooling(phi).sum()

    assert np.isfinite(ms.grad(total)(zeros).asnumpy()).all()
    np.testing.assert_array_equal(pooling(zeros).asnumpy(), 0)


@pytest.mark.usefixtures("pynative")
def test_shots_are_averaged_before_they_are_compared():
    model = small_arn()
    support, query = noise(3, 2, 16, 16), noise(4, 16, 16, seed=1)
    mean = Tensor(support.asnumpy().mean(axis=1, keepdims=True))
    scores = model.compare(support, query).asnumpy()
    np.testing.assert_allclose(model.compare(mean, query).asnumpy(), scores, atol=1e-6)
    model.set_train(False)
    scores = model.compare(support, query).asnumpy()
    for m in range(4):  # without batch statistics each pair is scored for itself
        for n in range(3):
            alone = model.compare(support[n : n + 1], query[m : m + 1]).asnumpy()
            np.testing.assert_allclose(alone, scores[m : m + 1, n : n + 1], atol=1e-6)


def loss_and_gradients(model: ARN) -> tuple[float, dict[str, np.ndarray]]:
    """Of one training episode: 2-way, 1-shot, 2 queries a class."""
    target = Tensor(np.eye(2, dtype=np.float32)[[0, 0, 1, 1]])
    model.set_train()
    parameters = model.trainable_params()

    def forward(support: Tensor, query: Tensor) -> Tensor:
        return relation_loss(model(support, query), target)

    value_and_grad = ms.value_and_grad(forward, None, parameters)
    loss, grads = value_and_grad(noise(2, 1, 3, 8, 16, 16), noise(4, 3, 8, 16, 16, seed=1))
    return float(loss), {p.name: g.asnumpy() for p, g in zip(parameters, grads, strict=True)}


def before_a_norm(name: str) -> bool:
    """The bias of a convolution that BatchNorm follows: its gradient is zero but for rounding."""
    return name.endswith(".bias") and ("conv" in name and "spatial_attention.conv3" not in name)


def lively_arn() -> ARN:
    """Dense weights of 0.01, as the authors have them, would leave gradients of 1e-7 in front of them."""
    model = small_arn()
    for dense in (model.comparator.fc1, model.comparator.fc2):
        dense.weight.set_data(0.2 * noise(*dense.weight.shape, seed=2))
    return model


def test_graph_mode_and_pynative_mode_agree(request):
    graph_loss, graph = loss_and_gradients(lively_arn())
    request.getfixturevalue("pynative")
    loss, gradients = loss_and_gradients(lively_arn())
    assert loss == pytest.approx(graph_loss, abs=1e-6)
    largest = max(np.abs(gradient).max() for gradient in graph.values())
    for name, gradient in gradients.items():
        scale = largest if before_a_norm(name) else np.abs(graph[name]).max()
        np.testing.assert_allclose(gradient, graph[name], atol=1e-3 * scale, err_msg=name)


def test_every_parameter_has_a_gradient():
    _, gradients = loss_and_gradients(lively_arn())
    assert len(gradients) == len(small_arn().trainable_params())
    largest = max(np.abs(gradient).max() for gradient in gradients.values())
    assert largest > 1e-3
    for name, gradient in gradients.items():
        assert np.isfinite(gradient).all(), name
        assert before_a_norm(name) or np.abs(gradient).max() > 1e-6 * largest, name


def test_one_episode_can_be_learnt_by_heart():
    model = small_arn()
    optimizer = make_adam([model], learning_rates("constant", 1e-2, 60))
    target = Tensor(np.eye(2, dtype=np.float32)[[0, 0, 1, 1]])
    support, query = noise(2, 1, 3, 4, 16, 16), noise(4, 3, 4, 16, 16, seed=1)

    def forward(support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        scores = model(support, query)
        return relation_loss(scores, target), scores

    step = make_step(forward, optimizer)
    model.set_train()
    losses = [float(step(support, query)[0]) for _ in range(60)]
    assert losses[0] > 0.2
    assert losses[-1] < 0.01


def test_initial_weights_follow_the_seed_and_the_stated_spread():
    models = [create_model("arn") for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        initialize(model, seed)
    weights, same, other = ({n: p.asnumpy() for n, p in m.parameters_and_names()} for m in models)
    for name in weights:
        np.testing.assert_array_equal(weights[name], same[name])
    assert not np.array_equal(weights["encoder.block2.conv.weight"], other["encoder.block2.conv.weight"])
    for name, cell in models[0].cells_and_names():
        if isinstance(cell, (nn.Conv2d, nn.Conv3d)):
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
