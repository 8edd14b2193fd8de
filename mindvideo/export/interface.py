# SPDX-License-Identifier: Apache-2.0
"""What goes into an exported network and what comes out, by task.

B clips, poses or images, T frames, H height, W width, S side of an image, K classes; N classes of an episode, each of K
examples, and M queries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from mindspore import nn

from mindvideo.config import Config
from mindvideo.data.pose import MOST_FRAMES, NUM_JOINTS, NUM_VALUES
from mindvideo.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from mindvideo.errors import InputError
from mindvideo.export.scored import EvidentialClips, ScoredClips, ScoredEpisode, ScoredImages, ScoredPoses
from mindvideo.tasks.openset_objective import evidence_of
from mindvideo.tasks.robust_objective import defend

FRAMES = 256  # of poses, where nothing else is asked for
_SCORES = {"logits": "[B, K]", "probabilities": "[B, K]"}
_SUREST = {"uncertainty": "[B], max_probability: 1 less the largest one"}


@dataclass(frozen=True)
class Input:
    """An input of fixed shape, with values from `low` to `high`: int32 where these are whole numbers, else float32."""

    shape: tuple[int, ...]
    meaning: str
    low: float | np.ndarray
    high: float | np.ndarray

    @property
    def dtype(self) -> type[np.generic]:
        return np.int32 if isinstance(self.high, int) else np.float32

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Some values: noise, whose strength differs by clip and colour, as noise alone looks alike to networks."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return rng.integers(self.low, self.high, self.shape, np.int32, endpoint=True)
        shares = rng.uniform(size=self.shape) * rng.uniform(size=(*self.shape[:-3], 1, 1, 1))
        return (self.low + (self.high - self.low) * shares).astype(np.float32)


@dataclass(frozen=True)
class Interface:
    """Inputs and outputs by name, in order, the latter with what they are; how videos or images become inputs; and what
    makes the cell that has these, of the network or of another one like it."""

    inputs: Mapping[str, Input]
    outputs: Mapping[str, str]
    preprocessing: Mapping[str, Any]
    make_cell: Callable[[Any], nn.Cell]


def interface_of(config: Config, *, batch: int = 1, frames: int = 0) -> Interface:
    """That of the config's network for so many clips at once (queries, of few-shot networks).

    `frames` is the number of a clip of poses, 256 if it is 0; InputError for other networks, whose configs say it.
    """
    if batch < 1:
        raise InputError(f"a batch of {batch}: it must be at least 1.")
    if config.task == "pose":
        return _poses(batch, frames or FRAMES)
    if frames:
        raise InputError(
            f"{config.model.name} sees as many frames as its config says; --frames is for models of poses."
        )
    return {"openset": _clips, "fewshot": _episode, "robust": _images}[config.task](config, batch)


def _poses(batch: int, frames: int) -> Interface:
    if not 1 <= frames <= MOST_FRAMES:
        raise InputError(f"{frames} frames; allowed are 1 to {MOST_FRAMES}.")
    shape, meaning = (batch, frames, NUM_JOINTS, NUM_VALUES), "rotation-6D: the first two rows of each joint's matrix"
    inputs = {
        "poses": Input(shape, meaning, -1.0, 1.0),
        "lengths": Input((batch,), "how many frames count; the others may hold anything finite", 1, frames),
    }
    return Interface(inputs, _SCORES | _SUREST, {}, ScoredPoses)


def _clips(config: Config, batch: int) -> Interface:
    data, size, draws = config.data, config.eval.size, config.eval.draws
    mean, std = np.array(IMAGENET_MEAN) / 255, np.array(IMAGENET_STD) / 255
    shape = (batch, 3, data.length, size, size)
    preprocessing = _pixels(mean, std) | {
        "frames": data.length, "stride": data.stride, "short_side": max(size, data.short_side), "crop": size,
    }  # fmt: skip
    evidence = evidence_of(config)
    if evidence:
        outputs = {
            "evidence": f"[B, K], {evidence} of the logits",
            "uncertainty": "[B], vacuity: K / (K + the evidence of all)",
        }
        make_cell = partial(EvidentialClips, evidence=evidence, softmax=config.eval.average == "probability")
    else:
        spread = f"[B], mutual_information of {draws} random passes"
        outputs = {"uncertainty": spread} if draws else _SUREST
        make_cell = partial(ScoredClips, draws=draws, clips=shape)
    return Interface({"clips": _normalised(shape, mean, std)}, _SCORES | outputs, preprocessing, make_cell)


def _episode(config: Config, batch: int) -> Interface:
    data, episode = config.data, config.eval
    clip, mean, std = (3, data.length, data.height, data.width), np.full(3, data.mean), np.full(3, data.std)
    preprocessing = _pixels(mean, std) | {
        "frames": data.length, "sampling": data.eval_sampling, "height": data.height, "width": data.width,
    }  # fmt: skip
    inputs = {
        "support": _normalised((episode.way, episode.shot, *clip), mean, std),
        "query": _normalised((batch, *clip), mean, std),
    }
    outputs = {
        "outputs": "[M, N], the comparator's",
        "scores": "[M, N], the highest names the class",
        "knownness": "[M], the higher the surer the query is of one of the classes",
    }
    return Interface(inputs, outputs, preprocessing, ScoredEpisode)


def _images(config: Config, batch: int) -> Interface:
    size, least = config.data.size, config.defence.padding
    inputs = {"images": Input((batch, 3, size, size), "RGB, pixel / 255", 0.0, 1.0)}
    if least:
        inputs |= {
            "sides": Input(
                (batch,), f"drawn at random: side of the image shrunk, {least} to {size - 1}", least, size - 1
            ),
            "lefts": Input((batch,), f"likewise: its left edge, 0 to {size - 1} - side", 0, size - 1 - least),
            "tops": Input((batch,), f"likewise: its top edge, 0 to {size - 1} - side", 0, size - 1 - least),
        }
    preprocessing = {"order": "RGB", "short_side": config.data.short_side, "crop": size}

    def make_cell(network: nn.Cell) -> nn.Cell:
        return ScoredImages(defend(config, network))

    return Interface(inputs, _SCORES | _SUREST, preprocessing, make_cell)


def _normalised(shape: tuple[int, ...], mean: np.ndarray, std: np.ndarray) -> Input:
    low, high = ((value - mean) / std for value in (0, 1))
    return Input(shape, "RGB, (pixel / 255 - mean) / std", low.reshape(3, 1, 1, 1), high.reshape(3, 1, 1, 1))


def _pixels(mean: np.ndarray, std: np.ndarray) -> dict[str, Any]:
    return {"order": "RGB", "mean": [round(float(m), 6) for m in mean], "std": [round(float(s), 6) for s in std]}
