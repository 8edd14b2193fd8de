# SPDX-License-Identifier: Apache-2.0
"""Differences, grid pooling, cosines and the two-stream network against numpy."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindvideo.errors import InputError
from mindvideo.models import create_model
from mindvideo.models.arn import Pooling, differences
from mindvideo.models.layers import initialize
from mindvideo.models.relation import Cosine


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_differences():
    clips = normal(2, 3, 5, 4, 4)
    np.testing.assert_array_equal(differences(Tensor(clips)).asnumpy(), clips[:, :, 1:] - clips[:, :, :-1])


@pytest.mark.parametrize(("height", "width"), [(3, 3), (12, 12), (8, 7), (16, 10)])
def test_grid(height, width):
    """Cells may differ by a pixel; each is averaged over its pixels and over time."""
    phi = normal(2, 4, 3, height, width)
    got = Pooling("grid")(Tensor(phi)).asnumpy()
    rows, columns = [height * i // 3 for i in range(4)], [width * j // 3 for j in range(4)]
    for cell in range(9):
        i, j = divmod(cell, 3)
        part = phi[..., rows[i] : rows[i + 1], columns[j] : columns[j + 1]]
        np.testing.assert_allclose(got[:, cell], part.mean(axis=(2, 3, 4)), atol=1e-6)


@pytest.mark.parametrize("shape", [(7,), (4, 4), (3, 2, 5), (2, 9, 6)])
def test_cosine_and_its_gradient(shape):
    """Embeddings of three axes are streams of cells; a finite difference checks the gradient."""
    pairs = normal(5, 2, *shape)

    def cosines(pairs):
        x = pairs.reshape(5, 2, shape[0] if len(shape) == 3 else 1, -1).astype(np.float64)
        dot = (x[:, 0] * x[:, 1]).sum(-1)
        return 10 * (dot / np.linalg.norm(x[:, 0], axis=-1) / np.linalg.norm(x[:, 1], axis=-1)).mean(-1)

    comparator = Cosine()
    np.testing.assert_allclose(comparator(Tensor(pairs)).asnumpy(), cosines(pairs), atol=1e-5)

    def total(x):
        return comparator(x).sum()

    gradient = ms.grad(total)(Tensor(pairs)).asnumpy().ravel()
    for position in range(0, pairs.size, max(1, pairs.size // 17)):
        ends = []
        for step in (1e-5, -1e-5):
            moved = pairs.astype(np.float64)
            moved.ravel()[position] += step
            ends.append(cosines(moved).sum())
        assert gradient[position] == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-4)


def test_two_streams_are_two_networks():
    """Its cosines are the mean of those of two single-stream networks with the same weights."""
    both = create_model("two_stream", width=16)
    initialize(both, 1)
    common = {"width": 16, "attention": "none", "pooling": "grid", "comparator": "cosine"}
    logits = []
    support, query = Tensor(normal(2, 1, 3, 9, 16, 16)), Tensor(normal(3, 3, 9, 16, 16, seed=1))
    for part, name in (("encoder", "frames"), ("motion_encoder", "differences")):
        single = create_model("arn", input=name, **common)
        for own, other in zip(single.encoder.get_parameters(), getattr(both, part).get_parameters(), strict=True):
            own.set_data(other)
        single.set_train(False)
        logits.append(single.relate(*single.encode_episode(support, query)).asnumpy())
    both.set_train(False)

    @ms.jit
    def relate(support, query):
        return both.relate(*both.encode_episode(support, query))

    assert not np.allclose(*logits)
    np.testing.assert_allclose(relate(support, query).asnumpy(), np.mean(logits, axis=0), atol=2e-5)


def test_refusals():
    with pytest.raises(InputError, match=r"input is 'flow'.*frames, differences"):
        create_model("arn", input="flow")
    with pytest.raises(InputError, match=r"grid.*distance or cosine"):
        create_model("arn", pooling="grid")
