# SPDX-License-Identifier: Apache-2.0
"""PyTorch's own files (.pth, .pt, .bin) without PyTorch: tensors in, tensors out, and nothing is executed.

Two forms are read: the zip file of torch 1.6 and later, with a pickle and one entry for each storage, and the older
stream of five pickles with the storages behind. Numbers stay in the file, which is mapped, until they are used; only
bfloat16, which numpy lacks, is copied, as the same numbers in float32.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from mindvideo.convert.torch_pickle import BFLOAT16, STORAGES, Storage, TensorView, load
from mindvideo.convert.zip_index import STORED, Entry, read_index
from mindvideo.errors import InputError

LARGEST_PICKLE = 2**25
MOST_TENSORS, MOST_VALUES, DEEPEST, LONGEST_NAME = 100_000, 1_000_000, 32, 1000
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_WRAPPERS = ("state_dict", "model_state_dict", "model")  # in which training programs keep the weights
_CLASSES = {np.dtype(dtype): name for name, dtype in STORAGES.items() if dtype != BFLOAT16 and "Untyped" not in name}

Read = Callable[[Storage], np.ndarray]
Order = Literal["<", ">"]


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a file by name, names of nested dicts joined by dots; InputError if it is anything but that.

    Of a training program's file it is the weights: what stands under `state_dict`, `model_state_dict` or `model`.
    """
    try:
        data = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
        value, read, order = _open(data)
        views = _named(value)
        rows = {key: _row(*key, read, order) for key in {(view.storage, view.dtype) for view in views.values()}}
        return {name: _array(view, rows[view.storage, view.dtype], len(data)) for name, view in views.items()}
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, OSError, struct.error) as error:
        told = type(error) is ValueError or isinstance(error, OSError)
        reason = str(error).partition("\n")[0][:200] if told else "its pickle is damaged"
        raise InputError(f"{path}: not a readable checkpoint ({reason}).") from error


def _open(data: np.ndarray) -> tuple[Any, Read, Order]:
    """What the file's pickle says, how to read a storage's bytes, and numpy's sign for their order."""
    start = data[:4].tobytes()
    if start == b"PK\3\4":
        return _open_zip(data)
    if start[:1] == b"\x80":
        return _open_stream(data)
    if data[257:262].tobytes() == b"ustar":
        raise ValueError("the tar form of PyTorch before 0.2 is not read: load it in PyTorch and save it anew")
    raise ValueError("neither a zip file of PyTorch nor its older stream of pickles")


