# SPDX-License-Identifier: Apache-2.0
"""What `step.py` measures: networks, the configs that they are trained by, and the shapes of what they see."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MODES = ("train", "inference")


@dataclass(frozen=True)
class Problem:
    """A network, of which `shapes` are the inputs' (floating-point) and `settings` win over the config's.

    `clip_norm` is the largest global norm of the gradient, 0 for no clipping; `num_tokens` are those of ActionNet.
    """

    title: str
    config: str
    shapes: tuple[tuple[int, ...], ...]
    num_classes: int
    settings: tuple[str, ...] = ()
    clip_norm: float = 0.0
    num_tokens: int = 0

    def inputs(self) -> list[np.ndarray]:
        rng = np.random.default_rng(0)
        return [rng.standard_normal(shape).astype(np.float32) for shape in self.shapes]

    def classes(self) -> np.ndarray:
        """A class for each item of a batch, int32."""
        return (np.arange(self.shapes[-1][0]) % self.num_classes).astype(np.int32)


def _videos(title: str, config: str, shape: tuple[int, ...], clip_norm: float) -> Problem:
    settings = ("loss.name=dnn", "data.size=112")
    return Problem(title, f"dear/backbones/{config}.yaml", (shape,), 101, settings, clip_norm)


_EPISODE = ("data.length=16", "data.height=112", "data.width=112", "episode.query=1", "model.momentum=0.1")
_TOKENS = 100  # which the config recommends for a CPU
PROBLEMS = {
    "arn": Problem("ARN", "arn/base.yaml", ((5, 1, 3, 16, 112, 112), (5, 3, 16, 112, 112)), 5, _EPISODE),
    "i3d": _videos("I3D R50", "i3d", (2, 3, 32, 112, 112), 40.0),
    "tsm": _videos("TSM R50", "tsm", (4, 3, 8, 112, 112), 20.0),
    "slowfast": _videos("SlowFast R50", "slowfast", (2, 3, 32, 112, 112), 40.0),
    "tpn": _videos("TPN R50", "tpn", (2, 3, 8, 112, 112), 40.0),
    "actionnet": Problem(
        "ActionNet",
        "actionnet/base.yaml",
        ((8, 256, 24, 6),),
        10,
        (f"model.length={_TOKENS}", "train.batch=8"),
        num_tokens=_TOKENS,
    ),
    "convnext": Problem(
        "ConvNeXt-tiny", "robust/base.yaml", ((8, 3, 224, 224),), 100, ("defence.concealment=false", "train.batch=8")
    ),
}
