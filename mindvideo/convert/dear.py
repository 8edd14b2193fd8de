# SPDX-License-Identifier: Apache-2.0
"""The video classifiers' parameters in DEAR's code and the MMAction2 that it builds on, and those of torchvision's
ResNets, which are inflated.

What serves training alone has a place here too, under the prefixes `debias.` and `auxiliary.` of `Objective`.
"""

from __future__ import annotations

import re

from mindvideo.convert.layout import OURS, PYTORCH_LEAVES, Family, Layout, Shapes, sizes

_NORMS = ((r"\.norm\.", ".bn."),)
_HEADS = (
    (r"^head\.fc\.", "cls_head.fc_cls."),
    (r"^head\.centers$", "cls_head.fc_centers.weight"),
    (r"^head\.radius$", "cls_head.loss_cls.radius"),
    (r"^head\.(\w+_(mu|rho))$", r"cls_head.bnn_cls.bnn_layer.\1"),
    (r"^debias\.f([12])\.conv\.", r"debias_head.f\1_conv3d."),
    (r"^debias\.f3\.conv\.", "debias_head.f3_conv2d."),
    (r"^debias\.f(\d)\.fc\.", r"debias_head.f\1_fc."),
)
_SHIFTED = ((r"(layer\d\.\d+\.conv1\.conv)\.weight$", r"\1.net.weight"),)
_PATHWAYS = (
    (r"^backbone\.laterals\.0\.weight$", "backbone.slow_path.conv1_lateral.conv.weight"),
    (r"^backbone\.laterals\.(\d)\.weight$", r"backbone.slow_path.layer\1_lateral.conv.weight"),
    (r"^backbone\.(slow|fast)\.", r"backbone.\1_path."),
)
_PYRAMID = (
    (r"^backbone\.trunk\.", "backbone."),
    (r"^backbone\.neck\.", "neck."),
    (r"^neck\.spatial\.", "neck.spatial_modulation.spatial_modulation.0.0."),
    (r"^neck\.temporal(\d)\.weight$", r"neck.temporal_modulation_ops.\1.conv.conv.weight"),
    (r"^neck\.downsample\.weight$", "neck.downsample_ops.0.conv.conv.weight"),
    (r"^neck\.fusion(\d)\.level(\d)\.", r"neck.level_fusion_\1.downsamples.\2.conv."),
    (r"^neck\.fusion(\d)\.fusion\.", r"neck.level_fusion_\1.fusion_conv."),
    (r"^neck\.pyramid\.", "neck.pyramid_fusion."),
    (r"^auxiliary\.", "neck.aux_head."),
)


def _mmaction(rules: tuple[tuple[str, str], ...], *, inflates: bool = False) -> Layout:
    return Layout(
        program="DEAR or MMAction2 (PyTorch)",
        leaves=PYTORCH_LEAVES,
        rules=_NORMS + _HEADS + rules,
        ignored={
            "batch counters": re.compile(r".+\.num_batches_tracked"),
            "tensors of the debiasing, auxiliary and ReBias heads, which serve training alone": re.compile(
                r"(debias_head|neck\.(aux|rebias)_head)\..+"
            ),
            "tensors of a classifier that another one replaces": re.compile(r"cls_head\.fc_cls\..+"),
        },
        inflates=inflates,
        advice="Which function makes evidence of the logits is not in the file: loss.evidence (DEAR: exp).",
    )


_TORCHVISION = Layout(
    program="torchvision (a ResNet for images, inflated)",
    leaves=PYTORCH_LEAVES,
    rules=(
        (r"^backbone\.conv1\.conv\.", "conv1."),
        (r"^backbone\.conv1\.norm\.", "bn1."),
        (r"^backbone\.(layer\d\.\d+)\.conv(\d)\.conv\.", r"\1.conv\2."),
        (r"^backbone\.(layer\d\.\d+)\.conv(\d)\.norm\.", r"\1.bn\2."),
        (r"^backbone\.(layer\d\.\d+)\.downsample\.conv\.", r"\1.downsample.0."),
        (r"^backbone\.(layer\d\.\d+)\.downsample\.norm\.", r"\1.downsample.1."),
    ),
    ignored={
        "batch counters": re.compile(r".+\.num_batches_tracked"),
        "tensors of the image classifier": re.compile(r"fc\..+"),
    },
    fresh=re.compile(r"head\..+"),
    inflates=True,
    advice="The head is a fresh one: start training with train.backbone=FILE, which takes the backbone alone.",
)


def _options(layout: Layout, shapes: Shapes) -> dict[str, int | str]:
    """Width, head and number of classes, and SlowFast's second width."""
    heads = {"head.radius": "rpl", "head.centers": "gcpl", "head.weight_mu": "bayesian"}
    kinds = [kind for name, kind in heads.items() if layout.theirs(name) in shapes]
    stems = [f"backbone.{stem}.weight" for stem in ("conv1.conv", "trunk.conv1.conv", "slow.conv1.conv", "conv1a")]
    fast = next(iter(sizes(layout, shapes, "backbone.fast.conv1.conv.weight")), 0)
    classes = next(iter(sizes(layout, shapes, "head.centers", "head.weight_mu", "head.fc.weight")), 0)
    return {
        "width": next(iter(sizes(layout, shapes, *stems)), 0),
        "head": kinds[0] if kinds else "linear",
        **({"num_classes": classes} if classes else {}),
        **({"fast_width": fast} if fast else {}),
    }


def _family(first: str, *layouts: Layout) -> Family:
    written = layouts[0] if layouts else OURS
    return Family(first=first, options=_options, task="openset", layouts=layouts, written=lambda _: written)


I3D = _family("backbone.conv1.norm.gamma", _mmaction(()), _TORCHVISION)
TSM = _family("backbone.conv1.norm.gamma", _mmaction(_SHIFTED, inflates=True), _TORCHVISION)
SLOWFAST = _family("backbone.slow.conv1.norm.gamma", _mmaction(_PATHWAYS))
TPN = _family("backbone.trunk.conv1.norm.gamma", _mmaction(_PYRAMID))
CSN = _family("backbone.conv1.norm.gamma")
C3D = _family("backbone.conv1a.weight")
