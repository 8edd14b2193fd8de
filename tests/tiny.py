# SPDX-License-Identifier: Apache-2.0
"""The smallest few-shot experiment that goes the whole way: made videos, config, run, report; and what runs leave."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mindvideo.cli import main
from mindvideo.data.video import write_video

CLASSES = {"train": "abc", "val": "de", "test": "fgh"}
EPISODES = 20
CONFIG = f"""
device: cpu
model: {{width: 16}}
data: {{dataset: folder, length: 4, height: 32, width: 32}}
episode: {{way: 2, shot: 1, query: 1}}
loss: {{classify: 0.3}}
train: {{episodes: {EPISODES}, validate_every: 10, validate_episodes: 5, save_every: 3, log_every: 1}}
eval: {{way: 2, shot: 1, query: 1, episodes: 10, batch: 4, gifs: 1}}
"""


def write_experiment(root: Path) -> None:
    """tiny.yaml, split/ and videos/ with three videos of six frames a class, each class its own pattern."""
    (root / "tiny.yaml").write_text(CONFIG)
    (root / "split").mkdir()
    rng = np.random.default_rng(0)
    for part, names in CLASSES.items():
        (root / "split" / f"{part}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            pattern = rng.integers(30, 226, (1, 4, 4, 3))
            for number in range(3):
                noisy = pattern + rng.integers(-30, 30, (6, 4, 4, 3))
                frames_THWC = noisy.astype(np.uint8).repeat(8, axis=1).repeat(8, axis=2)
                write_video(root / "videos" / name / f"{number}.avi", frames_THWC)


def settings(root: Path, output: Path, *more: str) -> list[str]:
    """The words after `mindvideo train` for the experiment at `root`."""
    folders = (f"data.root={root / 'videos'}", f"data.split={root / 'split'}", f"output={output}")
    return [str(root / "tiny.yaml"), *folders, *more]


def train(root: Path, output: Path, *more: str) -> int:
    """`mindvideo train` in this process; its exit status."""
    return main(["train", *settings(root, output, *more)])


def evaluate(root: Path, output: Path, checkpoint: Path, *more: str) -> int:
    """`mindvideo eval` in this process; its exit status."""
    return main(["eval", *settings(root, output, *more), "--checkpoint", str(checkpoint)])


def result(folder: Path) -> dict:
    """What a run's result.json holds."""
    return json.loads((folder / "result.json").read_text())


def logged(folder: Path, name: str) -> dict[int, float]:
    """A number of a run's log by step."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {row["step"]: row[name] for row in rows if name in row}
