# SPDX-License-Identifier: Apache-2.0
"""PyTorch's files, read and written without it: every type, views, both forms; hostile ones are in
test_convert_hostile.py. tests/parity/test_convert_torch.py has the same with files of PyTorch itself."""

from __future__ import annotations

import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from mindvideo.convert.sources import read_arrays
from mindvideo.convert.torch_file import LARGEST_PICKLE, read_torch, write_torch
from mindvideo.errors import InputError
from tests.torch_files import called, dictionary, named, plain, storage, streamed, tensor, zipped

RNG = np.random.default_rng(0)
TYPES = {
    "FloatStorage": "f4", "DoubleStorage": "f8", "HalfStorage": "f2", "LongStorage": "i8", "IntStorage": "i4",
    "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?", "ComplexFloatStorage": "c8",
    "ComplexDoubleStorage": "c16",
}  # fmt: skip


def drawn(dtype: str, shape: tuple[int, ...] = (2, 3)) -> np.ndarray:
    return (5 * RNG.standard_normal(shape)).astype(dtype)


def row(kind: str, array: np.ndarray, key: str = "0") -> bytes:
    return storage(key, f"torch.{kind}", array.size)


@pytest.fixture
def read(tmp_path):
    """Write a file's bytes and read it."""

    def reads(content: bytes) -> dict[str, np.ndarray]:
        (tmp_path / "a.pth").write_bytes(content)
        return read_torch(tmp_path / "a.pth")

    return reads


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_in_both_forms(read, kind):
    array = drawn(TYPES[kind])
    value = dictionary({"x": tensor(row(kind, array), (2, 3), (3, 1))})
    for content in (zipped(value, {"0": array.tobytes()}), streamed(value, {"0": (array.size, array.tobytes())})):
        (found,) = read(content).values()
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


def test_bfloat16_is_the_same_in_float32(read):
    bits = np.array([0x3F80, 0xC049, 0x0001, 0x7F7F, 0x8000], np.uint16)  # 1, -3.140625, the least, the largest, -0
    value = dictionary({"x": tensor(row("BFloat16Storage", bits), (5,), (1,))})
    found = read(zipped(value, {"0": bits.tobytes()}))["x"]
    np.testing.assert_array_equal(found, np.array([1, -3.140625, 2.0**-133, 255 * 2.0**120, -0.0], np.float32))
    assert np.signbit(found[4])


def test_types_without_a_storage_class(read):
    array = drawn("u2")
    arguments = (*map(plain, (2, (2,), (2,), False, None)), named("torch.uint16"))
    untyped = storage("0", "torch.storage.UntypedStorage", 12)
    value = dictionary({"x": called("torch._utils._rebuild_tensor_v3", untyped, *arguments)})
    np.testing.assert_array_equal(read(zipped(value, {"0": array.tobytes()}))["x"], array.reshape(-1)[2:6:2])


def test_big_endian_numbers(read):
    array = drawn(">f4")
    value = dictionary({"x": tensor(row("FloatStorage", array), (2, 3), (3, 1))})
    found = read(zipped(value, {"0": array.tobytes()}, [("archive/byteorder", b"big")]))["x"]
    np.testing.assert_array_equal(found, array)


