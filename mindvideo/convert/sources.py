# SPDX-License-Identifier: Apache-2.0
"""The arrays of any checkpoint by their names: of MindSpore, PyTorch, numpy, or safetensors. None is ever unpickled."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mindvideo.convert.layout import unwrapped
from mindvideo.convert.torch_file import read_torch
from mindvideo.convert.zip_index import read_index
from mindvideo.engine.checkpoint import read_checkpoint
from mindvideo.errors import InputError

PYTORCH_FILES = (".pth", ".pt", ".tar", ".bin")
SUFFIXES = (".ckpt", ".safetensors", ".npz", *PYTORCH_FILES)
_LARGEST_SMALL, _LARGEST_RATIO = 2**28, 20  # bytes that a .npz may hold anyhow, and what weights never shrink by


def read_arrays(source: Path) -> dict[str, np.ndarray]:
    """All arrays of a file, by their names without `module`; InputError if it is not a readable checkpoint."""
    if source.suffix not in SUFFIXES:
        raise InputError(f"{source}: a checkpoint to convert must end in {', '.join(SUFFIXES)}.")
    if not source.is_file():
        raise InputError(f"{source}: no such checkpoint.")
    try:
        if source.suffix in PYTORCH_FILES:
            arrays = read_torch(source)
        else:
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
    size = path.stat().st_size
    entries = read_index(np.memmap(path, np.uint8, "r")) if size else {}
    unpacked = sum(entry.size for entry in entries.values())
    if unpacked > max(_LARGEST_SMALL, _LARGEST_RATIO * size):
        raise ValueError(f"its {size} bytes would become {unpacked}")
    with np.load(path, allow_pickle=False) as file:
        return {name: np.asarray(file[name]) for name in file.files}
