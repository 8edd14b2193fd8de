# SPDX-License-Identifier: Apache-2.0
"""A checkpoint in, the same weights in another form out; every tensor is accounted for, or nothing is written.

What is written follows from the new file's suffix: ours, `.ckpt` and `.safetensors`, by our names; `.pth`, `.pt` and
`.npz` by those of the PyTorch program that has the model, or by ours where none has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from mindspore import Tensor, nn

from mindvideo.convert.families import FAMILIES
from mindvideo.convert.layout import OURS, PROJECTIONS, Layout, Shapes
from mindvideo.convert.sources import read_arrays
from mindvideo.convert.torch_file import publish, write_torch
from mindvideo.engine.checkpoint import TrainingState, save_checkpoint
from mindvideo.errors import InputError
from mindvideo.models import create_model
from mindvideo.schema import SCHEMAS

_OUR_FILES = (".ckpt", ".safetensors")
_PYTORCH_NAMES = (".pth", ".pt", ".npz")


@dataclass
class Report:
    """What became of each tensor: `matched`, `filled`, `fresh`, `missing` and `reshaped` hold names of ours, the others
    those of the file.

    `options` are those of `create_model`. `filled` became zeros, `fresh` are drawn anew; `reshaped` are those of the
    matched that have another shape in the file. `ignored` maps names to what they are, `wrong` to what is wrong with
    them. `written` is the layout of the new file.
    """

    model: str
    layout: Layout
    options: Mapping[str, int | str]
    written: Layout = OURS
    matched: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
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
        lines = [f"from {self.layout.program}, by the names of {self.written.program}"]
        reshaped = f", {len(self.reshaped)} of them reshaped" if self.reshaped else ""
        lines.append(f"  {len(self.matched)} tensors matched{reshaped}")
        if self.filled:
            lines.append(f"  {len(self.filled)} that it lacks are zeros: {', '.join(self.filled)}")
        if self.fresh:
            lines.append(f"  {len(self.fresh)} that it lacks are drawn anew: {', '.join(self.fresh)}")
        lines += [f"  {count} {kind} ignored" for kind, count in Counter(self.ignored.values()).items()]
        options = ", ".join(f"{key}: {value}" for key, value in {"name": self.model, **self.options}.items())
        lines.append(f"  in a config: model: {{{options}}}")
        return "\n".join([*lines, f"  note: {self.layout.advice}"])


def convert(source: Path, destination: Path, model: str) -> Report:
    """Write the weights of `source`, those of a `model`, as `destination`.

    Its suffix decides: .ckpt and .safetensors are a checkpoint of ours (both are written, whichever is named), .pth,
    .pt and .npz hold the names of PyTorch's program. InputError if the source is unreadable or of another architecture,
    a tensor is missing, unexpected or wrong, or a file of that name exists; nothing is written then.
    """
    path = _free_name(destination)
    network, weights, report = match(source, read_arrays(source), model)
    if report.layout is OURS and source.suffix in _OUR_FILES and path.suffix in _OUR_FILES:
        raise InputError(f"{source}: has our names already; use it as it is.")
    _refuse(source, report)
    for name, parameter in network.parameters_and_names():
        if name in weights:
            parameter.set_data(Tensor(weights[name]))
    if path.suffix in _OUR_FILES:
        save_checkpoint(path, network, TrainingState(model))
        return report
    arrays = {name: parameter.asnumpy() for name, parameter in network.parameters_and_names()}
    report.written = FAMILIES[model].written({name: array.shape for name, array in arrays.items()})
    named = in_layout(arrays, report.written)
    if path.suffix == ".npz":
        publish(path, lambda file: np.savez(file, **named))
    else:
        write_torch(path, named)
    return report


def match(source: Path, arrays: Mapping[str, np.ndarray], model: str) -> tuple[nn.Cell, dict[str, np.ndarray], Report]:
    """The network that the arrays of `source` are of, its weights by our names, and what became of each tensor."""
    shapes = {name: array.shape for name, array in arrays.items()}
    layout = _recognise(source, model, shapes)
    report = Report(model, layout, _options(source, model, layout, shapes))
    network = create_model(model, **report.options)
    return network, _match(arrays, {name: tuple(p.shape) for name, p in network.parameters_and_names()}, report), report


def from_layout(array: np.ndarray, layout: Layout, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of `layout` as our parameter `name`; in another shape than `shape` if it does not fit."""
    third = layout.third(name)
    if third is not None and array.shape == (3 * shape[0], *shape[1:]):
        return array[third * shape[0] : (third + 1) * shape[0]]
    if layout.columns and layout.columns.fullmatch(name) and array.shape == (*shape, 1, 1):
        return array[:, 0, 0]
    if layout.inflates and (array.ndim, len(shape)) == (4, 5):
        return np.repeat(array[:, :, None], shape[2], axis=2) / np.float32(shape[2])
    return array


