# SPDX-License-Identifier: Apache-2.0
"""ARN's parameters in the older MindSpore repository, and in the PyTorch code of the paper's authors; and the other
few-shot models, which no other program has."""

from __future__ import annotations

import re

from mindvideo.convert.layout import OURS, PYTORCH_LEAVES, Family, Layout, Shapes, sizes

_OLDER_ARN = Layout(
    program="the older MindSpore repository (arn_mindspore, zjut_mindvideo)",
    layers={
        # The encoder is a sequence: places 1 and 3 are poolings. MindSpore's BatchNorm3d wraps a BatchNorm2d, bn2d.
        **{f"encoder.block{i}.conv": f"embedding.embedding.{j}.features.0" for i, j in enumerate((0, 2, 4, 5), 1)},
        **{f"encoder.block{i}.norm": f"embedding.embedding.{j}.features.1.bn2d" for i, j in enumerate((0, 2, 4, 5), 1)},
        **{f"spatial_attention.conv{i}": f"backbone.spatial_detector.layer{i}.features.0" for i in (1, 2)},
        **{f"spatial_attention.norm{i}": f"backbone.spatial_detector.layer{i}.features.1.bn2d" for i in (1, 2)},
        "spatial_attention.conv3": "backbone.spatial_detector.conv3d",
        **{f"comparator.conv{i}": f"head.relation_network.layer{i}.features.0" for i in range(1, 5)},
        **{f"comparator.norm{i}": f"head.relation_network.layer{i}.features.1" for i in range(1, 5)},
        **{f"comparator.fc{i}": f"head.relation_network.fc{i}" for i in (1, 2)},
    },
    leaves={},
    ignored={  # Adam, Momentum and SGD; ModelCheckpoint appends the numbers of epoch and step
        "optimizer moments": re.compile(r"(moment1|moment2|vhat|moments|accum|stat)\..+"),
        "optimizer numbers": re.compile(r"beta[12]_power|momentum|learning_rate|global_step|epoch_num|step_num"),
    },
    zeros=re.compile(r".+\.conv\d?\.bias"),
    advice="Its clips are 16 frames of 128x128 with other pixel statistics: data.length=16 data.mean=0.6737 "
    "data.std=0.105. sigma is not in the file.",
)

_UNIT_PLACES = {"conv1": 0, "norm1": 1, "conv2": 4, "norm2": 5, "conv3": 8}  # others are poolings and activations

_AUTHORS_ARN = Layout(
    program="the paper's authors (PyTorch, arn-eccv20)",
    layers={
        **{f"encoder.block{i}.conv": f"feature_encoder.layer{i}.0" for i in range(1, 5)},
        **{f"encoder.block{i}.norm": f"feature_encoder.layer{i}.1" for i in range(1, 5)},
        **{f"spatial_attention.{layer}": f"spatial_detector.sd1.{place}" for layer, place in _UNIT_PLACES.items()},
        **{f"temporal_attention.{layer}": f"temporal_detector.td1.{place}" for layer, place in _UNIT_PLACES.items()},
        **{f"comparator.conv{i}": f"relation_network.layer{i}.0" for i in range(1, 5)},
        **{f"comparator.norm{i}": f"relation_network.layer{i}.1" for i in range(1, 5)},
        **{f"comparator.fc{i}": f"relation_network.fc{i}" for i in (1, 2)},
    },
    leaves=PYTORCH_LEAVES,
    ignored={
        "batch counters": re.compile(r".+\.num_batches_tracked"),
        "tensors of the discriminator, which serves training alone": re.compile(r"jigsaw_discriminator\..+"),
    },
    advice="sigma, the alphas and the momentum of BatchNorm (theirs is 1) are not in the file.",
)


def _arn_options(layout: Layout, shapes: Shapes) -> dict[str, int | str]:
    units = {unit for unit in ("temporal_attention", "spatial_attention") if _holds(layout, shapes, unit)}
    attention = "both" if len(units) == 2 else "".join(units).removesuffix("_attention") or "none"
    return {**_width(layout, shapes), "attention": attention, **_comparison(layout, shapes)}


def _holds(layout: Layout, shapes: Shapes, unit: str) -> bool:
    return any(layout.theirs(f"{unit}.{layer}.weight") in shapes for layer in ("conv1", "conv2", "conv3"))


def _comparison(layout: Layout, shapes: Shapes) -> dict[str, int | str]:
    """Of ARN's variants, which have our names alone: a pooling and a comparator of these shapes."""
    if layout.theirs("comparator.fc3.weight") in shapes:
        return {"pooling": "average"}
    if len(sizes(layout, shapes, "comparator.conv1.weight")) == 5:
        return {"pooling": "none"}
    return {} if layout.layers or any(name.startswith("comparator.") for name in shapes) else {"comparator": "distance"}


def _width(layout: Layout, shapes: Shapes) -> dict[str, int | str]:
    return {"width": next(iter(sizes(layout, shapes, "encoder.block1.conv.weight")), 0)}


ARN = Family(
    layouts=(_OLDER_ARN, _AUTHORS_ARN),
    first="encoder.block1.conv.weight",
    options=_arn_options,
    task="fewshot",
    # Another pooling or comparator has other layers, and other programs have none of these.
    written=lambda shapes: _AUTHORS_ARN if "comparator.conv4.weight" in shapes else OURS,
    refused={
        "embedding.embedding.conv1.weight": "the large C3D encoder (is_c3d: True), whose 512 channels do not fit "
        "the 64 of that repository's own attention and comparator"
    },
)
OTHERS = Family(first="encoder.block1.conv.weight", options=_width, task="fewshot")
