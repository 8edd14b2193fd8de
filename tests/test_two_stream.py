# SPDX-License-Identifier: Apache-2.0
"""Differences, grid pooling, cosines and the two-stream network against numpy."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindvideo.errors import InputError
from mindvideo.metrics.fewshot import color_descriptor
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


def with_singles(width):
    """A network, and for each stream a network of it alone, with the same weights."""
    both = create_model("two_stream", width=width)
    initialize(both, 1)
    singles = []
    for part, name in (("encoder", "frames"), ("motion_encoder", "differences")):
        single = create_model(
            "arn", input=name, width=width, attention="none", pooling="grid", comparator="cosine"
        ).set_train(False)
        for own, other in zip(single.encoder.get_parameters(), getattr(both, part).get_parameters(), strict=True):
            own.set_data(other)
        singles.append(single)
    return both, singles


def histogram(pixels_TCHW, bins):
    """Square roots of the shares of colours, by counting."""
    counts = np.zeros((bins,) * 3)
    for colour in pixels_TCHW.transpose(0, 2, 3, 1).reshape(-1, 3).astype(int):
        counts[tuple(colour * bins // 256)] += 1
    return np.sqrt(counts / counts.sum()).ravel()


def unit(x):
    return x / np.linalg.norm(x, axis=(1, 2), keepdims=True)


@pytest.mark.parametrize(("width", "bins"), [(16, 5), (64, 8)])
def test_embeddings(width, bins):
    """Both streams, with the mirror image's, and the colours; in training the streams as they are."""
    both, singles = with_singles(width)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 9, 16, 16))
    pixels[0, :, 0, 0, :8] = np.arange(0, 256, 32)  # the borders themselves
    clips = ((pixels / 255 - 0.3474) / 0.21).astype(np.float32)
    mirrored = np.ascontiguousarray(clips[..., ::-1])
    both.set_train(False)
    got = ms.jit(both.encode)(Tensor(clips)).asnumpy()
    assert got.shape == (2, 3, 9, width)
    for stream, single in enumerate(singles):
        own, other = (unit(single.encode(Tensor(x)).asnumpy()) for x in (clips, mirrored))
        np.testing.assert_allclose(got[:, stream], (own + other) / 2, atol=1e-6)
    for clip in range(2):
        expected = histogram(pixels[clip].swapaxes(0, 1), bins)
        np.testing.assert_allclose(got[clip, 2].ravel()[: bins**3], expected, atol=1e-6)
        assert not got[clip, 2].ravel()[bins**3 :].any()
    if bins == 8:
        descriptor = color_descriptor(pixels[1].transpose(1, 2, 3, 0).astype(np.uint8))
        np.testing.assert_allclose(got[1, 2].ravel()[:512], descriptor, atol=1e-6)


def test_centring():
    """The centre is the mean embedding of what it is taken from, whatever it was before; checkpoints carry it."""
    both, _ = with_singles(16)
    both.set_train(False)
    clips = Tensor(normal(4, 3, 9, 16, 16))
    plain = both.encode(clips).asnumpy()
    for _ in range(2):
        both.recentre(both.encode(clips).asnumpy())
        np.testing.assert_allclose(both.centre.asnumpy(), plain.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(both.encode(clips).asnumpy(), plain - plain.mean(axis=0), atol=1e-6)
    assert "centre" in {name for name, _ in both.parameters_and_names()}
    assert "centre" not in {parameter.name for parameter in both.trainable_params()}


def test_training_sees_the_streams_alone():
    both, singles = with_singles(16)
    both.set_train()
    for single in singles:
        single.set_train()
    clips = Tensor(normal(3, 3, 9, 16, 16))
    got = both.encode(clips).asnumpy()
    for stream, single in enumerate(singles):
        np.testing.assert_allclose(got[:, stream], single.encode(clips).asnumpy(), atol=1e-5)
    np.testing.assert_allclose(both.to_vectors(Tensor(got)).asnumpy(), got.mean(axis=2), atol=1e-6)


def test_refusals():
    with pytest.raises(InputError, match=r"input is 'flow'.*frames, differences"):
        create_model("arn", input="flow")
    with pytest.raises(InputError, match=r"grid.*distance or cosine"):
        create_model("arn", pooling="grid")
