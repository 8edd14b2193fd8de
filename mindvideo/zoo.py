# SPDX-License-Identifier: Apache-2.0
"""What is known of each model: its paper, its size, and numbers, each with where it comes from.

A number is *quoted*, from a publication that is named, or *measured* here, with config and commit. Sizes
are those of the models with their default options; `tests/test_zoo.py` counts them again. No MindSpore here.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Number(NamedTuple):
    """What was measured, the value, and where it comes from: a publication, or config and commit."""

    what: str
    value: str
    source: str


class Entry(NamedTuple):
    """A model as `mindvideo models` tells of it.

    `shape` is one sample's, without the batch; `macs` are the multiply-adds that it costs. Of few-shot models that is a
    query's cost, among five classes whose clips have been embedded. `published` holds others' counts of the same
    network, and why they differ.
    """

    task: str
    paper: str
    shape: tuple[int, ...]
    parameters: int
    macs: int
    published: str = ""
    quoted: tuple[Number, ...] = ()
    measured: tuple[Number, ...] = ()


_FEWSHOT, _VIDEO, _POSE, _IMAGE = "few-shot", "video", "pose", "image"
_SIZE = {"episode": (3, 20, 128, 128), "tsm": (3, 8, 224, 224), "8": (3, 8, 256, 256), "32": (3, 32, 256, 256)}
_PIXELS = (3, 224, 224)
_5WAY = "5-way accuracy, 1-shot / 5-shot, "
_TABLES = "ARN paper, tables 3 and 4"
_SHORT = "commit 1a59d35, seed 1, 600 episodes, train.episodes="
_ZOO = "MMAction2's model zoo, "
_KINETICS = "Kinetics-400, top-1 / top-5"
_IMAGENET = "ImageNet, top-1 / top-5"
_TORCHVISION = "torchvision, IMAGENET1K_V1 weights (not part of this package)"
_DEAR = "DEAR paper and repository"
_COUNTS = "counts BatchNorm, ReLU, pooling and biases besides"


def _fewshot(hmdb51: tuple[str, str], ucf101: tuple[str, str], row: str, episodes: int) -> dict[str, Any]:
    """A baseline's numbers on HMDB51 and UCF101: quoted, and measured after little training on parts of them."""
    source = f"configs/arn/DATASET_small/{row}.yaml, {_SHORT}{episodes}"
    return {
        "quoted": (
            Number(f"{_5WAY}HMDB51", f"{hmdb51[0]} %", _TABLES),
            Number(f"{_5WAY}UCF101", f"{ucf101[0]} %", _TABLES),
        ),
        "measured": (
            Number(f"{_5WAY}part of HMDB51 (JHMDB)", f"{hmdb51[1]} %", source),
            Number(f"{_5WAY}part of UCF101", f"{ucf101[1]} %", source),
        ),
    }  # fmt: skip


def _dear(accuracy: str, hmdb51: str, mit: str) -> tuple[Number, ...]:
    return (
        Number("DEAR, UCF101, closed-set accuracy", f"{accuracy} %", _DEAR),
        Number("DEAR, HMDB51 unknown, open macro-F1 / AUC at one threshold", f"{hmdb51} %", _DEAR),
        Number("DEAR, Moments in Time unknown, open macro-F1 / AUC at one threshold", f"{mit} %", _DEAR),
    )


def _torchvision(parameters: str, flops: str, accuracy: str, note: str = "") -> dict[str, Any]:
    return {
        "published": f"torchvision: {parameters} parameters, {flops} GFLOPs{note}",
        "quoted": (Number(_IMAGENET, f"{accuracy} %", _TORCHVISION),),
    }


