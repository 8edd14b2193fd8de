# SPDX-License-Identifier: Apache-2.0
"""Where the work runs: what the driver and MindSpore's plugin say, and which device that makes. No GPU is used."""

from __future__ import annotations

import ctypes
import os
import sys

import mindspore as ms
import pytest

from mindvideo.engine.device import use_device
from mindvideo.engine.nvidia import Driver, Gpu, driver, gpu_problem, plugin_problem
from mindvideo.errors import InputError

A100, H100 = Gpu("NVIDIA A100", (8, 0)), Gpu("NVIDIA H100", (9, 0))


class FakeDriver:
    """The functions of libcuda.so.1 that are called, for these GPUs."""

    def __init__(self, *gpus: Gpu, version: int = 12040, status: int = 0):
        self.gpus, self.version, self.status = gpus, version, status

    def cuInit(self, flags):
        return self.status

    def cuDriverGetVersion(self, version):
        version._obj.value = self.version
        return 0

    def cuGetErrorString(self, status, text):
        text._obj.value = {999: b"unknown error", 100: b"no CUDA-capable device is detected"}.get(status)
        return 0

    def cuDeviceGetCount(self, count):
        count._obj.value = len(self.gpus)
        return 0

    def cuDeviceGet(self, handle, index):
        handle._obj.value = 10 + index
        return 0

    def cuDeviceGetName(self, name, size, handle):
        name.value = self.gpus[handle.value - 10].name.encode()[: size - 1]
        return 0

    def cuDeviceGetAttribute(self, number, attribute, handle):
        number._obj.value = self.gpus[handle.value - 10].capability[attribute - 75]
        return 0


@pytest.fixture
def install(monkeypatch):
    """`install(FakeDriver(...))` as libcuda.so.1; None leaves none."""
    load = ctypes.CDLL

    def put(fake: FakeDriver | None) -> None:
        def loaded(name):
            if name != "libcuda.so.1":
                return load(name)
            if fake is None:
                raise OSError("libcuda.so.1: cannot open shared object file")
            return fake

        monkeypatch.setattr(ctypes, "CDLL", loaded)

    return put


@pytest.fixture
def plugins(monkeypatch):
    """`plugins("GPU")` are loaded, and no others; the list returned fills with the devices that are set."""

    def load(*names: str) -> list[str]:
        chosen: list[str] = []
        monkeypatch.setattr(ms.hal, "is_available", lambda name: name in names)
        monkeypatch.setattr(ms, "set_device", chosen.append)
        return chosen

    return load


def test_the_driver_tells_of_its_gpus(install):
    install(FakeDriver(A100, H100))
    assert driver() == Driver((12, 4), (A100, H100), "")


@pytest.mark.parametrize(
    ("fake", "cuda", "problem"),
    [
        (None, (0, 0), "no NVIDIA driver is installed (libcuda.so.1: cannot open shared object file)"),
        (FakeDriver(A100, status=999), (12, 4), "the NVIDIA driver does not start (error 999: unknown error)"),
        (FakeDriver(A100, status=7), (12, 4), "the NVIDIA driver does not start (error 7: unknown)"),
        (
            FakeDriver(status=100, version=11080),
            (11, 8),
            "the NVIDIA driver does not start (error 100: no CUDA-capable device is detected)",
        ),
        (FakeDriver(), (12, 4), "the NVIDIA driver sees no GPU"),
        (FakeDriver(A100, version=10020), (10, 2), "the NVIDIA driver is for CUDA 10.2, older than 11.0"),
    ],
)
def test_a_driver_without_a_usable_gpu_says_why(install, fake, cuda, problem):
    install(fake)
    assert driver() == Driver(cuda, (), problem)


def test_gpu_is_refused_without_a_driver_before_mindspore_is_asked(install, monkeypatch):
    install(None)
    for name in ("set_context", "set_device", "hal"):
        monkeypatch.delattr(ms, name)
    with pytest.raises(InputError) as caught:
        use_device("gpu")
    assert str(caught.value) == (
        "device 'gpu' cannot be used: no NVIDIA driver is installed (libcuda.so.1: cannot open shared object file); "
        "install or repair the driver, then run `bash scripts/setup_gpu.sh`, or use `device: cpu` or `auto`."
    )


@pytest.mark.parametrize(
    ("said", "home", "problem"),
    [
        (
            "Load dynamic library: libmindspore_ascend.so.2 failed. libge_runner.so: no such file\n"
            "Load dynamic library: libmindspore_gpu.so.11.6 failed. libcudnn.so.8: cannot open shared object file\n",
            "/venv/cuda",
            "libcudnn.so.8: cannot open shared object file",
        ),
        ("", None, "CUDA_HOME is not set"),
        (
            "",
            os.path.join(sys.prefix, "cuda"),
            "MindSpore was imported before mindvideo, which tells it where CUDA is: import mindvideo first",
        ),
        ("", "/usr/local/cuda-12", "CUDA_HOME is /usr/local/cuda-12, which holds no CUDA 11 with bin/nvcc: unset it"),
    ],
)
def test_gpu_is_refused_without_the_plugin(install, plugins, monkeypatch, said, home, problem):
    install(FakeDriver(A100))
    chosen = plugins()
    monkeypatch.setattr("mindspore._c_expression.MSContext", FakeContext(said))
    monkeypatch.setenv("CUDA_HOME", home or "")
    assert plugin_problem() == problem
    assert gpu_problem() == f"MindSpore has not loaded its GPU plugin ({problem}); run `bash scripts/setup_gpu.sh`"
    with pytest.raises(InputError, match=r"run `bash scripts/setup_gpu\.sh`, or use `device: cpu` or `auto`"):
        use_device("gpu")
    assert chosen == []


class FakeContext:
    def __init__(self, said: str):
        self.said = said

    def get_instance(self):
        return self

    def load_plugin_error(self):
        return self.said


@pytest.mark.parametrize("name", ["gpu", "auto"])
def test_a_driver_and_the_plugin_make_a_gpu(install, plugins, name):
    install(FakeDriver(H100))
    chosen = plugins("GPU")
    assert use_device(name) == "gpu"
    assert chosen == ["GPU"]


@pytest.mark.parametrize(("fake", "loaded"), [(None, ["GPU"]), (FakeDriver(A100), []), (FakeDriver(), ["GPU"])])
def test_auto_takes_the_cpu_unless_both_are_there(install, plugins, fake, loaded):
    install(fake)
    chosen = plugins(*loaded)
    assert use_device("auto") == "cpu"
    assert chosen == ["CPU"]


def test_cpu_is_set_also_where_the_plugin_made_the_gpu_the_default(install, plugins):
    install(FakeDriver(A100))
    chosen = plugins("GPU")
    assert use_device("cpu") == "cpu"
    assert chosen == ["CPU"]


def test_ascend_comes_first_and_is_refused_where_it_is_not(install, plugins):
    install(FakeDriver(A100))
    chosen = plugins("GPU", "Ascend")
    assert use_device("auto") == "ascend"
    assert chosen == ["Ascend"]
    plugins("GPU")
    with pytest.raises(InputError, match="device 'ascend' is not available on this machine"):
        use_device("ascend")


def test_an_unknown_device_is_named():
    with pytest.raises(InputError, match="device 'tpu': allowed are auto, cpu, gpu, ascend"):
        use_device("tpu")
