# SPDX-License-Identifier: Apache-2.0
"""Networks as MINDIR and ONNX files, which are read again and compared with the network before they get their name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

import mindvideo
from mindvideo.engine.device import operator_by_operator
from mindvideo.errors import InputError
from mindvideo.export.interface import Interface, interface_of
from mindvideo.export.network import Trained, rebuilt
from mindvideo.models.layers import portable_operators

FORMATS = ("mindir", "onnx")
# Of any output, as a share of its largest value where that is more than 1.
MOST_DIFFERENCE = 1e-4
# MindSpore parts the weights of larger networks from their graph.
MOST_BYTES = 10**9

Arrays = Sequence[np.ndarray]


def check_destination(destination: Path, kind: str = "") -> str:
    """Which of `FORMATS` the file is to have, by its suffix, and `kind` where that is given.

    InputError if the suffix is another one, if the file or the description beside it is there already, or if what
    writes it is not installed.
    """
    suffix = destination.suffix.removeprefix(".")
    if suffix not in FORMATS or (kind and kind != suffix):
        wanted = f".{kind}" if kind else " or ".join(f".{name}" for name in FORMATS)
        raise InputError(f"{destination}: the file must end in {wanted}.")
    for path in (destination, description_of(destination)):
        if path.exists():
            raise InputError(f"{path} exists: name a new file.")
    if not destination.parent.is_dir():
        raise InputError(f"{destination.parent}: no such folder.")
    for name in ("onnx", "onnxruntime") if suffix == "onnx" else ():
        if find_spec(name) is None:
            raise InputError(f"an ONNX file needs {name}, which is not installed; `pip install mindvideo[onnx]`.")
    return suffix


def description_of(file: Path) -> Path:
    """The file that says what is to be known of an exported one, beside it."""
    return file.with_name(f"{file.name}.json")


def export_graph(trained: Trained, destination: Path, *, batch: int = 1, frames: int = 0) -> float:
    """Write the network to `destination`, .mindir or .onnx, and what is to be known of it beside it.

    Returns by how much the file's outputs differ from the network's on random inputs, at most (see
    `largest_difference`). InputError, and nothing is written, if that is more than `MOST_DIFFERENCE`, or if the file
    cannot be made; `batch` and `frames` are those of `interface_of`.
    """
    kind = check_destination(destination)
    interface = interface_of(trained.config, batch=batch, frames=frames)
    size = sum(parameter.nbytes for parameter in trained.network.get_parameters())
    if size > MOST_BYTES:
        raise InputError(f"{trained.config.model.name} has {size / 1e9:.1f} GB of weights; a file holds at most 1 GB.")
    rng = np.random.default_rng(1)
    traced, shown = ([x.draw(rng) for x in interface.inputs.values()] for _ in range(2))
    expected = run_network(interface, trained, shown)
    description = describe(trained, interface, expected)
    with TemporaryDirectory(prefix=f".{destination.stem}.", dir=destination.parent) as folder:
        file = Path(folder) / f"network.{kind}"
        write_mindir(file.with_suffix(".mindir"), interface, trained, traced)
        if kind == "onnx":
            write_onnx(file.with_suffix(".mindir"), file, interface, description)
        found = RUNNERS[kind](file, shown)
        difference = largest_difference(found, expected)
        if not difference <= MOST_DIFFERENCE:
            raise InputError(
                f"{destination} is not written: its outputs differ from the network's by {difference:.1e}; "
                f"at most {MOST_DIFFERENCE:g} is allowed."
            )
        beside = file.with_suffix(".json")
        description |= {"largest_difference": difference}
        beside.write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        beside.replace(description_of(destination))
        file.replace(destination)
    return difference


def run_network(interface: Interface, trained: Trained, arrays: Sequence[np.ndarray]) -> Arrays:
    """The outputs of the network as it stands, operator by operator."""
    with operator_by_operator():
        cell = interface.make_cell(trained.network).set_train(False)
        return [output.asnumpy() for output in cell(*map(Tensor, arrays))]


def write_mindir(file: Path, interface: Interface, trained: Trained, arrays: Sequence[np.ndarray]) -> None:
    """Write the network's graph for inputs of these shapes, on MindSpore's own operators."""
    with portable_operators():
        twin = rebuilt(trained)
        with operator_by_operator():
            cell = interface.make_cell(twin.network).set_train(False)
        ms.export(cell, *map(Tensor, arrays), file_name=str(file), file_format="MINDIR")
    file.chmod(0o644)  # MindSpore leaves it read-only for its owner


def write_onnx(mindir: Path, file: Path, interface: Interface, description: Mapping[str, Any]) -> None:
    """Translate a MINDIR file, and store the description with it."""
    import onnx

    from mindvideo.export.onnx_graph import translate

    model = translate(mindir.read_bytes(), list(interface.inputs), list(interface.outputs), description["model"])
    onnx.helper.set_model_props(model, {key: _text(value) for key, value in description.items()})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(file))


def run_mindir(file: Path, arrays: Sequence[np.ndarray]) -> Arrays:
    """The outputs of a MINDIR file."""
    cell = nn.GraphCell(ms.load(str(file)))
    return [output.asnumpy() for output in cell(*map(Tensor, arrays))]


def run_onnx(file: Path, arrays: Sequence[np.ndarray]) -> Arrays:
    """The outputs of an ONNX file, by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    outputs = session.run(None, dict(zip(names, arrays, strict=True)))
    return [np.asarray(output) for output in outputs]


RUNNERS = {"mindir": run_mindir, "onnx": run_onnx}


def largest_difference(found: Arrays, expected: Arrays) -> float:
    """The largest difference of any output, as a share of its largest value where that is more than 1; infinite for
    outputs of other shapes."""
    if [array.shape for array in found] != [array.shape for array in expected]:
        return float("inf")
    pairs = zip(found, expected, strict=True)
    return float(np.max([np.abs(a - b).max() / max(1.0, np.abs(b).max()) for a, b in pairs]))  # max() may lose a nan


def describe(trained: Trained, interface: Interface, outputs: Arrays) -> dict[str, Any]:
    """What is to be known of the file by those who use it, which JSON can hold."""
    described = {
        name: {"shape": list(x.shape), "dtype": np.dtype(x.dtype).name, "meaning": x.meaning}
        for name, x in interface.inputs.items()
    }
    shapes = [list(array.shape) for array in outputs]
    return {
        "model": trained.config.model.name, "task": trained.config.task, "inputs": described,
        "outputs": {
            name: {"shape": shape, "dtype": "float32", "meaning": meaning}
            for (name, meaning), shape in zip(interface.outputs.items(), shapes, strict=True)
        },
        "preprocessing": interface.preprocessing, "classes": list(trained.labels),
        "versions": {"mindvideo": mindvideo.__version__, "mindspore": ms.__version__},
    }  # fmt: skip


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
