# SPDX-License-Identifier: Apache-2.0
"""ARN's augmentations and alignment loss against golden arrays: every group of every file that is found is run."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindvideo.data.selfsupervision import Augmentation, Rotation, SpatialJigsaw, TemporalJigsaw
from mindvideo.losses.selfsupervised import alignment_loss
from tests.parity import recipe


def each(pattern: str):
    return pytest.mark.parametrize("path", recipe.golden_files("arn", pattern), ids=lambda path: path.stem)


@pytest.fixture(params=[ms.GRAPH_MODE, ms.PYNATIVE_MODE], ids=["graph", "pynative"])
def _mode(request):
    ms.set_context(mode=request.param)
    yield
    ms.set_context(mode=ms.GRAPH_MODE)


def augmentation_of(golden, group: str) -> Augmentation:
    """With the permutations and the block length that the file carries."""
    kind = group.split("/")[0].removesuffix("_jigsaw")
    if kind == "rotation":
        return Rotation()
    permutations = golden[f"{group}/perms"].tolist()
    if kind == "spatial":
        return SpatialJigsaw(permutations)
    assert kind == "temporal"
    return TemporalJigsaw(permutations, int(golden.get(f"{group}/block_len", 4)))


@each("ssl_transforms*.npz")
def test_augmentations(path: Path):
    golden = np.load(path)
    groups = [name.removesuffix("/out") for name in golden.files if name.endswith("/out")]
    assert groups
    for group in groups:
        augmentation, expected = augmentation_of(golden, group), golden[f"{group}/out"]
        clip = golden[f"{group}/clip"] if f"{group}/clip" in golden.files else golden[f"{group}/frame"][None, None]
        assert augmentation.num_classes == len(expected)
        for label, out in enumerate(expected):
            assert np.array_equal(augmentation.apply(clip, label), out.reshape(clip.shape)), (group, label)
        if f"{group}/map" in golden.files:
            attention = golden[f"{group}/map"]
            moved = attention.ravel()[augmentation.map_order(attention.shape[1:])]
            assert np.array_equal(moved.reshape(-1, *attention.shape), golden[f"{group}/map_out"]), group


@each("alignment_loss*.npz")
@pytest.mark.usefixtures("_mode")
def test_alignment_loss(path: Path):
    golden = np.load(path)
    groups = [name.removesuffix("/A") for name in golden.files if name.endswith("/A")]
    assert groups
    for group in groups:
        shape = golden[f"{group}/A"].shape
        map_BL, augmented_BL, moved_BL = (
            golden[f"{group}/{name}"].reshape(shape[0], -1) for name in ("A", "A_hat", "aug_A")
        )
        order_BL = augmentation_of(golden, group).map_order(shape[2:])[golden[f"{group}/labels"]]
        assert np.array_equal(np.take_along_axis(map_BL, order_BL, axis=1), moved_BL), group
        sums = [name for name in golden.files if name.startswith(f"{group}/") and name.endswith("/L_att_sum_f64")]
        assert sums
        for name in sums:
            check_loss(golden, name.rsplit("/", 1)[0], map_BL, augmented_BL, order_BL)


def check_loss(golden, key: str, map_BL: np.ndarray, augmented_BL: np.ndarray, order_BL: np.ndarray):
    """The files' sum is over clips, their mean over all entries; ours is the mean over clips."""
    strictness = float(key.rsplit("lambda", 1)[1])
    clips, entries = map_BL.shape
    first, second, order = Tensor(map_BL), Tensor(augmented_BL), Tensor(order_BL)
    loss, gradients = ms.value_and_grad(alignment_loss, (0, 1))(first, second, order, strictness)
    assert clips * entries * float(loss) == pytest.approx(float(golden[f"{key}/L_att_sum_f64"]), rel=1e-6)
    assert float(loss) == pytest.approx(float(golden[f"{key}/L_att_mean_f64"]), rel=1e-6)
    each_clip = [slice(i, i + 1) for i in range(clips)]
    per_clip = [entries * float(alignment_loss(first[i], second[i], order[i], strictness)) for i in each_clip]
    np.testing.assert_allclose(per_clip, golden[f"{key}/L_att_per_clip_f64"], rtol=1e-6)
    for name, gradient in zip(("A", "A_hat"), gradients, strict=True):
        expected = golden[f"{key}/grad_{name}_of_sum_f64"].reshape(map_BL.shape)
        np.testing.assert_allclose(clips * entries * gradient.asnumpy(), expected, atol=1e-6)
