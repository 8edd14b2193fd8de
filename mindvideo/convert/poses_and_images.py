# SPDX-License-Identifier: Apache-2.0
"""The parameters of ActionNet and of ConvNeXt under its three heads, in the PyTorch code of their authors and in
torchvision; and those of the other image classifiers, which have our names alone."""

from __future__ import annotations

import re

from mindvideo.convert.layout import OURS, PYTORCH_LEAVES, Family, Layout, Shapes, sizes

_IGNORED = {"batch counters": re.compile(r".+\.num_batches_tracked")}


def _ml_decoder(ours: str, theirs: str) -> tuple[tuple[str, str], ...]:
    """Rules for an ML-Decoder that is called `ours` here and `theirs` there."""
    inner = {
        r"embed\.": "embed_standart.",
        r"queries$": "query_embed.weight",
        r"pooling$": "duplicate_pooling",
        r"bias$": "duplicate_pooling_bias",
        r"attention\.(?:query|key|value)\.(\w+)$": r"layers.0.multihead_attn.in_proj_\1",
        r"attention\.output\.": "layers.0.multihead_attn.out_proj.",
        r"fc(\d)\.": r"layers.0.linear\1.",
        r"norm(\d)\.": r"layers.0.norm\1.",
    }
    return tuple((rf"^{ours}\.{pattern}", f"{theirs}.{name}") for pattern, name in inner.items())


_ACTIONNET = Layout(
    program="ActionNet's authors (PyTorch)",
    leaves=PYTORCH_LEAVES,
    rules=(
        (r"^embed\.", "map."),
        (r"^attention\.query\.", "lstm.Q."),
        (r"^attention\.key\.", "lstm.K."),
        (r"^attention\.value\.", "lstm.V."),
        (r"^attention\.output\.", "lstm.fc.0."),
        *_ml_decoder("decoder", "decoder.decoder"),
    ),
    ignored=_IGNORED,
    stacked=re.compile(r"decoder\.attention\.(query|key|value)\.\w+"),
    advice="The number of tokens that a clip is pooled to is not in the file: model.length (published: 800).",
)


def _actionnet_options(layout: Layout, shapes: Shapes) -> dict[str, int | str]:
    options: dict[str, int | str] = {
        option: next(iter(sizes(layout, shapes, name)), 0)
        for option, name in {
            "width": "embed.weight", "decoder_width": "decoder.embed.weight", "num_groups": "decoder.queries",
            "num_classes": "decoder.bias",
        }.items()
    }  # fmt: skip
    return options | ({"motion": 1} if "embed_motion.weight" in shapes else {})


ACTIONNET = Family(
    first="embed.weight",
    options=_actionnet_options,
    task="pose",
    layouts=(_ACTIONNET,),
    written=lambda shapes: OURS if "embed_motion.weight" in shapes else _ACTIONNET,
)


def _convnext(program: str, features: str, head: tuple[tuple[str, str], ...]) -> Layout:
    """`features` is the backbone there; the head has its own rules."""
    rules = [(r"^shrinks\.0\.conv\.", f"{features}.0.0."), (r"^shrinks\.0\.norm\.", f"{features}.0.1.")]
    for stage in range(4):
        block = rf"^stages\.{stage}\.(\d+)\."
        place = rf"{features}.{2 * stage + 1}.\1"
        layers = {"depthwise": "block.0", "norm": "block.2", "fc1": "block.3", "fc2": "block.5"}
        rules += [(rf"{block}{ours}\.", f"{place}.{theirs}.") for ours, theirs in layers.items()]
        rules += [(rf"{block}scale$", f"{place}.layer_scale")]
        rules += [(rf"^shrinks\.{stage}\.norm\.", f"{features}.{2 * stage}.0.")]
        rules += [(rf"^shrinks\.{stage}\.conv\.", f"{features}.{2 * stage}.1.")]
    return Layout(
        program=program,
        leaves=PYTORCH_LEAVES,
        rules=(*rules, *head),
        ignored=_IGNORED,
        stacked=re.compile(r"head\.attention\.(query|key|value)\.\w+"),
        columns=re.compile(r"stages\..+\.scale"),
        advice="Whether ImageNet's mean and deviation are taken off first is not in the file: model.normalize.",
    )


_AUTHORS = "robust classification's authors (PyTorch)"
_FC_PLACES = {"fc1": "0.0", "norm1": "0.3", "fc2": "1.0", "norm2": "1.3", "fc3": "2"}
_LINEAR = _convnext("torchvision", "features", ((r"^norm\.", "classifier.0."), (r"^head\.", "classifier.2.")))
_FC = _convnext(
    _AUTHORS,
    "backbone.0",
    tuple((rf"^head\.{ours}\.", f"cls_head.{place}.") for ours, place in _FC_PLACES.items()),
)
_ML_DECODER = _convnext(_AUTHORS, "backbone", _ml_decoder("head", "head.decoder"))


def _head(layout: Layout, shapes: Shapes) -> str:
    heads = {"head.queries": "ml_decoder", "head.fc3.bias": "fc"}
    return next((head for name, head in heads.items() if layout.theirs(name) in shapes), "linear")


def _convnext_options(layout: Layout, shapes: Shapes) -> dict[str, int | str]:
    head = _head(layout, shapes)
    stem = sizes(layout, shapes, "shrinks.0.conv.weight")
    return {
        "width": stem[0] if stem else 0,
        "patch": stem[-1] if len(stem) == 4 else 0,
        "depth": sum(layout.theirs(f"stages.0.{block}.scale") in shapes for block in range(100)),
        "head": head,
        "num_classes": next(iter(sizes(layout, shapes, "head.fc3.bias" if head == "fc" else "head.bias")), 0),
    }


CONVNEXT = Family(
    first="shrinks.0.conv.weight",
    options=_convnext_options,
    task="robust",
    layouts=(_LINEAR, _FC, _ML_DECODER),
    written=lambda shapes: {"linear": _LINEAR, "fc": _FC, "ml_decoder": _ML_DECODER}[_head(OURS, shapes)],
)


def _image_options(layout: Layout, shapes: Shapes) -> dict[str, int | str]:
    heads = [f"network.{head}.bias" for head in ("classifier", "mlp_head", "head")]
    return {"num_classes": next(iter(sizes(layout, shapes, *heads)), 0)}


def image_classifier(first: str) -> Family:
    """A network of MindCV; `first` is one of its parameters."""
    return Family(first=f"network.{first}", options=_image_options, task="robust")
