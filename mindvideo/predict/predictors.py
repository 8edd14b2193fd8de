# SPDX-License-Identifier: Apache-2.0
"""The networks of checkpoints, and what they say of clips.

    predictor = load_predictor(Path("output/actionnet_sample/best.ckpt"))
    for prediction in predictor.predict([Path("one.npy"), Path("two.npy")]):
        print(prediction.label, prediction.probabilities.max(), prediction.uncertainty)

N clips, K classes, T frames, V views of a video, B clips a graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor
from numpy.lib import format as npy
from scipy.special import softmax

from mindvideo.config import Config, load_config, parse_config
from mindvideo.data.loader import VIEW_SAMPLERS
from mindvideo.data.manifest import Sample
from mindvideo.data.pose import MOST_FRAMES, NUM_JOINTS, NUM_VALUES, collate, parse_pose, read_pose
from mindvideo.data.video import count_frames
from mindvideo.engine.checkpoint import TrainingState, load_checkpoint, read_checkpoint
from mindvideo.engine.device import use_device
from mindvideo.errors import InputError
from mindvideo.metrics.uncertainty import uncertainties
from mindvideo.models.actionnet import ActionNet
from mindvideo.models.recognizer import Recognizer
from mindvideo.tasks import openset_objective, pose
from mindvideo.tasks.openset_data import view_reader
from mindvideo.tasks.openset_objective import evidence_of
from mindvideo.tasks.openset_views import Scorer, Views, average_views

# A graph keeps its memory for good, so poses are brought to these few shapes: a clip is filled up to the next length,
# and clips go through together in the largest of these numbers that they fill by half. No graph has more frames than
# the longest clip, nor more attention than 2^24 numbers, unless a single clip needs it.
LENGTHS = (256, 2048, MOST_FRAMES)
BATCHES = (16, 4, 1)
MOST_ATTENTION = 2**24

# Which score is a prediction's uncertainty: the first that the network has.
_UNCERTAINTIES = ("vacuity", "mutual_information", "max_probability")

# The parameter that has one entry, or row, a class.
_BY_CLASS = ("decoder.bias", "head.fc.bias", "head.bias_mu", "head.centers")


@dataclass(frozen=True)
class Prediction:
    """Scores `[K]` of the classes `labels`. `uncertainty` is a score of `metrics/uncertainty.py`, named beside it, and
    larger for what is less known. `seen` is the clip: poses `[T, 24, 6]`, or frames, uint8 `[T, H, W, 3]`, of the
    view in the middle."""

    labels: tuple[str, ...]
    logits: np.ndarray
    probabilities: np.ndarray
    uncertainty: float
    uncertainty_name: str
    seen: np.ndarray

    @property
    def number(self) -> int:
        """The place of the likeliest class among the labels."""
        return int(self.probabilities.argmax())

    @property
    def label(self) -> str:
        """The likeliest class."""
        return self.labels[self.number]

    def top(self, number: int) -> list[tuple[str, float]]:
        """The likeliest classes with their probabilities, at most so many."""
        order = np.argsort(-self.probabilities, kind="stable")[:number]
        return [(self.labels[place], float(self.probabilities[place])) for place in order]

    def as_json(self) -> dict[str, Any]:
        """All but `seen`, the logits where ActionNet's published service promises them."""
        return {
            "class_scores": {"action_class": self.logits.tolist()},
            "probabilities": self.probabilities.tolist(),
            "labels": list(self.labels),
            "label": self.label,
            "uncertainty": {"name": self.uncertainty_name, "value": self.uncertainty},
        }


@dataclass(frozen=True)
class VideoClip:
    """What a network sees of a video: crops of the frames that it needs, uint8 `[K, F, H, W, 3]`, and where among these
    frames are those of its windows, `[V, T]`; see `ViewReader`."""

    crops: np.ndarray
    places: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.crops.nbytes

    @property
    def middle(self) -> VideoClip:
        """The view in the middle alone."""
        window = len(self.places) // 2
        return VideoClip(self.crops[-1:], self.places[window : window + 1])  # of three crops the middle one is the last

    @property
    def frames(self) -> np.ndarray:
        """The frames of the first view, uint8 `[T, H, W, 3]`."""
        return self.crops[0, self.places[0]]


