# SPDX-License-Identifier: Apache-2.0
"""The models whose weights other programs have too. Nothing here knows MindSpore: the command line lists them fast."""

from mindvideo.convert.arn import ARN
from mindvideo.convert.dear import I3D, SLOWFAST, TPN, TSM
from mindvideo.convert.layout import Family

FAMILIES: dict[str, Family] = {
    "arn": ARN,
    "i3d_r18": I3D, "i3d_r50": I3D, "slowonly_r18": I3D, "slowonly_r50": I3D, "tsm_r18": TSM, "tsm_r50": TSM,
    "slowfast_r50": SLOWFAST, "slowfast_r18": SLOWFAST, "tpn_r18": TPN, "tpn_r50": TPN,
}  # fmt: skip
