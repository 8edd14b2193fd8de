# SPDX-License-Identifier: Apache-2.0
"""What compares embeddings, against numpy; and how its verdicts are read."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from scipy.special import expit, softmax

from mindvideo.models.layers import initialize
from mindvideo.models.relation import READINGS, Distance, MapRelation, MatrixRelation, VectorRelation, pair_up


@pytest.fixture
def pynative():
    """Operators one by one: no compilation for each of many shapes."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield
    ms.set_context(mode=ms.GRAPH_MODE)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def lively(network: nn.Cell) -> nn.Cell:
    """With weights of which the output depends visibly."""
    initialize(network, seed=1)
    for number, parameter in enumerate(network.trainable_params()):
        if parameter.name.startswith("fc"):
            parameter.set_data(Tensor(0.3 * noise(*parameter.shape, seed=number)))
    return network


def test_pairs_are_all_pairs_query_by_query_class_first():
    classes, queries = noise(3, 4, 2), noise(5, 4, 2, seed=1)
    pairs = pair_up(Tensor(classes), Tensor(queries)).asnumpy()
    assert pairs.shape == (15, 2, 4, 2)
    for m in range(5):
        for n in range(3):
            np.testing.assert_array_equal(pairs[3 * m + n], [classes[n], queries[m]])


@pytest.mark.usefixtures("pynative")
@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (MatrixRelation(16, width=8), (16, 16)), (MatrixRelation(37, width=8), (37, 37)),
        (VectorRelation(6), (6,)),
        (MapRelation(6), (6, 1, 4, 4)), (MapRelation(6), (6, 2, 5, 9)), (MapRelation(6), (6, 7, 8, 4)),
        (Distance(), (6,)), (Distance(), (6, 6)), (Distance(), (6, 2, 3, 4)),
    ],
)  # fmt: skip
def test_each_pair_is_judged_by_itself(network, shape):
    """Without batch statistics; and which is the class and which the query matters to all but the distance."""
    network = lively(network).set_train(False)
    pairs = noise(5, 2, *shape)
    logits = network(Tensor(pairs)).asnumpy()
    assert logits.shape == (5,)
    assert np.ptp(logits) > 1e-3
    alone = [network(Tensor(pairs[p : p + 1])).asnumpy()[0] for p in range(5)]
    np.testing.assert_allclose(alone, logits, rtol=1e-5, atol=1e-5)
    swapped = network(Tensor(pairs[:, ::-1].copy())).asnumpy()
    assert np.allclose(swapped, logits, atol=1e-5) == isinstance(network, Distance)


def test_the_relation_of_vectors_is_three_dense_layers():
    network = lively(VectorRelation(6))
    x = noise(4, 2, 6).reshape(4, 12)
    logits = network(Tensor(x.reshape(4, 2, 6))).asnumpy()
    for layer in ("fc1", "fc2", "fc3"):
        cell = getattr(network, layer)
        x = x @ cell.weight.asnumpy().reshape(cell.weight.shape[:2]).T + cell.bias.asnumpy()
        x = np.maximum(x, 0) if layer != "fc3" else x
    np.testing.assert_allclose(logits, x[:, 0], atol=1e-5)


@pytest.mark.parametrize("shape", [(6,), (6, 6), (6, 2, 3, 4)])
def test_distance_is_squared_euclidean_over_the_entries_of_a_channel(shape):
    classes, queries = noise(3, *shape), noise(4, *shape, seed=1)
    logits = Distance()(pair_up(Tensor(classes), Tensor(queries))).asnumpy().reshape(4, 3)
    for m in range(4):
        for n in range(3):
            expected = -((classes[n] - queries[m]) ** 2).sum() / np.prod(shape[1:])
            assert logits[m, n] == pytest.approx(expected, rel=1e-5)


def read(kind: str, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outputs, scores and knownness."""
    reading = READINGS[kind]
    outputs = reading.outputs(Tensor(logits.astype(np.float32)))
    return outputs.asnumpy(), reading.scores(outputs).asnumpy(), reading.knownness(outputs).asnumpy()


def test_readings_are_their_formulas():
    logits = 3 * noise(6, 4).astype(np.float64)
    outputs, scores, knownness = read("relation", logits)
    np.testing.assert_allclose(outputs, expit(logits), atol=2e-6)
    np.testing.assert_array_equal(scores, outputs)
    np.testing.assert_array_equal(knownness, scores.max(axis=1))

    outputs, scores, knownness = read("distance", -np.abs(logits))
    np.testing.assert_allclose(outputs, -np.abs(logits), atol=1e-6)
    np.testing.assert_allclose(scores, softmax(-np.abs(logits), axis=1), atol=2e-6)
    np.testing.assert_allclose(knownness, -np.abs(logits).min(axis=1), atol=1e-6)

    evidence, scores, knownness = read("evidential", logits)
    np.testing.assert_allclose(evidence, np.logaddexp(0, logits), atol=1e-5)
    alpha = np.logaddexp(0, logits) + 1
    total = alpha.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(scores, alpha / total, atol=2e-6)
    np.testing.assert_allclose(knownness, 1 - 4 / total[:, 0], atol=2e-6)


@pytest.mark.parametrize("kind", READINGS)
def test_a_query_that_fits_no_class_is_less_known_than_one_that_fits(kind):
    fits, foreign = [-4.0, -0.5, -6.0], [-4.0, -5.0, -6.0]
    _, scores, knownness = read(kind, np.array([fits, foreign]))
    assert knownness[0] > knownness[1]
    assert (scores.argmax(axis=1) == [1, 0]).all()
    assert ((scores > 0) & (scores < 1)).all()
