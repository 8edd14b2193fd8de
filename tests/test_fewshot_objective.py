# SPDX-License-Identifier: Apache-2.0
"""The few-shot training loss: it is the sum of its parts, the same in both modes, and refuses what cannot be."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from mindvideo.config import load_config
from mindvideo.data.selfsupervision import make_augmentation
from mindvideo.engine.optim import make_step
from mindvideo.errors import InputError
from mindvideo.losses.fewshot import classification_loss, episode_loss
from mindvideo.losses.selfsupervised import alignment_loss
from mindvideo.models import create_model
from mindvideo.models.layers import initialize
from mindvideo.tasks.fewshot_objective import Objective, augmentation_of
from tests.tiny import CONFIG

SHAPE = (3, 8, 32, 32)
NUM_CLASSES = 7


@pytest.fixture
def configure(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)

    def configure(*overrides):
        return load_config(path, ("data.length=8", "episode.query=2", *overrides))

    return configure


def objective_of(config):
    """The objective and its model, with weights of their own."""
    options = {key: config.model[key] for key in ("width", "attention", "pooling", "comparator")}
    model = create_model("arn", momentum=1.0, **options)
    initialize(model, 3)
    return Objective(model, config, NUM_CLASSES).set_train()


def batch_of(config, augmentation=None):
    """Clips, classes, annealing and, with an augmentation, what it made of the clips."""
    rng = np.random.default_rng(5)
    clips = rng.standard_normal((6 + config.episode.unknown, *SHAPE)).astype(np.float32)
    classes = rng.integers(NUM_CLASSES, size=len(clips)).astype(np.int32)
    batch = [clips[:2].reshape(2, 1, *SHAPE), clips[2:], classes, np.float32(0.25)]
    if augmentation:
        labels = rng.integers(augmentation.num_classes, size=len(clips)).astype(np.int32)
        augmented = [augmentation.apply(clip, label) for clip, label in zip(clips, labels, strict=True)]
        batch += [np.stack(augmented), labels]
    return [Tensor(array) for array in batch]


EVERY_AUGMENTATION = pytest.mark.parametrize(
    ("name", "attention"),
    [("temporal_jigsaw", "temporal"), ("spatial_jigsaw", "spatial"), ("rotation", "both")],
)


def with_augmentation(configure, name, attention):
    config = configure(
        f"selfsupervision.augmentation={name}", "selfsupervision.permutations=2", "selfsupervision.weight=0.3",
        "selfsupervision.alignment=0.2", "selfsupervision.strictness=0.1", f"model.attention={attention}",
    )  # fmt: skip
    return config, make_augmentation(name, length=8, permutations=2)


@pytest.fixture
def _one_by_one():
    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield
    ms.set_context(mode=ms.GRAPH_MODE)


@EVERY_AUGMENTATION
@pytest.mark.usefixtures("_one_by_one")
def test_the_loss_is_the_sum_of_its_parts(configure, name, attention):
    config, augmentation = with_augmentation(configure, name, attention)
    objective = objective_of(config)
    model = objective.model
    batch = batch_of(config, augmentation)
    support, query, classes, annealing, augmented, labels = batch
    loss, scores = objective(*batch)

    support_psi, query_psi, temporal, spatial = model.encode_episode_with_maps(support, query)
    outputs = model.relate(support_psi, query_psi)
    target = Tensor(np.eye(2, dtype=np.float32)[[0, 0, 1, 1]])
    vectors = np.concatenate([support_psi.asnumpy().reshape(2, -1), query_psi.asnumpy().reshape(4, -1)])
    phi = model.encoder(augmented)
    _, temporal_hat, spatial_hat = model.attend(phi)
    own, other = (temporal, temporal_hat) if name == "temporal_jigsaw" else (spatial, spatial_hat)
    order = Tensor(augmentation.map_order((2, 8, 8))[labels.asnumpy()])
    parts = [
        episode_loss("relation", outputs, target, annealing),
        0.3 * classification_loss(objective.classifiers[0](Tensor(vectors)), classes),
        0.3 * classification_loss(objective.discriminator(phi), labels),
        0.2 * alignment_loss(own.flatten(1), other.flatten(1), order, 0.1),
    ]
    assert all(float(part) > 1e-4 for part in parts)
    assert float(loss) == pytest.approx(sum(float(part) for part in parts), rel=1e-5)
    np.testing.assert_allclose(scores.asnumpy(), outputs.asnumpy(), atol=1e-6)


@pytest.mark.parametrize(("name", "attention"), [("temporal_jigsaw", "temporal"), ("rotation", "both")])
def test_a_step_in_graph_mode_equals_one_by_one(configure, name, attention):
    """Loss, scores and every weight after a step of SGD, the heads' too; temporal attention is aligned, and spatial."""
    config, augmentation = with_augmentation(configure, name, attention)
    batch = batch_of(config, augmentation)
    ends = []
    for compiled in (True, False):
        ms.set_context(mode=ms.GRAPH_MODE if compiled else ms.PYNATIVE_MODE)
        objective = objective_of(config)
        parameters = [p for cell in (objective.model, *objective.heads) for p in cell.trainable_params()]
        optimizer = nn.SGD(parameters, learning_rate=0.1)
        if compiled:
            loss, scores = make_step(objective, optimizer)(*batch)
        else:
            (loss, scores), grads = ms.value_and_grad(objective, None, optimizer.parameters, has_aux=True)(*batch)
            optimizer(grads)
        ends.append([float(loss), scores.asnumpy(), {p.name: p.asnumpy().copy() for p in parameters}])
    ms.set_context(mode=ms.GRAPH_MODE)
    (loss, scores, weights), (loss_, scores_, weights_) = ends
    assert loss == pytest.approx(loss_, rel=1e-5)
    np.testing.assert_allclose(scores, scores_, atol=1e-5)
    assert {name.split(".")[0] for name in weights} >= {"encoder", "comparator", "classifier0", "discriminator"}
    for key, value in weights.items():
        np.testing.assert_allclose(value, weights_[key], atol=2e-5, err_msg=key)


