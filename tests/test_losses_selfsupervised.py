# SPDX-License-Identifier: Apache-2.0
"""The alignment loss against float64 numpy and finite differences, and the same from run to run."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindvideo.losses.selfsupervised import alignment_loss


def maps(clips: int, entries: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two attention maps in (0, 1) and an order for each clip."""
    rng = np.random.default_rng(seed)
    order_BL = np.stack([rng.permutation(entries) for _ in range(clips)]).astype(np.int32)
    return *rng.random((2, clips, entries)), order_BL


def numpy_loss(map_BL: np.ndarray, augmented_BL: np.ndarray, order_BL: np.ndarray, strictness: float) -> float:
    total = 0.0
    for clip, augmented, order in zip(map_BL, augmented_BL, order_BL, strict=True):
        for entry, source in enumerate(order):
            total += (abs(clip[source] - augmented[entry]) - strictness) ** 2
    return total / map_BL.size


@pytest.mark.parametrize("strictness", [0.0, 0.25])
def test_value_and_gradients(strictness):
    first, second, order = maps(3, 6)
    tensors = Tensor(first.astype(np.float32)), Tensor(second.astype(np.float32)), Tensor(order)
    loss, gradients = ms.value_and_grad(alignment_loss, (0, 1))(*tensors, strictness)
    assert float(loss) == pytest.approx(numpy_loss(first, second, order, strictness), rel=1e-5)
    step = 1e-6
    for which, gradient in enumerate(gradients):
        for position in np.ndindex(3, 6):
            ends = []
            for sign in (1, -1):
                moved = first.copy(), second.copy()
                moved[which][position] += sign * step
                ends.append(numpy_loss(*moved, order, strictness))
            assert gradient.asnumpy()[position] == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-5)


def test_equal_maps_rest_whatever_the_strictness():
    """|x| has gradient 0 at 0."""
    first, _, order = maps(2, 8)
    second = np.take_along_axis(first, order, axis=1)
    tensors = Tensor(first.astype(np.float32)), Tensor(second.astype(np.float32)), Tensor(order)
    loss, gradients = ms.value_and_grad(alignment_loss, (0, 1))(*tensors, 0.5)
    assert float(loss) == pytest.approx(0.5**2, rel=1e-6)
    assert not any(gradient.asnumpy().any() for gradient in gradients)


def test_the_number_of_clips_does_not_matter():
    arrays = maps(2, 8)
    twice = [np.concatenate([a, a]) for a in arrays]
    once, again = (
        float(alignment_loss(Tensor(a.astype(np.float32)), Tensor(b.astype(np.float32)), Tensor(order), 0.1))
        for a, b, order in (arrays, twice)
    )
    assert again == pytest.approx(once, rel=1e-6)


def test_the_same_bits_every_time():
    first, second, order = maps(20, 1024)
    tensors = Tensor(first.astype(np.float32)), Tensor(second.astype(np.float32)), Tensor(order)
    value_and_grad = ms.value_and_grad(alignment_loss, (0, 1))
    seen = set()
    for _ in range(20):
        loss, gradients = value_and_grad(*tensors, 0.1)
        seen.add(b"".join(t.asnumpy().tobytes() for t in (loss, *gradients)))
    assert len(seen) == 1
