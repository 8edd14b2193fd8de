# SPDX-License-Identifier: Apache-2.0
"""All models, with the names that other programs have for their weights, if any. Nothing here knows MindSpore: the
command line lists them fast."""

from mindvideo.convert.arn import ARN, OTHERS
from mindvideo.convert.dear import C3D, CSN, I3D, SLOWFAST, TPN, TSM
from mindvideo.convert.layout import Family
from mindvideo.convert.poses_and_images import ACTIONNET, CONVNEXT, image_classifier

FAMILIES: dict[str, Family] = {
    "arn": ARN, "protonet": OTHERS, "relationnet": OTHERS, "sosn": OTHERS, "two_stream": OTHERS,
    "i3d_r18": I3D, "i3d_r50": I3D, "slowonly_r18": I3D, "slowonly_r50": I3D, "tsm_r18": TSM, "tsm_r50": TSM,
    "slowfast_r50": SLOWFAST, "slowfast_r18": SLOWFAST, "tpn_r18": TPN, "tpn_r50": TPN,
    "c3d": C3D, "ircsn_r50": CSN, "ircsn_r152": CSN,
    "actionnet": ACTIONNET, "convnext_tiny": CONVNEXT,
    "resnet50": image_classifier("conv1.weight"), "wide_resnet50_2": image_classifier("conv1.weight"),
    "densenet121": image_classifier("features.conv0.weight"),
    "efficientnet_b4": image_classifier("features.0.weight"),
    "vit_b_16": image_classifier("cls_token"), "swin_small": image_classifier("patch_embed.proj.weight"),
}  # fmt: skip
