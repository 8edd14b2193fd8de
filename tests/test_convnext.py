# SPDX-License-Identifier: Apache-2.0
"""ConvNeXt: sizes, what each part computes, randomness in training, gradients, and that it learns."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindvideo.engine.optim import make_adamax, make_step
from mindvideo.errors import InputError
from mindvideo.losses.fewshot import classification_loss
from mindvideo.models import create_model
from mindvideo.models.convnext import ConvNeXt
from mindvideo.models.layers import leave

RNG = np.random.default_rng(0)


def network(head: str = "linear", **options) -> ConvNeXt:
    model = ConvNeXt(5, head=head, width=8, depth=1, patch=2, layer_scale=0.5, **options)
    model.initialize(3)
    return model


def images(count: int = 3, side: int = 32) -> np.ndarray:
    return RNG.uniform(0, 1, (count, 3, side, side)).astype(np.float32)


# torchvision's ConvNeXt-tiny; without its last normalisation and classifier, and with the published heads of 100.
@pytest.mark.parametrize(("head", "num_classes", "parameters"), [
    ("linear", 1000, 28_589_128),
    ("fc", 100, 28_589_128 - 1536 - 769_000 + 393_728 + 1024 + 131_328 + 512 + 25_700),
])  # fmt: skip
def test_published_sizes(head, num_classes, parameters):
    model = create_model("convnext_tiny", num_classes=num_classes, head=head)
    assert sum(parameter.size for parameter in model.get_parameters()) == parameters
    assert [len(stage) for stage in model.stages] == [3, 3, 9, 3]
    drops = [block.drop for stage in model.stages for block in stage]
    np.testing.assert_allclose(drops, np.linspace(0, 0.1, 18))
    assert all(float(block.scale[0]) == np.float32(1e-6) for stage in model.stages for block in stage)


@pytest.mark.usefixtures("pynative")
@pytest.mark.parametrize("patch", [2, 4])
def test_features_shrink_by_the_patch_and_eight(patch):
    model = ConvNeXt(5, width=8, depth=1, patch=patch)
    assert leave(model.features(Tensor(images(2, 64)))).shape == (2, 64, 64 // patch // 8, 64 // patch // 8)


@pytest.mark.usefixtures("pynative")
def test_a_block_is_what_it_says():
    model = network()
    block, x = model.stages[0][0], images(2, 12)[:, :1].repeat(8, axis=1)
    from mindvideo.models.layers import enter

    found = leave(block(enter(Tensor(x)))).asnumpy()
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (3, 3), (3, 3)))
    kernel = block.depthwise.weight.asnumpy()[:, 0].astype(np.float64)
    y = sum(
        padded[:, :, i : i + 12, j : j + 12] * kernel[None, :, i, j, None, None] for i in range(7) for j in range(7)
    )
    y = (y + block.depthwise.bias.asnumpy()[:, None, None]).transpose(0, 2, 3, 1)
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
    y = y * block.norm.gamma.asnumpy() + block.norm.beta.asnumpy()
    y = y @ block.fc1.weight.asnumpy().T + block.fc1.bias.asnumpy()
    from scipy.special import ndtr

    y = (y * ndtr(y)) @ block.fc2.weight.asnumpy().T + block.fc2.bias.asnumpy()
    expected = x + (y * block.scale.asnumpy()).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.usefixtures("pynative")
@pytest.mark.parametrize("head", ["linear", "fc", "ml_decoder"])
def test_randomness_is_the_seed_s_and_of_training_alone(head):
    model, x = network(head, drop_path=0.5), Tensor(images())
    plain = model(x).asnumpy()
    np.testing.assert_array_equal(model(x).asnumpy(), plain)
    first, again, other = (model(x, Tensor(seed, ms.uint32)).asnumpy() for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-4
    assert np.abs(first - plain).max() > 1e-4


@pytest.mark.usefixtures("pynative")
def test_stochastic_depth_leaves_out_whole_branches_and_scales_the_rest():
    model = network(drop_path=0.5)
    block = model.stages[3][0]
    assert block.drop == 0.5
    from mindvideo.models.layers import enter

    x = RNG.standard_normal((64, 64, 2, 2)).astype(np.float32)
    branch = leave(block(enter(Tensor(x)))).asnumpy() - x
    found = leave(block(enter(Tensor(x)), Tensor(5, ms.uint32))).asnumpy() - x
    kept = np.abs(found).max((1, 2, 3)) > 0
    assert 0.25 < kept.mean() < 0.75
    np.testing.assert_allclose(found[kept], 2 * branch[kept], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("head", ["linear", "fc", "ml_decoder"])
def test_gradients_are_the_slope(head):
    """The directional derivative by the images, against central differences."""
    model, x = network(head), images(2).astype(np.float64)

    def loss(images):
        return model(images).sum()

    def value(images: np.ndarray) -> float:
        return float(loss(Tensor(images.astype(np.float32))))

    gradient = ms.grad(loss)(Tensor(x.astype(np.float32))).asnumpy()
    direction = np.sign(gradient)
    slope = (value(x + 1e-2 * direction) - value(x - 1e-2 * direction)) / 2e-2
    assert slope == pytest.approx(np.abs(gradient).sum(), rel=0.02)


@pytest.mark.parametrize("head", ["linear", "fc", "ml_decoder"])
def test_it_learns_one_batch(head):
    model = network(head, normalize=True)
    x, y = Tensor(images(10)), Tensor(np.arange(10, dtype=np.int32) % 5)

    def loss(x, y):
        logits = model(x)
        return classification_loss(logits, y), logits

    step = make_step(loss, make_adamax([model], np.full(120, 2e-3, np.float32)))
    losses = [float(step(x, y)[0]) for _ in range(120)]
    assert losses[0] > 1.2
    assert losses[-1] < 0.1


def test_initial_weights():
    first, again = network(), network()
    for one, other in zip(first.get_parameters(), again.get_parameters(), strict=True):
        np.testing.assert_array_equal(one.asnumpy(), other.asnumpy())
    model = ConvNeXt(10)
    model.initialize(0)
    weight = model.stages[2][4].fc1.weight.asnumpy()
    assert weight.std() == pytest.approx(0.02, rel=0.01)
    assert not model.stages[2][4].fc1.bias.asnumpy().any()


def test_graph_mode_is_pynative():
    model, x = network("ml_decoder"), Tensor(images())
    graph = ms.jit(model.construct)(x).asnumpy()
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        np.testing.assert_allclose(model(x).asnumpy(), graph, atol=1e-6)
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)


def test_unknown_head():
    with pytest.raises(InputError, match=r"'mlp'.*linear, fc, ml_decoder"):
        ConvNeXt(5, head="mlp")