_ARN = (
    Number(f"{_5WAY}HMDB51, spatial attention", "41.27 ± 0.98 / 56.12 ± 0.89 %", _TABLES),
    Number(f"{_5WAY}UCF101, spatial attention", "63.73 ± 1.08 / 82.19 ± 0.70 %", _TABLES),
    Number(f"{_5WAY}HMDB51, rotation and alignment", "45.52 ± 0.96 / 58.96 ± 0.87 %", _TABLES),
    Number(f"{_5WAY}UCF101, rotation and alignment", "66.32 ± 0.99 / 83.12 ± 0.70 %", _TABLES),
)
_ARN_MEASURED = (
    Number(
        f"{_5WAY}embedded sample", "96.39 ± 0.39 / 99.33 ± 0.13 %",
        "configs/arn/arn_sample.yaml, commit 2924b17, seed 1",
    ),
    Number(
        f"{_5WAY}part of HMDB51 (JHMDB)", "35.25 ± 0.91 / 43.99 ± 0.80 %",
        "configs/arn/arn_hmdb51_small.yaml, commit 8b5d6b9, seed 1",
    ),
    Number(
        f"{_5WAY}part of UCF101", "43.15 ± 0.89 / 55.74 ± 0.81 %",
        "configs/arn/arn_ucf101_small.yaml, commit 8b5d6b9, seed 1",
    ),
)  # fmt: skip
_TSM_R18_SOURCE = "commits 1b571d7 (training) and 20a28f5 (scores), seed 1, width 16; docs/open_set.md has the commands"
_TSM_R18 = (
    Number(
        "16 classes of UCF101 known, JHMDB unknown: softmax, top-1 / AUROC", "39.5 / 57.9 (51.6 to 63.8) %",
        f"configs/dear/ucf101_small/tsm_dnn.yaml, {_TSM_R18_SOURCE}",
    ),
    Number(
        "the same: OpenMax, top-1 / AUROC", "38.2 / 64.9 (59.3 to 70.3) %",
        f"configs/dear/ucf101_small/tsm_dnn.yaml, {_TSM_R18_SOURCE}",
    ),
    Number(
        "the same: DEAR corrected, top-1 / AUROC", "40.1 / 57.4 (50.7 to 64.2) %",
        f"configs/dear/ucf101_small/tsm_edlnokl_avuc_debias.yaml, {_TSM_R18_SOURCE}",
    ),
)  # fmt: skip
_POSES = (
    Number(
        "40 clips of the challenge, across performers, as published", "77.5 ± 2.5 % over seeds 1 to 3",
        "configs/actionnet/csig/logo.yaml model.length=100, commit 8268bcc",
    ),
    Number(
        "the same, with positions and motion", "96.7 ± 1.4 % over seeds 1 to 3",
        "configs/actionnet/csig/logo_improved.yaml; the code was committed after it (docs/pose.md)",
    ),
    Number(
        "the same, a control that learns nothing (motion)", "100 %", "docs/pose.md",
    ),
    Number(
        "embedded sample, 5 folds, as published / with positions and motion", "50.2 ± 1.4 / 97.2 ± 0.9 %",
        "configs/actionnet/sample_published.yaml and sample.yaml, seed 1 (docs/pose.md)",
    ),
)  # fmt: skip

_I3D = "Carreira and Zisserman, Quo Vadis, Action Recognition?, CVPR 2017"
_TSM = "Lin, Gan and Han, TSM: Temporal Shift Module for Efficient Video Understanding, ICCV 2019"
_SLOWFAST = "Feichtenhofer et al., SlowFast Networks for Video Recognition, ICCV 2019"
_TPN = "Yang et al., Temporal Pyramid Network for Action Recognition, CVPR 2020"
_CSN = "Tran et al., Video Classification with Channel-separated Convolutional Networks, ICCV 2019"

