# SPDX-License-Identifier: Apache-2.0
"""`mindvideo predict`: all inputs one by one, or a camera; what is printed of them, and what is written."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mindvideo.engine.log import progress_bar, say
from mindvideo.errors import InputError
from mindvideo.metrics.openset import threshold_keeping
from mindvideo.predict.annotate import annotate_heat, annotate_poses, annotate_video, targets
from mindvideo.predict.cam import GradCam
from mindvideo.predict.camera import INTERVAL, LONGEST_GAP, camera_frames, camera_number
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
    write_new,
)
from mindvideo.predict.stream import follow, slide
from mindvideo.predict.support import FewShotPredictor
from mindvideo.tasks.openset_scores import load_scores
from mindvideo.tasks.openset_views import hash_of_weights, how_seen

WEBCAM_EVERY = 1.0  # seconds


@dataclass(frozen=True)
class Wishes:
    """The options of the command. Without a threshold the run's own counts, if there is one; `every` is seconds, `json`
    and `csv` are new files, and `annotate` and `cam` are folders for pictures of all clips, .gif where `gif` or for
    poses."""

    top: int = 1
    threshold: float | None = None
    every: float | None = None
    json: Path | None = None
    csv: Path | None = None
    annotate: Path | None = None
    cam: Path | None = None
    gif: bool = False


def run(predictor: Predictor | FewShotPredictor, checkpoint: Path, inputs: list[Path], wishes: Wishes) -> int:
    """Classify all inputs, print and write what is found; exit status 2 if any could not be read.

    InputError for wishes that cannot be met, before any work.
    """
    _refuse(predictor, inputs, wishes)
    threshold = wishes.threshold
    if threshold is None:
        threshold = run_threshold(predictor, checkpoint)
        if threshold is not None:
            say(f"unknown above {threshold:.4f}, which keeps 95 % of the run's training videos")
    to_row = partial(make_row, top=wishes.top, threshold=threshold)
    number = camera_number(inputs[0])
    if number is not None and not isinstance(predictor, PosePredictor):
        rows, failures = _watch(predictor, inputs[0], number, wishes.every or WEBCAM_EVERY, to_row)
    else:
        rows, failures = _classify(predictor, inputs, wishes, to_row)
    about = {"checkpoint": str(checkpoint), "model": predictor.config.model.name, "threshold": threshold}
    if wishes.json:
        write_new(wishes.json, to_json(rows, failures, about))
    if wishes.csv:
        write_new(wishes.csv, to_csv(rows, min(wishes.top, len(predictor.labels))))
    return 2 if failures else 0


def _refuse(predictor: Predictor | FewShotPredictor, inputs: list[Path], wishes: Wishes) -> None:
    is_live = any(camera_number(path) is not None for path in inputs)
    is_poses, pictures = isinstance(predictor, PosePredictor), (wishes.annotate, wishes.cam)
    for is_so, sentence in (
        (is_live and is_poses, "webcam is for networks of videos, not of poses."),
        (is_live and len(inputs) > 1, "webcam goes alone; give the other inputs to a call of their own."),
        (is_live and any(pictures), "--annotate and --cam are for clips; of a webcam no pictures are kept."),
        (wishes.every is not None and is_poses, "--every is for videos; poses bear no times."),
        (wishes.gif and not any(pictures), "--gif goes with --annotate or --cam."),
        (wishes.cam and not isinstance(predictor, VideoPredictor), "--cam is for video classifiers (task openset)."),
        (wishes.cam and wishes.every is not None, "--cam explains one look at each clip; leave out --every."),
        (all(pictures) and wishes.annotate == wishes.cam, "--annotate and --cam need a folder each."),
    ):
        if is_so:
            raise InputError(sentence)
    for path in filter(None, (wishes.json, wishes.csv)):
        refuse_existing(path)


def _watch(
    predictor: VideoPredictor | FewShotPredictor, path: Path, number: int, every: float, to_row: Callable[..., Row]
) -> tuple[list[Row], dict[Path, str]]:
    """As `_classify`, of what a camera shows, until Ctrl-C or the camera's end."""
    rows: list[Row] = []
    failures: dict[Path, str] = {}
    with closing(camera_frames(number)) as frames, _interruptible():
        say(f"{path}: a verdict every {every:g} s, or as often as the network can; Ctrl-C ends")
        try:
            for window in follow(predictor, frames, every, interval=INTERVAL, longest_gap=LONGEST_GAP):
                rows.append(to_row(path, window.prediction, start=window.start, end=window.end))
                say(lines_of_runs(rows[-1:])[0])
        except KeyboardInterrupt:
            pass
        except InputError as error:  # what there was of it at its end is too short for the network
            _report(path, error, failures)
    return rows, failures


@contextmanager
def _interruptible() -> Iterator[None]:
    """Have SIGTERM raise KeyboardInterrupt: once a graph has run, MindSpore makes a SIGTERM of Ctrl-C."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _classify(
    predictor: Predictor | FewShotPredictor, inputs: list[Path], wishes: Wishes, to_row: Callable[..., Row]
) -> tuple[list[Row], dict[Path, str]]:
    """The verdicts on all clips, and of those that could not be read the reasons, each printed as it comes."""
    clips = find_clips(inputs, predictor.field)
    suffix = ".gif" if wishes.gif or predictor.field == "poses" else ".mp4"
    pictures, heats = (
        targets(clips, folder, suffix) if folder else [None] * len(clips) for folder in (wishes.annotate, wishes.cam)
    )
    cam = GradCam(predictor) if wishes.cam and isinstance(predictor, VideoPredictor) else None
    rows: list[Row] = []
    failures: dict[Path, str] = {}
    with progress_bar("predict", len(clips)) as progress:
        for done, (path, picture, heat) in enumerate(zip(clips, pictures, heats, strict=True), start=1):
            try:
                if cam and heat:
                    found = [_explain(cam, path, heat, to_row)]
                else:
                    found = _rows_of(predictor, path, wishes.every, to_row)
                if picture and predictor.field == "poses":
                    annotate_poses(path, found[0], picture)
                elif picture:
                    annotate_video(path, found, picture)
            except InputError as error:
                _report(path, error, failures)
            else:
                for line in lines_of_runs(found) if wishes.every is not None else map(line_of, found):
                    say(line)
                rows += found
            progress(done)
    return rows, failures


def _report(path: Path, error: InputError, failures: dict[Path, str]) -> None:
    failures[path] = str(error)
    print(f"mindvideo: error: {error}", file=sys.stderr)


def _rows_of(
    predictor: Predictor | FewShotPredictor, path: Path, every: float | None, to_row: Callable[..., Row]
) -> list[Row]:
    if every is not None and not isinstance(predictor, PosePredictor):
        return [to_row(path, w.prediction, start=w.start, end=w.end) for w in slide(predictor, path, every)]
    return [to_row(path, predictor.predict([path])[0])]


def _explain(cam: GradCam, path: Path, target: Path, to_row: Callable[..., Row]) -> Row:
    """The verdict on a video, whose evidence is drawn over what the network saw of it."""
    clip = cam.predictor.read(path)
    (found,) = cam.predictor.classify([clip])
    row = to_row(path, found)
    annotate_heat(path, found.seen, cam(clip, found.number), cam.predictor.reader.stride, row, target)
    return row


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
