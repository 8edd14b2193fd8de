# SPDX-License-Identifier: Apache-2.0
"""What all tests share: CPU graph mode, tiny videos, and the golden arrays and real data where they exist."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from PIL import Image

from mindvideo.data.video import write_video
from tests.tiny import train, write_experiment

REPOSITORY = Path(__file__).resolve().parent.parent


def outside_folder(variable: str, name: str) -> Path | None:
    """The folder that `variable` names, or ../shared/`name` beside the repository, or None."""
    folder = Path(os.environ.get(variable, REPOSITORY.parent / "shared" / name))
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session", autouse=True)
def cpu() -> None:
    """Every test runs on the CPU in graph mode unless it says otherwise."""
    from mindvideo.engine.device import use_device

    use_device("cpu")


@pytest.fixture
def pynative() -> Iterator[None]:
    """Operators one by one: no compilation for each of many variants."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield
    ms.set_context(mode=ms.GRAPH_MODE)


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = outside_folder("MINDVIDEO_DATA", "data")
    if folder is None:
        pytest.skip("no real data: set MINDVIDEO_DATA to run these tests")
    return folder


@pytest.fixture
def make_videos(tmp_path) -> Callable[..., Path]:
    """`make_videos(names, num_frames)` writes small videos, each its own picture, and returns their root.

    A name without a video's suffix becomes a folder of frames.
    """
    root = tmp_path / "videos"

    def make(names: Iterable[str], num_frames: int = 5) -> Path:
        for name in names:
            path = root / name
            rng = np.random.default_rng(zlib.crc32(name.encode()))
            blocks = rng.integers(0, 256, (num_frames, 2, 3, 3), dtype=np.uint8)
            frames_THWC = blocks.repeat(8, axis=1).repeat(8, axis=2)
            if path.suffix in (".avi", ".mp4", ".mkv", ".webm"):
                write_video(path, frames_THWC)
                continue
            path.mkdir(parents=True)
            for index, frame in enumerate(frames_THWC):
                Image.fromarray(frame).save(path / f"{index:03d}.png")
        return root

    return make


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("MINDVIDEO_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def experiment(tmp_path_factory) -> Iterator[Path]:
    """The folder of `tests.tiny`'s experiment; frame counts are cached beside it from here on."""
    root = tmp_path_factory.mktemp("experiment")
    write_experiment(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINDVIDEO_CACHE", str(root / "cache"))
        yield root


@pytest.fixture(scope="session")
def straight(experiment, tmp_path_factory) -> Path:
    """The folder of a run of that experiment from start to end without a break."""
    output = tmp_path_factory.mktemp("straight")
    assert train(experiment, output) == 0
    return output / "tiny"
