# SPDX-License-Identifier: Apache-2.0
"""A video classifier: any backbone under any head.

`@register_backbone` on a factory of keyword arguments makes the classifier known by the factory's name:
`create_model("i3d_r50", num_classes=101, head="evidential")` has the backbone's options besides `num_classes`, `head`
and `dropout`. What a backbone gives is said in `resnet3d.py`, what a head takes in `mindvideo/heads.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from mindspore import Tensor, nn

from mindvideo.heads import make_head
from mindvideo.models.registry import register


class Backbone(nn.Cell):
    """Clips to maps, and these to what a head classifies; `construct` gives `(vectors_BSC, features_BDTHW)`, the latter
    being the first of the maps, of `num_map_channels`."""

    num_features: int
    num_map_channels: int

    def maps(self, clips_BCTHW: Tensor) -> tuple[Tensor, ...]:
        """The last maps `[B, C, T, H, W]` that still know time and place: all that the vectors are made of."""
        raise NotImplementedError

    def vectors(self, maps: tuple[Tensor, ...]) -> Tensor:
        """The vectors of the maps, `[B, S, num_features]`."""
        raise NotImplementedError

    def construct(self, clips_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.maps(clips_BCTHW)
        return self.vectors(maps), maps[0]


Factory = TypeVar("Factory", bound=Callable[..., Any])


class Recognizer(nn.Cell):
    """Clips `[B, 3, T, H, W]` to logits `[B, num_classes]`."""

    def __init__(self, backbone: Any, head: str, num_classes: int, dropout: float):
        super().__init__()
        self.backbone: Backbone = backbone
        self.head = make_head(head, self.backbone.num_features, num_classes, dropout=dropout)

    def construct(self, clips_BCTHW: Tensor) -> Tensor:
        vectors_BSC, _ = self.backbone(clips_BCTHW)
        return self.head(vectors_BSC)


def register_backbone(factory: Factory) -> Factory:
    """Register the classifier on this backbone under the factory's name."""

    def build(*, num_classes: int = 101, head: str = "linear", dropout: float = 0.5, **options: Any) -> Recognizer:
        return Recognizer(factory(**options), head, num_classes, dropout)

    own = [p for p in inspect.signature(build).parameters.values() if p.kind is p.KEYWORD_ONLY]
    build.__signature__ = inspect.Signature([*own, *inspect.signature(factory).parameters.values()])  # pyright: ignore
    build.__name__, build.__doc__ = factory.__name__, factory.__doc__
    register(build)
    return factory
