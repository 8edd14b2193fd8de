# SPDX-License-Identifier: Apache-2.0
"""`mindvideo doctor`: what of all this works on this machine, how fast, and what to do about the rest.

Each check gives findings. One that is `bad` keeps training from running on the device asked for; `warn` costs speed or
a feature. A check that fails itself is a finding too: a doctor's patients may be broken in any way.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement

import mindvideo
from mindvideo import native
from mindvideo.config import REPOSITORY, resolve
from mindvideo.engine import nvidia
from mindvideo.errors import InputError

GIB = 2**30
SHOWN_PACKAGES = ("mindspore", "numpy", "av", "opencv-python-headless")
DECODERS = {
    "h264": ("h264",),
    "mpeg4": ("mpeg4",),
    "vp9": ("vp9", "libvpx-vp9"),
    "av1": ("libdav1d", "libaom-av1"),  # FFmpeg's own "av1" needs a graphics card that decodes
}
CUDA_LIBRARIES = (
    *("libcublas.so.11", "libcudart.so.11.0", "libcudnn.so.8", "libcufft.so.10"),
    *("libcurand.so.10", "libcusolver.so.11", "libcusparse.so.11", "libnvrtc.so.11.2"),
)
SET_UP_GPU = "Run `bash scripts/setup_gpu.sh`."


@dataclass(frozen=True)
class Finding:
    """What was looked at, what was found, and, unless it is ok, what to do in one sentence."""

    name: str
    value: str
    state: Literal["ok", "warn", "bad"] = "ok"
    advice: str = ""


Check = Callable[[], Iterable[Finding]]


def run(device: str, as_json: bool) -> int:
    """Examine this machine, print what was found, and return 0 if training can run on `device`, else 1."""
    findings = examine(device)
    healthy = all(finding.state != "bad" for finding in findings)
    if as_json:
        found = {"device": device, "healthy": healthy, "findings": [asdict(finding) for finding in findings]}
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        print(as_text(device, healthy, findings))
    return 0 if healthy else 1


def as_text(device: str, healthy: bool, findings: list[Finding]) -> str:
    """A line for each finding, its advice below it, and the verdict."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<4}  {finding.name:<{width}}  {finding.value}")
        if finding.advice:
            lines.append(f"{'':<6}{'':<{width}}  -> {finding.advice}")
    verdict = "Training can run" if healthy else "Training cannot run yet: see the lines that begin with `bad`"
    return "\n".join([*lines, f"{verdict} (device {device})."])


def examine(device: str) -> list[Finding]:
    """All findings, for one who wants to train on `device`."""
    checks: dict[str, Check] = {
        "versions": versions,
        "packages": packages,
        "processor": processor,
        "memory": memory,
        "native operators": native_operators,
        "plugins": plugins,
        "NVIDIA GPU": lambda: nvidia_gpu(device),
        "CUDA libraries": lambda: cuda_libraries(device),
        "Ascend": lambda: ascend(device),
        "device": lambda: chosen_device(device),
        "convolution": convolutions,
        "codecs": codecs,
        "decoding": decoding,
        "data sets": data_sets,
        "output": output,
    }
    return [finding for name, check in checks.items() for finding in guarded(name, check)]


def guarded(name: str, check: Check) -> list[Finding]:
    """The findings of a check, and that it failed if it did."""
    findings: list[Finding] = []
    try:
        for finding in check():
            findings.append(finding)  # one by one: those before a failure count
    except ModuleNotFoundError as error:
        advice = f"Install it: `pip install {error.name}`."
        findings.append(Finding(name, f"not looked at: no {error.name}", "bad", advice))
    except Exception as error:
        # MindSpore's messages begin with rules and headings, "----" and "- Cuda error:".
        said = next((line for line in str(error).splitlines() if line.strip() and not line.startswith("-")), "")
        advice = "Mend what the lines above complain of; if there is none, report this one."
        findings.append(Finding(name, f"{type(error).__name__}: {said}", "bad", advice))
    return findings


def versions() -> Iterable[Finding]:
    """Of Python and of this program."""
    yield Finding("Python", f"{platform.python_version()}, {platform.system()} {platform.machine()}")
    from mindvideo.engine.run import current_commit  # loads MindSpore

    commit = current_commit()
    yield Finding("mindvideo", mindvideo.__version__ + (f", commit {commit}" if commit else ""))


def packages() -> Iterable[Finding]:
    """The packages that matter most, and every other that is not as pyproject.toml asks."""
    asked = [Requirement(line) for line in metadata.requires("mindvideo") or ()]
    for requirement in asked:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        name, repair = requirement.name, f"`pip install '{requirement.name}{requirement.specifier}'`"
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding(name, "not installed", "bad", f"Install it: {repair}.")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            # numpy 2 stops MindSpore's operators; with other versions nobody has tried it.
            state = "bad" if name == "numpy" else "warn"
            yield Finding(name, f"{version}, not {requirement.specifier}", state, f"Install the tested one: {repair}.")
        elif name in SHOWN_PACKAGES:
            yield Finding(name, version)


