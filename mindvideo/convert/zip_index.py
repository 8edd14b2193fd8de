# SPDX-License-Identifier: Apache-2.0
"""The table of contents of a zip file that nobody vouches for, checked before anything is read from it.

`zipfile` opens hostile tables: entries that overlap, share a name, say one thing in the table and another in front of
their bytes, or number millions. Here each of these is a ValueError that says so in words.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

STORED = 0  # the method of entries that are not compressed
MOST_ENTRIES = 200_000
_LONGEST_TAIL = 22 + 65_535  # the end record and its comment
_ABSENT = 0xFFFFFFFF  # a number of 32 bits that stands in the zip64 field instead


class Entry(NamedTuple):
    """Where an entry's bytes lie; `size` is that of the content, `packed` that in the file."""

    start: int
    size: int
    packed: int
    method: int
    crc: int


def read_index(data: np.ndarray) -> dict[str, Entry]:
    """The entries by name of a zip file's bytes (uint8); ValueError for anything but a plain, whole one."""
    offset, size, count = _directory(data)
    table = data[offset : offset + size].tobytes()
    entries: dict[str, Entry] = {}
    place = 0
    for _ in range(count):
        name, entry, place = _entry(data, offset, table, place)
        if name in entries:
            raise ValueError(f"two entries of the zip file are called {name[:80]!r}")
        entries[name] = entry
    end = 0
    for entry in sorted(entries.values()):
        if entry.start < end:
            raise ValueError("entries of the zip file overlap")
        end = entry.start + entry.packed
    return entries


def _directory(data: np.ndarray) -> tuple[int, int, int]:
    """Offset and size of the table, and how many entries it has."""
    first = max(0, len(data) - _LONGEST_TAIL)
    tail = data[first:].tobytes()
    place = tail.rfind(b"PK\5\6")
    if place < 0 or len(tail) - place < 22:
        raise ValueError("the end of the zip file is missing")
    count, size, offset = struct.unpack_from("<H2I", tail, place + 10)
    end = first + place
    if end >= 20 and data[end - 20 : end - 16].tobytes() == b"PK\6\7":
        (end,) = struct.unpack("<Q", data[end - 12 : end - 4].tobytes())
        record = data[end : end + 56].tobytes() if end < len(data) else b""
        if len(record) < 56 or not record.startswith(b"PK\6\6"):
            raise ValueError("the end of the zip file is damaged")
        count, size, offset = struct.unpack_from("<3Q", record, 32)
    if offset + size != end or 46 * count > size:
        raise ValueError("the table of the zip file is not where its end says")
    if count > MOST_ENTRIES:
        raise ValueError(f"the zip file has {count} entries, more than {MOST_ENTRIES}")
    return offset, size, count


def _entry(data: np.ndarray, offset: int, table: bytes, place: int) -> tuple[str, Entry, int]:
    """The table's entry at `place`, and the place of the next."""
    if len(table) - place < 46:
        raise ValueError("the table of the zip file is cut off")
    magic, _, _, flags, method, _, _, crc, packed, size, *lengths, _, _, _, local = struct.unpack_from(
        "<4s6H3I5H2I", table, place
    )
    ends = [place + 46 + sum(lengths[:many]) for many in range(4)]
    if magic != b"PK\1\2" or ends[-1] > len(table):
        raise ValueError("the table of the zip file is damaged")
    raw = table[ends[0] : ends[1]]
    name = _checked_name(raw.decode("utf-8" if flags & 0x800 else "cp437"))
    size, packed, local = _wide(table[ends[1] : ends[2]], size, packed, local)
    if flags & 1:
        raise ValueError(f"the entry {name!r} is encrypted")
    if method == STORED and size != packed:
        raise ValueError(f"the entry {name!r} has two sizes")
    header = data[local : local + 30 + len(raw)].tobytes() if local < offset else b""
    if len(header) < 30 + len(raw) or not header.startswith(b"PK\3\4") or header[30:] != raw:
        raise ValueError(f"the entry {name!r} is not where the table says")
    own_method, name_length, extra_length = struct.unpack("<8xH16x2H", header[:30])
    start = local + 30 + name_length + extra_length
    if (own_method, name_length) != (method, len(raw)) or start + packed > offset:
        raise ValueError(f"the entry {name!r} is not what the table says")
    return name, Entry(start, size, packed, method, crc), ends[-1]


def _wide(extra: bytes, size: int, packed: int, local: int) -> list[int]:
    """The three numbers of an entry, those of 64 bits from its extra field."""
    numbers, wide = [size, packed, local], b""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            wide = extra[4 : 4 + length]
        extra = extra[4 + length :]
    for index, number in enumerate(numbers):
        if number == _ABSENT:
            if len(wide) < 8:
                raise ValueError("the table of the zip file lacks a size")
            numbers[index] = int.from_bytes(wide[:8], "little")
            wide = wide[8:]
    return numbers


def _checked_name(name: str) -> str:
    if not name or name.startswith("/") or ".." in name.split("/") or any(sign in name for sign in "\\:\0"):
        raise ValueError(f"the zip file has an entry called {name[:80]!r}")
    return name
