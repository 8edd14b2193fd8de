# SPDX-License-Identifier: Apache-2.0
"""DEAR's training steps against golden arrays made with its authors' code: losses, gradients, weights after SGD, and
running statistics; and TSM's parameter groups.

Operator by operator: that a compiled step is the same is tested for every backbone in tests/test_openset_objective.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from mindvideo.config import load_config
from mindvideo.engine.optim import Clipping, make_sgd, tsm_scale
from mindvideo.losses.evidential import annealing_weight
from mindvideo.models import create_model
from mindvideo.models.debias import DebiasHead
from mindvideo.tasks.openset_objective import Objective
from tests.parity import recipe_dear
from tests.parity.recipe import golden_files
from tests.parity.test_dear_backbones import each


def objective_of(golden: Any, tmp_path: Path) -> tuple[Objective, str]:
    """The file's model and loss with the recipe's weights, and our name of the model."""
    settings = json.loads(str(golden["cfg_json"]))
    name, options = recipe_dear.made_of(golden, recipe_dear.ARCHITECTURES[settings["backbone"]["type"]])
    alternates = settings["debias_head"].get("alternative", False)
    path = tmp_path / "step.yaml"
    path.write_text("task: openset\nloss: {debias: head}\nmodel: {dropout: 0.0}\n")
    method = "edlnokl_avuc_ced" if alternates else "edlnokl_avuc_debias"
    config = load_config(path, (f"model.name={name}", f"loss.name={method}"))
    model = create_model(name, head="evidential", dropout=0.0, **options)
    objective = Objective(model, config, options["num_classes"])
    recipe_dear.fill(model, name, golden["weight_seed"])
    for head in objective.heads:
        recipe_dear.fill(head, name, golden["weight_seed"])
    return objective.set_train(), name


def inputs_of(golden: Any, step: int) -> list[Tensor]:
    """What `Objective` takes, at one of the file's steps."""
    shape = golden["input_shape"].tolist()
    clips = recipe_dear.random_clips(golden[f"s{step}/input_seed"], shape)
    labels = golden[f"s{step}/label"].ravel().astype(np.int32)
    weight = annealing_weight("exp", int(golden["epoch"]), int(golden["total_epoch"]))
    assert weight == pytest.approx(float(golden[f"s{step}/log/lambda"]), rel=1e-5)
    orders = np.tile(golden[f"s{step}/perm"].astype(np.int32), (len(labels), 1))
    turn = np.float32(golden["iters"][step] % 2)
    arrays = clips.reshape(-1, *shape[2:]), labels, np.float32(weight), np.uint32(0), orders, turn
    return [Tensor(np.asarray(array)) for array in arrays]


@each("train_*.npz")
@pytest.mark.usefixtures("pynative")
def test_training_steps(path: Path, tmp_path: Path):
    golden = np.load(path)
    objective, name = objective_of(golden, tmp_path)
    optimizer = make_sgd(
        [objective.model, *objective.heads], np.full(len(golden["iters"]), golden["lr"], np.float32),
        momentum=float(golden["momentum"]), nesterov=bool(golden["nesterov"]),
        weight_decay=float(golden["weight_decay"]),
    )  # fmt: skip
    parameters = {recipe_dear.theirs(name, p.name): p for p in optimizer.parameters}
    assert parameters.keys() == set(golden["s0/grad_names"].tolist())
    value_and_grad = ms.value_and_grad(objective, None, optimizer.parameters, has_aux=True)
    statistics = {
        recipe_dear.theirs(name, p.name): p
        for part in (objective.model, *objective.heads)
        for p in part.get_parameters()
    }
    for number in range(len(golden["iters"])):
        (loss, logits), gradients = value_and_grad(*inputs_of(golden, number))
        if number == 0:
            check_gradients(golden, dict(zip(parameters, gradients, strict=True)))
        optimizer(gradients, Clipping(float(golden["grad_clip"]))(gradients))
        assert float(loss) == pytest.approx(float(golden[f"s{number}/log/loss"]), rel=2e-5)
        right = (logits.asnumpy().argmax(axis=1) == golden[f"s{number}/label"].ravel()).mean()
        assert right == pytest.approx(float(golden[f"s{number}/log/top1_acc"]))
        for key in [key for key in golden.files if key.startswith(f"s{number}/after/")]:
            after = parameters[key.split("/after/")[1]].asnumpy()
            np.testing.assert_allclose(after, golden[key].reshape(after.shape), atol=2e-6, err_msg=key)
        for kind in ("mean", "var"):
            sums = golden[f"s{number}/after_running_{kind}_sum"].tolist()
            for norm, expected in zip(golden[f"s{number}/after_bn_names"].tolist(), sums, strict=True):
                total = statistics[norm.replace("running_mean", f"running_{kind}")].asnumpy().astype(np.float64).sum()
                assert total == pytest.approx(expected, rel=1e-4, abs=1e-3), (norm, kind)


def check_gradients(golden: Any, gradients: dict[str, Tensor]) -> None:
    """Of the first step, before clipping."""
    norms = dict(zip(golden["s0/grad_names"].tolist(), golden["s0/grad_norms"].tolist(), strict=True))
    own = {name: gradient.asnumpy().astype(np.float64) for name, gradient in gradients.items()}
    total = np.sqrt(sum((gradient**2).sum() for gradient in own.values()))
    assert total == pytest.approx(float(golden["s0/total_grad_norm"]), rel=1e-4)
    for name, gradient in own.items():
        assert np.linalg.norm(gradient) == pytest.approx(norms[name], rel=2e-3, abs=1e-6 * total), name
        if f"s0/grad/{name}" in golden.files:
            expected = golden[f"s0/grad/{name}"].reshape(gradient.shape)
            np.testing.assert_allclose(gradient, expected, atol=1e-3 * np.abs(expected).max(), err_msg=name)


@pytest.mark.parametrize("kind", ["without_debias", "with_debias"])
def test_parameter_groups_of_tsm(kind: str):
    """Rates and penalties by parameter, but that the classifier has the rate that was meant for it (defect D3)."""
    files = golden_files("dear", "tsm_optimizer_groups.json")
    if not files:
        pytest.skip("no golden arrays")
    expected = {
        name: (group["lr"] / 1e-3, group["weight_decay"] / 1e-4)
        for group in json.loads(files[0].read_text())[kind]
        for name in group["names"]
    }
    parts: list[nn.Cell] = [create_model("tsm_r50", head="evidential")]
    if kind == "with_debias":
        debias = DebiasHead(1, 101, form="head")  # of any width: only names count
        debias.update_parameters_name("debias.")
        parts.append(debias)
        for leaf in ("weight", "bias"):
            meant, taken = f"cls_head.fc_cls.{leaf}", f"debias_head.f3_fc.{leaf}"
            expected[meant], expected[taken] = expected[taken], expected[meant]
    ours = {recipe_dear.theirs("tsm_r50", p.name): tsm_scale(p.name) for part in parts for p in part.trainable_params()}
    assert ours == {name: pytest.approx(scales) for name, scales in expected.items()}
