# SPDX-License-Identifier: Apache-2.0
"""ML-Decoder against the same written in numpy, for any number of classes and groups."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

from mindvideo.errors import InputError
from mindvideo.models.layers import Attention
from mindvideo.models.mldecoder import MLDecoder
from mindvideo.noise import Uniform

RNG = np.random.default_rng(0)


def decoder(num_classes: int = 7, num_groups: int = 100, **options) -> MLDecoder:
    """A small one whose every parameter is random."""
    model = MLDecoder(12, num_classes, num_groups=num_groups, width=16, hidden=24, num_heads=4, **options)
    for parameter in model.get_parameters():
        parameter.set_data(Tensor(RNG.normal(0, 0.4, parameter.shape).astype(np.float32)))
    return model


def in_numpy(model: MLDecoder, memory_BLC: np.ndarray) -> np.ndarray:
    """Logits in float64, class by class."""
    w = {name: p.asnumpy().astype(np.float64) for name, p in model.parameters_and_names()}

    def dense(layer, x):
        return x @ w[f"{layer}.weight"].T + w[f"{layer}.bias"]

    def norm(layer, x):
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
        return scaled * w[f"{layer}.gamma"] + w[f"{layer}.beta"]

    def attend(queries, memory):
        q, k, v = dense("attention.query", queries), dense("attention.key", memory), dense("attention.value", memory)
        heads = []
        for part in np.split(np.arange(16), model.attention.num_heads):
            scores = q[:, part] @ k[:, part].T / np.sqrt(len(part))
            share = np.exp(scores - scores.max(axis=1, keepdims=True))
            heads.append(share / share.sum(axis=1, keepdims=True) @ v[:, part])
        return dense("attention.output", np.concatenate(heads, axis=1))

    logits = []
    for memory_LC in memory_BLC.astype(np.float64):
        memory = np.maximum(dense("embed", memory_LC), 0)
        found = norm("norm1", 2 * w["queries"])
        found = norm("norm2", found + attend(found, memory))
        found = norm("norm3", found + dense("fc2", np.maximum(dense("fc1", found), 0)))
        per_group = w["pooling"].shape[2]
        logits.append(
            [
                found[k // per_group] @ w["pooling"][k // per_group, :, k % per_group] + w["bias"][k]
                for k in range(model.num_classes)
            ]
        )
    return np.array(logits)


@pytest.mark.usefixtures("pynative")
@pytest.mark.parametrize(
    ("num_classes", "num_groups", "per_group"),
    [(1, 100, 1), (7, 100, 1), (7, 3, 3), (10, 4, 3), (20, 5, 4), (23, 5, 5), (101, 100, 2), (150, 100, 2), (9, 1, 9)],
)
def test_any_number_of_classes_in_any_number_of_groups(num_classes, num_groups, per_group):
    model = decoder(num_classes, num_groups)
    assert model.pooling.shape == (min(num_groups, num_classes), 16, per_group)
    memory = RNG.normal(size=(2, 5, 12)).astype(np.float32)
    logits = model(Tensor(memory)).asnumpy()
    assert logits.shape == (2, num_classes)
    np.testing.assert_allclose(logits, in_numpy(model, memory), rtol=1e-4, atol=2e-5)


@pytest.mark.usefixtures("pynative")
def test_classes_just_above_a_multiple_of_the_groups_all_have_a_logit():
    """2001 / 2000 + 0.999 is below 2."""
    model = MLDecoder(4, 2001, num_groups=2000, width=8, hidden=8)
    assert model.pooling.shape == (2000, 8, 2)
    assert model(Tensor(np.ones((1, 3, 4), np.float32))).shape == (1, 2001)


@pytest.mark.usefixtures("pynative")
def test_a_map_is_the_memory_of_its_places():
    model = decoder()
    map_BCHW = RNG.normal(size=(2, 12, 3, 4)).astype(np.float32)
    places_BLC = map_BCHW.reshape(2, 12, 12).swapaxes(1, 2)
    np.testing.assert_array_equal(model(Tensor(map_BCHW)).asnumpy(), model(Tensor(places_BLC)).asnumpy())
    shuffled = places_BLC[:, RNG.permutation(12)]
    np.testing.assert_allclose(model(Tensor(shuffled)).asnumpy(), model(Tensor(places_BLC)).asnumpy(), atol=1e-5)


@pytest.mark.parametrize("learned", [False, True])
def test_queries_are_learned_only_where_asked(learned):
    names = {parameter.name for parameter in decoder(learned_queries=learned).trainable_params()}
    assert ("queries" in names) == learned
    assert {"pooling", "bias", "embed.weight", "attention.query.bias", "norm3.gamma"} <= names


@pytest.mark.usefixtures("pynative")
def test_gradients_are_the_slopes():
    model = decoder(5, 2)
    memory = RNG.normal(size=(2, 4, 12))
    weights = RNG.normal(size=(2, 5))
    gradient = ms.grad(lambda x: (model(x) * Tensor(weights, ms.float32)).sum())(Tensor(memory, ms.float32)).asnumpy()
    for _ in range(5):
        way = RNG.normal(size=memory.shape)
        up, down = (in_numpy(model, memory + sign * 1e-5 * way) for sign in (1, -1))
        slope = ((up - down) * weights).sum() / 2e-5
        assert (gradient * way).sum() == pytest.approx(slope, rel=1e-3, abs=1e-3)


@pytest.mark.usefixtures("pynative")
def test_initial_weights_come_from_the_seed_alone_in_their_sizes():
    def weights(seed: int) -> dict[str, np.ndarray]:
        model = MLDecoder(300, 150, width=256, num_heads=4)
        model.initialize(np.random.default_rng(seed))
        return {name: p.asnumpy() for name, p in model.parameters_and_names()}

    first, again, other = weights(1), weights(1), weights(2)
    assert all((first[name] == again[name]).all() for name in first)
    assert (first["queries"] != other["queries"]).all()
    assert first["queries"].std() == pytest.approx(1.0, rel=0.02)
    assert first["pooling"].std() == pytest.approx(np.sqrt(2 / (2 * (256 + 100))), rel=0.02)
    for layer, fan_in in (("embed", 300), ("fc1", 256), ("fc2", 2048), ("attention.output", 256)):
        assert np.abs(first[f"{layer}.weight"]).max() == pytest.approx(1 / np.sqrt(fan_in), rel=0.01)
    assert np.abs(first["attention.key.weight"]).max() == pytest.approx(np.sqrt(6 / 1024), rel=0.01)
    for name in ("bias", "attention.query.bias", "attention.output.bias", "norm1.beta"):
        assert not first[name].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "0 classes in 100 groups: both must be at least 1"),
        ({"num_classes": 3, "num_groups": 0}, "3 classes in 0 groups"),
        ({"num_classes": 3, "width": 20}, "attention of width 20 cannot have 8 heads"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        MLDecoder(12, **options)


@pytest.mark.usefixtures("pynative")
def test_attention_drops_weights_not_values():
    """With the value of every place 1, what comes out is the sum of the weights that are left."""
    layer = Attention(8, 2, bias=True, dropout=0.5, stream=1)
    for name, parameter in layer.parameters_and_names():
        parameter.set_data(ops.zeros_like(parameter) + (1.0 if name == "value.bias" else 0.0))
    layer.output.weight.set_data(Tensor(np.eye(8, dtype=np.float32)))
    x = Tensor(RNG.normal(size=(3, 6, 8)), ms.float32)
    np.testing.assert_allclose(layer(x, x).asnumpy(), 1, rtol=1e-6)
    left = Uniform(1)(Tensor(np.uint32(5)), 3 * 2 * 6 * 6).asnumpy().reshape(3, 2, 6, 6) >= 0.5
    expected = (left.sum(axis=3) * 2 / 6).swapaxes(1, 2).repeat(4, axis=2)
    np.testing.assert_allclose(layer(x, x, Tensor(np.uint32(5))).asnumpy(), expected, rtol=1e-6)
