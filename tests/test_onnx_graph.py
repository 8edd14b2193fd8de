# SPDX-License-Identifier: Apache-2.0
"""The tests of onnx_graph_cases.py, in a process of their own: once graphs with operators in place or views are
exported, MindSpore compiles no gradient with a `stop_gradient` in it in the same process."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import REPOSITORY


def test_mindir_graphs_become_onnx():
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:xdist",
        "-p",
        "no:cacheprovider",
        "tests/onnx_graph_cases.py",
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "6 passed" in done.stdout
