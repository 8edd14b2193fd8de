# SPDX-License-Identifier: Apache-2.0
"""Few-shot networks shown examples say of videos what the task's episodes say."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from mindvideo.cli import main
from mindvideo.config import parse_config
from mindvideo.data.datasets import READERS
from mindvideo.data.episodes import EpisodeSampler
from mindvideo.data.video import read_frames
from mindvideo.engine.checkpoint import TrainingState, save_checkpoint
from mindvideo.errors import InputError
from mindvideo.predict import load_few_shot, predict
from mindvideo.predict.stream import slide
from mindvideo.predict.support import find_examples
from mindvideo.tasks import fewshot
from mindvideo.tasks.fewshot_data import make_readers
from mindvideo.tasks.fewshot_episodes import queries, run_episodes
from tests.serving import write_pose_checkpoint

FRAMES = 6


def write_checkpoint(folder: Path, comparator: str) -> Path:
    """few.ckpt with random weights."""
    config = parse_config(
        {
            "task": "fewshot",
            "model": {"name": "arn", "width": 16, "comparator": comparator},
            "data": {"length": 4, "height": 32, "width": 32},
            "eval": {"batch": 4},
        },
        "here",
    )
    save_checkpoint(folder / "few.ckpt", fewshot.make_model(config), TrainingState("arn", config=config.to_dict()))
    return folder / "few.ckpt"


@pytest.mark.parametrize("comparator", ["relation", "distance"])
def test_scores_are_those_of_an_episode(comparator, make_videos, tmp_path, capsys):
    samples = READERS["folder"](make_videos([f"{label}/{i}.avi" for label in "ABC" for i in range(4)], FRAMES))
    sampler = EpisodeSampler(samples, way=3, shot=2, query=2, seed=3, unknown=0)
    episode = sampler.episode(0)
    checkpoint, support = write_checkpoint(tmp_path, comparator), tmp_path / "support"
    for label, places in zip(episode.classes, episode.support_NK, strict=True):
        (support / label).mkdir(parents=True)
        for number, place in enumerate(places):
            shutil.copy(samples[place].path, support / label / f"{number}.avi")
    predictor = load_few_shot(checkpoint, support, device="cpu")
    assert predictor.labels == ("A", "B", "C")
    reader = make_readers(predictor.config, {sample.path: FRAMES for sample in samples})[1]
    results = run_episodes(
        predictor.model, sampler, samples, reader,
        num_episodes=1, batch=4, workers=1, batch_norm="running", controls={},
    )  # fmt: skip
    paths = [samples[place].path for place in queries(episode)]
    order = [predictor.labels.index(label) for label in episode.classes]
    found = predictor.predict(paths)
    scores = np.stack([f.probabilities[order] for f in found])
    np.testing.assert_allclose(scores, results.scores["model"][0], atol=2e-5)
    assert np.ptp(scores, axis=0).max() > 1e-4  # queries are told apart
    unsure = [f.uncertainty for f in found]
    np.testing.assert_allclose(unsure, 1 - results.knownness["model"][0], rtol=1e-4, atol=2e-5)
    (from_array,) = predictor.predict([read_frames(paths[0], range(FRAMES))])
    np.testing.assert_allclose(from_array.logits, found[0].logits, rtol=1e-4, atol=2e-5)
    (window,) = slide(predictor, paths[0], 60.0)
    np.testing.assert_allclose(window.prediction.logits, found[0].logits, rtol=1e-4, atol=2e-5)
    capsys.readouterr()
    assert (
        main(["predict", "--ckpt", str(checkpoint), "--support", str(support), "--device", "cpu", str(paths[0])]) == 0
    )
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith(f"{paths[0]}: {found[0].label} {found[0].probabilities.max():.3f}, uncertainty (strangeness")


def test_examples_that_do_not_fit_are_refused(make_videos, tmp_path):
    root = make_videos(["A/0.avi", "A/1.avi", "B/0.avi"], FRAMES)
    with pytest.raises(InputError, match="1 examples of 'B', 2 of 'A'; all classes need equally many"):
        find_examples(root)
    (root / "A" / "1.avi").unlink()
    assert [(s.label, s.path.name) for s in find_examples(root)] == [("A", "0.avi"), ("B", "0.avi")]
    with pytest.raises(InputError, match="0 folders of classes; examples must be of at least 2"):
        find_examples(root / "A")
    with pytest.raises(InputError, match="no such folder of examples"):
        find_examples(root / "C")
    with pytest.raises(InputError, match="only models of tasks pose and openset know classes; few-shot ones"):
        predict("a.avi", checkpoint=write_checkpoint(tmp_path, "relation"), device="cpu")


def test_examples_are_for_few_shot_networks_alone(make_videos, tmp_path, capsys):
    root = make_videos(["A/0.avi", "B/0.avi"], FRAMES)
    words = ["predict", "--ckpt", str(write_pose_checkpoint(tmp_path)), "--support", str(root), "a.avi"]
    assert main([*words, "--device", "cpu"]) == 2
    assert "is of task pose; examples (--support) are for task fewshot" in capsys.readouterr().err
    assert main([*words, "--labels", "names.txt"]) == 2
    assert "--labels does not go with --support" in capsys.readouterr().err
