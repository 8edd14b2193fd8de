# SPDX-License-Identifier: Apache-2.0
"""Compile the operators against the installed oneDNN wheels: `python -m mindvideo.native.build`.

The library is built on first use, in about four seconds, into the user's cache folder, under a name made
from everything it depends on. So wheel and editable installs work alike, an upgrade of oneDNN or of this
source builds anew, and nothing is compiled where the operators are never used. A build step of the package
itself would link against the oneDNN in pip's temporary build environment, which is gone when it is loaded.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path

SOURCES = tuple(Path(__file__).with_name(name) for name in ("operators.cc", "tokens.cc", "optimizers.cc"))
HEADER = Path(__file__).with_name("call.h")
FLAGS = ("-O3", "-fno-trapping-math", "-std=c++17", "-fopenmp", "-shared", "-fPIC", "-fvisibility=hidden")


class BuildError(RuntimeError):
    """The native operators cannot be built here; the message is the reason."""


def library() -> Path:
    """Return the compiled library, building it first if need be.

    Any number of processes may call this at once: one builds, the others wait for it.

    Raises:
        BuildError: another platform, no oneDNN wheels, no compiler, or the compiler failed.
    """
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise BuildError(f"they run on x86-64 Linux, this is {platform.machine()} {platform.system()}")
    import fcntl  # not there on other platforms

    include = _installed("onednn-devel-cpu-gomp", "oneapi/dnnl/dnnl.hpp").parents[2]
    onednn = _installed("onednn-cpu-gomp", "libdnnl.so.3")
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise BuildError(f"no C++ compiler: {os.environ.get('CXX', 'g++')!r} is not on PATH")
    command = [compiler, *FLAGS, *map(str, SOURCES), f"-I{include}", str(onednn), f"-Wl,-rpath,{onednn.parent}"]

    content = [*(source.read_text() for source in (*SOURCES, HEADER)), *command, metadata.version("onednn-cpu-gomp")]
    key = hashlib.sha256("\0".join(content).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mindvideo"
    target = cache / f"libmindvideo_native-{key}.so"
    if not target.exists():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with open(cache / "build.lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not target.exists():
                    _compile(command, target)
        except OSError as error:
            raise BuildError(f"the cache folder {cache} cannot be used: {error}") from error
    return target


def _installed(distribution: str, name: str) -> Path:
    """Path of the file of an installed wheel whose path ends with `name`."""
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        raise BuildError(f"the package {distribution} is not installed") from None
    for file in files:
        if file.as_posix().endswith(name):
            return Path(str(file.locate())).resolve()
    raise BuildError(f"the package {distribution} does not hold {name}")


def _compile(command: list[str], target: Path) -> None:
    """Compile under a temporary name and rename, so that no one ever loads half a file."""
    handle, temporary = tempfile.mkstemp(dir=target.parent, suffix=".tmp")
    os.close(handle)
    try:
        done = subprocess.run([*command, "-o", temporary], capture_output=True, text=True)
        if done.returncode != 0:
            raise BuildError(f"the compiler failed: {' '.join(command)}\n{done.stderr}")
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)


if __name__ == "__main__":
    print(library())
