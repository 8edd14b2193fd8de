# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that survive: written beside the last good one, flushed, then renamed over it.

`<name>.ckpt` is MindSpore's own format with weights, optimizer state, the training state and a hash of all that, by
which a damaged file is known; `<name>.safetensors` holds the weights alone. Neither is ever unpickled. Of several
processes the first writes, and all read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from safetensors.numpy import save as safetensors_bytes

from mindvideo.engine.distributed import from_first
from mindvideo.errors import InputError

_OPTIMIZER = "optimizer."  # before the names of all that is no weight
_STATE = "training_state"
_DIGEST = "sha256"


@dataclass
class TrainingState:
    """Where a run stands.

    Step s has seen the episodes or batches 0 to s - 1, which a seed and their number determine: so the step is the
    state of the data order and, with the seed, of every random number (but C3D's dropout, which MindSpore draws, and
    starts anew when a run is continued). `classes` are the names of a classifier's outputs.
    """

    model: str
    step: int = 0
    seconds: float = 0.0
    best: float = float("-inf")
    best_step: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)


def save_checkpoint(
    path: Path,
    model: nn.Cell,
    state: TrainingState,
    optimizer: nn.Optimizer | None = None,
    extra: Iterable[Parameter] = (),
    *,
    previous: Path | None = None,
) -> None:
    """Write `path` and the weights beside it as .safetensors.

    To train on from it, it also holds the optimizer's state and what `extra` there is. What stood at `path` goes to
    `previous`.
    InputError if the disk is full or a weight is not finite. Whatever happens, the checkpoint that stood there
    before stays whole until the new one is complete.
    """
    beside = _beside(model, optimizer, extra)
    from_first(lambda: _save(path, model, state, beside, previous))


def _beside(model: nn.Cell, optimizer: nn.Optimizer | None, extra: Iterable[Parameter]) -> dict[str, Parameter]:
    """All that a checkpoint holds besides the model's weights, which the optimizer has too, by its name there."""
    own = {id(p) for p in model.get_parameters()}
    others = [p for p in optimizer.get_parameters() if id(p) not in own] if optimizer is not None else []
    return {_OPTIMIZER + p.name: p for p in (*others, *extra)}


def _save(
    path: Path, model: nn.Cell, state: TrainingState, beside: Mapping[str, Parameter], previous: Path | None
) -> None:
    weights = {name: value.asnumpy() for name, value in model.parameters_and_names()}
    kept = f"the last good checkpoint stays: {path}" if path.exists() else "no checkpoint was written yet"
    for name, array in weights.items():
        if not np.isfinite(array).all():
            raise InputError(
                f"step {state.step} made the weight {name} infinite or nan: it is not saved, {kept}. "
                "Lower optim.lr or set optim.clip_norm."
            )
    arrays = weights | {name: value.asnumpy() for name, value in beside.items()}
    # Strictly valid JSON has no -Infinity: a run without a best yet stores null.
    fields = json.dumps(asdict(state) | {"best": state.best if np.isfinite(state.best) else None})
    size = sum(array.nbytes for array in (*arrays.values(), *weights.values()))
    try:
        _require_space(path.parent, size)
        temporary = path.with_name(f".{path.stem}.tmp.ckpt")
        temporary.unlink(missing_ok=True)
        records = [{"name": name, "data": Tensor(array)} for name, array in arrays.items()]
        ms.save_checkpoint(records, str(temporary), append_dict={_STATE: fields, _DIGEST: _digest(arrays, fields)})
        temporary.chmod(0o644)  # MindSpore leaves it read-only for its owner
        if previous and path.exists():
            path.replace(previous)
        _flush_and_rename(temporary, path)
        twin = path.with_name(f".{path.stem}.tmp.safetensors")
        twin.write_bytes(safetensors_bytes(weights, metadata={"model": state.model}))
        _flush_and_rename(twin, path.with_suffix(".safetensors"))
    except OSError as error:
        for leftover in path.parent.glob(f".{path.stem}.tmp*"):
            leftover.unlink()
        raise InputError(f"{path}: cannot write the checkpoint of step {state.step} ({error}); {kept}.") from error


