# SPDX-License-Identifier: Apache-2.0
"""What DEAR's debiasing head costs: a training step of I3D at its published size, with and without it.

    python benchmarks/dear_step.py [FORM ...] [--batch 2] [--repeats 3]     FORM: none, published, head, corrected

Each form runs in a process of its own, which prints its parameters, the seconds of a step (the median after the first,
which compiles) and the most memory it held. Clips are of 32 frames of 112x112 pixels.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FORMS = ("none", "published", "head", "corrected")
NUM_CLASSES, FRAMES, SIDE = 101, 32, 112


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("forms", nargs="*", metavar="FORM", help=f"of {', '.join(FORMS)}; all if none is named")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if unknown := sorted(set(parsed.forms) - set(FORMS)):
        parser.error(f"unknown form {', '.join(unknown)}; choose from {', '.join(FORMS)}")
    if parsed.here:
        measure(parsed.forms[0], parsed.batch, parsed.repeats)
        return
    for form in parsed.forms or FORMS:
        numbers = ["--batch", str(parsed.batch), "--repeats", str(parsed.repeats)]
        subprocess.run([sys.executable, __file__, form, *numbers, "--here"], check=True)


def measure(form: str, batch: int, repeats: int) -> None:
    """Print one line on one form."""
    from mindvideo.engine.device import use_device

    use_device("cpu")
    import numpy as np
    from mindspore import Tensor

    from mindvideo.config import load_config
    from mindvideo.engine.optim import make_sgd, make_step
    from mindvideo.tasks.openset_objective import Objective, TrainingInputs, check_fit, make_model

    settings = [f"data.size={SIDE}", f"train.batch={batch}"]
    settings += ["loss.name=edlnokl_avuc"] if form == "none" else [f"loss.debias={form}"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dear.yaml"
        path.write_text("task: openset\n")
        config = load_config(path, settings)
    model = make_model(config, NUM_CLASSES)
    objective = Objective(model, config, NUM_CLASSES)
    inputs = TrainingInputs(objective, config, steps_per_epoch=1000, map_frames=check_fit(config, objective))
    optimizer = make_sgd(
        [model, *objective.heads], np.full(100, 1e-3, np.float32), momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    step = make_step(objective.set_train(), optimizer, clip_norm=40.0)
    rng = np.random.default_rng(0)
    clips = Tensor(rng.standard_normal((batch, 3, FRAMES, SIDE, SIDE)).astype(np.float32))
    classes = Tensor(rng.integers(0, NUM_CLASSES, batch).astype(np.int32))
    seconds = []
    for number in range(repeats + 1):
        started = time.perf_counter()
        loss, _ = step(clips, classes, *(Tensor(array) for array in inputs(number)))
        value = float(loss)
        seconds.append(time.perf_counter() - started)
    size = sum(p.size for part in (model, *objective.heads) for p in part.trainable_params())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{form:10s} {size / 1e6:6.1f} M parameters  {statistics.median(seconds[1:]):6.2f} s a step of {batch} clips "
        f"(first {seconds[0]:.0f} s)  {peak:5.1f} GiB at most  loss {value:.4f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
