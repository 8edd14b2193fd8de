# SPDX-License-Identifier: Apache-2.0
"""Files of PyTorch written instruction by instruction, whole and hostile ones, without PyTorch."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from collections.abc import Iterable, Mapping

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def plain(value: object) -> bytes:
    """The instructions that put a value without classes on the stack."""
    return pickle.dumps(value, 2)[2:-1]


def named(name: str) -> bytes:
    module, _, member = name.rpartition(".")
    return f"c{module}\n{member}\n".encode()


def called(name: str, *arguments: bytes) -> bytes:
    return named(name) + b"(" + b"".join(arguments) + b"tR"


def storage(key: object, kind: str, count: object, *more: object) -> bytes:
    parts = [plain("storage"), named(kind), plain(key), plain("cpu"), plain(count), *map(plain, more)]
    return b"(" + b"".join(parts) + b"tQ"


def tensor(row: bytes, shape: object, strides: object, offset: object = 0) -> bytes:
    hooks = called("collections.OrderedDict")
    return called("torch._utils._rebuild_tensor_v2", row, *map(plain, (offset, shape, strides, False)), hooks)


def dictionary(items: Mapping[str, bytes]) -> bytes:
    """Instructions for a dict whose values are instructions."""
    return b"}(" + b"".join(plain(name) + value for name, value in items.items()) + b"u"


def program(value: bytes) -> bytes:
    return b"\x80\x02" + value + b"."


def zipped(value: bytes, rows: Mapping[str, bytes], more: Iterable[tuple[str, bytes]] = (), **options: int) -> bytes:
    """The form of torch 1.6 and later; `more` are further entries, `options` those of zipfile."""
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", **options) as archive:  # pyright: ignore
        warnings.simplefilter("ignore")  # of names that are there twice
        archive.writestr("archive/data.pkl", program(value))
        for key, content in rows.items():
            archive.writestr(f"archive/data/{key}", content)
        for name, content in more:
            archive.writestr(name, content)
    return file.getvalue()


def streamed(value: bytes, rows: Mapping[str, tuple[int, bytes]], *, little: bool = True) -> bytes:
    """The form before: a row is its count of numbers and their bytes."""
    about = {"protocol_version": PROTOCOL, "little_endian": little, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    parts = [pickle.dumps(MAGIC, 2), pickle.dumps(PROTOCOL, 2), pickle.dumps(about, 2), program(value)]
    parts.append(pickle.dumps(sorted(rows), 2))
    for key in sorted(rows):
        count, content = rows[key]
        parts += [count.to_bytes(8, "little"), content]
    return b"".join(parts)
