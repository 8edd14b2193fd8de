# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of another program in, one of ours out; every tensor is accounted for, or nothing is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from mindspore import Tensor, nn

from mindvideo.convert.families import FAMILIES
from mindvideo.convert.layout import Layout, Shapes, unwrapped
from mindvideo.engine.checkpoint import TrainingState, read_checkpoint, save_checkpoint
from mindvideo.errors import InputError
from mindvideo.models import create_model, options_of
from mindvideo.schema import SCHEMAS

_PYTORCH_FILES = (".pth", ".pt", ".tar", ".bin")


@dataclass
class Report:
    """What became of each tensor: `matched`, `filled`, `fresh` and `missing` hold names of ours, the others those of
    the file.

    `options` are those of `create_model`. `filled` became zeros, `fresh` are drawn anew; `ignored` maps names to what
    they are, `wrong` to what is wrong with them.
    """

    model: str
    layout: Layout
    options: Mapping[str, int | str]
    matched: list[str] = field(default_factory=list)
    filled: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    wrong: dict[str, str] = field(default_factory=dict)

    def problems(self) -> list[str]:
        """One phrase for each tensor that keeps the file from being converted."""
        missing = [f"missing {self.layout.theirs(name)}" for name in self.missing]
        return missing + [f"unexpected {name!r}" for name in self.unexpected] + [*self.wrong.values()]

    def __str__(self) -> str:
        lines = [f"from {self.layout.program}", f"  {len(self.matched)} tensors matched"]
        if self.filled:
            lines.append(f"  {len(self.filled)} that it lacks are zeros: {', '.join(self.filled)}")
        if self.fresh:
            lines.append(f"  {len(self.fresh)} that it lacks are drawn anew: {', '.join(self.fresh)}")
        lines += [f"  {count} {kind} ignored" for kind, count in Counter(self.ignored.values()).items()]
        options = ", ".join(f"{key}: {value}" for key, value in {"name": self.model, **self.options}.items())
        return "\n".join([*lines, f"  in a config: model: {{{options}}}", f"  note: {self.layout.advice}"])


def convert(source: Path, destination: Path, model: str) -> Report:
    """Write the weights of `source` as a checkpoint of `model`: `destination`, .ckpt, and .safetensors beside it.

    `destination` may name either of the two. InputError if the file is unreadable or of another architecture, a tensor
    is missing, unexpected or wrong, or a file of that name exists; nothing is written then.
    """
    path = _free_name(destination)
    network, weights, report = match(source, _read(source), model)
    layout, problems = report.layout, report.problems()
    if problems:
        shown = "; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else "")
        raise InputError(f"{source} is no {model!r} from {layout.program}: {len(problems)} differences: {shown}.")
    for name, parameter in network.parameters_and_names():
        if name in weights:
            parameter.set_data(Tensor(weights[name]))
    save_checkpoint(path, network, TrainingState(model))
    return report


def match(source: Path, arrays: Mapping[str, np.ndarray], model: str) -> tuple[nn.Cell, dict[str, np.ndarray], Report]:
    """The network that the arrays of `source` are of, its weights by our names, and what became of each tensor."""
    shapes = {name: array.shape for name, array in arrays.items()}
    layout = _recognise(source, model, shapes)
    report = Report(model, layout, _options(source, model, layout, shapes))
    network = create_model(model, **report.options)
    return network, _match(arrays, {name: tuple(p.shape) for name, p in network.parameters_and_names()}, report), report


def _free_name(destination: Path) -> Path:
    """The .ckpt to write; nothing that exists is overwritten, so neither is the source."""
    if destination.suffix not in (".ckpt", ".safetensors"):
        raise InputError(f"{destination}: the new checkpoint must end in .ckpt or .safetensors.")
    path = destination.with_suffix(".ckpt")
    for taken in (path, path.with_suffix(".safetensors")):
        if taken.exists():
            raise InputError(f"{taken} exists already; .ckpt and .safetensors are both written: choose a free name.")
    return path