def in_layout(arrays: Mapping[str, np.ndarray], layout: Layout) -> dict[str, np.ndarray]:
    """Our parameters by the names of `layout`, in its shapes: what `from_layout` takes apart."""
    found: dict[str, np.ndarray] = {}
    stacks: dict[str, dict[int, np.ndarray]] = {}
    for name, array in arrays.items():
        third = layout.third(name)
        if third is not None:
            stacks.setdefault(layout.theirs(name), {})[third] = array
        elif layout.columns and layout.columns.fullmatch(name):
            found[layout.theirs(name)] = array[:, None, None]
        elif layout.inflates and array.ndim == 5:  # of one frame, or the layout would not be written
            found[layout.theirs(name)] = array[:, :, 0]
        else:
            found[layout.theirs(name)] = array
    thirds = range(len(PROJECTIONS))
    return found | {name: np.concatenate([parts[third] for third in thirds]) for name, parts in stacks.items()}


def _free_name(destination: Path) -> Path:
    """The file to write, .ckpt where both of ours are; nothing that exists is overwritten, so neither is the source."""
    if destination.suffix not in _OUR_FILES + _PYTORCH_NAMES:
        raise InputError(f"{destination}: the new checkpoint must end in {', '.join(_OUR_FILES + _PYTORCH_NAMES)}.")
    if destination.suffix in _PYTORCH_NAMES:
        if destination.exists():
            raise InputError(f"{destination} exists already: choose a free name.")
        return destination
    path = destination.with_suffix(".ckpt")
    for taken in (path, path.with_suffix(".safetensors")):
        if taken.exists():
            raise InputError(f"{taken} exists already; .ckpt and .safetensors are both written: choose a free name.")
    return path


def _refuse(source: Path, report: Report) -> None:
    problems = report.problems()
    if not problems:
        return
    shown = "; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else "") + "."
    if FAMILIES[report.model].task == "openset" and any("head." in name for name in report.wrong):
        shown += " Its head fits no number of classes; of a whole file train.backbone=FILE takes the backbone alone."
    raise InputError(
        f"{source} is no {report.model!r} from {report.layout.program}: {len(problems)} differences: {shown}"
    )


def _recognise(source: Path, model: str, shapes: Shapes) -> Layout:
    """The layout that the names follow."""
    family = FAMILIES[model]
    for name, architecture in family.refused.items():
        if name in shapes:
            raise InputError(f"{source}: this is {architecture}; {model!r} has no such form.")
    for layout in (OURS, *family.layouts):
        if layout.theirs(family.first) in shapes:
            return layout
    known = " or ".join(layout.theirs(family.first) for layout in (*family.layouts, OURS))
    held = ", ".join(repr(name) for name in list(shapes)[:3]) or "no tensors"
    raise InputError(f"{source}: no known form of {model!r}, which would hold {known}; this file holds {held}.")


def _options(source: Path, model: str, layout: Layout, shapes: Shapes) -> dict[str, int | str]:
    """The options of `create_model`; InputError if a config could not name them."""
    family = FAMILIES[model]
    options = family.options(layout, shapes)
    for key, value in options.items():
        known = SCHEMAS[family.task]["model"].get(key)
        if known is None:  # a config has the data and the method decide on the head and the number of classes
            continue
        try:
            known.parse(value)
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
            array = from_layout(arrays[theirs], layout, name, shape)
            if array.shape == shape != arrays[theirs].shape:
                report.reshaped.append(name)
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
    elif array.dtype.kind != "f" and array.dtype.name != "bfloat16":  # which MindSpore reads, and numpy lacks
        report.wrong[name] = f"{name} holds {array.dtype}, not floating-point numbers"
    else:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            report.wrong[name] = f"{name} is infinite or nan"
    return array