class PosePredictor:
    """A network of poses. Not thread-safe: MindSpore's graphs are not."""

    field = "poses"

    def __init__(self, model: ActionNet, config: Config, labels: tuple[str, ...]):
        self.model, self.config, self.labels = model, config, labels
        model.set_train(False)
        self._graph = ms.jit(model.construct)

    def predict(self, inputs: Sequence[np.ndarray | bytes | Path]) -> list[Prediction]:
        """One prediction for each input; see `read`."""
        return self.classify([self.read(source) for source in inputs])

    def read(self, source: np.ndarray | bytes | Path) -> np.ndarray:
        """Poses `[T, 24, 6]` of an .npy file, its content, or an array `(T, 72)` or `(T, 24, 6)`; InputError if it is
        none. Any thread may call it."""
        if isinstance(source, Path):
            return read_pose(source)
        return parse_pose(source if isinstance(source, bytes) else _as_file(source), "poses")

    def classify(self, clips: Sequence[np.ndarray]) -> list[Prediction]:
        """One prediction for each of some poses that `read` gave."""
        logits_NK = np.empty((len(clips), len(self.labels)), np.float32)
        for length in LENGTHS:
            rest = [i for i, clip in enumerate(clips) if _fitting(len(clip)) == length]
            while rest:
                batch = next(size for size in self._batches(length) if 2 * len(rest) >= size)
                chosen, rest = rest[:batch], rest[batch:]
                logits_NK[chosen] = self._logits([clips[i] for i in chosen], batch, length)
        probabilities_NK = softmax(logits_NK.astype(np.float64), axis=1)
        found = uncertainties(logits_NK, probabilities_NK)
        return [
            _prediction(self.labels, logits_NK[i], probabilities_NK[i], _at(found, i), clip)
            for i, clip in enumerate(clips)
        ]

    def warm_up(self, max_batch: int) -> None:
        """Compile every graph that `classify` needs for at most so many clips at once."""
        for length in LENGTHS:
            for batch in self._batches(length):
                if batch <= max_batch:
                    self._logits([np.zeros((1, NUM_JOINTS, NUM_VALUES), np.float32)], batch, length)

    def _batches(self, length: int) -> list[int]:
        attention = self.model.attention.num_heads * self.model.length**2
        most = min(MOST_FRAMES // length, MOST_ATTENTION // attention)
        return [batch for batch in BATCHES if batch <= max(1, most)]

    def _logits(self, clips: list[np.ndarray], batch: int, length: int) -> np.ndarray:
        """Logits of at most `batch` clips, filled up with the first one."""
        poses, lengths = collate(clips + clips[:1] * (batch - len(clips)), length)
        return self._graph(Tensor(poses), Tensor(lengths)).asnumpy()[: len(clips)]


class VideoPredictor:
    """A classifier of videos, which looks at them as its config's `eval` says. Not thread-safe."""

    field = "video"

    def __init__(self, model: Recognizer, config: Config, labels: tuple[str, ...]):
        self.model, self.config, self.labels = model, config, labels
        self.reader = view_reader(config, {})
        self._scorer = Scorer(model)

    @property
    def span(self) -> int:
        """How many frames one view lasts."""
        return self.reader.length * self.reader.stride

    def predict(self, inputs: Sequence[Path | np.ndarray]) -> list[Prediction]:
        """One prediction for each video; see `read`."""
        return self.classify([self.read(source) for source in inputs])

    def read(self, source: Path | np.ndarray) -> VideoClip:
        """What is needed of a video file, a folder of frames, or frames, uint8 `[T, H, W, 3]`; VideoError if it cannot
        be read, InputError for other arrays. Any thread may call it."""
        if isinstance(source, np.ndarray):
            return self.gather([self.shrink(frame) for frame in checked_frames(source)])
        reader = replace(self.reader, num_frames={source: count_frames(source, self.reader.decoder)})
        return VideoClip(*reader.crops(Sample(source, "", "")))

    def shrink(self, frame_HWC: np.ndarray) -> np.ndarray:
        """All that the network may need of a frame, uint8: its crops `[K, H, W, 3]`."""
        return self.reader.transform.crop(frame_HWC[None])[:, 0]

    def gather(self, frames: Sequence[np.ndarray]) -> VideoClip:
        """What is needed of a video, all of whose frames went through `shrink`."""
        reader = self.reader
        indices_VT = VIEW_SAMPLERS[reader.sampling](len(frames), reader.length, reader.stride, reader.num_clips)
        wanted_F, places = np.unique(indices_VT, return_inverse=True)
        return VideoClip(np.stack([frames[i] for i in wanted_F], axis=1), places.reshape(indices_VT.shape))

    def classify(self, clips: Sequence[VideoClip]) -> list[Prediction]:
        """One prediction for each of some videos that `read` gave, one after the other."""
        return [self._classify(clip) for clip in clips]

    def warm_up(self, max_batch: int) -> None:
        """Compile the graphs that `classify` needs."""
        size, length = self.reader.transform.size, self.reader.length
        crops = 3 if self.reader.transform.views == "three" else 1
        places_VT = np.zeros((self.reader.num_clips, length), np.int64)
        self._classify(VideoClip(np.zeros((crops, 1, size, size, 3), np.uint8), places_VT))

    def _classify(self, clip: VideoClip) -> Prediction:
        shape = self.config.eval
        views = self._look(self.reader.views(clip.crops, clip.places))
        logits, probabilities, found = average_views(views, average=shape.average, evidence=evidence_of(self.config))
        return _prediction(self.labels, logits[0], probabilities[0], _at(found, 0), clip.middle.frames)

    def _look(self, views_VCTHW: np.ndarray) -> Views:
        """What the network says of each view of one video; one graph serves for all videos, as all have as many."""
        batch, parts = min(len(views_VCTHW), self.config.eval.batch), []
        for number, start in enumerate(range(0, len(views_VCTHW), batch)):
            chosen = views_VCTHW[start : start + batch]
            filled = np.concatenate([chosen, chosen[:1].repeat(batch - len(chosen), axis=0)])
            scores = self._scorer(filled, self.config.eval.draws, number)
            parts.append([array[: len(chosen)] for array in scores])
        logits, features, *draws = (np.concatenate(arrays)[None] for arrays in zip(*parts, strict=True))
        return Views(logits, features.mean(axis=1), draws[0] if draws else None)


Predictor = PosePredictor | VideoPredictor


def load_predictor(
    checkpoint: Path, model: str = "", config: Path | None = None, device: str = "auto", labels: Path | None = None
) -> Predictor:
    """The network of a checkpoint, .ckpt or .safetensors, as it was trained.

    The checkpoint itself says what it is; where it does not, the .ckpt or else the config.yaml beside it does. What is
    given wins: `config`, a YAML file, and `labels`, a file of class names, one a line. Without any names classes are
    numbered. InputError if the network is not called `model`, where that is given, if it is of a task that knows no
    fixed classes, or if anything does not fit the weights.
    """
    device = use_device(device)
    values, state = read_checkpoint(checkpoint)
    if not state.config and checkpoint.suffix == ".safetensors" and checkpoint.with_suffix(".ckpt").is_file():
        state = read_checkpoint(checkpoint.with_suffix(".ckpt"))[1]
    settings = settings_of(checkpoint, config, values, state)
    if model and model != settings.model.name:
        raise InputError(f"{checkpoint} holds the model {settings.model.name!r}, not {model!r}.")
    if settings.task not in ("pose", "openset"):
        raise InputError(
            f"{checkpoint} is of task {settings.task}; only models of tasks pose and openset know classes; "
            "few-shot ones are shown examples (predict --support)."
        )
    names = _names(checkpoint, labels, values, state)
    network = (pose if settings.task == "pose" else openset_objective).make_model(settings, len(names))
    load_checkpoint(checkpoint, network, settings.model.name)
    if isinstance(network, ActionNet):
        return PosePredictor(network, settings, names)
    if config:  # with its own settings it has seen clips
        openset_objective.look_once(settings, network)
    return VideoPredictor(network, settings, names)


def settings_of(
    checkpoint: Path, config: Path | None, values: Mapping[str, np.ndarray], state: TrainingState
) -> Config:
    """The config of a checkpoint that holds `values` and `state`: the one given, its own, or that beside it."""
    beside = checkpoint.with_name("config.yaml")
    if config or (not state.config and beside.is_file()):
        return load_config(config or beside)
    if state.config:
        return parse_config(state.config, str(checkpoint))
    if {"embed.weight", "decoder.embed.weight"} <= values.keys():
        widths = {"width": len(values["embed.weight"]), "decoder_width": len(values["decoder.embed.weight"])}
        return parse_config({"task": "pose", "model": widths}, str(checkpoint))
    raise InputError(f"{checkpoint} does not say how it was trained: give the config of its run (config.yaml).")


def _names(
    checkpoint: Path, labels: Path | None, values: Mapping[str, np.ndarray], state: TrainingState
) -> tuple[str, ...]:
    found = [len(values[name]) for name in _BY_CLASS if name in values]
    if not found:
        raise InputError(f"{checkpoint} holds no classifier of clips.")
    names = state.classes or [str(number) for number in range(found[0])]
    if labels:
        if not labels.is_file():
            raise InputError(f"{labels}: no such file of class names.")
        names = labels.read_text(encoding="utf-8", errors="replace").splitlines()
    if len(names) != found[0] or not all(names):
        raise InputError(f"{labels or checkpoint}: {len(names)} class names, one a line, for {found[0]} classes.")
    return tuple(names)


def _as_file(array: np.ndarray) -> bytes:
    """What an .npy file of the array would hold."""
    file = BytesIO()
    try:
        npy.write_array(file, array, allow_pickle=False)
    except ValueError as error:
        raise InputError(f"poses: an array of {array.dtype}; allowed are floating-point numbers.") from error
    return file.getvalue()


def _fitting(num_frames: int) -> int:
    return next(length for length in LENGTHS if num_frames <= length)


def checked_frames(frames_THWC: np.ndarray) -> np.ndarray:
    """The frames; InputError if they are not uint8 `[T, H, W, 3]`."""
    shape = frames_THWC.shape
    if frames_THWC.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise InputError(f"video: an array {list(shape)} of {frames_THWC.dtype}; allowed is uint8 [T, H, W, 3].")
    return frames_THWC


def _at(found: Mapping[str, np.ndarray], index: int) -> dict[str, float]:
    return {name: float(values[index]) for name, values in found.items()}


def _prediction(
    labels: tuple[str, ...], logits: np.ndarray, probabilities: np.ndarray, found: dict[str, float], seen: np.ndarray
) -> Prediction:
    name = shown_uncertainty(found)
    return Prediction(labels, logits, probabilities, found[name], name, seen)


def shown_uncertainty(found: Mapping[str, Any]) -> str:
    """Which of some uncertainties is a prediction's."""
    return next(name for name in _UNCERTAINTIES if name in found)
