# SPDX-License-Identifier: Apache-2.0
"""Every measurement of speed, one after another: about an hour.

    python -m benchmarks [--ucf101 FOLDER]

Steps and start-up beside PyTorch, decoding beside decord and OpenCV, and how costs grow; with the videos of UCF101 also
whole epochs of reading, decoded and prepared. Each is a command of its own, see README.md beside this file; one that
lacks something, such as PyTorch, says so, and the others go on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parent / "configs"
COMMANDS = (["step.py"], ["operators.py"], ["decode.py"], ["costs.py"])
OPEN_SET = ("data.length=32", "data.size=112", "data.short_side=128", "eval.size=112")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ucf101", type=Path, metavar="FOLDER", help="its videos, in a folder for each class")
    root = parser.parse_args().ucf101
    commands = [[str(HERE / script), *words] for script, *words in COMMANDS]
    if root:
        for config, *settings in (("arn/arn_ucf101_small",), ("dear/ucf101_small/i3d_dnn", *OPEN_SET)):
            words = [str(CONFIGS / f"{config}.yaml"), f"data.root={root.resolve()}", *settings]
            commands.append(["-m", "benchmarks.prepared", *words])
    failed = []
    for command in commands:
        print(f"\n## {' '.join(command)}\n", flush=True)
        if subprocess.run([sys.executable, *command], cwd=HERE.parent).returncode:
            failed.append(" ".join(command))
    for command in failed:
        print(f"failed: {command}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