def test_views_share_what_they_look_at(read):
    array = drawn("f4", (4, 6))
    views = {"transposed": array.T, "part": array[1:, 2:5], "coarse": array[::2, ::3], "one": array[2, 2, ...]}
    views["all"] = array
    places = {name: (view.__array_interface__["data"][0] - array.ctypes.data) // 4 for name, view in views.items()}
    first = row("FloatStorage", array)
    tensors = {
        name: tensor(first, view.shape, tuple(stride // 4 for stride in view.strides), places[name])
        for name, view in views.items()
    }
    tensors |= {"spread": tensor(first, (3, 5), (0, 1)), "none": tensor(first, (0, 5), (5, 1))}
    value = dictionary(tensors)
    for content in (zipped(value, {"0": array.tobytes()}), streamed(value, {"0": (24, array.tobytes())})):
        found = read(content)
        for name, view in views.items():
            np.testing.assert_array_equal(found[name], view, err_msg=name)
            assert np.shares_memory(found[name], found["all"])
        np.testing.assert_array_equal(found["spread"], np.broadcast_to(array.reshape(-1)[:5], (3, 5)))
        assert found["none"].shape == (0, 5)


def test_a_training_program_s_file_is_its_weights(read, tmp_path):
    array = drawn("f4")
    whole = tensor(row("FloatStorage", array), (2, 3), (3, 1))
    parameter = called("torch._utils._rebuild_parameter", whole, plain(True), called("collections.OrderedDict"))
    state = dictionary(
        {"module.fc.weight": parameter, "module.fc.bias": tensor(row("FloatStorage", array), (2,), (1,))}
    )
    state += dictionary({"_metadata": called("collections.OrderedDict")}) + b"b"
    best = called(
        "numpy.core.multiarray.scalar", called("numpy.dtype", plain("f8"), plain(0), plain(1)), plain("8 bytes")
    )
    value = dictionary({"epoch": plain(3), "best": best, "optimizer": dictionary({"x": whole}), "state_dict": state})
    assert read(zipped(value, {"0": array.tobytes()})).keys() == {"module.fc.weight", "module.fc.bias"}
    assert read_arrays(tmp_path / "a.pth").keys() == {"fc.weight", "fc.bias"}


def test_names_of_nested_parts_are_joined(read):
    array = drawn("f4")
    whole = tensor(row("FloatStorage", array), (2, 3), (3, 1))
    value = dictionary(
        {"encoder": dictionary({"module.w": whole}), "list": b"](" + whole + whole + b"e", "lr": plain(0.1)}
    )
    assert read(zipped(value, {"0": array.tobytes()})).keys() == {"encoder.module.w", "list.0", "list.1"}


def test_dicts_of_pairs_and_the_names_of_cuda(read):
    """As Python 2 and the first versions of PyTorch wrote them."""
    array = drawn("f4")
    whole = called("torch._utils._rebuild_tensor", row("FloatStorage", array), plain(0), plain((2, 3)), plain((3, 1)))
    other = tensor(storage("0", "torch.cuda.FloatStorage", 6, None), (6,), (1,))
    pairs = (
        b"](" + b"".join(b"](" + plain(name) + value + b"e" for name, value in {"x": whole, "y": other}.items()) + b"e"
    )
    found = read(streamed(called("collections.OrderedDict", pairs), {"0": (6, array.tobytes())}))
    np.testing.assert_array_equal(found["x"].reshape(-1), found["y"])


def test_a_large_file_is_mapped_not_read(tmp_path):
    count = 2**29 + 1  # 2 GiB and a number more, of which the disk holds the last page
    value = dictionary({"x": tensor(storage("0", "torch.FloatStorage", count), (count,), (1,))})
    content = streamed(value, {"0": (count, b"")})
    with (tmp_path / "large.pth").open("wb") as file:
        file.write(content)
        file.seek(4 * count - 4, 1)
        file.write(np.float32(7).tobytes())
    tracemalloc.start()
    found = read_torch(tmp_path / "large.pth")["x"]
    assert (found.shape, found[0], found[-1]) == ((count,), 0, 7)
    assert tracemalloc.get_traced_memory()[1] < 3 * LARGEST_PICKLE
    tracemalloc.stop()


def test_an_entry_with_sizes_of_64_bits(read):
    array = drawn("f4")
    file = io.BytesIO(zipped(dictionary({"x": tensor(row("FloatStorage", array), (2, 3), (3, 1))}), {}))
    with zipfile.ZipFile(file, "a") as archive, archive.open("archive/data/0", "w", force_zip64=True) as entry:
        entry.write(array.tobytes())
    content = bytearray(file.getvalue())
    central = content.rfind(b"PK\1\2")
    extra = b"\1\0" + (16).to_bytes(2, "little") + (24).to_bytes(8, "little") * 2  # as large files have them there
    content[central + 20 : central + 28] = b"\xff" * 8
    content[central + 30 : central + 32] = len(extra).to_bytes(2, "little")
    content[central + 60 : central + 60] = extra
    end = content.rfind(b"PK\5\6")
    size = int.from_bytes(content[end + 12 : end + 16], "little") + len(extra)
    content[end + 12 : end + 16] = size.to_bytes(4, "little")
    np.testing.assert_array_equal(read(bytes(content))["x"], array)


ARRAYS = {dtype: drawn(dtype) for dtype in TYPES.values()} | {
    "transposed": drawn("f4").T, "scalar": np.float32(2.5), "none": np.zeros((0, 4), "f4"), "big endian": drawn(">i4"),
    "ä.weight": drawn("f4", (300, 2)),
}  # fmt: skip


def test_what_is_written_is_read(tmp_path):
    write_torch(tmp_path / "new" / "a.pth", ARRAYS)
    found = read_torch(tmp_path / "new" / "a.pth")
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
        assert found[name].dtype == np.asarray(array).dtype.newbyteorder("=")
    write_torch(tmp_path / "other" / "a.pth", ARRAYS)
    assert (tmp_path / "other" / "a.pth").read_bytes() == (tmp_path / "new" / "a.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "new" / "a.pth") as archive:
        assert archive.testzip() is None


def test_nothing_is_overwritten_or_left_half(tmp_path):
    path = tmp_path / "a.pth"
    with pytest.raises(InputError, match="x holds <U1, which PyTorch has no tensors of"):
        write_torch(path, {"x": np.array(["a"])})
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"precious")
    with pytest.raises(InputError, match="exists already"):
        write_torch(path, {"x": drawn("f4")})
    assert path.read_bytes() == b"precious"
    with pytest.raises(InputError, match="cannot write"):
        write_torch(path / "b.pth", {"x": drawn("f4")})
    assert [file.name for file in tmp_path.iterdir()] == ["a.pth"]
