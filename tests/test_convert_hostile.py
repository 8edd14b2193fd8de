# SPDX-License-Identifier: Apache-2.0
"""Hostile files: each is refused in one line, nothing is executed, and memory stays small."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from mindvideo.convert import torch_file, torch_pickle
from mindvideo.convert.sources import read_arrays
from mindvideo.convert.torch_file import write_torch
from mindvideo.errors import InputError
from tests.torch_files import called, dictionary, named, plain, storage, streamed, tensor, zipped

FLOATS = np.arange(6, dtype=np.float32)
ROW = storage("0", "torch.FloatStorage", 6)
WHOLE = tensor(ROW, (2, 3), (3, 1))
GOOD = dictionary({"x": WHOLE})


def holding(*instructions: bytes) -> bytes:
    """A pickle with these instructions for the value of x."""
    return dictionary({"x": b"".join(instructions)})


def text(word: str) -> bytes:
    return b"\x8c" + bytes([len(word)]) + word.encode()


class Reduced:
    """Pickled as a call."""

    def __init__(self, function: Callable, *arguments: object):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def note(place: int) -> bytes:
    """Keep the value on the stack, far behind what `plain` keeps."""
    return b"r" + struct.pack("<I", place + 1000)


def noted(place: int) -> bytes:
    return b"j" + struct.pack("<I", place + 1000) if place >= 0 else b"N"


PAIRS = named("collections.OrderedDict")
TRAP = "open('trapped', 'w')"
CALLS = {
    "os.system": "posix.system", "eval": "builtins.eval", "exec": "builtins.exec", "getattr": "builtins.getattr",
    "import": "builtins.__import__", "open": "io.open", "subprocess": "subprocess.Popen", "set": "builtins.set",
    "dotted": "torch.hub.load", "bytes": "torch.storage._load_from_bytes", "rebuild": "torch._utils._rebuild_qtensor",
    "sparse": "torch._utils._rebuild_sparse_tensor", "module": "torch.nn.modules.linear.Linear",
    "namespace": "argparse.Namespace", "old builtins": "__builtin__.eval", "numpy": "numpy.load",
}  # fmt: skip
STACKED = b"\x8c\x05posix\x8c\x06system\x93"
MOST = 50_000  # instructions and values, in these tests
PICKLES = {name: (holding(called(f, plain(TRAP))), repr(f)) for name, f in CALLS.items()} | {
    "of a program": (pickle.dumps({"x": Reduced(os.system, "touch trapped")}, 2)[2:-1], "'posix.system'"),
    "of protocol 5": (pickle.dumps({"x": Reduced(eval, TRAP)}, 4)[2:-1], "'builtins.eval'"),
    "stack name": (holding(STACKED, b"(", plain("touch trapped"), b"tR"), "'posix.system'"),
    "nested name": (holding(text("torch"), text("_utils.os.system"), b"\x93"), "'torch._utils.os.system'"),
    "name of lines": (holding(text("a\nb"), text("c"), b"\x93"), r"'a\nb.c'"),
    "name of no text": (holding(plain(3), plain("x"), b"\x93"), "int where str must be"),
    "inst": (holding(b"(", plain("touch trapped"), b"iposix\nsystem\n"), "the instruction INST"),
    "obj": (holding(b"(", named("torch.Size"), b"o"), "the instruction OBJ"),
    "newobj": (holding(named("torch.Size"), b")\x81"), "the instruction NEWOBJ"),
    "newobj_ex": (holding(named("torch.Size"), b")}\x92"), "the instruction NEWOBJ_EX"),
    "extension": (holding(b"\x82\x01"), "the instruction EXT1"),
    "text reference": (holding(b"Pmodule\n"), "the instruction PERSID"),
    "buffer": (holding(b"\x97"), "the instruction NEXT_BUFFER"),
    "set": (holding(b"\x8f"), "the instruction EMPTY_SET"),
    "unknown": (holding(b"\xff"), "opcode b'\\xff' unknown"),
    "call of a type": (holding(called("torch.FloatStorage", plain(1 << 40))), "calls 'torch.FloatStorage'"),
    "call of a result": (holding(WHOLE, b"(tR"), "TensorView where Name must be"),
    "state of a tensor": (holding(WHOLE, dictionary({"__class__": plain(1)}), b"b"), "TensorView where dict must be"),
    "state of a list": (holding(b"]}b"), "list where dict must be"),
    "too few": (holding(b"R"), "str where tuple must be"),
    "no mark": (b"t", "is damaged"),
    "two values": (GOOD + GOOD, "does not end in one value"),
    "open mark": (b"(" + GOOD, "does not end in one value"),
    "unset memo": (holding(b"h\x07"), "is damaged"),
    "memo of nothing": (b"q\x07", "is damaged"),
    "huge memo": (b"r\xff\xff\xff\x7f" + GOOD, "is damaged"),
    "huge text": (holding(b"X\xff\xff\xff\x7fabc"), "expected 2147483647 bytes"),
    "huge bytes": (holding(b"\x8e" + struct.pack("<Q", 1 << 60)), "expected 1152921504606846976 bytes"),
    "negative text": (holding(b"T\xff\xff\xff\xff"), "byte count < 0"),
    "huge frame": (b"\x95" + struct.pack("<Q", 1 << 60) + holding(b"R"), "str where tuple must be"),
    "long number": (holding(b"\x8b\xff\xff\xff\x7f"), "not enough data"),
    "many instructions": (b"N" * (MOST + 1), "more than 50000 instructions"),
    "many marks": (b"(" * (MOST + 1), "more than 50000 instructions"),
    "copies": (
        dictionary({"a": b"](" + b"](NNe" * 2000 + b"eq\x01", "b": b"](" + (PAIRS + b"h\x01\x85R") * 40 + b"e"}),
        "copies more than 50000 values",
    ),
    "deep": (b"}X\x01\0\0\0a" * 2000 + WHOLE + b"s" * 2000, "nested more than 32 deep"),
    "itself": (b"}q\x00(X\x01\0\0\0ah\x00u", "nested more than 32 deep"),
    "model of itself": (b"}q\x00(X\x05\0\0\0modelh\x00u", "nested more than 32 deep"),
    "laughing lists": (dictionary({str(i): b"](" + noted(i - 1) * 10 + b"e" + note(i) for i in range(25)}), "values"),
    "laughing dicts": (
        dictionary({str(i): dictionary({str(n): noted(i - 1) for n in range(9)}) + note(i) for i in range(25)}),
        "more than 50000 values",
    ),
    "hashes": (b"}(" + b"Nq\x01" + b"h\x01h\x01\x86q\x01" * 60 + b"Nu", "neither text nor numbers"),
    "odd items": (b"}(Nu", "neither text nor numbers"),
    "items of a list": (b"](NNu", "list where dict must be"),
    "append to a dict": (b"}Na", "dict where list must be"),
    "list": (b"]", "no dict of tensors"),
    "tensor": (WHOLE, "no dict of tensors"),
    "long name": (dictionary({"n" * 2000: WHOLE}), "more than 1000 letters"),
    "one name": (dictionary({"a.b": WHOLE, "a": dictionary({"b": WHOLE})}), "two tensors are called 'a.b'"),
    "no storage": (holding(tensor(plain("0"), (2, 3), (3, 1))), "str where Storage must be"),
    "not a storage": (holding(plain(("module", "os", "x", "y", 1)), b"Q"), "refers to something that is no storage"),
    "view of a storage": (holding(storage("0", "torch.FloatStorage", 6, ("1", 0, 3))), "something that is no storage"),
    "type of a storage": (holding(storage("0", "torch.float32", 6)), "takes 'torch.float32' for a type"),
    "two sizes": (dictionary({"x": WHOLE, "y": storage("0", "torch.FloatStorage", 5)}), "described in two ways"),
    "other size": (holding(tensor(storage("0", "torch.FloatStorage", 5), (5,), (1,))), "another size than is told"),
    "huge size": (holding(tensor(storage("0", "torch.FloatStorage", 1 << 50), (2, 3), (3, 1))), "another size than"),
    "negative size": (holding(storage("0", "torch.FloatStorage", -6)), "out of range"),
    "true size": (holding(storage("0", "torch.FloatStorage", True)), "bool where a size must be"),
    "other key": (holding(tensor(storage("../0", "torch.FloatStorage", 6), (6,), (1,))), "data/../0' is missing"),
    "offset": (holding(tensor(ROW, (2, 3), (3, 1), 1)), "strides is incompatible|buffer is too small"),
    "huge offset": (holding(tensor(ROW, (2, 3), (3, 1), 1 << 61)), "is damaged|Maximum|offset"),
    "negative offset": (holding(tensor(ROW, (2, 3), (3, 1), -1)), "out of range"),
    "stride": (holding(tensor(ROW, (2, 3), (4, 1))), "strides is incompatible"),
    "huge stride": (holding(tensor(ROW, (2, 3), (1 << 61, 1))), "is damaged|Maximum allowed dimension"),
    "negative stride": (holding(tensor(ROW, (2, 3), (-3, 1))), "out of range"),
    "shape": (holding(tensor(ROW, (3, 3), (3, 1))), "strides is incompatible|buffer is too small"),
    "endless": (holding(tensor(ROW, (1 << 40, 3), (0, 1))), "is larger than the file"),
    "axes": (holding(tensor(ROW, (1,) * 40, (1,) * 40)), "40 axes and 40 strides; at most 32"),
    "axes and strides": (holding(tensor(ROW, (2, 3), (1,))), "2 axes and 1 strides"),
    "shape of a list": (holding(tensor(ROW, [2, 3], (3, 1))), "list where tuple must be"),
    "shape of fractions": (holding(tensor(ROW, (2.0, 3), (3, 1))), "float where a size must be"),
    "few arguments": (holding(called("torch._utils._rebuild_tensor_v2", ROW)), "is damaged"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_bounds(monkeypatch):
    """The bounds themselves, which memory and time are proportional to, take seconds each."""
    assert torch_pickle.MOST_INSTRUCTIONS == torch_file.MOST_VALUES == 1_000_000
    monkeypatch.setattr(torch_pickle, "MOST_INSTRUCTIONS", MOST)
    monkeypatch.setattr(torch_file, "MOST_VALUES", MOST)


def refused(path: Path) -> str:
    """What is told of a file, in one line."""
    with pytest.raises(InputError) as caught:
        read_arrays(path)
    told = str(caught.value)
    assert told.startswith(f"{path}: not a readable checkpoint (")
    assert "\n" not in told
    assert len(told) < 500
    return told


@pytest.mark.parametrize("name", PICKLES)
def test_a_hostile_pickle_is_refused_and_nothing_of_it_is_run(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    value, reason = PICKLES[name]
    content = FLOATS.tobytes()
    (tmp_path / "zip.pth").write_bytes(zipped(value, {"0": content}))
    (tmp_path / "stream.pth").write_bytes(streamed(value, {"0": (6, content)}))
    told = refused(tmp_path / "zip.pth")
    assert any(word in told for word in reason.split("|")), told
    refused(tmp_path / "stream.pth")
    assert {path.name for path in tmp_path.iterdir()} == {"zip.pth", "stream.pth"}


def changed(content: bytes, place: int, new: bytes) -> bytes:
    return content[:place] + new + content[place + len(new) :]


ZIP = zipped(GOOD, {"0": FLOATS.tobytes()})
TABLE, END, HEADER = ZIP.index(b"PK\1\2"), ZIP.rindex(b"PK\5\6"), ZIP.index(b"PK\3\4", 4)
SECOND = ZIP.index(b"PK\1\2", TABLE + 1)
ROWS = {"0": FLOATS.tobytes()}
ZIPS = {
    "compressed": (zipped(GOOD, ROWS, compression=zipfile.ZIP_DEFLATED), "is compressed"),
    "bomb": (zipped(GOOD, {"0": bytes(2**27)}, compression=zipfile.ZIP_DEFLATED), "is compressed"),
    "encrypted": (changed(ZIP, SECOND + 8, b"\1"), "is encrypted"),
    "climbing": (zipped(GOOD, ROWS, [("archive/../../x", b"")]), "an entry called 'archive/../../x'"),
    "absolute": (zipped(GOOD, ROWS, [("/etc/passwd", b"")]), "an entry called '/etc/passwd'"),
    "drive": (zipped(GOOD, ROWS, [("c:x", b"")]), "an entry called 'c:x'"),
    "twice": (zipped(GOOD, ROWS, [("archive/data/0", bytes(24))]), "two entries"),
    "two pickles": (zipped(GOOD, ROWS, [("other/data.pkl", b"N.")]), "has 2 entries called data.pkl"),
    "no pickle": (changed(changed(ZIP, 30, b"archive/data.pkx"), TABLE + 46, b"archive/data.pkx"), "has 0 entries"),
    "program": (zipped(GOOD, ROWS, [("archive/constants.pkl", b"N.")]), "a TorchScript program"),
    "no storage": (zipped(GOOD, {}), "'archive/data/0' is missing"),
    "long storage": (zipped(GOOD, {"0": bytes(28)}), "another size than is told"),
    "byte order": (zipped(GOOD, ROWS, [("archive/byteorder", b"middle")]), "its byte order is b'middle'"),
    "long byte order": (zipped(GOOD, ROWS, [("archive/byteorder", b"little" * 9)]), "has 54 bytes, more than 16"),
    "other numbers": (changed(ZIP, HEADER + 50, b"\7"), "its checksum is another"),
    "other pickle": (changed(ZIP, 60, b"\7"), "its checksum is another"),
    "size": (changed(ZIP, SECOND + 24, b"\7"), "has two sizes"),
    "huge size": (changed(ZIP, SECOND + 20, b"\xfe\xff\xff\xff" * 2), "is not what the table says"),
    "absent size": (changed(ZIP, SECOND + 20, b"\xff" * 8), "lacks a size"),
    "place": (changed(ZIP, SECOND + 42, b"\0\0"), "is not where the table says"),
    "far place": (changed(ZIP, SECOND + 42, b"\xf0\xff\xff\xff"), "is not where the table says"),
    "name": (changed(ZIP, SECOND + 46, b"B"), "is not where the table says"),
    "method": (changed(ZIP, HEADER + 8, b"\x08"), "is not what the table says"),
    "overlap": (changed(ZIP, TABLE + 20, struct.pack("<I", HEADER) * 2), "overlap"),
    "count": (changed(ZIP, END + 10, b"\3"), "is not where its end says|cut off"),
    "many": (changed(ZIP, END + 10, b"\xff\xff"), "is not where its end says"),
    "table": (changed(ZIP, END + 16, b"\7"), "is not where its end says"),
    "table size": (changed(ZIP, END + 12, b"\xff\xff\xff\xff"), "is not where its end says"),
    "table name": (changed(ZIP, SECOND + 28, b"\xff\xff"), "is damaged"),
    "table mark": (changed(ZIP, SECOND, b"XX"), "is damaged"),
    "end of 64 bits": (ZIP[:END] + b"PK\6\7" + b"\xff" * 16 + ZIP[END:], "is damaged"),
    "many of 64 bits": (
        ZIP[:END] + b"PK\6\6" + bytes(20) + struct.pack("<4Q", 2**60, 2**60, END - TABLE, TABLE) + b"PK\6\7" + bytes(4)
        + struct.pack("<QI", END, 1) + ZIP[END:], "is not where its end says",
    ),
    "empty": (b"", "neither a zip file"),
    "noise": (np.random.default_rng(0).bytes(3000), "neither a zip file"),
    "text": (b"version https://git-lfs.github.com/spec/v1", "neither a zip file"),
}  # fmt: skip
STREAM = streamed(GOOD, {"0": (6, FLOATS.tobytes())})
STREAMS = {
    "big-endian": (streamed(GOOD, {"0": (6, FLOATS.tobytes())}, little=False), "not written on a little-endian"),
    "pickle": (pickle.dumps({"x": 1}, 2), "a pickle, but not PyTorch's"),
    "other storages": (streamed(GOOD, {"1": (6, FLOATS.tobytes())}), "are not those that its tensors need"),
    "other count": (streamed(GOOD, {"0": (7, FLOATS.tobytes())}), "is cut off, or has another size"),
    "negative count": (changed(STREAM, len(STREAM) - 32, b"\xff" * 8), "is cut off, or has another size"),
    "short": (STREAM[:-1], "is cut off, or has another size"),
    "huge": (streamed(holding(tensor(storage("0", "torch.FloatStorage", 2**60), (2,), (1,))), {"0": (2**60, b"")}),
             "is cut off, or has another size"),
}  # fmt: skip


@pytest.mark.parametrize("name", [*ZIPS, *STREAMS])
def test_a_hostile_container_is_refused(tmp_path, name):
    content, reason = (ZIPS | STREAMS)[name]
    (tmp_path / "a.pth").write_bytes(content)
    told = refused(tmp_path / "a.pth")
    assert any(word in told for word in reason.split("|")), told


def test_the_tar_of_the_first_versions_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"), io.BytesIO())
    assert "the tar form of PyTorch before 0.2 is not read" in refused(tmp_path / "a.tar")


def packed(name: str, header: bytes, content: bytes = b"", **options: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:  # pyright: ignore
        archive.writestr(name, b"\x93NUMPY\x01\x00v\x00" + header.ljust(117) + b"\n" + content)
    return file.getvalue()


SHAPE = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%s)}"
PACKS = {
    "bomb": packed("x.npy", SHAPE % b"134217728,", bytes(2**29), compression=zipfile.ZIP_DEFLATED),
    "huge": packed("x.npy", SHAPE % b"1152921504606846976, 9"),
    "short": packed("x.npy", SHAPE % b"9,", bytes(35)),
    "objects": packed(
        "x.npy", SHAPE.replace(b"<f4", b"|O") % b"1,", pickle.dumps([Reduced(os.system, "touch trapped")])
    ),
    "code": packed("x.npy", b"{'descr': __import__('os').system('touch trapped'), 'shape': ()}"),
    "deep": packed("x.npy", b"(" * 116),
    "climbing": packed("../x.npy", SHAPE % b"1,", bytes(4)),
    "twice": ZIPS["twice"][0],
    "encrypted": ZIPS["encrypted"][0],
    "overlap": ZIPS["overlap"][0],
    "no zip": b"\x93NUMPY",
    "empty": b"",
}


@pytest.mark.parametrize("name", PACKS)
def test_a_hostile_npz_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.npz").write_bytes(PACKS[name])
    refused(tmp_path / "a.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def tensors(header: bytes, content: bytes = bytes(24), length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + content


ENTRY = b'{"x":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}%s}'
TENSORS = {
    "huge header": tensors(ENTRY % b"", length=2**60),
    "long header": tensors(ENTRY % b"", length=500),
    "no header": tensors(b"", b""),
    "offsets": tensors(ENTRY.replace(b"[0,24]", b"[8,32]") % b""),
    "huge offsets": tensors(ENTRY.replace(b"[0,24]", b"[0,1152921504606846976]") % b""),
    "turned offsets": tensors(ENTRY.replace(b"[0,24]", b"[24,0]") % b""),
    "negative offsets": tensors(ENTRY.replace(b"[0,24]", b"[-4,20]") % b""),
    "shape": tensors(ENTRY.replace(b"[2,3]", b"[2,4]") % b""),
    "huge shape": tensors(ENTRY.replace(b"[2,3]", b"[4611686018427387904,4611686018427387904]") % b""),
    "dtype": tensors(ENTRY.replace(b"F32", b"OBJ") % b""),
    "overlap": tensors(ENTRY % b',"y":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}'),
    "hole": tensors(ENTRY % b"", bytes(28)),
    "twice": tensors(ENTRY % b',"x":{"dtype":"F32","shape":[1],"data_offsets":[24,28]}', bytes(28)),
    "deep": tensors(b'{"x":' + b"[" * 100_000),
    "text": tensors(b"import os; os.system('touch trapped')"),
    "pickle": pickle.dumps(Reduced(os.system, "touch trapped")),
    "empty": b"",
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_hostile_safetensors_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(TENSORS[name])
    refused(tmp_path / "a.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


WEIGHTS = {"fc.weight": np.arange(60, dtype=np.float32).reshape(6, 10), "fc.bias": np.ones(6, np.float32)}


def whole_files(folder: Path) -> dict[str, bytes]:
    write_torch(folder / "zip.pth", WEIGHTS)
    np.savez(folder / "stored.npz", **WEIGHTS)
    np.savez_compressed(folder / "packed.npz", **WEIGHTS)
    (folder / "a.safetensors").write_bytes(save(WEIGHTS))
    rows = {str(key): (array.size, array.tobytes()) for key, array in enumerate(WEIGHTS.values())}
    values = [
        tensor(storage("0", "torch.FloatStorage", 60), (6, 10), (10, 1)),
        tensor(storage("1", "torch.FloatStorage", 6), (6,), (1,)),
    ]
    (folder / "stream.pth").write_bytes(streamed(dictionary(dict(zip(WEIGHTS, values, strict=True))), rows))
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_hundreds_of_damaged_files(tmp_path):
    """Cut anywhere, a file is refused. With bytes overwritten it is refused, or gives other numbers where its format
    has no checksum; it never raises anything else, and never takes memory."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "hurt").mkdir()
    rng = np.random.default_rng(0)
    counts = {"cut": 0, "overwritten": 0, "refused": 0, "other numbers": 0}
    tracemalloc.start()
    for name, content in whole_files(tmp_path / "whole").items():
        path = tmp_path / "hurt" / name
        for place in rng.choice(len(content) - 1, 20, replace=False):
            path.write_bytes(content[:place])
            refused(path)
            counts["cut"] += 1
        for place in rng.choice(len(content) - 4, 60, replace=False):
            path.write_bytes(changed(content, place, rng.bytes(int(rng.integers(1, 4)))))
            counts["overwritten"] += 1
            try:
                found = read_arrays(path)
            except InputError as error:
                counts["refused"] += "\n" not in str(error)
                continue
            counts["other numbers"] += 1
            assert sum(array.nbytes for array in found.values()) <= 2 * sum(map(np.size, WEIGHTS.values())) * 4
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()
    assert (counts["cut"], counts["overwritten"]) == (100, 300)
    assert counts["refused"] + counts["other numbers"] == 300
    assert counts["refused"] > 100


@pytest.mark.parametrize("name", ["many marks", "many instructions", "copies", "laughing lists", "laughing dicts"])
def test_memory_stays_bounded(tmp_path, name):
    (tmp_path / "a.pth").write_bytes(zipped(PICKLES[name][0], ROWS))
    tracemalloc.start()
    refused(tmp_path / "a.pth")
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
