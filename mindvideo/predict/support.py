# SPDX-License-Identifier: Apache-2.0
"""Few-shot networks, which know no classes: those of a folder of examples are theirs.

N classes (way), K example clips a class (shot), T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindvideo.config import Config
from mindvideo.data.datasets import visible
from mindvideo.data.loader import ClipReader
from mindvideo.data.manifest import Sample
from mindvideo.data.transforms import ClipTransform, resize_frames
from mindvideo.data.video import count_frames
from mindvideo.engine.checkpoint import load_checkpoint, read_checkpoint
from mindvideo.engine.device import use_device
from mindvideo.errors import InputError
from mindvideo.models.arn import ARN
from mindvideo.predict.inputs import find_clips
from mindvideo.predict.predictors import Prediction, checked_frames, settings_of
from mindvideo.tasks import fewshot
from mindvideo.tasks.fewshot_data import make_readers
from mindvideo.tasks.fewshot_episodes import encode_all

_ARRAY = Path("video")  # what messages call frames that are no file


class FewShotPredictor:
    """Compares videos with examples as a test episode does, BatchNorm with its running statistics. Not thread-safe.

    A prediction's `logits` are the comparator's outputs, its `probabilities` the scores, which with the comparator
    `relation` do not add up to 1, and its uncertainty 1 less the knownness by which few-shot reports rank queries.
    """

    field = "video"

    def __init__(self, model: ARN, config: Config, examples: Sequence[Sample]):
        """Sees the examples: as many of every class, sorted by class."""
        self.model, self.config = model, config
        self.labels = tuple(dict.fromkeys(sample.label for sample in examples))
        counts = {sample.path: count_frames(sample.path, config.data.decoder) for sample in examples}
        self.reader: ClipReader[ClipTransform] = make_readers(config, counts)[1]
        model.set_train(False)
        vectors, _ = encode_all(model, {}, list(examples), self.reader, batch=config.eval.batch, workers=1)
        self._support = Tensor(vectors.reshape(len(self.labels), -1, *vectors.shape[1:]))

        def judge(support_NK: Tensor, clips_BCTHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            outputs_BN = model.relate(support_NK, model.encode(clips_BCTHW))
            return outputs_BN, model.scores(outputs_BN), model.knownness(outputs_BN)

        self._judge = ms.jit(judge)

    @property
    def span(self) -> int:
        """How many frames a clip lasts at least."""
        return self.reader.length * self.reader.stride

    def predict(self, inputs: Sequence[Path | np.ndarray]) -> list[Prediction]:
        """One prediction for each video; see `read`."""
        return self.classify([self.read(source) for source in inputs])

    def read(self, source: Path | np.ndarray) -> np.ndarray:
        """The clip `[3, T, H, W]` of a video file, a folder of frames, or frames, uint8 `[T, H, W, 3]`; VideoError if
        it cannot be read or is too short, InputError for other arrays."""
        if isinstance(source, np.ndarray):
            return self.gather([self.shrink(frame) for frame in checked_frames(source)])
        reader = replace(self.reader, num_frames={source: count_frames(source, self.reader.decoder)})
        return reader(Sample(source, "", ""))

    def shrink(self, frame_HWC: np.ndarray) -> np.ndarray:
        """All that the network may need of a frame, uint8 `[H, W, 3]`."""
        return resize_frames(frame_HWC[None], self.reader.transform.size)[0]

    def gather(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """The clip of a video, all of whose frames went through `shrink`."""
        reader = replace(self.reader, num_frames={_ARRAY: len(frames)})
        chosen_T = reader.indices(Sample(_ARRAY, "", ""), None)
        return reader.transform(np.stack([frames[i] for i in chosen_T]), None)

    def classify(self, clips: Sequence[np.ndarray]) -> list[Prediction]:
        """One prediction for each of some clips that `read` gave, one after the other."""
        return [self._classify(clip_CTHW) for clip_CTHW in clips]

    def _classify(self, clip_CTHW: np.ndarray) -> Prediction:
        outputs, scores, knownness = (a.asnumpy()[0] for a in self._judge(self._support, Tensor(clip_CTHW[None])))
        seen_THWC = self.reader.transform.denormalize(clip_CTHW)
        return Prediction(self.labels, outputs, scores, 1 - float(knownness), "strangeness", seen_THWC)


def load_few_shot(
    checkpoint: Path, support: Path, model: str = "", config: Path | None = None, device: str = "auto"
) -> FewShotPredictor:
    """The few-shot network of a checkpoint, .ckpt or .safetensors, shown the examples in `support`: a folder of a
    class, named after it, each, with equally many videos. `model` and `config` are those of `load_predictor`.

    InputError if the network is no few-shot one or is not called `model`, or examples do not fit.
    """
    examples = find_examples(support)
    use_device(device)
    values, state = read_checkpoint(checkpoint)
    settings = settings_of(checkpoint, config, values, state)
    if settings.task != "fewshot":
        raise InputError(f"{checkpoint} is of task {settings.task}; examples (--support) are for task fewshot.")
    if model and model != settings.model.name:
        raise InputError(f"{checkpoint} holds the model {settings.model.name!r}, not {model!r}.")
    network = fewshot.make_model(settings)
    load_checkpoint(checkpoint, network, settings.model.name)
    return FewShotPredictor(network, settings, examples)


def find_examples(folder: Path) -> list[Sample]:
    """The videos of a folder of class folders, sorted; InputError if these are fewer than two or not equally many."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of examples, with a folder for each class.")
    clips = {path.name: find_clips([path], "video") for path in visible(folder) if path.is_dir()}
    if len(clips) < 2:
        raise InputError(f"{folder}: {len(clips)} folders of classes; examples must be of at least 2 classes.")
    numbers = {name: len(paths) for name, paths in clips.items()}
    fewest, most = min(numbers, key=lambda name: numbers[name]), max(numbers, key=lambda name: numbers[name])
    if numbers[fewest] != numbers[most]:
        raise InputError(
            f"{folder}: {numbers[fewest]} examples of {fewest!r}, {numbers[most]} of {most!r}; "
            "all classes need equally many."
        )
    return [Sample(path, name, "") for name, paths in clips.items() for path in paths]