def _digest(arrays: Mapping[str, np.ndarray], fields: str) -> str:
    """SHA-256 of all that a checkpoint holds."""
    digest = hashlib.sha256(fields.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} ".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _require_space(folder: Path, size: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(f"{size / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free on the disk")


def _flush_and_rename(temporary: Path, path: Path) -> None:
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def load_checkpoint(
    path: Path, model: nn.Cell, name: str, optimizer: nn.Optimizer | None = None, extra: Iterable[Parameter] = ()
) -> TrainingState:
    """Put the weights of `path` into `model` (called `name`), and with `optimizer` its state and the `extra` too.

    InputError when the file is missing, damaged, or holds another model; nothing is loaded then.
    """
    values, state = read_checkpoint(path)
    wanted: dict[str, Parameter] = dict(model.parameters_and_names())
    _check_match(path, name, state, wanted, values)
    beside = _beside(model, optimizer, extra)
    missing = [key for key in beside if key not in values]
    if missing:
        raise InputError(f"{path}: holds no optimizer state ({missing[0]} is missing): nothing to resume.")
    wanted |= beside
    for key, parameter in wanted.items():
        # Not set_data: a graph compiled before would go on with the old values.
        ops.assign(parameter, Tensor(values[key]))
    return state


def load_part(path: Path, model: nn.Cell, name: str, prefix: str) -> None:
    """Put the weights of `path` whose names start with `prefix` into `model` (called `name`): all that it has of these.

    InputError when the file is missing or damaged, or lacks one or has it in another shape; nothing is loaded then.
    """
    values, state = read_checkpoint(path)
    wanted = {key: parameter for key, parameter in model.parameters_and_names() if key.startswith(prefix)}
    values = {key: value for key, value in values.items() if key.startswith(prefix)}
    _check_match(path, name, state, wanted, values)
    for key, parameter in wanted.items():
        ops.assign(parameter, Tensor(values[key]))


def read_checkpoint(path: Path) -> tuple[dict[str, np.ndarray], TrainingState]:
    """All arrays of a checkpoint by name, and its training state (empty where another program wrote it)."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint.")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: not a readable checkpoint (the file is empty).")
    try:
        raw: Mapping[str, Any] = ms.load_checkpoint(str(path), format=_format(path))
        values = {key: value.asnumpy() for key, value in raw.items() if isinstance(value, Parameter)}
        told = str(raw.get(_STATE, '{"model": ""}'))
        # Checkpoints of other programs, and our own .safetensors, have no hash.
        if _DIGEST in raw and _digest(values, told) != raw[_DIGEST]:
            raise ValueError("its content is not what was written, by its SHA-256")
        fields = json.loads(told)
        if fields.get("best") is None:
            fields["best"] = float("-inf")
        return values, TrainingState(**fields)
    except (ValueError, TypeError, KeyError, OSError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path}: not a readable checkpoint ({reason}).") from error


def _format(path: Path) -> str:
    return "safetensors" if path.suffix == ".safetensors" else "ckpt"


def _check_match(
    path: Path,
    name: str,
    state: TrainingState,
    wanted: Mapping[str, Parameter],
    values: Mapping[str, np.ndarray],
) -> None:
    """Every parameter of the model must be there in its shape, and no other."""
    weights = {key for key in values if not key.startswith(_OPTIMIZER)}
    problems = [f"missing {key}" for key in wanted if key not in weights]
    problems += [f"unexpected {key}" for key in sorted(weights - set(wanted))]
    problems += [
        f"{key} is {values[key].shape}, the model needs {tuple(p.shape)}"
        for key, p in wanted.items()
        if key in weights and values[key].shape != tuple(p.shape)
    ]
    if problems:
        holds = f"it holds a {state.model!r} model; " if state.model and state.model != name else ""
        shown = "; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else "")
        hint = " train.backbone takes the backbone alone, where a task has it." if _only_heads(problems) else ""
        raise InputError(f"{path} does not fit model {name!r}: {holds}{len(problems)} differences: {shown}.{hint}")


def _only_heads(problems: Sequence[str]) -> bool:
    """Whether all that differs is a classifier, such as one of another number of classes."""
    names = [problem.removeprefix("missing ").removeprefix("unexpected ") for problem in problems]
    return all(name.startswith("head.") for name in names)
