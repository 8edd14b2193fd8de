# SPDX-License-Identifier: Apache-2.0
"""Times of single operators, forward and backward: native, MindSpore's plain ones, and torch where installed.

    python benchmarks/operators.py [REPEATS]

The three run in turn, repeat after repeat, so that other work on the machine strikes all alike; medians are
shown in milliseconds. MindSpore runs in graph mode. Native tensors have the channels last, as they stay between
layers; the others have the channels first. Where an input needs no gradient, as in a first layer, none is made.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import time
from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from mindvideo.native import operators as native

# name, input [B, C, T, H, W], output channels, kernel, stride, padding, whether the input needs a gradient
CONVOLUTIONS = (
    ("ARN 1", (10, 3, 16, 112, 112), 64, (3, 3, 3), (1, 1, 1), (1, 1, 1), False),
    ("ARN 2", (10, 64, 8, 56, 56), 64, (3, 3, 3), (1, 1, 1), (1, 1, 1), True),
    ("ARN 3", (10, 64, 4, 28, 28), 64, (3, 3, 3), (1, 1, 1), (1, 1, 1), True),
    ("I3D stem", (2, 3, 32, 112, 112), 64, (5, 7, 7), (2, 2, 2), (2, 3, 3), False),
    ("I3D 1x3x3", (2, 64, 8, 28, 28), 64, (1, 3, 3), (1, 1, 1), (0, 1, 1), True),
    ("I3D 3x1x1", (2, 256, 8, 28, 28), 64, (3, 1, 1), (1, 1, 1), (1, 0, 0), True),
    ("I3D 1x1x1", (2, 64, 8, 28, 28), 256, (1, 1, 1), (1, 1, 1), (0, 0, 0), True),
)
MAPS = (("ARN 1", (10, 64, 16, 112, 112)), ("ARN 2", (10, 64, 8, 56, 56)))
EPSILON = 1e-5

Step = Callable[[], object]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def last(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


def mindspore_step(forward: Callable, arrays: list[np.ndarray], wanted: tuple[int, ...]) -> Step:
    """A compiled forward and backward pass with the gradients of the `wanted` inputs."""
    tensors = [Tensor(a) for a in arrays]

    def loss(*args):
        return forward(*args).sum()

    backward = ms.value_and_grad(loss, wanted)

    def step(*args):
        return backward(*args)

    compiled = ms.jit(step)

    def run():
        for gradient in compiled(*tensors)[1]:
            gradient.asnumpy()

    return run


def torch_step(forward: Callable, arrays: list[np.ndarray], wanted: tuple[int, ...]) -> Step:
    import torch

    tensors = [torch.from_numpy(a).requires_grad_(i in wanted) for i, a in enumerate(arrays)]
    return lambda: torch.autograd.grad(forward(*tensors).sum(), [tensors[i] for i in wanted])


def steps(ours: Callable, plain: Callable, torch_forward: Callable | None, arrays, wanted) -> dict[str, Step]:
    x, *rest = arrays
    made = {
        "native": mindspore_step(ours, [last(x), *rest], wanted),
        "plain": mindspore_step(plain, arrays, wanted),
    }
    if torch_forward is not None:
        made["torch"] = torch_step(torch_forward, arrays, wanted)
    return made


def convolution(shape, out, kernel, stride, padding, input_grad, functional) -> dict[str, Step]:
    pads = tuple(p for p in padding for _ in range(2))
    return steps(
        native.Convolution(stride, padding, (1, 1, 1)),
        ops.Conv3D(out, kernel, pad_mode="pad", pad=pads, stride=stride),
        functional and (lambda x, w: functional.conv3d(x, w, stride=stride, padding=padding)),
        [normal(*shape), normal(out, shape[1], *kernel)],
        (0, 1) if input_grad else (1,),
    )


def batch_norm_relu(shape, functional) -> dict[str, Step]:
    ours, norm = native.BatchNorm(EPSILON, relu=True), ops.BatchNorm(is_training=True, epsilon=EPSILON)
    mean, variance = Tensor(np.zeros(shape[1], np.float32)), Tensor(np.ones(shape[1], np.float32))

    def native_forward(x, scale, shift):
        return ours(x, scale, shift)[0]

    def plain_forward(x, scale, shift):  # MindSpore's takes four dimensions
        flat = x.reshape((x.shape[0], x.shape[1], -1, x.shape[-1]))
        return ops.relu(norm(flat, scale, shift, mean, variance)[0])

    def torch_forward(x, scale, shift):
        return functional.relu(functional.batch_norm(x, None, None, scale, shift, training=True, eps=EPSILON))

    arrays = [normal(*shape), normal(shape[1]), normal(shape[1])]
    return steps(native_forward, plain_forward, functional and torch_forward, arrays, (0, 1, 2))


def max_pool(shape, functional) -> dict[str, Step]:
    ours = native.MaxPool((2, 2, 2), (2, 2, 2), (0, 0, 0))

    def native_forward(x):
        return ours(x)[0]

    def plain_forward(x):
        return ops.max_pool3d(x, 2, 2)

    torch_forward = functional and (lambda x: functional.max_pool3d(x, 2))
    return steps(native_forward, plain_forward, torch_forward, [normal(*shape)], (0,))


def report(name: str, contestants: dict[str, Step], repeats: int) -> None:
    seconds = {which: [] for which in contestants}
    for repeat in range(repeats + 1):
        for which, run in contestants.items():
            start = time.perf_counter()
            run()
            if repeat > 0:  # the first one compiles
                seconds[which].append(time.perf_counter() - start)
    medians = {which: 1e3 * statistics.median(values) for which, values in seconds.items()}
    ratios = [f"native/{which} {medians['native'] / medians[which]:.2f}" for which in list(medians)[1:]]
    print(f"{name:24}", *(f"{which} {m:8.1f}" for which, m in medians.items()), *ratios, sep="  ", flush=True)


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    ms.set_device("CPU")
    functional = importlib.import_module("torch.nn.functional") if importlib.util.find_spec("torch") else None
    for name, *problem in CONVOLUTIONS:
        report(f"convolution {name}", convolution(*problem, functional), repeats)
    for name, shape in MAPS:
        report(f"norm + ReLU {name}", batch_norm_relu(shape, functional), repeats)
        report(f"max pool {name}", max_pool(shape, functional), repeats)


if __name__ == "__main__":
    main()