def _open_zip(data: np.ndarray) -> tuple[Any, Read, Order]:
    index = read_index(data)
    pickles = [name for name in index if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise ValueError(f"the zip file has {len(pickles)} entries called data.pkl; PyTorch's have one")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in index:
        raise ValueError("a TorchScript program, no state dict: save its state_dict() in PyTorch")

    def content(name: str, most: int) -> np.ndarray:
        if name not in index:
            raise ValueError(f"the entry {name[:80]!r} is missing")
        if index[name].size > most:
            raise ValueError(f"the entry {name!r} has {index[name].size} bytes, more than {most}")
        return _content(data, name, index[name])

    text = content(f"{root}byteorder", 16).tobytes() if f"{root}byteorder" in index else b"little"
    if text not in (b"little", b"big"):
        raise ValueError(f"its byte order is {text!r}")
    value, _ = load(io.BytesIO(content(pickles[0], LARGEST_PICKLE).tobytes()))
    return value, lambda storage: content(f"{root}data/{storage.key}", len(data)), "<" if text == b"little" else ">"


def _content(data: np.ndarray, name: str, entry: Entry) -> np.ndarray:
    if entry.method != STORED:
        raise ValueError(f"the entry {name!r} is compressed, which PyTorch's never are")
    found = data[entry.start : entry.start + entry.size]
    if zlib.crc32(found.data) != entry.crc:
        raise ValueError(f"the entry {name!r} is damaged: its checksum is another")
    return found


def _open_stream(data: np.ndarray) -> tuple[Any, Read, Order]:
    head = io.BytesIO(data[:LARGEST_PICKLE].tobytes())
    if load(head)[0] != _MAGIC or load(head)[0] != _PROTOCOL:
        raise ValueError("a pickle, but not PyTorch's")
    about = load(head)[0]
    if not isinstance(about, dict) or about.get("little_endian") is not True:
        raise ValueError("not written on a little-endian machine: load it in PyTorch and save it anew")
    value, storages = load(head)
    keys = load(head)[0]
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(storages):
        raise ValueError("the storages in the file are not those that its tensors need")
    places, place = {}, head.tell()
    for key in keys:
        size = _item_size(storages[key].dtype) * storages[key].size
        count = int.from_bytes(data[place : place + 8].tobytes(), "little")
        if count != storages[key].size or place + 8 + size > len(data):
            raise ValueError(f"the storage {key[:80]!r} is cut off, or has another size than is told")
        places[key] = slice(place + 8, place + 8 + size)
        place = places[key].stop
    return value, lambda storage: data[places[storage.key]], "<"


def _named(value: Any) -> dict[str, TensorView]:
    """The tensors of nested dicts and lists by their names."""
    if not isinstance(value, dict):
        raise ValueError("it holds no dict of tensors; save a state_dict()")
    for _ in range(DEEPEST):  # a dict can hold itself
        value = next((value[key] for key in _WRAPPERS if isinstance(value.get(key), dict)), value)
    found: dict[str, TensorView] = {}
    for count, (name, view) in enumerate(_walk(value, ())):
        if name in found:
            raise ValueError(f"two tensors are called {name[:80]!r}")
        if count >= MOST_TENSORS:
            raise ValueError(f"it has more than {MOST_TENSORS} tensors")
        found[name] = view
    return found


def _walk(value: Any, name: tuple[str, ...]) -> Iterator[tuple[str, TensorView]]:
    waiting = [(value, name)]
    for _ in range(MOST_VALUES):
        if not waiting:
            return
        value, name = waiting.pop()
        if isinstance(value, TensorView):
            if sum(map(len, name)) > LONGEST_NAME:
                raise ValueError(f"a tensor's name has more than {LONGEST_NAME} letters")
            yield ".".join(name), value
        elif isinstance(value, (dict, list, tuple)):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            if len(name) >= DEEPEST:
                raise ValueError(f"its dicts are nested more than {DEEPEST} deep")
            waiting += [(inner, (*name, str(key))) for key, inner in reversed(list(items))]
            if len(waiting) > MOST_VALUES:
                break
    raise ValueError(f"it has more than {MOST_VALUES} values")


def _item_size(dtype: str) -> int:
    return 2 if dtype == BFLOAT16 else np.dtype(dtype).itemsize


def _row(storage: Storage, dtype: str, read: Read, order: Order) -> np.ndarray:
    """The numbers of a storage, in one row."""
    content = read(storage)
    if len(content) != _item_size(storage.dtype) * storage.size:
        raise ValueError(f"the storage {storage.key[:80]!r} has another size than is told")
    kind = np.dtype("u2" if dtype == BFLOAT16 else dtype).newbyteorder(order)
    row = content[: len(content) // kind.itemsize * kind.itemsize].view(kind)
    return (row.astype(np.uint32) << 16).view(np.float32) if dtype == BFLOAT16 else row


def _array(view: TensorView, row: np.ndarray, most: int) -> np.ndarray:
    """A tensor where its numbers lie; numpy itself holds offset and strides within the row."""
    if _item_size(view.dtype) * math.prod(view.shape) > most:  # one number can be strided over without end
        raise ValueError(f"a tensor of shape {view.shape} is larger than the file")
    if 0 in view.shape:
        return np.empty(view.shape, row.dtype)
    strides = [row.itemsize * stride for stride in view.strides]
    return np.ndarray(view.shape, row.dtype, row.data, row.itemsize * view.offset, strides)


def write_torch(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a new zip file that `torch.load(path, weights_only=True)` reads as a dict of these tensors.

    InputError if `path` exists, cannot be written, or an array is of a type that PyTorch lacks. The same arrays give
    the same bytes.
    """
    plain = {name: np.asarray(array, np.asarray(array).dtype.newbyteorder("<"), "C") for name, array in arrays.items()}
    for name, array in plain.items():
        if array.dtype not in _CLASSES:
            raise InputError(f"{path}: {name} holds {array.dtype}, which PyTorch has no tensors of.")

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            parts = {"data.pkl": _pickled(plain), "byteorder": b"little"}
            parts |= {f"data/{key}": array.reshape(-1).data for key, array in enumerate(plain.values())}
            for name, content in (parts | {"version": b"3\n"}).items():
                entry = zipfile.ZipInfo(f"{path.stem}/{name}")  # dated 1980
                entry.file_size = memoryview(content).nbytes
                with archive.open(entry, "w") as opened:
                    opened.write(content)

    publish(path, write)


def publish(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Let `write` fill a new file, which has its name only once it is whole; InputError if it cannot be."""
    if path.exists():
        raise InputError(f"{path} exists already: choose a free name.")
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError as error:
        if temporary.exists():
            temporary.unlink()
        raise InputError(f"{path}: cannot write the checkpoint ({error}).") from error


def _pickled(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The pickle of a dict of tensors, instruction by instruction (protocol 2), as PyTorch writes it."""
    items = [_text(name) + _call_for(str(key), array) for key, (name, array) in enumerate(arrays.items())]
    return b"\x80\x02}(" + b"".join(items) + b"u."


def _call_for(key: str, array: np.ndarray) -> bytes:
    """`_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)`, the storage by its key."""
    strides = [math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim)]
    storage = _text("storage") + _global(_CLASSES[array.dtype]) + _text(key) + _text("cpu") + _number(array.size)
    return b"".join([
        _global("torch._utils._rebuild_tensor_v2"), b"((", storage, b"tQ", _number(0), _numbers(array.shape),
        _numbers(strides), b"\x89", _global("collections.OrderedDict"), b")RtR",
    ])  # fmt: skip


def _text(text: str) -> bytes:
    raw = text.encode()
    return b"X" + len(raw).to_bytes(4, "little") + raw


def _global(name: str) -> bytes:
    module, _, member = name.rpartition(".")
    return f"c{module}\n{member}\n".encode()


def _numbers(numbers: tuple[int, ...] | list[int]) -> bytes:
    return b"(" + b"".join(map(_number, numbers)) + b"t"


def _number(number: int) -> bytes:
    raw = pickle.encode_long(number)
    return b"\x8a" + bytes([len(raw)]) + raw
