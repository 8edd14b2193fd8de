# SPDX-License-Identifier: Apache-2.0
"""`mindvideo doctor`: each check on healthy, slow and broken machines that are made up, and the whole on this one."""

from __future__ import annotations

import json
import re
from importlib import metadata

import mindspore as ms
import pytest

from mindvideo import cli, doctor, native, speed
from mindvideo.doctor import Finding
from mindvideo.engine import nvidia
from mindvideo.engine.nvidia import Driver, Gpu

NO_DRIVER = Driver((0, 0), (), "no NVIDIA driver is installed (libcuda.so.1: not there)")
CUDA_12 = (12, 4)
A100 = Driver(CUDA_12, (Gpu("NVIDIA A100", (8, 0)),), "")
H100 = Driver(CUDA_12, (Gpu("NVIDIA H100", (9, 0)),), "")


def states(findings) -> dict[str, str]:
    return {finding.name: finding.state for finding in findings}


@pytest.fixture
def machine(monkeypatch):
    """`machine({"/proc/cpuinfo": ...}, cores)`: what the system says of itself."""

    def make(files: dict[str, str], cores: int = 2) -> None:
        monkeypatch.setattr(doctor, "_read", lambda path: files.get(path, ""))
        monkeypatch.setattr(doctor, "_cores", lambda: cores)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    return make


@pytest.fixture
def installed(monkeypatch):
    """`installed({"numpy": "2.0.0", "scipy": None})`: other versions than those that are there; None is none."""
    version = metadata.version

    def change(versions: dict[str, str | None]) -> None:
        def told(name):
            if versions.get(name, "") is None:
                raise metadata.PackageNotFoundError(name)
            return versions.get(name) or version(name)

        monkeypatch.setattr(metadata, "version", told)

    return change


@pytest.fixture
def gpu(monkeypatch):
    """`gpu(driver, problem)`: what the driver says, and why the plugin is not loaded."""

    def have(driver: Driver, problem: str) -> None:
        monkeypatch.setattr(nvidia, "driver", lambda: driver)
        monkeypatch.setattr(nvidia, "plugin_problem", lambda: problem)

    return have