def processor() -> Iterable[Finding]:
    """Model, instruction set and cores."""
    told = _read("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.*)", told, re.MULTILINE)
    words = set(told.split())
    instructions = [name for name in ("avx2", "avx512f") if name in words]
    threads = os.environ.get("OMP_NUM_THREADS", "")
    known_as = model[1] if model else platform.machine()
    value = f"{known_as}, {' '.join(instructions) or 'no AVX2'}, {_cores()} cores usable"
    if threads.isdigit() and int(threads) < _cores():
        advice = "Unset OMP_NUM_THREADS, so that one training uses every core."
        yield Finding("processor", f"{value}, OMP_NUM_THREADS={threads}", "warn", advice)
    elif told and not instructions:
        yield Finding("processor", value, "warn", "Expect a training several times slower, or take another machine.")
    else:
        yield Finding("processor", value)


def memory() -> Iterable[Finding]:
    """Free and in all, within the limit of the container."""
    kilobytes = dict(re.findall(r"^(\w+):\s+(\d+) kB", _read("/proc/meminfo"), re.MULTILINE))
    if not kilobytes:
        return
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    free, total = (
        min(int(kilobytes[key]) * 1024, int(limit) if limit.isdigit() else 2**63) / GIB
        for key in ("MemAvailable", "MemTotal")
    )
    value = f"{free:.1f} GiB free of {total:.1f}"
    if free < 3:
        advice = "Close other programs, or make batches smaller: an I3D on 2 clips takes 2.4 GiB."
        yield Finding("memory", value, "warn", advice)
    else:
        yield Finding("memory", value)


def native_operators() -> Iterable[Finding]:
    """Whether the C++ operators for CPUs load."""
    if native.available():
        yield Finding("native operators", f"available, oneDNN 3, {native.load()[0]}")
        return
    why = native.reason().partition("\n")[0]
    advice = "Training on MindSpore's own is several times slower: on Debian, `apt-get install g++` brings a compiler."
    if os.environ.get("MINDVIDEO_NATIVE") == "0":
        advice = "Unset MINDVIDEO_NATIVE: training on MindSpore's own is several times slower."
    yield Finding("native operators", f"not available: {why}", "warn", advice)


def plugins() -> Iterable[Finding]:
    """What MindSpore's wheel holds for which devices."""
    files = sorted(path.name for path in _plugin_folder().glob("libmindspore_*.so*"))
    yield Finding("plugins", ", ".join(files) or "none, CPU only")


def nvidia_gpu(device: str) -> Iterable[Finding]:
    """What the driver says, and whether MindSpore has loaded its plugin for it."""
    driver = nvidia.driver()
    if driver.problem:
        advice = "Install or repair NVIDIA's driver, or use `device: cpu`."
        yield _wanted("NVIDIA GPU", driver.problem, device == "gpu", advice)
    for gpu in driver.gpus:
        major, minor = gpu.capability
        value = f"{gpu.name}, compute capability {major}.{minor}, driver for CUDA {driver.cuda[0]}.{driver.cuda[1]}"
        if major > 8 and device != "cpu":
            advice = "Be patient once: at the first operation the driver compiles for many minutes (docs/gpu.md)."
            yield Finding("NVIDIA GPU", value, "warn", advice)
        else:
            yield Finding("NVIDIA GPU", value)
    problem = nvidia.plugin_problem()
    if not problem:
        yield Finding("GPU plugin", "loaded")
    elif device == "auto" and driver.gpus:
        advice = "Training takes the CPU until you run `bash scripts/setup_gpu.sh`."
        yield Finding("GPU plugin", f"not loaded: {problem}", "warn", advice)
    else:
        advice = "It loads only where a driver is: see to that first." if driver.problem else SET_UP_GPU
        yield _wanted("GPU plugin", f"not loaded: {problem}", device == "gpu", advice)


def cuda_libraries(device: str) -> Iterable[Finding]:
    """Those that the GPU plugin needs, in the places where it looks."""
    own = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    folders = [_plugin_folder() / "gpu11.6", Path("/usr/local/cuda-11.6/lib64"), *map(Path, filter(None, own))]
    missing = [name for name in CUDA_LIBRARIES if not any((folder / name).exists() for folder in folders)]
    found = len(CUDA_LIBRARIES) - len(missing)
    value = f"{found} of {len(CUDA_LIBRARIES)} found, CUDA_HOME {os.environ.get('CUDA_HOME') or 'not set'}"
    if missing and device == "gpu":
        yield Finding("CUDA libraries", f"{value}, missing {' '.join(missing)}", "bad", SET_UP_GPU)
    else:
        yield Finding("CUDA libraries", value)


def ascend(device: str) -> Iterable[Finding]:
    """Driver and plugin of Huawei's processors."""
    import mindspore as ms

    driver = "driver present" if any(Path("/dev").glob("davinci[0-9]*")) else "no driver"
    loaded = ms.hal.is_available("Ascend")
    value = f"{driver}, plugin {'loaded' if loaded else 'not loaded'}"
    advice = "Install the Ascend driver and CANN, and source CANN's set_env.sh."
    yield _wanted("Ascend", value, not loaded and device == "ascend", advice)


