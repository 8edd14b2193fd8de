# SPDX-License-Identifier: Apache-2.0
"""Attacks against golden arrays made with Foolbox and the authors' FGSM, all of every file found, on the small networks
whose weights the files hold."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mindspore import Tensor, nn

from mindvideo import attacks
from mindvideo.attacks.norms import l2_size
from tests.parity import recipe
from tests.parity.recipe_actionnet import each, stored

_NORMS = {"linf": "linf", "l2": "l2", "l1": "l1_dense"}  # of file names -> ours


class Small(nn.Cell):
    """Convolutions and linear layers of a file, in order, activations between them, flattened before the first linear
    one."""

    def __init__(self, arrays: dict[str, np.ndarray], activations: tuple[nn.Cell, ...]):
        super().__init__()
        self.layers = nn.CellList()
        for place in sorted({int(name.split(".")[0]) for name in arrays}):
            weight, bias = Tensor(arrays[f"{place}.weight"]), Tensor(arrays[f"{place}.bias"])
            outs, ins, *kernel = weight.shape
            values = {"has_bias": True, "weight_init": weight, "bias_init": bias}
            if kernel:
                padded = {"pad_mode": "pad", "padding": kernel[0] // 2}
                self.layers.append(nn.Conv2d(ins, outs, tuple(kernel), **padded, **values))
            else:
                self.layers.append(nn.Dense(ins, outs, **values))
        self.is_dense = [isinstance(layer, nn.Dense) for layer in self.layers]
        self.activations = nn.CellList(list(activations))

    def construct(self, x: Tensor) -> Tensor:
        for i in range(len(self.layers)):
            x = self.layers[i](x.reshape((x.shape[0], -1)) if self.is_dense[i] else x)
            if i < len(self.activations):
                x = self.activations[i](x)
        return x


def target_of(golden: Any) -> attacks.Network:
    """The file's network. It holds no names of activations: those are right which make its logits."""
    weights = stored(golden, "sd/")
    kinds = (nn.GELU(approximate=False), nn.Tanh(), nn.ReLU())
    for activations in itertools.product(kinds, repeat=len(weights) // 2 - 1):
        target = attacks.Network(Small(weights, activations), batch=len(golden["x"]))
        if np.allclose(target.logits(golden["x"]), golden["logits"], atol=1e-5, rtol=0):
            return target
    raise AssertionError("no known activations make the logits of this file")


def run(golden: Any, name: str, target: attacks.Target) -> np.ndarray:
    """The attack that a file is named after, with the settings in it."""
    settings: dict[str, Any] = {"epsilon": float(golden["eps"]), "norm": _NORMS[name.split("_")[2]]}
    if name.startswith("attack_fgsm"):
        return attacks.fgsm(target, golden["x"], golden["y"], **settings)
    return attacks.pgd(
        target, golden["x"], golden["y"], steps=int(golden["steps"]), relative_step=float(golden["rel_stepsize"]),
        **settings,
    )  # fmt: skip


def agree(target: attacks.Target, moved: np.ndarray, golden: Any, name: str) -> None:
    np.testing.assert_allclose(moved, golden[name], atol=2e-6, rtol=0)
    logits = target.logits(moved)
    np.testing.assert_allclose(logits, golden[name.replace("x_adv", "logits_adv")], atol=2e-5, rtol=0)
    if "is_adv" in golden.files:
        np.testing.assert_array_equal(attacks.is_broken(logits, golden["y"]), golden["is_adv"])


@each("attack_*.npz", holding="eps")
def test_attack(path: Path):
    golden = np.load(path)
    target = target_of(golden)
    if "binary_search_steps" not in golden.files:
        agree(target, run(golden, path.stem, target), golden, "x_adv")
        return
    x, labels = golden["x"], golden["y"]
    moved = attacks.carlini_wagner(
        target, x, labels, searches=int(golden["binary_search_steps"]), steps=int(golden["steps"]),
        rate=float(golden["stepsize"]), constant=float(golden["initial_const"]), confidence=float(golden["confidence"]),
    )  # fmt: skip
    broken = attacks.is_broken(target.logits(moved), labels)
    assert broken[golden["is_adv"]].all()
    sizes, expected = l2_size(moved - x)[broken], l2_size(golden["x_adv"] - x)[broken]
    np.testing.assert_allclose(sizes, expected, rtol=0.05)


@each("fgsm*.npz", holding="target_y")
def test_the_authors_fgsm(path: Path):
    golden = np.load(path)
    target, epsilon = target_of(golden), float(golden["eps"])
    agree(target, attacks.fgsm(target, golden["x"], golden["y"], epsilon=epsilon), golden, "x_adv")
    towards = attacks.fgsm(target, golden["x"], golden["target_y"], epsilon=epsilon, targeted=True)
    agree(target, towards, golden, "x_adv_target")
    for labels, signs in (("y", "grad_sign"), ("target_y", "grad_sign_target")):
        gradient = target.gradient(golden["x"], golden[labels])[1]
        assert (np.sign(gradient) == golden[signs]).all()


def test_there_are_files_of_each_family():
    if not recipe.golden_files("actionnet", "*.npz"):
        pytest.skip("no golden arrays")
    for pattern in ("attack_*", "fgsm*"):
        assert recipe.golden_files("actionnet", f"{pattern}.npz"), pattern