def test_this_machine_is_examined_on_the_cpu(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["doctor", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "Training can run (device cpu)."
    told = {line[6:].split("  ")[0]: line for line in lines if line.startswith(("ok ", "warn"))}
    for name in ("mindvideo", "Python", "mindspore", "numpy", "av", "processor", "native operators", "plugins"):
        assert name in told
    assert "2.8.0" in told["mindspore"]
    assert "cpu (asked for: cpu)" in told["device"]
    speeds = re.search(r"([\d.]+) ms, ([\d.]+) GFLOP/s", told["convolution, MindSpore's"])
    assert speeds is not None
    assert all(float(number) > 0 for number in speeds.groups())
    frames = re.search(r"(\d+) frames", told["decoding"])
    assert frames is not None
    assert int(frames[1]) > 0
    assert f"free in {tmp_path}" in told["output"]
    assert not list(tmp_path.iterdir())


def test_asked_for_a_gpu_that_is_not_there_it_says_so_and_fails(capsys, gpu):
    gpu(NO_DRIVER, "CUDA_HOME is not set")
    assert cli.main(["doctor", "--device", "gpu", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["device"], found["healthy"]) == ("gpu", False)
    bad = {finding["name"]: finding for finding in found["findings"] if finding["state"] == "bad"}
    assert bad.keys() >= {"NVIDIA GPU", "GPU plugin", "device"}
    assert bad["device"]["value"].startswith("device 'gpu' cannot be used: no NVIDIA driver is installed")
    assert bad["GPU plugin"]["advice"] == "It loads only where a driver is: see to that first."
    assert all(bool(finding["advice"]) == (finding["state"] != "ok") for finding in found["findings"])


FINDINGS = [
    Finding("first", "well"),
    Finding("the second", "slow", "warn", "Take another."),
    Finding("third", "broken: ü", "bad", "Mend it."),
]


@pytest.mark.parametrize(("count", "status"), [(1, 0), (2, 0), (3, 1)])
def test_json_holds_what_the_lines_say(capsys, monkeypatch, count, status):
    monkeypatch.setattr(doctor, "examine", lambda device: FINDINGS[:count])
    assert cli.main(["doctor", "--json"]) == status
    found = json.loads(capsys.readouterr().out)
    assert [Finding(**finding) for finding in found["findings"]] == FINDINGS[:count]
    assert (found["device"], found["healthy"]) == ("auto", status == 0)
    assert cli.main(["doctor"]) == status
    text = capsys.readouterr().out
    for finding in FINDINGS[:count]:
        assert re.search(rf"^{finding.state} +{finding.name} +{finding.value}$", text, re.MULTILINE)
        assert f"-> {finding.advice}\n" in text or not finding.advice


def test_text_stands_in_columns():
    assert doctor.as_text("gpu", False, FINDINGS).splitlines() == [
        "ok    first       well",
        "warn  the second  slow",
        "                  -> Take another.",
        "bad   third       broken: ü",
        "                  -> Mend it.",
        "Training cannot run yet: see the lines that begin with `bad` (device gpu).",
    ]


def test_a_check_that_fails_is_a_finding():
    def broken():
        yield Finding("a", "found before")
        raise RuntimeError(
            "\n------\n- Cuda error:\n------\nThe cudaGetLastError[35], no driver\n\n- C++ Call Stack:\n"
        )

    before, finding = doctor.guarded("convolution", broken)
    assert before == Finding("a", "found before")
    assert (finding.name, finding.state) == ("convolution", "bad")
    assert finding.value == "RuntimeError: The cudaGetLastError[35], no driver"

    def missing():
        raise ModuleNotFoundError("No module named 'av'", name="av")

    advice = "Install it: `pip install av`."
    assert doctor.guarded("codecs", missing) == [Finding("codecs", "not looked at: no av", "bad", advice)]


def test_packages_are_held_against_what_the_project_asks_for(installed):
    installed({"numpy": "2.1.0", "mindspore": "2.10.0", "scipy": None, "pillow": "9.0"})
    found = {finding.name: finding for finding in doctor.packages()}
    assert found["numpy"].state == "bad"
    assert found["numpy"].value.startswith("2.1.0, not ")
    assert "`pip install 'numpy<2,>=1.26'`" in found["numpy"].advice
    assert found["mindspore"] == Finding(
        "mindspore", "2.10.0, not ==2.8.0", "warn", "Install the tested one: `pip install 'mindspore==2.8.0'`."
    )
    assert found["scipy"] == Finding(
        "scipy", "not installed", "bad", "Install it: `pip install 'scipy>=1.11'`."
    )  # fmt: skip
    assert found["pillow"].state == "warn"
    assert found["av"].state == "ok"
    assert "torch" not in found
    assert "nvidia-cublas-cu11" not in found


def test_the_processor_is_told_with_its_instructions(machine, monkeypatch):
    machine({"/proc/cpuinfo": "model name\t: Some CPU\nflags\t\t: sse avx2 avx512f\n"}, cores=8)
    assert list(doctor.processor()) == [Finding("processor", "Some CPU, avx2 avx512f, 8 cores usable")]
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert states(doctor.processor()) == {"processor": "ok"}
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    (finding,) = doctor.processor()
    assert finding.state == "warn"
    assert finding.value.endswith("8 cores usable, OMP_NUM_THREADS=2")
    machine({"/proc/cpuinfo": "model name\t: Old CPU\nflags\t\t: sse\n"}, cores=8)
    (finding,) = doctor.processor()
    assert (finding.value, finding.state) == ("Old CPU, no AVX2, 8 cores usable", "warn")


@pytest.mark.parametrize(
    ("limit", "value", "state"),
    [
        ("", "4.0 GiB free of 8.0", "ok"),
        ("max\n", "4.0 GiB free of 8.0", "ok"),
        (f"{2**31}\n", "2.0 GiB free of 2.0", "warn"),
    ],
)
def test_memory_is_what_the_container_may_take(machine, limit, value, state):
    meminfo = "MemTotal:        8388608 kB\nMemFree:  1 kB\nMemAvailable:    4194304 kB\n"
    machine({"/proc/meminfo": meminfo, "/sys/fs/cgroup/memory.max": limit})
    (finding,) = doctor.memory()
    assert (finding.value, finding.state) == (value, state)


def test_native_operators_that_are_absent_are_explained(monkeypatch):
    monkeypatch.setattr(native, "load", lambda: ("", "no C++ compiler: 'g++' is not on PATH\nand more"))
    monkeypatch.delenv("MINDVIDEO_NATIVE", raising=False)
    (finding,) = doctor.native_operators()
    assert (finding.value, finding.state) == ("not available: no C++ compiler: 'g++' is not on PATH", "warn")
    assert "apt-get install g++" in finding.advice
    monkeypatch.setenv("MINDVIDEO_NATIVE", "0")
    (finding,) = doctor.native_operators()
    assert finding.advice.startswith("Unset MINDVIDEO_NATIVE")


@pytest.mark.parametrize(
    ("device", "driver", "problem", "found"),
    [
        ("cpu", NO_DRIVER, "CUDA_HOME is not set", {"NVIDIA GPU": "ok", "GPU plugin": "ok"}),
        ("auto", NO_DRIVER, "CUDA_HOME is not set", {"NVIDIA GPU": "ok", "GPU plugin": "ok"}),
        ("gpu", NO_DRIVER, "CUDA_HOME is not set", {"NVIDIA GPU": "bad", "GPU plugin": "bad"}),
        ("auto", A100, "CUDA_HOME is not set", {"NVIDIA GPU": "ok", "GPU plugin": "warn"}),
        ("gpu", A100, "CUDA_HOME is not set", {"NVIDIA GPU": "ok", "GPU plugin": "bad"}),
        ("gpu", A100, "", {"NVIDIA GPU": "ok", "GPU plugin": "ok"}),
        ("gpu", H100, "", {"NVIDIA GPU": "warn", "GPU plugin": "ok"}),
        ("cpu", H100, "", {"NVIDIA GPU": "ok", "GPU plugin": "ok"}),
    ],
)
def test_a_gpu_matters_to_those_who_want_it(gpu, device, driver, problem, found):
    gpu(driver, problem)
    findings = list(doctor.nvidia_gpu(device))
    assert states(findings) == found
    if driver is A100:
        assert findings[0].value == "NVIDIA A100, compute capability 8.0, driver for CUDA 12.4"
    if problem and driver is A100:
        assert "bash scripts/setup_gpu.sh" in findings[1].advice


def test_cuda_libraries_are_counted_where_the_plugin_looks(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_plugin_folder", lambda: tmp_path / "plugin")
    monkeypatch.setenv("CUDA_HOME", "/a/cuda")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{tmp_path}:")
    (tmp_path / "plugin" / "gpu11.6").mkdir(parents=True)
    for name in doctor.CUDA_LIBRARIES[:-1]:
        (tmp_path / "plugin" / "gpu11.6" / name).touch()
    (finding,) = doctor.cuda_libraries("gpu")
    assert finding.state == "bad"
    assert finding.value == "7 of 8 found, CUDA_HOME /a/cuda, missing libnvrtc.so.11.2"
    assert states(doctor.cuda_libraries("cpu")) == {"CUDA libraries": "ok"}
    (tmp_path / "libnvrtc.so.11.2").touch()
    assert states(doctor.cuda_libraries("gpu")) == {"CUDA libraries": "ok"}


def test_ascend_matters_to_those_who_want_it(monkeypatch):
    monkeypatch.setattr(ms.hal, "is_available", lambda name: False)
    assert states(doctor.ascend("auto")) == {"Ascend": "ok"}
    assert states(doctor.ascend("ascend")) == {"Ascend": "bad"}


def test_a_convolution_is_judged_by_its_speed_for_each_core_and_its_result():
    good = doctor.judged_convolution("native", 0.004, 0.8, 0.84375, cores=2)
    assert good == Finding("convolution, native", "4.00 ms, 200.0 GFLOP/s")
    slow = doctor.judged_convolution("MindSpore's", 1.0, 0.8, 0.84375, cores=2)
    assert (slow.state, slow.value) == ("warn", "1000.00 ms, 0.8 GFLOP/s: under 1 GFLOP/s a core")
    assert "use MindSpore 2.8.0" in slow.advice
    assert doctor.judged_convolution("MindSpore's", 1.0, 0.8, 0.84375, cores=0).state == "ok"
    wrong = doctor.judged_convolution("MindSpore's", 0.004, 0.8, 0.8437, cores=2)
    assert wrong.state == "bad"
    assert wrong.value == "4.00 ms, 200.0 GFLOP/s, and wrong: 0.8437 instead of 0.84375"


def test_convolutions_compute_what_they_should():
    for is_native in (False, True)[: 1 + native.available()]:
        seconds, gflop, result = speed.convolution(is_native)
        assert seconds > 0
        assert gflop == pytest.approx(2 * 27 * 32 * 32 * 16 * 28 * 28 / 1e9)
        assert result == 0.84375


def test_codecs_that_are_missing_are_named():
    assert doctor.judged_codecs("62.1.2", {"h264": True, "av1": True}) == Finding(
        "codecs", "libavcodec 62.1.2: h264 av1"
    )
    finding = doctor.judged_codecs("62.1.2", {"h264": True, "av1": False})
    assert (finding.value, finding.state) == ("libavcodec 62.1.2: h264, missing av1", "warn")
    (finding,) = doctor.codecs()
    assert finding.value.endswith(": h264 mpeg4 vp9 av1")


def test_data_sets_that_exist_are_listed(monkeypatch, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(doctor, "REPOSITORY", tmp_path)
    assert [finding.value for finding in doctor.data_sets()] == ["0 of 0 roots of data/data.json exist"]
    roots = {"ucf101": str(tmp_path / "here"), "mit": str(tmp_path / "there")}
    (tmp_path / "data" / "data.json").write_text(json.dumps(roots))
    expected = f"1 of 2 roots of data/data.json exist: ucf101 ({tmp_path / 'here'})"
    assert [finding.value for finding in doctor.data_sets()] == [expected]
    (tmp_path / "data" / "data.json").write_text("{")
    (finding,) = doctor.guarded("data sets", doctor.data_sets)
    assert (finding.name, finding.state) == ("data sets", "bad")


def test_output_needs_room_and_a_folder_that_can_be_written(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: FakeDisk(3 * 2**30))
    assert list(doctor.output()) == [Finding("output", f"3.0 GiB free in {tmp_path}")]
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: FakeDisk(2**30))
    assert states(doctor.output()) == {"output": "warn"}
    monkeypatch.setattr(doctor.os, "access", lambda folder, mode: False)
    (finding,) = doctor.output()
    assert (finding.value, finding.state) == (f"{tmp_path} is not writable", "bad")


class FakeDisk:
    def __init__(self, free: int):
        self.free = free


def test_without_mindspore_everything_else_is_still_told(monkeypatch, installed, gpu):
    """As where pip found no wheel for this Python."""
    installed({"mindspore": None})
    gpu(NO_DRIVER, "")
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    findings = [*doctor.guarded("packages", doctor.packages), *doctor.guarded("plugins", doctor.plugins)]
    assert states(findings)["mindspore"] == "bad"
    advice = "Install it: `pip install mindspore`."
    assert findings[-1] == Finding("plugins", "not looked at: no mindspore", "bad", advice)
