# SPDX-License-Identifier: Apache-2.0
"""ActionNet: sizes, padding, gradients, what it can and cannot see of a movement's order, and that it learns."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindvideo.data.pose import axis_angle_to_rotation6d, collate
from mindvideo.data.stickfigure_actions import PAIRS, perform
from mindvideo.engine.optim import make_adamax, make_step
from mindvideo.losses.fewshot import classification_loss
from mindvideo.models import create_model
from mindvideo.models.actionnet import ActionNet, motion_of, pooling_weights, sinusoids

RNG = np.random.default_rng(0)
IMPROVED = {"positional": True, "motion": 4}


def network(num_classes: int = 5, *, length: int = 6, dropout: float = 0.5, **options) -> ActionNet:
    model = ActionNet(num_classes, width=16, length=length, decoder_width=16, dropout=dropout, **options)
    model.initialize(3)
    return model


def poses(*lengths: int) -> list[np.ndarray]:
    return [RNG.uniform(-1, 1, (length, 24, 6)).astype(np.float32) for length in lengths]


@pytest.mark.parametrize(("width", "parameters"), [(512, 7_047_690), (1280, 13_253_898), (2048, 24_178_698)])
def test_published_sizes(width, parameters):
    model = create_model("actionnet", width=width)
    assert sum(parameter.size for parameter in model.get_parameters()) == parameters
    assert (model.length, model.motion, model.places) == (800, 0, None)
    assert model.decoder.queries.shape == (10, 768)
    assert not model.decoder.queries.requires_grad


@pytest.mark.parametrize(("lengths", "length"), [((9, 24, 1, 13), 6), ((5, 3, 24), 24), ((7, 2), 30)])
@pytest.mark.usefixtures("pynative")
def test_pooling_is_the_mean_of_each_token_s_frames(lengths, length):
    clips = poses(*lengths)
    weights = pooling_weights(Tensor(np.array(lengths, np.int32)), 24, length).asnumpy()
    np.testing.assert_allclose(weights.sum(axis=2), 1, rtol=1e-6)
    for own, clip in zip(weights, clips, strict=True):
        n = len(clip)
        for token in range(length):
            frames = np.arange(token * n // length, -(-(token + 1) * n // length))
            np.testing.assert_array_equal(own[token].nonzero()[0], frames)
            mean = own[token, :n] @ clip.reshape(n, -1)
            np.testing.assert_allclose(mean, clip[frames].mean(axis=0).ravel(), atol=1e-6)


@pytest.mark.usefixtures("pynative")
@pytest.mark.parametrize("lag", [1, 3, 20])
def test_motion_is_the_change_since_frames_before(lag):
    (clip,) = poses(7)
    flat = clip.reshape(7, -1)
    expected = np.stack([flat[t] - flat[max(t - lag, 0)] for t in range(7)])
    np.testing.assert_array_equal(motion_of(Tensor(flat[None]), lag)[0].asnumpy(), np.hstack([expected, abs(expected)]))


def test_sinusoids_are_vaswani_s():
    table = sinusoids(7, 10)
    for place in range(7):
        for i in range(5):
            angle = place / 10_000 ** (2 * i / 10)
            assert table[place, 2 * i : 2 * i + 2] == pytest.approx([np.sin(angle), np.cos(angle)], abs=1e-6)


@pytest.mark.usefixtures("pynative")
@pytest.mark.parametrize("options", [{}, IMPROVED], ids=str)
def test_a_batch_of_unequal_clips_is_as_many_single_ones(options):
    model, clips = network(**options), poses(9, 24, 1, 13)
    batch, lengths = collate(clips, 32)
    logits = model(Tensor(batch), Tensor(lengths)).asnumpy()
    for clip, own in zip(clips, logits, strict=True):
        np.testing.assert_allclose(own, model(Tensor(clip[None])).asnumpy()[0], atol=2e-6)
    for row, length in zip(batch, lengths, strict=True):
        row[length:] = 9.0
    np.testing.assert_allclose(model(Tensor(batch), Tensor(lengths)).asnumpy(), logits, atol=2e-6)
    assert np.abs(logits - logits[:1]).max() > 1e-3


@pytest.mark.usefixtures("pynative")
@pytest.mark.parametrize("length", [5, 24])
def test_the_published_network_cannot_see_order_and_the_improved_one_can(length):
    """Backwards the logits are the same whatever the pooling; where every frame is a token, in any order."""
    (clip,) = poses(24)
    orders = Tensor(np.stack([clip, clip[::-1], clip[RNG.permutation(24)]]))

    def differences(**options) -> tuple[float, float]:
        own, backwards, shuffled = network(length=length, **options)(orders).asnumpy()
        return float(np.abs(backwards - own).max()), float(np.abs(shuffled - own).max())

    published = differences()
    assert published[0] < 2e-6
    assert (published[1] < 2e-6) == (length == 24)
    for options in ({"positional": True}, {"motion": 4}):
        assert min(differences(**options)) > 1e-3


def test_a_graph_gives_the_same_logits_and_gradients_with_dropout_too():
    model = network(learned_queries=True, **IMPROVED)
    batch, lengths = collate(poses(9, 24), 24)
    inputs = Tensor(batch), Tensor(lengths), Tensor(np.uint32(99))

    def loss(poses, lengths, seed):
        return classification_loss(model(poses, lengths, seed), Tensor([1, 4], ms.int32))

    both = ms.value_and_grad(loss, 0, model.trainable_params())
    compiled = ms.jit(both)(*inputs)
    ms.set_context(mode=ms.PYNATIVE_MODE)
    eager = both(*inputs)
    ms.set_context(mode=ms.GRAPH_MODE)
    assert float(compiled[0]) == pytest.approx(float(eager[0]), rel=1e-5)
    pairs = [(compiled[1][0], eager[1][0]), *zip(compiled[1][1], eager[1][1], strict=True)]
    for one, other in pairs:
        assert np.abs(one.asnumpy()).max() > 0
        np.testing.assert_allclose(one.asnumpy(), other.asnumpy(), rtol=1e-3, atol=1e-6)


@pytest.mark.usefixtures("pynative")
def test_gradients_are_the_slopes():
    """Of the improved network, along the gradient of some weights and of the input."""
    model = network(dropout=0.0, **IMPROVED)
    (clip,) = poses(11)
    classes = Tensor([2], ms.int32)
    names = ("embed_motion.weight", "embed.weight", "attention.key.weight")
    parameters = [parameter for parameter in model.trainable_params() if parameter.name in names]

    def loss(x):
        return classification_loss(model(x), classes)

    of_input, of_weights = ms.grad(loss, 0, parameters)(Tensor(clip[None]))
    for parameter, gradient in zip(parameters, of_weights, strict=True):
        start, length = parameter.asnumpy(), np.linalg.norm(gradient.asnumpy())
        values = []
        for sign in (1, -1):
            parameter.set_data(Tensor(start + sign * np.float32(5e-3 / length) * gradient.asnumpy()))
            values.append(float(loss(Tensor(clip[None]))))
        parameter.set_data(Tensor(start))
        assert (values[0] - values[1]) / 1e-2 == pytest.approx(length, rel=0.02), parameter.name
    way = of_input.asnumpy() / np.linalg.norm(of_input.asnumpy())
    values = [float(loss(Tensor(clip[None] + sign * np.float32(1e-2) * way))) for sign in (1, -1)]
    assert (values[0] - values[1]) / 2e-2 == pytest.approx(np.linalg.norm(of_input.asnumpy()), rel=0.03)


class Training:
    """A small network of six classes and its compiled training step."""

    def __init__(self, **options):
        self.model = network(num_classes=6, length=8, dropout=0.1, **options)
        self.optimizer = make_adamax([self.model], np.full(400, 3e-3, np.float32))

        def forward(poses, lengths, classes, seed):
            logits = self.model(poses, lengths, seed)
            return classification_loss(logits, classes), logits

        self.step = make_step(forward, self.optimizer)

    def learn(self, clips: np.ndarray, lengths: np.ndarray, classes: np.ndarray, steps: int) -> list[float]:
        """Start anew, and return the loss of each step."""
        self.model.initialize(3)
        self.optimizer.restart()
        batch = [Tensor(array) for array in (clips, lengths, classes.astype(np.int32))]
        return [float(self.step(*batch, Tensor(np.uint32(number)))[0]) for number in range(steps)]

    def classify(self, clips: np.ndarray, lengths: np.ndarray | None = None) -> np.ndarray:
        ms.set_context(mode=ms.PYNATIVE_MODE)
        logits = self.model(Tensor(clips), lengths if lengths is None else Tensor(lengths)).asnumpy()
        ms.set_context(mode=ms.GRAPH_MODE)
        return logits.argmax(axis=1)


@pytest.fixture(scope="module")
def published() -> Training:
    return Training()


def test_it_learns_one_batch_by_heart(published):
    """Noise of different lengths, and classes at random."""
    lengths, classes = RNG.integers(2, 25, 48), RNG.integers(6, size=48)
    clips, counts = collate(poses(*lengths), 24)
    losses = published.learn(clips, counts, classes, steps=150)
    assert losses[0] > 1.5
    assert np.mean(losses[-5:]) < 0.1
    assert (published.classify(clips, counts) == classes).all()


CHOSEN = PAIRS[0], PAIRS[5], PAIRS[6]  # arms up and down, sit and stand, bow and unbow


def performances(seeds: range) -> tuple[np.ndarray, np.ndarray]:
    """`[N, 24, 24, 6]` of the chosen pairs and their class numbers: 0 and 1, 2 and 3, 4 and 5 are opposites."""
    actions = [action for pair in CHOSEN for action in pair]
    clips = [
        axis_angle_to_rotation6d(perform(action, np.random.default_rng((number, seed)))[0])
        for seed in seeds
        for number, action in enumerate(actions)
    ]
    return np.stack(clips), np.tile(np.arange(6), len(seeds))


def ordered_pairs(training: Training) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Classes of new performances after learning 48 others, and what they are taken for, forwards and backwards."""
    clips, classes = performances(range(8))
    training.learn(clips, np.full(len(clips), 24, np.int32), classes, steps=150)
    clips, classes = performances(range(100, 106))
    return classes, training.classify(clips), training.classify(clips[:, ::-1].copy())


def test_the_published_network_must_guess_the_order_of_ordered_pairs(published):
    """Two actions of a pair are one movement forwards and backwards. It finds the pair, but a clip has the same logits
    backwards: of a clip in both orders at most one is right."""
    classes, forwards, backwards = ordered_pairs(published)
    assert (forwards // 2 == classes // 2).mean() >= 0.95
    np.testing.assert_array_equal(backwards, forwards)
    assert np.concatenate([forwards == classes, backwards == (classes ^ 1)]).mean() <= 0.5


def test_the_improved_network_knows_the_order_of_ordered_pairs():
    classes, forwards, backwards = ordered_pairs(Training(**IMPROVED))
    assert (forwards == classes).mean() >= 0.95
    assert (backwards == (classes ^ 1)).mean() >= 0.95
