# SPDX-License-Identifier: Apache-2.0
"""An environment that the scripts take for the repository's own, so that they install nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
# The commands of the environment that runs this.
OURS = {
    "python": f'#!/bin/sh\nexec {sys.executable} "$@"\n',
    "msrun": f'#!/bin/sh\nexec {sys.executable} {Path(sys.executable).parent / "msrun"} "$@"\n',
}


def make_environment(folder: Path, commands: dict[str, str]) -> None:
    """`folder` with these commands, their texts by name, and the stamps of `scripts/common.sh`."""
    (folder / "bin").mkdir(parents=True)
    for name, text in commands.items():
        command = folder / "bin" / name
        command.write_text(text)
        command.chmod(0o755)
    files = [REPOSITORY / "requirements.txt", REPOSITORY / "pyproject.toml"]
    stamp = subprocess.run(f"cat {files[0]} {files[1]} | cksum", shell=True, capture_output=True, check=True)
    for extras in ("", "dev", "gpu"):
        (folder / f".mindvideo-{extras}").write_text(stamp.stdout.decode().strip())
