# SPDX-License-Identifier: Apache-2.0
"""Model packages of Huawei Cloud's ModelArts."""

from __future__ import annotations

import json
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from safetensors.numpy import save_file

import mindvideo
from mindvideo.config import to_yaml
from mindvideo.data.pose import MOST_BYTES
from mindvideo.errors import InputError
from mindvideo.predict import PosePredictor, Predictor


def export_modelarts(predictor: Predictor, destination: Path) -> None:
    """Write `destination`/model: weights, config.json, customize_service.py, and the `mindvideo` that it uses.

    InputError for a model of anything but poses, or if `destination` is a file, or a folder that holds something.
    """
    if not isinstance(predictor, PosePredictor):
        raise InputError(f"{predictor.config.model.name} sees videos; a ModelArts package is made for models of poses.")
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise InputError(f"{destination} exists and is not empty: name a new folder.")
    folder, package = destination / "model", Path(mindvideo.__file__).parent
    folder.mkdir(parents=True)
    weights = {name: parameter.asnumpy() for name, parameter in predictor.model.parameters_and_names()}
    save_file(weights, folder / "weights.safetensors", metadata={"model": predictor.config.model.name})
    (folder / "config.yaml").write_text(to_yaml(predictor.config), encoding="utf-8")
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in predictor.labels), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(_description(len(predictor.labels)), indent=2) + "\n")
    shutil.copyfile(package / "modelarts_service.py", folder / "customize_service.py")
    shutil.copytree(package, folder / "mindvideo", ignore=shutil.ignore_patterns("__pycache__", "*.so"))


def _description(num_classes: int) -> dict[str, Any]:
    """What the platform wants to know."""
    scores = {"type": "array", "minItems": num_classes, "maxItems": num_classes, "items": {"type": "number"}}
    poses = {"type": "file", "description": f".npy file, (T, 72) or (T, 24, 6), of at most {MOST_BYTES} bytes"}
    answer = {
        "class_scores": {"type": "object", "properties": {"action_class": scores}},
        "probabilities": scores,
        "labels": scores | {"items": {"type": "string"}},
        "label": {"type": "string"},
        "uncertainty": {
            "type": "object", "properties": {"name": {"type": "string"}, "value": {"type": "number"}},
        },
    }  # fmt: skip
    python = ".".join(platform.python_version_tuple()[:2])
    return {
        "model_algorithm": "action_recognition",
        "model_type": "MindSpore",
        "runtime": f"mindspore_{mindvideo.MINDSPORE}-cpu-py_{python}",
        "apis": [
            {
                "protocol": "https",
                "url": "/",
                "method": "post",
                "request": {
                    "Content-type": "multipart/form-data",
                    "data": {"type": "object", "properties": {"poses": poses}},
                },
                "response": {"Content-type": "application/json", "data": {"type": "object", "properties": answer}},
            }
        ],
        "dependencies": [{"installer": "pip", "packages": _packages()}],
    }


def _packages() -> list[dict[str, str]]:
    """What `mindvideo` needs, in the versions that are here."""
    needed = [Requirement(line) for line in metadata.requires("mindvideo") or []]
    names = sorted(r.name for r in needed if r.marker is None or r.marker.evaluate({"extra": ""}))
    return [{"package_name": name, "package_version": metadata.version(name), "restraint": "EXACT"} for name in names]
