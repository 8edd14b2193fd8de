# SPDX-License-Identifier: Apache-2.0
"""The package as a whole: pinned requirements, size of files and functions, what may import what, light import."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
import tomllib
import warnings
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mindvideo
from tests.conftest import REPOSITORY

FILES = sorted(path for folder in ("mindvideo", "tests") for path in (REPOSITORY / folder).rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def test_requirements_pin_what_the_project_asks_for():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = {canonicalize_name(r.name): r for r in map(Requirement, project["dependencies"])}
    lines = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = {}
    for line in (line for line in lines if line and not line.startswith("#")):
        requirement = Requirement(line)
        (version,) = requirement.specifier
        assert version.operator == "==", line
        pinned[canonicalize_name(requirement.name)] = version.version
    assert pinned.keys() == asked.keys()
    for name, version in pinned.items():
        assert asked[name].specifier.contains(version), f"{name}=={version} is not {asked[name]}"
    assert pinned["mindspore"] == mindvideo.MINDSPORE
    assert project["version"] == mindvideo.__version__


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 500
    for node in ast.walk(TREES[path]):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name
    if text:
        assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n")
        assert ast.get_docstring(TREES[path])


def imported(tree: ast.Module) -> set[str]:
    """The full names of all modules that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_only_the_loader_imports_mindspore_dataset():
    package = REPOSITORY / "mindvideo"
    users = {
        path.relative_to(package).as_posix()
        for path in FILES
        if path.is_relative_to(package)
        and any(f"{name}.".startswith("mindspore.dataset.") for name in imported(TREES[path]))
    }
    assert users == {"data/loader.py"}


def test_importing_the_package_is_light():
    heavy = ("mindspore", "matplotlib", "cv2", "sklearn", "scipy", "av", "numpy", "PIL", "torch")
    script = f"import mindvideo, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def reloaded(monkeypatch, version: str) -> list[warnings.WarningMessage]:
    """The warnings of importing the package where that MindSpore is installed."""
    monkeypatch.setattr(metadata, "version", lambda name: version)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        importlib.reload(mindvideo)
    return caught


@pytest.fixture
def environment(monkeypatch) -> pytest.MonkeyPatch:
    """An environment without the guard's variable, put back afterwards."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "as it was")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    return monkeypatch


def test_the_pinned_mindspore_runs_unguarded(environment):
    assert reloaded(environment, "2.8.0") == []
    assert "ONEDNN_MAX_CPU_ISA" not in os.environ


@pytest.mark.parametrize("version", ["2.9.0", "2.10.0", "2.7.1"])
def test_another_mindspore_is_guarded_with_one_warning(environment, version):
    (warning,) = reloaded(environment, version)
    assert version in str(warning.message)
    assert "pip install mindspore==2.8.0" in str(warning.message)
    assert os.environ["ONEDNN_MAX_CPU_ISA"] == "AVX2"


def test_the_guard_keeps_the_user_s_own_choice(environment):
    environment.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    reloaded(environment, "2.9.0")
    assert os.environ["ONEDNN_MAX_CPU_ISA"] == "SSE41"


def test_no_mindspore_is_no_error_yet(environment):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    environment.setattr(metadata, "version", missing)
    importlib.reload(mindvideo)
    assert "ONEDNN_MAX_CPU_ISA" not in os.environ


def test_the_gpu_script_links_what_the_gpu_extra_installs():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [Requirement(line) for line in project["optional-dependencies"]["gpu"]]
    assert all(len(r.specifier) == 1 and str(r.specifier).startswith("==") for r in asked)
    script = (REPOSITORY / "scripts" / "setup_gpu.sh").read_text(encoding="utf-8")
    linked = script.partition("/nvidia/{")[2].partition("}")[0].split(",")
    assert linked == [r.name.removeprefix("nvidia-").removesuffix("-cu11").replace("-", "_") for r in asked]


@pytest.fixture
def cuda(monkeypatch, tmp_path) -> Path:
    """The CUDA folder of an environment of the test's own; MindSpore has not been told of it."""
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    for name in ("CUDA_HOME", "CUDA_CACHE_MAXSIZE"):
        monkeypatch.setenv(name, "as it was")
        monkeypatch.delenv(name)
    return nvcc.parent.parent


def test_cuda_that_was_set_up_is_named_to_mindspore(cuda):
    importlib.reload(mindvideo)
    assert os.environ["CUDA_HOME"] == str(cuda)
    assert os.environ["CUDA_CACHE_MAXSIZE"] == "4000000000"


def test_without_cuda_none_is_named(cuda):
    (cuda / "bin" / "nvcc").unlink()
    importlib.reload(mindvideo)
    assert "CUDA_HOME" not in os.environ
    assert "CUDA_CACHE_MAXSIZE" not in os.environ


def test_the_user_s_own_cuda_stays(cuda, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", "/usr/local/cuda")
    importlib.reload(mindvideo)
    assert os.environ["CUDA_HOME"] == "/usr/local/cuda"
    assert "CUDA_CACHE_MAXSIZE" not in os.environ
