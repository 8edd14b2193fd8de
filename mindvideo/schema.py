# SPDX-License-Identifier: Apache-2.0
"""The keys of every YAML file, task by task: default and so type, meaning, what is allowed."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Field:
    """One key: its default (whose type is the key's), what is allowed, and what it means."""

    default: bool | int | float | str
    help: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None

    def parse(self, value: object) -> bool | int | float | str:
        """`value` in the key's type; ValueError, saying what is allowed, if it does not fit."""
        kind = type(self.default)
        if kind is str and value is None:  # `key:` without a value
            value = ""
        if kind is str and type(value) is int and str(value) in self.choices:
            value = str(value)
        if value is False and "off" in self.choices:  # YAML reads a plain `off` so
            value = "off"
        if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
            try:  # YAML reads 1e-3 as a string
                value = float(value)
            except ValueError:
                raise ValueError(self.allowed()) from None
        if type(value) is not kind:
            raise ValueError(self.allowed())
        if self.choices and value not in self.choices:
            close = difflib.get_close_matches(str(value), self.choices, n=1)
            raise ValueError(self.allowed() + (f"; did you mean {close[0]!r}?" if close else ""))
        if isinstance(value, (int, float)) and not self._in_range(value):
            raise ValueError(self.allowed())
        return value  # pyright: ignore[reportReturnType]

    def _in_range(self, value: float) -> bool:
        # Written so that nan is never in range.
        above = value >= self.low if self.low is not None else value > float("-inf")
        return above and (value <= self.high if self.high is not None else value < float("inf"))

    def allowed(self) -> str:
        """What may stand here, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        name = names[type(self.default)]
        if self.low is not None and self.high is not None:
            return f"{name} from {self.low:.10g} to {self.high:.10g}"
        return f"{name} of at least {self.low:.10g}" if self.low is not None else name


TASK = Field("fewshot", "what is trained", choices=("fewshot", "openset", "pose", "robust"))

DATASETS = ("stickfigures", "ucf101", "hmdb51", "kinetics", "mit", "ssv2", "folder", "csv")
POOLINGS = ("none", "average", "average_pn", "max", "second_order", "second_order_pn", "grid")
AUGMENTATIONS = ("none", "temporal_jigsaw", "spatial_jigsaw", "rotation")
SAMPLING = ("uniform", "random", "consecutive", "segments")
SPLITS = ("1", "2", "3", "groups")
UNKNOWN_SPLITS = ("1", "2", "3", "all")
POSE_DATASETS = ("stickfigures", "csig", "csv")
IMAGE_DATASETS = ("stickfigures", "ucf101", "hmdb51", "folder", "list")
PROTOCOLS = ("logo", "loco", "variant")
METHODS = (
    "dnn", "bnn", "rpl", "gcpl", "edlloss", "edlloss_avuc", "edlnokl", "edlnokl_avuc", "edlnokl_avuc_debias",
    "edlnokl_avuc_ced", "edlnokl_davuc_debias",
)  # fmt: skip

_RUN: dict[str, Any] = {
    "task": TASK,
    "name": Field("", "name of the run's folder; empty: the name of the config file"),
    "output": Field("output", "folder of all runs"),
    "seed": Field(1, "of weights, data order, frames and augmentation", low=0, high=2**31 - 1),
    "device": Field("auto", "where to run", choices=("auto", "cpu", "gpu", "ascend")),
}

# What is read, whatever the task.
_VIDEOS: dict[str, Any] = {
    "dataset": Field("stickfigures", "how the tree is read", choices=DATASETS),
    "root": Field("", "data set folder, or CSV file; empty: the entry of data/data.json"),
    "decoder": Field("pyav", "video decoder", choices=("pyav", "decord", "opencv")),
    "broken": Field("error", "a video that cannot be decoded", choices=("error", "exclude")),
    "workers": Field(2, "data processes", low=1, high=64),
    "prepared": Field("", "folder made by `mindvideo prepare`; empty: decode the videos"),
}

_CONTINUE: dict[str, Any] = {
    "resume": Field("never", "continue the run of this name", choices=("never", "auto")),
    "pretrained": Field("", "checkpoint to start from"),
    "accumulate": Field(
        1, "batches a step, whose gradients are averaged; several processes deal them among them", low=1, high=4096
    ),
    "amp": Field("off", "O2: most of the network in float16; auto: on GPU and Ascend", choices=("off", "O2", "auto")),
    "ema": Field(0.0, "share that an average of the weights keeps of itself a step; 0: none", low=0.0, high=0.99999),
    "tensorboard": Field(False, "also write TensorBoard files"),
}


def _optimizer(name: str, lr: float, unit: str, decay_every: int) -> dict[str, Any]:
    """Of an optimizer that adapts its steps; `unit` is what `decay_every` counts."""
    return {
        "lr": Field(lr, f"learning rate of {name}", low=0.0, high=100.0),
        "schedule": Field("step", "of the learning rate", choices=("constant", "step", "cosine")),
        "decay_every": Field(decay_every, f"{unit} between two decays of `step`", low=1),
        "decay_factor": Field(0.5, "of `step`", low=0.0, high=1.0),
        "weight_decay": Field(0.0, "L2 penalty", low=0.0, high=1.0),
        "clip_norm": Field(0.0, "largest global norm of the gradient; 0: no clipping", low=0.0),
    }


FEWSHOT: dict[str, Any] = {
    **_RUN,
    "model": {
        "name": Field("arn", "see `mindvideo models`"),
        "width": Field(64, "feature channels", low=16, high=1024),
        "input": Field("frames", "what the encoder sees", choices=("frames", "differences")),
        "attention": Field("spatial", "attention units", choices=("none", "spatial", "temporal", "both")),
        "alpha_temporal": Field(1.0, "added to the temporal attention map", low=0.0, high=100.0),
        "alpha_spatial": Field(1.0, "added to the spatial attention map", low=0.0, high=100.0),
        "pooling": Field("second_order_pn", "features to embedding; pn: power normalisation", choices=POOLINGS),
        "comparator": Field("relation", "query to class", choices=("relation", "distance", "cosine", "evidential")),
        "shots": Field("mean", "support embeddings of a class to one", choices=("mean", "max")),
        "joint": Field(False, "encode support and query in one call, with common BatchNorm statistics"),
        "sigma": Field(100.0, "slope of power normalisation", low=1e-3, high=1e6),
        "momentum": Field(0.1, "weight of the newest batch in BatchNorm's statistics", low=0.0, high=1.0),
    },
    "data": {
        **_VIDEOS,
        "split": Field("", "folder with train.txt, val.txt, test.txt: class names, one a line"),
        "length": Field(20, "frames a clip", low=4, high=1024),
        "height": Field(128, "pixels", low=16, high=1024),
        "width": Field(128, "pixels", low=16, high=1024),
        "train_sampling": Field("random", "which frames in training", choices=SAMPLING),
        "eval_sampling": Field(
            "uniform", "which frames in evaluation", choices=("uniform", "consecutive", "segments")
        ),
        "stride": Field(1, "frames between frames of consecutive sampling", low=1, high=64),
        "short": Field("error", "a video with too few frames", choices=("error", "repeat")),
        "mean": Field(0.3474, "of pixels in [0, 1], taken off; ARN's", low=0.0, high=1.0),
        "std": Field(0.2100, "of pixels in [0, 1], divided by; ARN's", low=1e-3, high=1.0),
        "flip": Field(False, "mirror half of the training clips"),
        "crop_scale": Field(1.0, "least share of the frame's area a training crop has", low=0.05, high=1.0),
        "color": Field(0.0, "brightness, contrast and saturation jitter in training", low=0.0, high=0.95),
    },
    "second": {
        "dataset": Field("none", "a further one, whose training classes are learnt too", choices=("none", *DATASETS)),
        "root": Field("", "its folder or CSV file; empty: its entry of data/data.json"),
        "split": Field("", "its folder of class names"),
    },
    "episode": {
        "way": Field(5, "classes of a training episode", low=2, high=100),
        "shot": Field(1, "support clips a class", low=1, high=100),
        "query": Field(3, "queries a class", low=1, high=100),
        "unknown": Field(0, "further queries of none of the classes", low=0, high=1000),
    },
    "loss": {
        "match": Field(1.0, "weight of matching queries with classes", low=0.0, high=100.0),
        "classify": Field(0.0, "weight of classifying clips into all training classes", low=0.0, high=100.0),
    },
    "selfsupervision": {
        "augmentation": Field("none", "of clips, to be recognised", choices=AUGMENTATIONS),
        "permutations": Field(10, "of a jigsaw", low=2, high=40320),
        "block": Field(4, "frames in a block of the temporal jigsaw", low=1, high=1024),
        "weight": Field(0.05, "of recognising the augmentation: beta", low=0.0, high=100.0),
        "alignment": Field(0.0, "weight of aligning attention: gamma", low=0.0, high=100.0),
        "strictness": Field(0.0, "difference that aligned attention should have: lambda", low=0.0, high=1.0),
    },
    "optim": _optimizer("Adam", 1e-3, "episodes", 50_000),
    "train": {
        "episodes": Field(100_000, "training episodes", low=1),
        "validate_every": Field(1000, "episodes between validations", low=1),
        "validate_episodes": Field(300, "episodes of one validation", low=2),
        "save_every": Field(500, "episodes between checkpoints", low=1),
        "log_every": Field(50, "episodes between lines", low=1),
        **_CONTINUE,
    },
    "eval": {
        "way": Field(5, "classes of a test episode", low=2, high=100),
        "shot": Field(1, "support clips a class", low=1, high=100),
        "query": Field(5, "queries a class", low=1, high=100),
        "unknown": Field(0, "further queries of none of the classes, to be rejected", low=0, high=1000),
        "batch_norm": Field("running", "statistics in validation and test", choices=("running", "episode")),
        "episodes": Field(600, "test episodes", low=2),
        "batch": Field(10, "clips encoded at once", low=1, high=1024),
        "gifs": Field(6, "episodes shown in the report", low=0, high=50),
    },
}  # fmt: skip

OPENSET: dict[str, Any] = {
    **_RUN,
    "model": {
        "name": Field("i3d_r50", "a video classifier, see `mindvideo models`"),
        "width": Field(64, "channels of the first convolution", low=4, high=256),
        "fast_width": Field(8, "the same of SlowFast's fast pathway", low=1, high=256),
        "dropout": Field(0.5, "before the classifier", low=0.0, high=0.95),
    },
    "data": {
        **_VIDEOS,
        "split": Field("1", "official split 1, 2 or 3, or `groups`: UCF101's g01 to g07 test", choices=SPLITS),
        "train_list": Field("", "training videos instead of a split: `path number` lines, or a Kinetics CSV"),
        "test_list": Field("", "test videos, likewise"),
        "class_names": Field("", "file of class names by number, for the lists"),
        "scene_bias": Field(0.0, "of the embedded sample: ties scenes to classes in training", low=0.0, high=1.0),
        "validation": Field(0.0, "share of the training sources held out to choose the checkpoint", low=0.0, high=0.5),
        "length": Field(32, "frames a clip", low=1, high=1024),
        "stride": Field(2, "from one of them to the next", low=1, high=64),
        "short_side": Field(256, "pixels of the frame's shorter side before cropping; 0 in training: as it is", low=0),
        "size": Field(224, "pixels of a training crop's sides", low=16, high=1024),
        "crop": Field("multiscale_5", "of training frames", choices=("multiscale_5", "multiscale_13", "resized")),
        "flip": Field(True, "mirror half of the training clips"),
        "color": Field(False, "jitter the colours of training clips"),
    },
    "unknown": {
        "dataset": Field("none", "videos of unknown classes, to test rejection on", choices=("none", *DATASETS)),
        "root": Field("", "its folder or CSV file; empty: its entry of data/data.json"),
        "split": Field("1", "the test videos of an official split, or all videos", choices=UNKNOWN_SPLITS),
        "list": Field("", "videos instead of a split: `path number` lines"),
        "class_names": Field("", "file of class names by number, for the list"),
        "leave_out": Field("", "classes not looked at, with commas between, such as those known by other names"),
    },
    "loss": {
        "name": Field("edlnokl_avuc_debias", "a method of DEAR's tables, with its head", choices=METHODS),
        "kind": Field("log", "evidential loss", choices=("log", "digamma", "mse", "cross_entropy")),
        "evidence": Field("exp", "of logits", choices=("exp", "relu", "softplus")),
        "annealing": Field("exp", "of calibration and divergence over the epochs", choices=("exp", "step")),
        "debias": Field("corrected", "form of the debiasing head", choices=("published", "head", "corrected")),
    },
    "optim": {
        "lr": Field(1e-3, "learning rate of SGD", low=0.0, high=100.0),
        "momentum": Field(0.9, "of SGD", low=0.0, high=1.0),
        "nesterov": Field(True, "look ahead along the momentum"),
        "weight_decay": Field(1e-4, "L2 penalty", low=0.0, high=1.0),
        "clip_norm": Field(40.0, "largest global norm of the gradient; 0: no clipping", low=0.0),
        "schedule": Field("step", "of the learning rate", choices=("constant", "step", "cosine")),
        "decay_every": Field(20, "epochs between two decays of `step`", low=1),
        "decay_factor": Field(0.1, "of `step`", low=0.0, high=1.0),
        "warmup": Field(0, "epochs in which the rate rises to its height", low=0),
        "groups": Field("one", "rates and penalties by parameter", choices=("one", "tsm")),
    },
    "train": {
        "epochs": Field(50, "passes over the training videos", low=1),
        "batch": Field(8, "clips a step", low=1, high=4096),
        "validate_every": Field(1, "epochs between validations", low=1),
        "save_every": Field(500, "steps between checkpoints", low=1),
        "log_every": Field(20, "steps between lines", low=1),
        **_CONTINUE,
        "backbone": Field("", "checkpoint whose backbone alone to start from, such as Kinetics or ImageNet weights"),
    },
    "eval": {
        "clips": Field(10, "windows a video", low=1, high=100),
        "sampling": Field("dense", "where they lie", choices=("dense", "windows")),
        "crops": Field("three", "of each window", choices=("center", "three")),
        "size": Field(256, "pixels of a crop's sides", low=16, high=1024),
        "average": Field("score", "what is averaged over the views", choices=("score", "probability", "evidence")),
        "draws": Field(0, "passes with dropout on, or of a Bayesian head, to measure their spread", low=0, high=1000),
        "batch": Field(10, "views at once", low=1, high=1024),
    },
}  # fmt: skip

POSE: dict[str, Any] = {
    **_RUN,
    "model": {
        "name": Field("actionnet", "a model of poses, see `mindvideo models`"),
        "width": Field(1280, "features of a token", low=8, high=8192),
        "length": Field(800, "tokens that a clip's frames are pooled to", low=1, high=4096),
        "dropout": Field(0.5, "of the attention over time", low=0.0, high=0.95),
        "decoder_width": Field(768, "features of ML-Decoder", low=8, high=8192),
        "num_groups": Field(100, "of ML-Decoder's classes, at most one a class", low=1, high=10_000),
        "learned_queries": Field(False, "train ML-Decoder's queries, which are random otherwise"),
        "positional": Field(False, "add sines of the tokens' places"),
        "motion": Field(0, "see changes over so many frames beside poses; 0: do not", low=0, high=1000),
    },
    "data": {
        "dataset": Field("stickfigures", "how clips are found", choices=POSE_DATASETS),
        "root": Field("", "data set folder, or CSV file; empty: the entry of data/data.json"),
        "protocol": Field("logo", "no performer, take or variant is trained and tested", choices=PROTOCOLS),
        "folds": Field(0, "folds that performers (takes, variants) are dealt into; 0: each its own", low=0, high=1000),
        "fold": Field(0, "train and test this one alone, counted from 1; 0: all, one by one", low=0, high=1000),
        "validation": Field(False, "keep the next fold from training, to choose the checkpoint"),
        "cropped": Field(0.5, "share of training clips cut to a piece, with noise", low=0.0, high=1.0),
        "mirrored": Field(0.0, "share of training clips with left and right swapped", low=0.0, high=1.0),
    },
    "optim": _optimizer("Adamax", 2e-5, "epochs", 30),
    "train": {
        "epochs": Field(100, "passes over the training clips of a fold", low=1),
        "batch": Field(1, "clips a step", low=1, high=4096),
        "validate_every": Field(1, "epochs between validations", low=1),
        "save_every": Field(500, "steps between checkpoints", low=1),
        "log_every": Field(20, "steps between lines", low=1),
        **_CONTINUE,
    },
    "eval": {
        "batch": Field(8, "clips at once", low=1, high=1024),
    },
}  # fmt: skip

ROBUST: dict[str, Any] = {
    **_RUN,
    "model": {
        "name": Field("convnext_tiny", "an image classifier, see `mindvideo models`"),
        "head": Field("fc", "of ConvNeXt", choices=("linear", "fc", "ml_decoder")),
        "width": Field(96, "channels of ConvNeXt's first stage", low=8, high=512),
        "depth": Field(3, "blocks of a stage of ConvNeXt, three times as many in the third", low=1, high=30),
        "patch": Field(4, "pixels of ConvNeXt's patches", low=1, high=32),
        "layer_scale": Field(1e-6, "what a block of ConvNeXt is multiplied by at first", low=0.0, high=10.0),
        "normalize": Field(False, "take ImageNet's mean and deviation off first, in ConvNeXt"),
        "drop_path": Field(0.1, "largest probability of leaving a block of ConvNeXt out", low=0.0, high=0.95),
    },
    "defence": {
        "concealment": Field(False, "hide the gradient (GCM): for the published table, no protection"),
        "padding": Field(0, "shrink to so many pixels or more and lay at random; 0: do not", low=0, high=1023),
    },
    "data": {
        "dataset": Field("stickfigures", "how images are found", choices=IMAGE_DATASETS),
        "root": Field("", "folder of the videos or images; empty: the entry of data/data.json"),
        "train_list": Field("", "of dataset `list`: NAME label lines, or JSON"),
        "test_list": Field("", "likewise"),
        "frames": Field(3, "images of a video", low=1, high=1000),
        "decoder": Field("pyav", "video decoder", choices=("pyav", "decord", "opencv")),
        "broken": Field("error", "a video that cannot be decoded", choices=("error", "exclude")),
        "workers": Field(2, "data processes", low=1, high=64),
        "validation": Field(0.0, "share of the training sources held out to choose the checkpoint", low=0.0, high=0.5),
        "short_side": Field(256, "pixels of the image's shorter side before cropping in tests", low=16, high=4096),
        "size": Field(224, "pixels of a crop's sides", low=16, high=1024),
        "crop_scale": Field(0.08, "least share of the image's area a training crop has", low=0.01, high=1.0),
        "flip": Field(False, "mirror half of the training images"),
        "augmentation": Field(0.05, "probability of each of the published operations", low=0.0, high=1.0),
    },
    "loss": {
        "clean": Field(1.0, "weight of the images as they are", low=0.0, high=100.0),
        "mixup": Field(1.0, "weight of images mixed with others", low=0.0, high=100.0),
        "cutmix": Field(1.0, "weight of images with pieces of others", low=0.0, high=100.0),
        "fgsm": Field(0.0, "weight of images changed along the gradient's sign, and against it", low=0.0, high=100.0),
        "targeted": Field(0.0, "the same with the gradient towards a random class", low=0.0, high=100.0),
        "attack": Field("none", "adversarial training", choices=("none", "pgd", "n_fgsm", "trades")),
        "adversarial": Field(1.0, "its weight; beta of TRADES", low=0.0, high=100.0),
        "epsilon": Field(8 / 255, "its largest change of a pixel", low=0.0, high=1.0),
        "steps": Field(10, "its steps (pgd, trades)", low=1, high=1000),
    },
    "optim": {
        **_optimizer("Adamax", 1e-3, "epochs", 70),
        "weight_decay": Field(1e-3, "L2 penalty", low=0.0, high=1.0),
        "backbone": Field(0.1, "share of the rate that all but the head learns with", low=0.0, high=1.0),
    },
    "train": {
        "epochs": Field(3000, "passes over the training images", low=1),
        "padded_epochs": Field(0, "further passes, behind the random padding", low=0),
        "batch": Field(64, "images a step", low=2, high=4096),
        "validate_every": Field(2, "epochs between validations", low=1),
        "save_every": Field(500, "steps between checkpoints", low=1),
        "log_every": Field(20, "steps between lines", low=1),
        **_CONTINUE,
    },
    "eval": {
        "batch": Field(100, "images at once", low=1, high=4096),
    },
    "attack": {
        "images": Field(500, "test images attacked, evenly spaced; 0: all", low=0),
        "linf": Field(8 / 255, "largest change of a pixel", low=0.0, high=1.0),
        "l2": Field(8.0, "L2 budget of 224 x 224 pixels; others have theirs in proportion", low=0.0),
        "l1": Field(1600.0, "L1 budget, likewise", low=0.0),
        "steps": Field(20, "of PGD", low=1, high=10_000),
        "apgd_steps": Field(20, "of APGD, for each of its two losses", low=1, high=10_000),
        "cw_searches": Field(3, "of C&W's constant", low=1, high=100),
        "cw_steps": Field(50, "of each search", low=1, high=10_000),
        "draws": Field(20, "random draws that a gradient is averaged over, and a prediction decided by", low=1),
        "queries": Field(1000, "of Square", low=1),
    },
}  # fmt: skip

SCHEMAS: dict[str, dict[str, Any]] = {"fewshot": FEWSHOT, "openset": OPENSET, "pose": POSE, "robust": ROBUST}
