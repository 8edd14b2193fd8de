# SPDX-License-Identifier: Apache-2.0
"""Whether both sides of `step.py` are the same networks."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import torch
from mindspore import Tensor, nn, ops

from mindvideo.convert.families import FAMILIES
from mindvideo.convert.files import in_layout
from twins import ours, theirs
from twins.problems import PROBLEMS

TOLERANCE = 1e-4  # of the largest output


def check(name: str) -> bool:
    """Print whether the tensors of both networks have the same names and shapes and, with the same random weights, the
    outputs are the same."""
    problem = PROBLEMS[name]
    config, model, objective = ours.build(problem)
    parameters = dict(model.parameters_and_names())
    parameters |= {p.name: p for head in getattr(objective, "heads", ()) for p in head.get_parameters()}
    randomize(parameters)
    arrays = {own: p.asnumpy() for own, p in parameters.items()}
    layout = FAMILIES[config.model.name].written({own: array.shape for own, array in arrays.items()})
    named = in_layout(arrays, layout)
    twin = theirs.build(name, problem).eval()
    wanted = {n: tuple(t.shape) for n, t in twin.state_dict().items() if not n.endswith("num_batches_tracked")}
    given = {n: array.shape for n, array in named.items()}
    if given != wanted:
        print(f"{problem.title}: other tensors, such as {sorted(given.items() ^ wanted.items())[:4]}")
        return False
    trained = sum(p.size for p in parameters.values() if p.requires_grad)
    if trained != sum(p.numel() for p in twin.parameters() if p.requires_grad):
        print(f"{problem.title}: other parameters are trained")
        return False
    twin.load_state_dict({n: torch.from_numpy(array) for n, array in named.items()}, strict=False)
    inputs = problem.inputs()
    outputs = ms.jit(model.set_train(False).construct)(*map(Tensor, inputs)).asnumpy()
    with torch.inference_mode():
        expected = twin(*map(torch.from_numpy, inputs)).numpy()
    error = np.abs(outputs - expected).max() / np.abs(expected).max()
    print(f"{problem.title:14} {trained / 1e6:6.2f} M weights in {len(given)} tensors, outputs differ by {error:.1e}")
    return bool(error < TOLERANCE)


def randomize(parameters: dict[str, nn.Parameter]) -> None:
    """Weights that keep the size of what passes, and statistics and scales that are not 1."""
    rng = np.random.default_rng(1)
    for name, parameter in parameters.items():
        shape = parameter.shape
        if name.endswith(("gamma", "moving_variance", "scale")):
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) if len(shape) > 1 else 100)
        ops.assign(parameter, Tensor(values.astype(np.float32)))
