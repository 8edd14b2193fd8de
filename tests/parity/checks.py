# SPDX-License-Identifier: Apache-2.0
"""How the parity tests compare with golden arrays. Where an array has a float64 twin, that is what counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from numpy.lib.npyio import NpzFile

from tests.parity import recipe

ABSENT = pytest.mark.skip(reason="no golden arrays")


def each(pattern: str) -> pytest.MarkDecorator:
    """Run a test on every golden file of this pattern; without golden arrays, skip it."""
    files = recipe.golden_files("arn", pattern)
    return pytest.mark.parametrize("path", files or [pytest.param(None, marks=ABSENT)], ids=lambda p: p and p.stem)


def each_group(pattern: str, ending: str) -> pytest.MarkDecorator:
    """Likewise on every group `key` of arrays of every such file: those that have an array `key/ending`."""
    groups = [
        pytest.param(path, name.removesuffix(f"/{ending}"), id=f"{path.stem}-{name.removesuffix(f'/{ending}')}")
        for path in recipe.golden_files("arn", pattern)
        for name in np.load(path).files
        if name.endswith(f"/{ending}")
    ]
    return pytest.mark.parametrize(("path", "key"), groups or [pytest.param(None, None, marks=ABSENT)])


def value(golden: NpzFile, key: str) -> np.ndarray:
    """An array of the file, its float64 twin (which may be a slice, `_s4`) if it has one."""
    return next(golden[key + twin] for twin in ("_f64", "_s4_f64", "") if key + twin in golden.files)


def strided(full: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The slice of an array that the files store: on each axis every first, second, fourth ... entry."""
    strides = (1, 2, 4, 8, 16)
    steps = [next(s for s in strides if -(-n // s) == few) for n, few in zip(full.shape, shape, strict=True)]
    return full[tuple(slice(None, None, step) for step in steps)]


def check(golden: NpzFile, key: str, actual: Tensor | np.ndarray, atol: float, rtol: float = 0.0) -> None:
    """Compare with an array of the file, which may be a slice of what is given."""
    expected = value(golden, key)
    full = actual if isinstance(actual, np.ndarray) else actual.asnumpy()
    np.testing.assert_allclose(strided(full, expected.shape), expected, atol=atol, rtol=rtol, err_msg=key)


def check_relative(golden: NpzFile, key: str, actual: np.ndarray, tolerance: float) -> None:
    """Compare with an array of the file, relative to its largest entry."""
    expected = value(golden, key)
    check(golden, key, actual, atol=tolerance * max(float(np.abs(expected).max()), 1e-12))


def probe_loss(function: Callable[[Tensor], Tensor], input_seed: int, shape: tuple[int, ...]) -> Callable:
    """mean(f(x) * R), the files' way to a scalar."""
    weights = Tensor(recipe.probe(input_seed, shape).astype(np.float32))

    def loss_of(x: Tensor) -> Tensor:
        return (function(x) * weights).mean()

    return loss_of


def gradients(loss_of: Callable, model: nn.Cell, *inputs: Tensor) -> tuple[Tensor, dict[str, np.ndarray]]:
    """Loss, and gradients by our parameter names, that of the first input under "input"."""
    parameters = model.trainable_params()
    loss, (of_input, grads) = ms.value_and_grad(loss_of, 0, parameters)(*inputs)
    named = {p.name: g.asnumpy() for p, g in zip(parameters, grads, strict=True)}
    return loss, {"input": of_input.asnumpy(), **named}


def check_gradients(
    golden: NpzFile, key: str, grads: Mapping[str, np.ndarray], tolerance: float, prefix: str = ""
) -> None:
    """Compare gradients, relative to the largest entry, and the norms of all; `prefix` is the part's place in ARN.

    Parameters that `grads` lacks must have none in the file either.
    """
    full = [n for n in golden.files if n.startswith(f"{key}/grad/") and not n.endswith("_f64")]
    for name in full:
        own = recipe.ours(name.split("/grad/")[1]).removeprefix(prefix)
        check_relative(golden, name, grads.get(own, np.zeros_like(golden[name])), tolerance)
    norms = dict(zip(golden[f"{key}/grad_names"].tolist(), value(golden, f"{key}/grad_norms").tolist(), strict=True))
    assert norms
    for reference, expected in norms.items():
        if not recipe.feeds_a_norm(reference):
            norm = np.linalg.norm(grads.get(recipe.ours(reference).removeprefix(prefix), 0.0))
            assert norm == pytest.approx(expected, rel=tolerance, abs=1e-12), reference


def check_buffers(golden: NpzFile, key: str, model: nn.Cell, prefix: str = "", module: str = "") -> None:
    """Compare BatchNorm's running statistics, those that the file has, and where it has them their sums.

    `prefix` is the part's place in ARN, `module` what names in the file lack in front.
    """
    own = {prefix + p.name: p.asnumpy() for p in model.get_parameters()}
    for name in [n for n in golden.files if n.startswith(f"{key}/after/") and ".running_" in n]:
        parameter = recipe.ours(module + name.split("/after/")[1].removesuffix("_f64"))
        if parameter.startswith(prefix):
            check(golden, name.removesuffix("_f64"), own[parameter], atol=1e-5, rtol=1e-4)
    if f"{key}/after_bn_names" in golden.files:
        sums = value(golden, f"{key}/after_bn_sum")
        for reference, expected in zip(golden[f"{key}/after_bn_names"].tolist(), sums, strict=True):
            assert own[recipe.ours(reference)].sum() == pytest.approx(expected, rel=1e-4, abs=1e-3), reference
