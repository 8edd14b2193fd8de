# SPDX-License-Identifier: Apache-2.0
"""Times of whole networks: native operators, MindSpore's own, and the same network in torch where it is installed.

    python benchmarks/step.py [arn] [i3d] [i3d-inference] [--repeats N]

Without names all three are measured: the ARN training step (10 clips of 16 frames, 112x112 pixels: 5 ways, 1 shot, 1
query; Adam), the I3D R50 training step (2 clips of 32 frames, 112x112 pixels; SGD with Nesterov momentum) and I3D R50
inference on the same clips. A training step is forward, backward and optimizer; MindSpore runs it as one graph.

Each contestant is a process of its own, stopped while another has its turn; they run in turn, step after step, so
that other work on the machine strikes all alike. Shown are the median, fastest and slowest step in milliseconds, and
the ratio of the medians.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

PROBLEMS = ("arn", "i3d", "i3d-inference")
CONTESTANTS = ("native", "plain", "torch")
WARM_UP = 2  # steps; the first one compiles

Step = Callable[[], object]


def clips(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


ARN_SUPPORT, ARN_QUERY, I3D_CLIPS = (5, 1, 3, 16, 112, 112), (5, 3, 16, 112, 112), (2, 3, 32, 112, 112)
ARN_TARGET = np.eye(5, dtype=np.float32)
I3D_TARGET, I3D_CLASSES = np.array([3, 7], np.int32), 101


def mindspore_step(problem: str) -> Step:
    import mindvideo  # noqa: F401, I001  (sets how threads wait, before MindSpore loads)
    from mindspore import Tensor

    from mindvideo.engine.device import use_device
    from mindvideo.engine.optim import learning_rates, make_adam, make_sgd, make_step
    from mindvideo.losses.fewshot import classification_loss, relation_loss
    from mindvideo.models import create_model
    from mindvideo.models.layers import initialize

    use_device("cpu")
    if problem == "arn":
        model = create_model("arn")
        target = Tensor(ARN_TARGET)

        def forward(support, query):
            scores = model(support, query)
            return relation_loss(scores, target), scores

        optimizer = make_adam([model], learning_rates("constant", 1e-3, 1000))
        batch = [Tensor(clips(*ARN_SUPPORT)), Tensor(clips(*ARN_QUERY))]
    else:
        model = create_model("i3d_r50", num_classes=I3D_CLASSES, dropout=0.0)
        target = Tensor(I3D_TARGET)

        def forward(clips_BCTHW):
            logits = model(clips_BCTHW)
            return classification_loss(logits, target), logits

        rates = learning_rates("constant", 1e-3, 1000)
        optimizer = make_sgd([model], rates, momentum=0.9, nesterov=True, weight_decay=1e-4)
        batch = [Tensor(clips(*I3D_CLIPS))]
    initialize(model, 1)
    if problem == "i3d-inference":
        import mindspore as ms

        infer = ms.jit(model.set_train(False).construct)
        return lambda: infer(*batch).asnumpy()
    model.set_train()
    step = make_step(forward, optimizer)
    return lambda: step(*batch)[0].asnumpy()


def torch_step(problem: str) -> Step:
    import torch
    import torch_networks as networks
    from torch.nn.functional import cross_entropy, mse_loss

    if problem == "arn":
        model = networks.ARN()
        batch = [torch.from_numpy(clips(*shape)) for shape in (ARN_SUPPORT, ARN_QUERY)]
        target = torch.from_numpy(ARN_TARGET)
        loss_of, optimizer = mse_loss, torch.optim.Adam(model.parameters(), 1e-3)
    else:
        model = networks.I3D(I3D_CLASSES)
        batch = [torch.from_numpy(clips(*I3D_CLIPS))]
        target = torch.from_numpy(I3D_TARGET).long()
        loss_of = cross_entropy
        optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, nesterov=True, weight_decay=1e-4)

    def train() -> None:
        optimizer.zero_grad()
        loss_of(model(*batch), target).backward()
        optimizer.step()

    @torch.inference_mode()
    def infer() -> None:
        model(*batch)

    model.train(problem != "i3d-inference")
    return train if model.training else infer


def work(contestant: str, problem: str) -> None:
    """The process of one contestant: a step and its seconds for every line read."""
    step = torch_step(problem) if contestant == "torch" else mindspore_step(problem)
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        print("seconds", time.perf_counter() - start, flush=True)


class Contestant:
    """A process that makes one step at a time and is stopped in between."""

    def __init__(self, name: str, problem: str):
        environment = dict(os.environ, MINDVIDEO_NATIVE="1" if name == "native" else "0")
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--work", name, problem],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.seconds: list[float] = []

    def step(self) -> float:
        self.process.send_signal(signal.SIGCONT)
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("seconds"):
                self.process.send_signal(signal.SIGSTOP)
                return float(line.split()[1])
        raise SystemExit(f"{' '.join(map(str, self.process.args))} ended with status {self.process.wait()}")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def measure(problem: str, repeats: int) -> None:
    has_torch = importlib.util.find_spec("torch") is not None
    contestants = {name: Contestant(name, problem) for name in CONTESTANTS if name != "torch" or has_torch}
    try:
        for contestant in contestants.values():
            for _ in range(WARM_UP):
                contestant.step()
        for _ in range(repeats):
            for contestant in contestants.values():
                contestant.seconds.append(contestant.step())
    finally:
        for contestant in contestants.values():
            contestant.end()
    medians = {name: statistics.median(c.seconds) for name, c in contestants.items()}
    for name, contestant in contestants.items():
        ratio = "" if name == "native" else f"   native/{name} {medians['native'] / medians[name]:.2f}"
        spread = f"{1e3 * min(contestant.seconds):.0f} to {1e3 * max(contestant.seconds):.0f}"
        print(f"{problem:14} {name:7} {1e3 * medians[name]:7.0f} ms ({spread}){ratio}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", nargs="*", metavar="NAME", help=", ".join(PROBLEMS))
    parser.add_argument("--repeats", type=int, default=15, help="measured steps of each contestant (default 15)")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(*arguments.work)
        return
    unknown = sorted(set(arguments.problems) - set(PROBLEMS))
    if unknown or arguments.repeats < 1:
        parser.error(f"NAME must be of {', '.join(PROBLEMS)}, and --repeats at least 1")
    for problem in arguments.problems or PROBLEMS:
        measure(problem, arguments.repeats)


if __name__ == "__main__":
    main()
