# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: `<output>/<name>/` with config.yaml, logs, checkpoints, report.html and result.json.

A second run of one name gets `<name>-2`, and so on: nothing is overwritten. A run without result.json is
unfinished.
"""

from __future__ import annotations

import glob
import hashlib
import json
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from mindvideo.engine.distributed import from_first
from mindvideo.errors import InputError

# What may differ between a run and its continuation.
_FREE_TO_CHANGE = (
    *("device", "output", "data.root", "data.workers"),
    *("train.resume", "train.log_every", "eval.episodes", "eval.batch", "eval.gifs"),
)


def new_run(output: Path, name: str, config_yaml: str) -> Path:
    """Make the next free folder of this name, with config.yaml in it; of several processes the first makes it."""
    return Path(from_first(lambda: str(_new_run(output, name, config_yaml))))


def _new_run(output: Path, name: str, config_yaml: str) -> Path:
    number = 1
    while True:
        folder = output / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            number += 1
        except OSError as error:
            raise InputError(f"output: cannot make the folder {folder} ({error}).") from error
    write_whole(folder / "config.yaml", config_yaml)
    return folder


def write_whole(path: Path, text: str) -> None:
    """Write a file that is never seen half written."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def latest_run(output: Path, name: str) -> Path | None:
    """The run of this name with the highest number, or None."""
    runs: dict[int, Path] = {}
    for folder in output.glob(f"{glob.escape(name)}*"):
        number = re.fullmatch(r"(?:-(\d+))?", folder.name.removeprefix(name))
        # A name may itself end in a number: its own config tells.
        if number and (folder / "config.yaml").is_file() and read_settings(folder).get("name") == name:
            runs[int(number.group(1) or 1)] = folder
    return runs[max(runs)] if runs else None


def read_settings(folder: Path) -> dict[str, Any]:
    """The config of the run in a folder, as it was written."""
    return yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))


def check_same_run(folder: Path, config: dict[str, Any]) -> None:
    """InputError, with the keys, if the run in `folder` was started with other settings."""
    before = _flatten(read_settings(folder))
    now = _flatten(config)
    changed = [
        f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in _FREE_TO_CHANGE
    ]
    if changed:
        raise InputError(
            f"{folder}: cannot resume with other settings: {'; '.join(changed)}. "
            "Set them back, or give the run another `name`."
        )


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def write_result(folder: Path, result: dict[str, Any], config_yaml: str) -> dict[str, Any]:
    """Add versions, commit and the config's hash to `result`, write result.json, and return it."""
    packages = ("mindspore", "numpy", "av", "opencv-python-headless")
    versions = {name: metadata.version(name) for name in packages}
    result = result | {
        "versions": {"python": platform.python_version()} | versions,
        "commit": current_commit(),
        "config_sha256": hashlib.sha256(config_yaml.encode()).hexdigest(),
    }
    write_whole(folder / "result.json", json.dumps(result, indent=2, ensure_ascii=False))
    return result


def current_commit() -> str:
    """The checkout's commit, with `+changes` if files differ from it; empty outside a checkout."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        return commit + ("+changes" if commit and git("status", "--porcelain", "-uno") else "")
    except FileNotFoundError:  # no git
        return ""
