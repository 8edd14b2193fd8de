# SPDX-License-Identifier: Apache-2.0
"""What stands before an image classifier: concealed gradients, random padding; and the six networks of the table."""

from __future__ import annotations

from collections import Counter

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from mindvideo.errors import InputError
from mindvideo.models import create_model
from mindvideo.models.robust import Defended, GradientConcealment, ResizedPadding, placements

pytestmark = pytest.mark.usefixtures("pynative")
RNG = np.random.default_rng(0)


def images(count: int, side: int) -> np.ndarray:
    return RNG.uniform(0, 1, (count, 3, side, side)).astype(np.float32)


def test_concealment_changes_next_to_nothing_and_its_gradient_everything():
    x, layer = images(2, 16), GradientConcealment()

    def total(x):
        return layer(x).sum()

    assert np.abs(layer(Tensor(x)).asnumpy() - x).max() <= 1.5e-8
    gradient = ms.grad(total)(Tensor(x)).asnumpy()
    assert 0.4 < (gradient < 0).mean() < 0.6
    assert np.median(np.abs(gradient)) > 1e11


@pytest.mark.parametrize("level", ["", "float16", "O2", "O3", "auto"])
def test_concealment_has_no_nan_in_half_precision(level):
    layer, x = GradientConcealment(), images(1, 16)
    model = nn.SequentialCell(layer)
    if level == "float16":
        model.to_float(ms.float16)
    elif level:
        model = ms.amp.auto_mixed_precision(model, level)
    half = Tensor(x.astype(np.float16))
    found = model(half).asnumpy().astype(np.float32)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, x, atol=1e-3)


def test_padding_draws_every_place_and_no_other():
    layer = ResizedPadding(12, 8)
    sides, lefts, tops = (np.array(part.asnumpy()) for part in layer.draw(Tensor(1, ms.uint32), 20_000))
    counts = Counter(zip(sides.tolist(), lefts.tolist(), tops.tolist(), strict=True))
    allowed = {tuple(place) for place in placements(12, 8).tolist()}
    assert set(counts) == allowed
    assert len(allowed) == 16 + 9 + 4 + 1
    for side in range(8, 12):
        assert (sides == side).mean() == pytest.approx(0.25, abs=0.02)
        places = (12 - side) ** 2
        of_side = [count / (sides == side).sum() for place, count in counts.items() if place[0] == side]
        np.testing.assert_allclose(of_side, 1 / places, atol=0.05)


def test_padding_is_nearest_resizing_onto_zeros_each_image_its_own_way():
    x, layer = images(6, 10), ResizedPadding(16, 9)
    seed = Tensor(7, ms.uint32)
    sides, lefts, tops = (part.asnumpy() for part in layer.draw(seed, 6))
    assert len(set(zip(sides, lefts, tops, strict=True))) > 1
    expected = np.zeros((6, 3, 16, 16), np.float32)
    for i, (side, left, top) in enumerate(zip(sides, lefts, tops, strict=True)):
        pixels = np.arange(side) * 10 // side
        expected[i, :, top : top + side, left : left + side] = x[i][:, pixels][:, :, pixels]
    np.testing.assert_array_equal(layer(Tensor(x), seed).asnumpy(), expected)


def test_padding_hands_gradients_to_the_pixels_it_shows():
    x, layer = images(2, 10), ResizedPadding(16, 14)

    def total(x):
        return layer.place(x, *[Tensor(np.array(part, np.int32)) for part in ((14, 15), (1, 0), (0, 0))]).sum()

    gradient = ms.grad(total)(Tensor(x)).asnumpy()
    for i, side in enumerate((14, 15)):
        times = np.bincount(np.arange(side) * 10 // side, minlength=10)
        np.testing.assert_array_equal(gradient[i, 0], np.outer(times, times))


@pytest.mark.parametrize("least", [0, 16, 20])
def test_padding_of_no_size(least):
    with pytest.raises(InputError, match=rf"{least}.*\[1, 15\]"):
        ResizedPadding(16, least)


class _Mean(nn.Cell):
    def __init__(self):
        super().__init__()
        self.dense = nn.Dense(3, 2)

    def construct(self, images_BCHW: Tensor, seed: Tensor | None = None) -> Tensor:
        return self.dense(images_BCHW.mean((2, 3)))


def test_a_defended_network_keeps_its_parameters_names():
    network = _Mean()
    names = [parameter.name for parameter in network.get_parameters()]
    model = Defended(network, GradientConcealment(), ResizedPadding(16, 12))
    assert [parameter.name for parameter in model.get_parameters()] == names
    x, draws = Tensor(images(4, 16)), [Tensor(seed, ms.uint32) for seed in (1, 1, 2)]
    first, again, other = (model(x, draw).asnumpy() for draw in draws)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-4
    np.testing.assert_allclose(Defended(network, GradientConcealment())(x).asnumpy(), network(x).asnumpy(), atol=1e-6)


# Parameters as torchvision has them, for 10 classes.
@pytest.mark.parametrize(("name", "side", "parameters"), [
    ("resnet50", 64, 23_528_522), ("wide_resnet50_2", 64, 66_854_730), ("densenet121", 64, 6_964_106),
    ("efficientnet_b4", 64, 17_566_546), ("vit_b_16", 224, 85_806_346), ("swin_small", 224, 48_844_948),
])  # fmt: skip
def test_networks_of_the_table_behind_concealment(name, side, parameters):
    model = create_model(name, num_classes=10)
    assert sum(parameter.size for parameter in model.trainable_params()) == parameters
    model.set_train(False)
    plain, hidden = Defended(model, GradientConcealment(identity_gradient=True)), Defended(model, GradientConcealment())
    x = Tensor(images(1, side))
    gradients = {}
    for key, defended in (("plain", plain), ("hidden", hidden)):

        def loss(x, defended=defended):
            logits = defended(x)
            return (logits * logits).sum(), logits

        (_, logits), gradient = ms.value_and_grad(loss, 0, None, has_aux=True)(x)
        assert logits.shape == (1, 10)
        gradients[key] = gradient.asnumpy()
        assert np.isfinite(gradients[key]).all()
        assert np.abs(gradients[key]).max() > 0
    assert np.median(np.abs(gradients["hidden"])) > 1e9 * np.median(np.abs(gradients["plain"]))


@pytest.mark.parametrize(("name", "side"), [("resnet50", 64), ("vit_b_16", 224)])
def test_networks_in_half_precision_behind_concealment(name, side):
    """Where the network itself works in float16 on a CPU: MindCV's DenseNet overflows there, concealed or not."""
    network = create_model(name, num_classes=10)
    network.set_train(False)
    x, found = Tensor(images(1, side)), []
    for concealment in (None, GradientConcealment()):
        model = ms.amp.auto_mixed_precision(Defended(network, concealment), "O2")

        def loss(x, model=model):
            logits = model(x)
            return (logits * logits).sum(), logits

        (_, logits), gradient = ms.value_and_grad(loss, 0, None, has_aux=True)(x)
        assert np.isfinite(gradient.asnumpy()).all()
        assert np.abs(gradient.asnumpy()).max() > 0
        found.append(logits.asnumpy())
    np.testing.assert_allclose(found[1], found[0], atol=1e-2 * np.abs(found[0]).max())
