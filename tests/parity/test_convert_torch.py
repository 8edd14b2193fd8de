# SPDX-License-Identifier: Apache-2.0
"""PyTorch itself as the oracle (extra `torch`): what it writes is what we read, what we write is what it reads."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor

from mindvideo.convert.files import convert
from mindvideo.convert.torch_file import read_torch, write_torch
from mindvideo.engine.checkpoint import TrainingState, save_checkpoint
from mindvideo.errors import InputError
from mindvideo.models import create_model
from tests.test_convert import randomize
from tests.test_torch_file import ARRAYS

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install mindvideo[torch]")


def tensors() -> dict:
    """Every type; views, shared storages and parameters."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 8, generator=generator)
    floats = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128)
    whole = (
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.uint16, torch.uint32,
        torch.uint64,
    )  # fmt: skip
    return {
        **{str(dtype): torch.randn(3, 4, generator=generator).to(dtype) for dtype in floats},
        **{str(dtype): torch.randint(0, 2, (2, 3), generator=generator).to(dtype) for dtype in whole},
        "base": base, "transposed": base.T, "part": base[1:5:2, 2:7], "expanded": base[:1].expand(4, 8),
        "channels last": torch.randn(2, 3, 4, 5, generator=generator).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(base * 2), "frozen": torch.nn.Parameter(base[0], requires_grad=False),
        "none": torch.zeros(0, 3), "scalar": torch.tensor(3.5), "halves": base.bfloat16().T[1:],
    }  # fmt: skip


def wrapped(form: str) -> tuple[object, dict]:
    """What is saved, and the tensors to be found."""
    found = tensors()
    if form == "plain":
        return found, found
    if form == "of a module":
        module = torch.nn.DataParallel(torch.nn.Sequential(torch.nn.Conv3d(3, 4, 3), torch.nn.BatchNorm3d(4)))
        return module.state_dict(), dict(module.state_dict())
    state = collections.OrderedDict(found)
    optimizer = torch.optim.Adam([found["parameter"]])
    found["parameter"].sum().backward()
    optimizer.step()
    whole = {"epoch": 3, "best": np.float64(0.5), "meta": {"classes": ["a", "b"], "time": 1.5, "more": np.ones(3)}}
    return whole | {"optimizer": optimizer.state_dict(), "state_dict": state}, found


@pytest.mark.parametrize("form", ["plain", "of a module", "of a training program"])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
def test_what_pytorch_writes(tmp_path: Path, form: str, protocol: int, zipped: bool):
    saved, expected = wrapped(form)
    path = tmp_path / "a.pth"
    torch.save(saved, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    found = read_torch(path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()
        np.testing.assert_array_equal(found[name], array, err_msg=name)
        assert found[name].dtype == array.dtype


def test_what_pytorch_reads(tmp_path: Path):
    write_torch(tmp_path / "a.pth", ARRAYS)
    for mapped in (False, True):
        found = torch.load(tmp_path / "a.pth", weights_only=True, mmap=mapped)
        assert list(found) == list(ARRAYS)
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(found[name].numpy(), array, err_msg=name)


def test_whole_modules_and_programs_are_refused(tmp_path: Path):
    torch.save(torch.nn.Linear(2, 3), tmp_path / "module.pth")
    with pytest.raises(InputError, match=r"it asks for 'torch.nn.modules.linear.Linear'"):
        read_torch(tmp_path / "module.pth")
    quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    torch.save({"x": quantized}, tmp_path / "quantized.pth")
    with pytest.raises(InputError, match=r"it asks for 'torch._utils._rebuild_qtensor'"):
        read_torch(tmp_path / "quantized.pth")


def test_a_pytorch_module_takes_what_is_converted(tmp_path: Path):
    """ML-Decoder's stacked projections, by `MultiheadAttention` itself: same names, same shapes, same outputs."""
    model = create_model("actionnet", width=16, length=8, decoder_width=16, num_classes=4)
    randomize(model)
    save_checkpoint(tmp_path / "ours.ckpt", model, TrainingState("actionnet"))
    convert(tmp_path / "ours.ckpt", tmp_path / "theirs.pth", "actionnet")
    state = torch.load(tmp_path / "theirs.pth", weights_only=True)
    attention = torch.nn.MultiheadAttention(16, 8, batch_first=True)
    prefix = "decoder.decoder.layers.0.multihead_attn."
    attention.load_state_dict(
        {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}, strict=True
    )
    rng = np.random.default_rng(0)
    queries, memory = (rng.standard_normal((2, n, 16)).astype(np.float32) for n in (4, 9))
    with torch.no_grad():
        expected = attention(torch.tensor(queries), torch.tensor(memory), torch.tensor(memory))[0].numpy()
    found = model.set_train(False).decoder.attention(Tensor(queries), Tensor(memory)).asnumpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