def _read(source: Path) -> dict[str, np.ndarray]:
    """All arrays of a file, by their names without `module`."""
    if source.suffix in _PYTORCH_FILES:
        raise InputError(f"{source}: PyTorch's own files are not read yet; save the tensors as .safetensors first.")
    if source.suffix not in (".ckpt", ".safetensors", ".npz"):
        raise InputError(f"{source}: a checkpoint to convert must end in .ckpt, .safetensors or .npz.")
    if not source.is_file():
        raise InputError(f"{source}: no such checkpoint.")
    try:
        arrays = _read_npz(source) if source.suffix == ".npz" else read_checkpoint(source)[0]
    except InputError:
        raise
    except Exception as error:  # the libraries raise anything on a damaged file: tokenize.TokenError, zlib.error, ...
        reason = str(error).partition("\n")[0]
        raise InputError(f"{source}: not a readable checkpoint ({type(error).__name__}: {reason}).") from error
    named = {unwrapped(name): array for name, array in arrays.items()}
    if len(named) < len(arrays):
        raise InputError(f"{source}: tensors share a name once `module` is left out.")
    return named


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: np.asarray(file[name]) for name in file.files}


def _recognise(source: Path, model: str, shapes: Shapes) -> Layout:
    """The layout that the names follow."""
    family = FAMILIES[model]
    for name, architecture in family.refused.items():
        if name in shapes:
            raise InputError(f"{source}: this is {architecture}; {model!r} has no such form.")
    if family.first in shapes:
        raise InputError(f"{source}: has our names already; use it as it is.")
    for layout in family.layouts:
        if layout.theirs(family.first) in shapes:
            return layout
    known = " or ".join(layout.theirs(family.first) for layout in family.layouts)
    held = ", ".join(repr(name) for name in list(shapes)[:3]) or "no tensors"
    raise InputError(f"{source}: no known form of {model!r}, which would hold {known}; this file holds {held}.")


def _options(source: Path, model: str, layout: Layout, shapes: Shapes) -> dict[str, int | str]:
    """The options of `create_model`; InputError if a config could not name them."""
    options = FAMILIES[model].options(layout, shapes)
    for key, value in options.items():
        if key in ("num_classes", "head"):  # a config has the data and the method decide on them
            continue
        try:
            SCHEMAS["openset" if "num_classes" in options_of(model) else "fewshot"]["model"][key].parse(value)
        except ValueError as error:
            raise InputError(f"{source}: its {key} is {value!r}; it must be {error}.") from None
    return options


def _match(arrays: Mapping[str, np.ndarray], wanted: Shapes, report: Report) -> dict[str, np.ndarray]:
    """The arrays by our names, float32; what becomes of each is noted in `report`."""
    layout, weights = report.layout, {}
    for name, shape in wanted.items():
        theirs = layout.theirs(name)
        if theirs in arrays:
            report.matched.append(name)
            array = arrays[theirs]
            if layout.inflates and (array.ndim, len(shape)) == (4, 5):
                array = np.repeat(array[:, :, None], shape[2], axis=2) / np.float32(shape[2])
            weights[name] = _as_weight(theirs, array, shape, report)
        elif layout.zeros and layout.zeros.fullmatch(name):
            report.filled.append(name)
            weights[name] = np.zeros(shape, np.float32)
        elif layout.fresh and layout.fresh.fullmatch(name):
            report.fresh.append(name)
        else:
            report.missing.append(name)
    for name in sorted(arrays.keys() - {layout.theirs(name) for name in wanted}):
        kinds = [kind for kind, pattern in layout.ignored.items() if pattern.fullmatch(name)]
        if kinds:
            report.ignored[name] = kinds[0]
        else:
            report.unexpected.append(name)
    return weights


def _as_weight(name: str, array: np.ndarray, shape: tuple[int, ...], report: Report) -> np.ndarray:
    if array.shape != shape:
        report.wrong[name] = f"{name} is {array.shape}, the model needs {shape}"
    elif array.dtype.kind != "f":
        report.wrong[name] = f"{name} holds {array.dtype}, not floating-point numbers"
    else:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            report.wrong[name] = f"{name} is infinite or nan"
    return array