def chosen_device(device: str) -> Iterable[Finding]:
    """Where training would run; from here on this process computes there, or else on the CPU."""
    from mindvideo.engine.device import use_device

    try:
        yield Finding("device", f"{use_device(device)} (asked for: {device})")
    except InputError as error:
        use_device("cpu")
        yield Finding("device", str(error), "bad", "Do what it says; the speeds below are the CPU's.")


def convolutions() -> Iterable[Finding]:
    """Time one convolution by MindSpore's operator and, on a CPU, by the native one."""
    import mindspore as ms

    from mindvideo.speed import convolution

    on_cpu = ms.get_context("device_target") == "CPU"
    for kind in ("native", "MindSpore's") if on_cpu and native.available() else ("MindSpore's",):
        yield judged_convolution(kind, *convolution(kind == "native"), _cores() if on_cpu else 0)


def judged_convolution(kind: str, seconds: float, gflop: float, result: float, cores: int) -> Finding:
    """What a convolution's time and result say; `cores` is 0 unless it ran on a CPU, and the result must be 0.84375."""
    name, speed = f"convolution, {kind}", gflop / seconds
    value = f"{1000 * seconds:.2f} ms, {speed:.1f} GFLOP/s"
    if result != 0.84375:
        advice = "Do not train here: this device computes wrong numbers."
        return Finding(name, f"{value}, and wrong: {result} instead of 0.84375", "bad", advice)
    if speed < cores:
        advice = (
            f"This is a reference kernel, or a machine busy with other work: use MindSpore {mindvideo.MINDSPORE} and "
            "unset ONEDNN_MAX_CPU_ISA, or set it to AVX2 with another MindSpore."
        )
        return Finding(name, f"{value}: under 1 GFLOP/s a core", "warn", advice)
    return Finding(name, value)


def codecs() -> Iterable[Finding]:
    """Which of the usual kinds of video can be decoded."""
    import av
    from av.codec import Codec
    from av.codec.codec import UnknownCodecError

    def decodes(name: str) -> bool:
        try:
            Codec(name, "r")
        except UnknownCodecError:
            return False
        return True

    found = {kind: any(map(decodes, names)) for kind, names in DECODERS.items()}
    version = ".".join(map(str, av.library_versions["libavcodec"]))
    yield judged_codecs(version, found)


def judged_codecs(version: str, found: dict[str, bool]) -> Finding:
    """What a libavcodec of that version with these decoders is good for."""
    missing = [kind for kind, there in found.items() if not there]
    value = f"libavcodec {version}: {' '.join(kind for kind, there in found.items() if there)}"
    if missing:
        advice = "Install PyAV from its wheel: `pip install --force-reinstall --only-binary :all: av`."
        return Finding("codecs", f"{value}, missing {' '.join(missing)}", "warn", advice)
    return Finding("codecs", value)


def decoding() -> Iterable[Finding]:
    """Film a little of the embedded sample and read it back."""
    from mindvideo.speed import decoded_per_second

    with tempfile.TemporaryDirectory() as folder:
        speed = decoded_per_second(Path(folder) / "sample")
    yield Finding("decoding", f"{speed:.0f} frames of 96x96 (MPEG-4) per second of one core")


def data_sets() -> Iterable[Finding]:
    """The roots in data/data.json that exist."""
    path = REPOSITORY / "data" / "data.json"
    roots = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found = [f"{name} ({root})" for name, root in roots.items() if resolve(root).exists()]
    yield Finding("data sets", f"{len(found)} of {len(roots)} roots of data/data.json exist" + _listed(found))


def output() -> Iterable[Finding]:
    """Room for ./output, where runs go."""
    folder = Path("output").resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / GIB
    value = f"{free:.1f} GiB free in {folder}"
    if not os.access(folder, os.W_OK):
        yield Finding("output", f"{folder} is not writable", "bad", "Start in another folder, or set `output=FOLDER`.")
    elif free < 2:
        advice = "Make room, or set `output=FOLDER`: a run keeps two checkpoints of up to 0.5 GiB."
        yield Finding("output", value, "warn", advice)
    else:
        yield Finding("output", value)


def _wanted(name: str, value: str, bad: bool, advice: str) -> Finding:
    """A finding that matters only to one who asked for this device."""
    return Finding(name, value, "bad", advice) if bad else Finding(name, value)


def _listed(words: list[str]) -> str:
    return f": {', '.join(words)}" if words else ""


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _plugin_folder() -> Path:
    found: Any = find_spec("mindspore")
    if found is None:
        raise ModuleNotFoundError("No module named 'mindspore'", name="mindspore")
    return Path(found.submodule_search_locations[0], "lib", "plugin")


def _read(path: str) -> str:
    """A file of /proc or /sys, or nothing where the system has none."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
