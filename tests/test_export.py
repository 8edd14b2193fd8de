# SPDX-License-Identifier: Apache-2.0
"""ModelArts packages: complete, valid, and right where the platform runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from mindvideo.cli import main
from mindvideo.errors import InputError
from mindvideo.export import export_modelarts
from mindvideo.modelarts_service import ActionService
from mindvideo.models import create_model
from mindvideo.predict import PosePredictor, VideoPredictor
from tests.parity.recipe_actionnet import each, fill, stored
from tests.serving import POSE_CLASSES, clip, npy, pose_predictor, write_pose_checkpoint

# What the platform does, with a base class as the platform's.
PLATFORM = """
import json, sys, types
from pathlib import Path

class SingleNodeService:
    def __init__(self, model_name, model_path):
        self.model_name, self.model_path = model_name, model_path

    def inference(self, data):
        return self._postprocess(self._inference(self._preprocess(data)))

package, module = types.ModuleType("model_service"), types.ModuleType("model_service.model_service")
module.SingleNodeService = SingleNodeService
sys.modules |= {"model_service": package, "model_service.model_service": module}
folder = Path(sys.argv[1])
sys.path.insert(0, str(folder))
import customize_service
import mindvideo
assert Path(mindvideo.__file__).parent == folder / "mindvideo"
service = customize_service.ActionService("actionnet", str(folder))
assert isinstance(service, SingleNodeService) and service.model_name == "actionnet"
answers = []
for name in sys.argv[2:]:
    with open(name, "rb") as file:
        answers.append(service.inference({"poses": {"a.npy": file}}))
print(json.dumps(answers))
"""


@pytest.fixture
def poses() -> PosePredictor:
    return pose_predictor()


def run_on_platform(package: Path, *files: Path) -> list[dict]:
    """The answers of a package's service, in a process that finds no other `mindvideo`."""
    command = [sys.executable, "-c", PLATFORM, str(package / "model"), *map(str, files)]
    environment = os.environ | {"MINDVIDEO_NATIVE": "0"}  # which it would compile, for nothing
    done = subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@each("service*.npz")
def test_a_package_answers_as_the_published_service(path, poses, tmp_path):
    golden = np.load(path)
    network = create_model("actionnet", num_classes=10, width=64, length=16, decoder_width=64)
    fill(network, stored(np.load(path.with_name("actnet_small_T37.npz")), "sd/"))
    config = poses.config.copy_and_resolve_references()
    with config.unlocked():
        config.model.update(width=64, length=16, decoder_width=64, positional=False, motion=0)
    export_modelarts(PosePredictor(network, config, tuple("abcdefghij")), tmp_path / "package")
    np.save(tmp_path / "request.npy", golden["axis_angle_72"])
    (answer,) = run_on_platform(tmp_path / "package", tmp_path / "request.npy")
    np.testing.assert_allclose(answer["class_scores"]["action_class"], golden["response_action_class"], atol=2e-5)
    assert answer["labels"] == list("abcdefghij")


def test_a_package_is_complete(poses, tmp_path):
    export_modelarts(poses, tmp_path / "package")
    folder = tmp_path / "package" / "model"
    names = {"config.json", "customize_service.py", "weights.safetensors", "config.yaml", "labels.txt", "mindvideo"}
    assert {path.name for path in folder.iterdir()} == names
    found = json.loads((folder / "config.json").read_text())
    assert (found["model_algorithm"], found["model_type"]) == ("action_recognition", "MindSpore")
    assert found["runtime"].startswith("mindspore_2.8.0-")
    (api,) = found["apis"]
    assert (api["url"], api["method"], api["request"]["Content-type"]) == ("/", "post", "multipart/form-data")
    assert list(api["request"]["data"]["properties"]) == ["poses"]
    scores = api["response"]["data"]["properties"]["class_scores"]["properties"]["action_class"]
    assert (scores["type"], scores["items"], scores["maxItems"]) == ("array", {"type": "number"}, 4)
    packages = {p["package_name"]: p["package_version"] for p in found["dependencies"][0]["packages"]}
    assert packages["mindspore"] == "2.8.0"
    assert "numpy" in packages
    assert "pytest" not in packages
    (answer,) = poses.predict([clip(3)])
    assert api["response"]["data"]["properties"].keys() == answer.as_json().keys()


def test_the_service_takes_one_file(poses, monkeypatch, tmp_path):
    export_modelarts(poses, tmp_path / "package")
    monkeypatch.setattr("mindvideo.modelarts_service.FOLDER", tmp_path / "package" / "model")
    service = ActionService("actionnet", "anywhere")
    assert service.predictor.labels == tuple(POSE_CLASSES)
    array = clip(9)
    seen = service._preprocess({"poses": {"a": BytesIO(npy(array))}})
    (expected,) = poses.predict([array])
    assert service._postprocess(service._inference(seen)) == expected.as_json()
    files = {"a": BytesIO(npy(array)), "b": BytesIO(npy(array))}
    for request in ({"poses": files}, {"pose": files}, {"poses": {"a": BytesIO()}, "more": {}}, {}):
        with pytest.raises(InputError, match="send one file"):
            service._preprocess(request)
    with pytest.raises(InputError, match=r"^poses: no \.npy file"):
        service._preprocess({"poses": {"a": BytesIO(b"x")}})


def test_nothing_is_overwritten(poses, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(InputError, match="full exists and is not empty: name a new folder"):
        export_modelarts(poses, tmp_path / "full")
    with pytest.raises(InputError, match="mine exists and is not empty"):
        export_modelarts(poses, tmp_path / "full" / "mine")
    (tmp_path / "empty").mkdir()
    words = ["export", "--format", "modelarts", "--ckpt", str(write_pose_checkpoint(tmp_path)), "--device", "cpu"]
    assert main([*words, str(tmp_path / "empty")]) == 0
    assert capsys.readouterr().out == f"written: {tmp_path / 'empty' / 'model'}\n"
    assert main([*words, str(tmp_path / "empty")]) == 2


def test_a_model_of_videos_is_refused(poses, tmp_path):
    videos = object.__new__(VideoPredictor)
    videos.config = poses.config
    with pytest.raises(InputError, match="is made for models of poses"):
        export_modelarts(videos, tmp_path / "package")
    assert list(tmp_path.iterdir()) == []
