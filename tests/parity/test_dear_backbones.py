# SPDX-License-Identifier: Apache-2.0
"""DEAR's networks against golden arrays made with its authors' code: every file of a family that is found is run.

Float32 and float64 logits of the reference differ by 5e-6 at most.
"""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindvideo.models import create_model
from tests.parity import recipe_dear
from tests.parity.recipe import golden_files

FILES = [f for kind in ("small", "full") for f in golden_files("dear", f"{kind}_i3d*.npz")]


@pytest.mark.parametrize(
    "path", FILES or [pytest.param(None, marks=pytest.mark.skip(reason="no golden arrays"))],
    ids=lambda p: p.stem if p else "absent",
)  # fmt: skip
def test_i3d(path: Path):
    golden = np.load(path)
    num_classes, width = golden["cls_score"].shape[1], recipe_dear.backbone_options(golden).get("base_channels", 64)
    model = create_model("i3d_r50", num_classes=num_classes, width=width)
    recipe_dear.fill(model, golden["weight_seed"])
    model.set_train(False)
    clips = Tensor(recipe_dear.views(golden))
    logits = model(clips).asnumpy()
    np.testing.assert_allclose(logits, golden["cls_score_f64"], atol=1e-5)
    if "feat0" not in golden.files:
        return
    features = model.backbone(clips).asnumpy()
    np.testing.assert_allclose(features, golden["feat0"], atol=3e-5)
    np.testing.assert_array_equal(ms.jit(model)(clips).asnumpy(), logits)