@pytest.mark.usefixtures("_one_by_one")
def test_unknown_queries_are_pushed_away_from_every_class(configure):
    config = configure("episode.unknown=2", "loss.classify=0", "model.comparator=evidential")
    objective = objective_of(config)
    batch = batch_of(config)
    loss, scores = objective(*batch)
    assert scores.shape == (6, 2)
    support, query, _, annealing = batch
    outputs = objective.model.relate(*objective.model.encode_episode(support, query))
    target = np.concatenate([np.eye(2, dtype=np.float32)[[0, 0, 1, 1]], np.zeros((2, 2), np.float32)])
    assert float(loss) == pytest.approx(float(episode_loss("evidential", outputs, Tensor(target), annealing)), rel=1e-5)
    assert len(objective.heads) == 0


@pytest.mark.usefixtures("_one_by_one")
def test_each_stream_is_classified_by_itself(configure):
    config = configure("model.name=two_stream", "loss.match=0.5", "loss.classify=2")
    model = create_model("two_stream", width=16, momentum=1.0)
    initialize(model, 3)
    objective = Objective(model, config, NUM_CLASSES).set_train()
    support, query, classes, annealing = batch = batch_of(config)
    loss, scores = objective(*batch)
    support_psi, query_psi = model.encode_episode(support, query)
    psi = np.concatenate([support_psi.asnumpy()[:, 0], query_psi.asnumpy()])
    assert psi.shape == (6, 2, 9, 16)
    target = Tensor(np.eye(2, dtype=np.float32)[[0, 0, 1, 1]])
    parts = [0.5 * episode_loss("cosine", model.relate(support_psi, query_psi), target, annealing)]
    for stream, classifier in enumerate(objective.classifiers):
        logits = classifier(Tensor(psi[:, stream].mean(axis=1)))
        parts.append(2 * classification_loss(logits, classes))
    assert len(parts) == 3
    assert float(loss) == pytest.approx(sum(map(float, parts)), rel=1e-5)
    np.testing.assert_allclose(scores.asnumpy().sum(axis=1), 1, rtol=1e-5)


def test_what_cannot_be_is_refused(configure):
    jigsaw = "selfsupervision.augmentation=temporal_jigsaw", "selfsupervision.permutations=2"
    with pytest.raises(InputError, match=r"selfsupervision.alignment.*temporal_jigsaw.*model.attention=temporal"):
        objective_of(configure(*jigsaw, "selfsupervision.alignment=0.1"))
    with pytest.raises(InputError, match="square"):
        augmentation_of(configure("selfsupervision.augmentation=rotation", "data.width=48"))
    with pytest.raises(InputError, match="2 blocks"):
        augmentation_of(configure("selfsupervision.augmentation=temporal_jigsaw"))
    assert augmentation_of(configure()) is None
