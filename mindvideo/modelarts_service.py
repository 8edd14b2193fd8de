# SPDX-License-Identifier: Apache-2.0
"""The inference code of a ModelArts package, where it is called customize_service.py: `mindvideo export` copies this
file beside the weights, and `mindvideo` itself with it.

The platform calls `_preprocess`, `_inference` and `_postprocess` in turn. Of what was uploaded nothing is executed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mindvideo.errors import InputError
from mindvideo.predict import PosePredictor, Prediction, load_predictor

Base: Any = object
with contextlib.suppress(ImportError):  # where this is not the platform
    from model_service.model_service import SingleNodeService as Base  # pyright: ignore

FOLDER = Path(__file__).resolve().parent


class ActionService(Base):
    """Classifies the poses of one request."""

    def __init__(self, model_name: str, model_path: str):
        if Base is not object:
            super().__init__(model_name, model_path)
        predictor = load_predictor(
            FOLDER / "weights.safetensors", config=FOLDER / "config.yaml", labels=FOLDER / "labels.txt"
        )
        assert isinstance(predictor, PosePredictor)
        self.predictor = predictor

    def _preprocess(self, data: Mapping[str, Mapping[str, BinaryIO]]) -> np.ndarray:
        """The poses `[T, 24, 6]` of the one file of the form's field `poses`; InputError if there is not one such."""
        files = list(data.get("poses", {}).values())
        if len(files) != 1 or len(data) != 1:
            raise InputError(f"The request has {len(files)} files of poses, in {len(data)} fields; send one file.")
        return self.predictor.read(files[0].read())

    def _inference(self, data: np.ndarray) -> Prediction:
        (prediction,) = self.predictor.classify([data])
        return prediction

    def _postprocess(self, data: Prediction) -> dict[str, Any]:
        return data.as_json()