ZOO: dict[str, Entry] = {
    "arn": Entry(
        _FEWSHOT, "Zhang et al., Few-shot Action Recognition with Permutation-invariant Attention, ECCV 2020",
        _SIZE["episode"], 493_122, 7_809_065_000,
        published="the older MindSpore repository: 492,577 parameters; its convolutions have no biases (545)",
        quoted=_ARN, measured=_ARN_MEASURED,
    ),
    "sosn": Entry(
        _FEWSHOT, "Zhang and Koniusz, Power Normalizing Second-order Similarity Network, WACV 2019",
        _SIZE["episode"], 458_449, 7_653_335_080,
        **_fewshot(
            ("40.83 ± 0.96 / 55.18 ± 0.86", "32.15 ± 0.91 / 40.59 ± 0.79"),
            ("62.57 ± 1.03 / 81.51 ± 0.74", "44.05 ± 0.88 / 56.89 ± 0.73"), "sosn", 640,
        ),
    ),
    "relationnet": Entry(
        _FEWSHOT, "Sung et al., Learning to Compare: Relation Network for Few-shot Learning, CVPR 2018",
        _SIZE["episode"], 670_417, 13_306_432_040,
        **_fewshot(
            ("38.23 ± 0.97 / 53.17 ± 0.86", "31.27 ± 0.74 / 36.46 ± 0.76"),
            ("58.21 ± 1.02 / 78.35 ± 0.72", "36.12 ± 0.79 / 45.95 ± 0.81"), "relationnet", 560,
        ),
    ),
    "protonet": Entry(
        _FEWSHOT, "Snell et al., Prototypical Networks for Few-shot Learning, NeurIPS 2017",
        _SIZE["episode"], 337_728, 7_361_003_520,
        **_fewshot(
            ("38.05 ± 0.89 / 53.15 ± 0.90", "31.10 ± 0.81 / 39.87 ± 0.74"),
            ("57.05 ± 1.02 / 78.25 ± 0.73", "35.48 ± 0.94 / 48.22 ± 0.89"), "protonet", 720,
        ),
    ),
    "two_stream": Entry(
        _FEWSHOT, "after Simonyan and Zisserman, Two-stream Convolutional Networks, NeurIPS 2014",
        _SIZE["episode"], 675_456, 28_082_962_432,
        measured=(
            Number(
                f"{_5WAY}part of UCF101", "58.39 ± 0.81 / 70.70 ± 0.61 %",
                "configs/two_stream/ucf101_small.yaml, commit 3c5becf, seed 1",
            ),
            Number(
                f"{_5WAY}part of HMDB51 (JHMDB)", "40.90 ± 0.91 / 53.10 ± 0.77 %",
                "configs/two_stream/hmdb51_small.yaml, commit 3c5becf, seed 1",
            ),
        ),
    ),
    "i3d_r50": Entry(
        _VIDEO, _I3D, _SIZE["32"], 27_430_821, 43_268_646_912,
        published=f"MMAction2: 28,043,472 parameters, 43.564 GFLOPs at 400 classes; {_COUNTS}",
        quoted=(
            *_dear("93.89", "77.24 / 77.08", "69.98 / 81.54"),
            Number(_KINETICS, "73.22 / 91.11 %", f"{_ZOO}i3d_r50_32x2x1_100e"),
        ),
    ),
    "tsm_r50": Entry(
        _VIDEO, _TSM, _SIZE["tsm"], 23_714_981, 32_697_296_896,
        published=f"MMAction2: 24,327,632 parameters, 32.966 GFLOPs at 400 classes; {_COUNTS}, "
        "and the classifier on each frame (here on their mean: the same output)",
        quoted=(
            *_dear("94.48", "84.69 / 78.65", "70.15 / 83.92"),
            Number(_KINETICS, "73.46 / 90.84 %", f"{_ZOO}tsm_r50_dense_1x1x8_50e"),
        ),
    ),
    "slowfast_r50": Entry(
        _VIDEO, _SLOWFAST, _SIZE["32"], 33_876_365, 65_708_199_168,
        published=f"MMAction2: 34,565,560 parameters, 66.222 GFLOPs at 400 classes; {_COUNTS}",
        quoted=(
            *_dear("96.48", "85.48 / 82.94", "77.28 / 86.99"),
            Number(_KINETICS, "76.94 / 92.8 %", f"{_ZOO}slowfast_r50_8x8x1_256e"),
        ),
    ),
    "tpn_r50": Entry(
        _VIDEO, _TPN, _SIZE["8"], 71_187_621, 65_666_230_272,
        published="MMAction2: 91,498,336 parameters, 66.015 GFLOPs at 400 classes; its parameters include the training "
        f"head, which is a network of its own here; it {_COUNTS}",
        quoted=(
            *_dear("96.30", "81.79 / 79.23", "71.18 / 81.80"),
            Number(_KINETICS, "73.58 / 91.35 %", f"{_ZOO}tpn_slowonly_r50_8x8x1_150e"),
        ),
    ),
    "slowonly_r50": Entry(
        _VIDEO, _SLOWFAST, _SIZE["8"], 31_841_445, 54_517_770_240,
        published="MMAction2: 32,454,096 parameters at 400 classes",
        quoted=(Number(_KINETICS, "74.93 / 91.92 %", f"{_ZOO}slowonly_r50_8x8x1_256e"),),
    ),
    "ircsn_r50": Entry(
        _VIDEO, _CSN, _SIZE["32"], 12_518_501, 55_259_244_544,
        published=f"MMAction2: 13,131,152 parameters, 56.209 GFLOPs at 400 classes; {_COUNTS}",
        quoted=(Number(f"{_KINETICS}, after IG65M", "79.17 / 94.14 %", f"{_ZOO}ircsn_ig65m_pretrained_bnfrozen_r50"),),
    ),
    "ircsn_r152": Entry(
        _VIDEO, _CSN, _SIZE["32"], 29_090_917, 96_712_599_552,
        published=f"MMAction2: 29,703,568 parameters, 98.097 GFLOPs at 400 classes; {_COUNTS}",
        quoted=(Number(_KINETICS, "76.25 / 92.11 %", f"{_ZOO}ircsn_bnfrozen_r152_32x2x1_180e"),),
    ),
    "c3d": Entry(
        _VIDEO, "Tran et al., Learning Spatiotemporal Features with 3D Convolutional Networks, ICCV 2015",
        (3, 16, 112, 112), 78_409_573, 38_547_378_176,
        published=f"MMAction2: 78,409,573 parameters, 38.615 GFLOPs; {_COUNTS}",
        quoted=(Number("UCF101, top-1 / top-5, after Sports-1M", "82.92 / 96.11 %", f"{_ZOO}c3d_sports1m-pretrained"),),
    ),
    "i3d_r18": Entry(
        _VIDEO, _I3D, _SIZE["32"], 16_869_285, 30_853_351_936,
        measured=(
            Number(
                "embedded sample, 20 classes, 12 unknown: EDL, top-1 / AUROC", "53.3 / 62.1 (41.1 to 80.6) %",
                "configs/dear/sample.yaml (width 16), commit d2b2910, seed 1",
            ),
        ),
    ),
    "tsm_r18": Entry(_VIDEO, _TSM, _SIZE["tsm"], 11_228_325, 14_508_542_464, measured=_TSM_R18),
    "slowfast_r18": Entry(_VIDEO, _SLOWFAST, _SIZE["32"], 21_612_557, 33_063_756_608),
    "tpn_r18": Entry(_VIDEO, _TPN, _SIZE["8"], 24_270_501, 26_995_271_680),
    "slowonly_r18": Entry(_VIDEO, _SLOWFAST, _SIZE["8"], 20_075_685, 26_197_674_496),
    "actionnet": Entry(
        _POSE, "ActNet of the HUAWEI CSIG 2022 challenge; its head: Ridnik et al., ML-Decoder, WACV 2023",
        (928, 24, 6), 13_253_898, 8_921_341_440,
        published="its code: 13,253,898 parameters at width 1280, 24,178,698 at 2048; its README's 50.61M and 92.29M "
        "are MiB",
        measured=_POSES,
    ),
    "convnext_tiny": Entry(
        _IMAGE, "Liu et al., A ConvNet for the 2020s, CVPR 2022", _PIXELS, 28_589_128, 4_455_531_264,
        **_torchvision("28,589,128", "4.456", "82.520 / 96.146"),
    ),
    "resnet50": Entry(
        _IMAGE, "He et al., Deep Residual Learning for Image Recognition, CVPR 2016",
        _PIXELS, 25_557_032, 4_089_184_256,
        **_torchvision("25,557,032", "4.089", "76.130 / 92.862"),
    ),
    "wide_resnet50_2": Entry(
        _IMAGE, "Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016", _PIXELS, 68_883_240, 11_398_021_120,
        **_torchvision("68,883,240", "11.398", "78.468 / 94.086"),
    ),
    "densenet121": Entry(
        _IMAGE, "Huang et al., Densely Connected Convolutional Networks, CVPR 2017", _PIXELS, 7_978_856, 2_834_161_664,
        **_torchvision("7,978,856", "2.834", "74.434 / 91.972"),
    ),
    "efficientnet_b4": Entry(
        _IMAGE, "Tan and Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, ICML 2019",
        (3, 380, 380), 19_341_616, 4_393_771_024, **_torchvision("19,341,616", "4.394", "83.384 / 96.594"),
    ),
    "vit_b_16": Entry(
        _IMAGE, "Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021", _PIXELS, 86_567_656, 17_563_828_224,
        **_torchvision("86,567,656", "17.564", "81.072 / 95.318"),
    ),
    "swin_small": Entry(
        _IMAGE, "Liu et al., Swin Transformer, ICCV 2021", _PIXELS, 49_606_258, 8_855_302_122,
        **_torchvision(
            "49,606,258", "8.741", "83.196 / 96.360",
            "; MindCV looks relative positions up by matrix products, 0.114 GFLOPs that are in our count",
        ),
    ),
}  # fmt: skip
