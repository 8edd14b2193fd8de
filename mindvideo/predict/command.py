# SPDX-License-Identifier: Apache-2.0
"""`mindvideo predict`: all inputs one by one, what is printed of them, and what is written."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from mindvideo.engine.log import progress_bar, say
from mindvideo.errors import InputError
from mindvideo.metrics.openset import threshold_keeping
from mindvideo.predict.annotate import annotate_poses, annotate_video, targets
from mindvideo.predict.inputs import find_clips
from mindvideo.predict.predictors import PosePredictor, Predictor, VideoPredictor, shown_uncertainty
from mindvideo.predict.results import (
    Row,
    line_of,
    lines_of_runs,
    make_row,
    refuse_existing,
    to_csv,
    to_json,
    write_whole,
)
from mindvideo.predict.stream import slide
from mindvideo.predict.support import FewShotPredictor
from mindvideo.tasks.openset_scores import load_scores
from mindvideo.tasks.openset_views import hash_of_weights, how_seen


@dataclass(frozen=True)
class Wishes:
    """The options of the command. Without a threshold the run's own counts, if there is one; `every` is seconds, `json`
    and `csv` are new files, and `annotate` is a folder for pictures of all clips, .gif where `gif` or for poses."""

    top: int = 1
    threshold: float | None = None
    every: float | None = None
    json: Path | None = None
    csv: Path | None = None
    annotate: Path | None = None
    gif: bool = False


def run(predictor: Predictor | FewShotPredictor, checkpoint: Path, inputs: list[Path], wishes: Wishes) -> int:
    """Classify all inputs, print and write what is found; exit status 2 if any could not be read.

    InputError for wishes that cannot be met, before any work.
    """
    if wishes.every is not None and isinstance(predictor, PosePredictor):
        raise InputError("--every is for videos; poses bear no times.")
    if wishes.gif and not wishes.annotate:
        raise InputError("--gif goes with --annotate.")
    for path in filter(None, (wishes.json, wishes.csv)):
        refuse_existing(path)
    clips = find_clips(inputs, predictor.field)
    suffix = ".gif" if wishes.gif or predictor.field == "poses" else ".mp4"
    pictures = targets(clips, wishes.annotate, suffix) if wishes.annotate else [None] * len(clips)
    threshold = wishes.threshold
    if threshold is None:
        threshold = run_threshold(predictor, checkpoint)
        if threshold is not None:
            say(f"unknown above {threshold:.4f}, which keeps 95 % of the run's training videos")
    rows: list[Row] = []
    failures: dict[Path, str] = {}
    with progress_bar("predict", len(clips)) as progress:
        for done, (path, picture) in enumerate(zip(clips, pictures, strict=True), start=1):
            try:
                found = _rows_of(predictor, path, wishes, threshold)
                if picture and predictor.field == "poses":
                    annotate_poses(path, found[0], picture)
                elif picture:
                    annotate_video(path, found, picture)
            except InputError as error:
                failures[path] = str(error)
                print(f"mindvideo: error: {error}", file=sys.stderr)
            else:
                for line in lines_of_runs(found) if wishes.every is not None else map(line_of, found):
                    say(line)
                rows += found
            progress(done)
    about = {"checkpoint": str(checkpoint), "model": predictor.config.model.name, "threshold": threshold}
    if wishes.json:
        write_whole(wishes.json, to_json(rows, failures, about))
    if wishes.csv:
        write_whole(wishes.csv, to_csv(rows, min(wishes.top, len(predictor.labels))))
    return 2 if failures else 0


def _rows_of(predictor: Predictor | FewShotPredictor, path: Path, wishes: Wishes, threshold: float | None) -> list[Row]:
    if wishes.every is not None and not isinstance(predictor, PosePredictor):
        return [
            make_row(path, w.prediction, top=wishes.top, threshold=threshold, start=w.start, end=w.end)
            for w in slide(predictor, path, wishes.every)
        ]
    return [make_row(path, predictor.predict([path])[0], top=wishes.top, threshold=threshold)]


def run_threshold(predictor: Predictor | FewShotPredictor, checkpoint: Path) -> float | None:
    """The threshold of `mindvideo openset threshold`: the uncertainty that 95 % of the training videos do not exceed,
    from scores/train.npz beside the checkpoint; None if that is not there, or is of other weights or of videos seen
    otherwise."""
    path = checkpoint.parent / "scores" / "train.npz"
    if not isinstance(predictor, VideoPredictor) or not path.is_file():
        return None
    scores = load_scores(path)
    if (scores.model_hash, scores.settings) != (hash_of_weights(predictor.model), how_seen(predictor.config)):
        return None
    return threshold_keeping(scores.uncertainties[shown_uncertainty(scores.uncertainties)])
