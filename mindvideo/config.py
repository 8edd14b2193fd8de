# SPDX-License-Identifier: Apache-2.0
"""Configuration: the schema of every YAML file, strict loading, and `key.sub=value` overrides.

A file may name a parent with `base:` (relative to itself), or a list of them of which a later one wins over an earlier;
its own keys win over all. Anything wrong ends with an
InputError that names the key, its file, what is allowed and the closest name, before any work is done.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ml_collections import ConfigDict

from mindvideo.errors import InputError

# A locked ConfigDict. Its keys are those of SCHEMA, which a type checker cannot see.
Config = Any

REPOSITORY = Path(__file__).resolve().parent.parent


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
            return f"{name} from {self.low:g} to {self.high:g}"
        return f"{name} of at least {self.low:g}" if self.low is not None else name


DATASETS = ("stickfigures", "ucf101", "hmdb51", "kinetics", "mit", "ssv2", "folder", "csv")
POOLINGS = ("none", "average", "average_pn", "max", "second_order", "second_order_pn", "grid")
AUGMENTATIONS = ("none", "temporal_jigsaw", "spatial_jigsaw", "rotation")
SAMPLING = ("uniform", "random", "consecutive", "segments")

SCHEMA: dict[str, Any] = {
    "task": Field("fewshot", "what is trained", choices=("fewshot",)),
    "name": Field("", "name of the run's folder; empty: the name of the config file"),
    "output": Field("output", "folder of all runs"),
    "seed": Field(1, "of weights, episodes, frames and augmentation", low=0, high=2**31 - 1),
    "device": Field("auto", "where to run", choices=("auto", "cpu", "gpu", "ascend")),
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
        "dataset": Field("stickfigures", "how the tree is read", choices=DATASETS),
        "root": Field("", "data set folder, or CSV file; empty: the entry of data/data.json"),
        "split": Field("", "folder with train.txt, val.txt, test.txt: class names, one a line"),
        "decoder": Field("pyav", "video decoder", choices=("pyav", "decord", "opencv")),
        "length": Field(20, "frames a clip", low=4, high=1024),
        "height": Field(128, "pixels", low=16, high=1024),
        "width": Field(128, "pixels", low=16, high=1024),
        "train_sampling": Field("random", "which frames in training", choices=SAMPLING),
        "eval_sampling": Field(
            "uniform", "which frames in evaluation", choices=("uniform", "consecutive", "segments")
        ),
        "stride": Field(1, "frames between frames of consecutive sampling", low=1, high=64),
        "short": Field("error", "a video with too few frames", choices=("error", "repeat")),
        "broken": Field("error", "a video that cannot be decoded", choices=("error", "exclude")),
        "mean": Field(0.3474, "of pixels in [0, 1], taken off; ARN's", low=0.0, high=1.0),
        "std": Field(0.2100, "of pixels in [0, 1], divided by; ARN's", low=1e-3, high=1.0),
        "flip": Field(False, "mirror half of the training clips"),
        "crop_scale": Field(1.0, "least share of the frame's area a training crop has", low=0.05, high=1.0),
        "color": Field(0.0, "brightness, contrast and saturation jitter in training", low=0.0, high=0.95),
        "workers": Field(2, "data processes", low=1, high=64),
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
    "optim": {
        "lr": Field(1e-3, "learning rate of Adam", low=0.0, high=100.0),
        "schedule": Field("step", "of the learning rate", choices=("constant", "step", "cosine")),
        "decay_every": Field(50_000, "episodes between two decays of `step`", low=1),
        "decay_factor": Field(0.5, "of `step`", low=0.0, high=1.0),
        "weight_decay": Field(0.0, "L2 penalty", low=0.0, high=1.0),
        "clip_norm": Field(0.0, "largest global norm of the gradient; 0: no clipping", low=0.0),
    },
    "train": {
        "episodes": Field(100_000, "training episodes", low=1),
        "validate_every": Field(1000, "episodes between validations", low=1),
        "validate_episodes": Field(300, "episodes of one validation", low=2),
        "save_every": Field(500, "episodes between checkpoints", low=1),
        "log_every": Field(50, "episodes between lines", low=1),
        "resume": Field("never", "continue the run of this name", choices=("never", "auto")),
        "pretrained": Field("", "checkpoint to start from"),
        "tensorboard": Field(False, "also write TensorBoard files"),
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


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """The locked, typed configuration of a YAML file with `key.sub=value` overrides applied."""
    config = ConfigDict(_defaults(SCHEMA), type_safe=True)
    for source, values in _layers(Path(path)):
        _merge(config, SCHEMA, values, source, "")
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise InputError(f"override {override!r}: write key.sub=value, such as optim.lr=1e-3.")
        values: Any = _parse_yaml(text, f"override {override!r}")
        for part in reversed(key.split(".")):
            values = {part: values}
        _merge(config, SCHEMA, values, f"override {override!r}", "")
    name = str(config.name) or Path(path).stem
    if Path(name).name != name or name.startswith("."):
        raise InputError(f"name: {name!r} is not a plain folder name.")
    config.name = name
    config.lock()
    return config


def to_yaml(config: Config) -> str:
    """The configuration as YAML that `load_config` reads back."""
    return yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)


def resolve(path: str) -> Path:
    """A path in a config: absolute, or from the working directory, or else from the repository."""
    here = Path(path).expanduser()
    beside = REPOSITORY / here
    return here if here.exists() or not beside.exists() else beside


def _defaults(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.default if isinstance(v, Field) else _defaults(v) for k, v in schema.items()}


def _layers(path: Path, children: tuple[Path, ...] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """The file's parents, each after its own parents, then the file itself."""
    if path.resolve() in children:
        raise InputError(f"{path}: `base:` goes in a circle.")
    values = _read_yaml(path)
    base = values.pop("base", None) or []
    parents = [base] if isinstance(base, str) else base
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise InputError(f"{path}: base must be the name of a YAML file, or a list of such names.")
    for parent in parents:
        yield from _layers(path.parent / parent, (*children, path.resolve()))
    yield str(path), values


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"config {path}: no such file.")
    try:
        values = _parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise InputError(f"config {path}: not a UTF-8 text file.") from error
    if values is not None and not isinstance(values, dict):
        raise InputError(f"{path}: expected `key: value` lines.")
    return values or {}


class _UniqueKeyLoader(yaml.SafeLoader):
    """A SafeLoader that refuses a key given twice, which YAML would silently let the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # pyright: ignore[reportUnknownMemberType]
        twice = [str(key) for i, key in enumerate(keys) if key in keys[:i]]
        if twice:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: the key {twice[0]!r} stands twice")
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return _UniqueKeyLoader(text).get_single_data()
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date
        raise InputError(f"{source}: not valid YAML: {' '.join(str(error).split())}.") from error


def _merge(config: Any, schema: Mapping[str, Any], values: Any, source: str, prefix: str) -> None:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in schema:
            close = difflib.get_close_matches(str(key), list(schema), n=1)
            hint = f", did you mean {prefix + close[0]!r}?" if close else "."
            raise InputError(f"{source}: unknown key {name!r}{hint} Allowed here: {', '.join(schema)}.")
        entry = schema[key]
        if isinstance(entry, Field):
            try:
                config[key] = entry.parse(value)
            except ValueError as error:
                raise InputError(f"{source}: {name} is {value!r}; it must be {error}.") from None
        elif isinstance(value, dict):
            _merge(config[key], entry, value, source, f"{name}.")
        else:
            raise InputError(f"{source}: {name} is {value!r}; it must hold the keys {', '.join(entry)}.")
