# SPDX-License-Identifier: Apache-2.0
"""What the training loop logs of its time, and that its memory does not grow with the epochs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from mindspore import Tensor, nn

from mindvideo.engine import loop
from mindvideo.engine.checkpoint import TrainingState
from mindvideo.engine.log import RunLog, read_log

HERE = Path(__file__).resolve().parent
MEBIBYTE = 2**20


def test_the_log_tells_waiting_for_data_from_working(tmp_path, monkeypatch, capsys):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(loop, "save_checkpoint", lambda *_, **__: None)

    def batches():
        for seconds in (3.0, 1.0, 2.0, 0.0):
            clock.now += seconds
            yield (Tensor(np.zeros(1, np.float32)),)

    def take(group):
        clock.now += 6.0
        return [(Tensor(np.float32(0.5)), Tensor(np.zeros(1, np.float32)))]

    class Step(SimpleNamespace):
        __call__ = staticmethod(take)

    loop.fit(
        Step(batches=1, average=None, optimizer=None, kept=[]), batches(), model=nn.Cell(),
        state=TrainingState(model="none", config={}), num_steps=4, folder=tmp_path, log=RunLog(tmp_path),
        measure=lambda *_: {"accuracy": 1.0}, validate=None, validate_every=10, save_every=10, log_every=2,
    )  # fmt: skip
    logged = read_log(tmp_path / "log.jsonl")
    assert [(row["step"], row["waiting"], row["working"]) for row in logged] == [(2, 2.0, 6.0), (4, 1.0, 6.0)]
    assert "waiting for data 25 %" in capsys.readouterr().out


def test_memory_does_not_grow_with_the_epochs(tmp_path):
    """A leak of a batch a step, 432 KiB, would be 135 MiB from epoch 10 to 50, one of a clip 67."""
    script = HERE / "epochs.py"
    done = subprocess.run([sys.executable, script, tmp_path, "50"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()  # MindSpore may print some too
    resident = [int(line.split()[1]) for line in lines if line.startswith("resident ")]
    assert len(resident) == 50
    assert resident[-1] - resident[9] < 10 * MEBIBYTE, [bytes // MEBIBYTE for bytes in resident]
