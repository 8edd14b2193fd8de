# SPDX-License-Identifier: Apache-2.0
"""DEAR's debiasing head (Bao et al., ICCV 2021): two biased looks at a clip, for an unbiased one to differ from.

It exists in training alone, on a backbone's feature maps. The first branch sees the clip; the second sees its frames
out of order, and the third one frame at a time, so that these two can only learn scenes and looks. `losses/debias.py`
joins what they give. G = 3 branches, B clips, C channels, T frames, H height, W width, D = 2 C features, K classes.

    published  kernels 1x3x3, as in the checkpoints of 2021: no kernel spans two frames and all frames are pooled, so
               the order of the frames changes nothing and all three branches can learn the same.
    head       kernels 3x3x3 in the first two branches, without padding over time, as in the code since 2023.
    corrected  kernels 3x3x3 with padding; every clip has its own order, never the true one; and the biased branches do
               not train the backbone, which they would bias.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.common.initializer import Normal

from mindvideo.errors import InputError
from mindvideo.models.layers import ConvNorm, enter, leave
from mindvideo.noise import Dropout

FORMS = ("published", "head", "corrected")


class DebiasBranch(nn.Cell):
    """Maps `[B, C, T, H, W]` to features `[B, 2 C]`, of which the last part makes logits `[B, K]`.

    A convolution over `frames` frames, padded or not, and 3x3 pixels with stride 2, BatchNorm, ReLU, mean over all
    positions; then dropout and a dense layer.
    """

    def __init__(self, channels: int, num_classes: int, frames: int, padding: int, dropout: Dropout):
        super().__init__()
        self.conv = ConvNorm(channels, 2 * channels, (frames, 3, 3), stride=(1, 2, 2), padding=(padding, 1, 1))
        self.dropout = dropout
        self.fc = nn.Dense(2 * channels, num_classes, weight_init=Normal(0.01), bias_init="zeros")

    def construct(self, maps_BCTHW: Tensor, seed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        features_BD = leave(self.conv(enter(maps_BCTHW))).mean(axis=(2, 3, 4))
        return features_BD, self.fc(self.dropout(features_BD, seed))


class DebiasHead(nn.Cell):
    """Feature maps `[B, C, T, H, W]` and orders of their frames `[B, T]`, int32 (`draw_orders`), to the features
    `[3, B, 2 C]` and logits `[3, B, K]` of the branches, the unbiased first.

    `form` is one of `FORMS`, or it is an InputError. `layers.initialize_kaiming` draws the convolutions. Without a seed
    (uint32 scalar) there is no dropout.
    """

    def __init__(self, num_channels: int, num_classes: int, *, form: str = "corrected", dropout: float = 0.5):
        super().__init__()
        if form not in FORMS:
            raise InputError(f"form {form!r} of the debiasing head is not one of {', '.join(FORMS)}.")
        frames, padding = (1, 0) if form == "published" else (3, 1 if form == "corrected" else 0)
        self.corrected = form == "corrected"
        self.f1 = DebiasBranch(num_channels, num_classes, frames, padding, Dropout(dropout, stream=3))
        self.f2 = DebiasBranch(num_channels, num_classes, frames, padding, Dropout(dropout, stream=4))
        self.f3 = DebiasBranch(num_channels, num_classes, 1, 0, Dropout(dropout, stream=5))

    def construct(self, maps_BCTHW: Tensor, orders_BT: Tensor, seed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        seen_BCTHW = ops.stop_gradient(maps_BCTHW) if self.corrected else maps_BCTHW
        features1_BD, logits1_BK = self.f1(maps_BCTHW, seed)
        features2_BD, logits2_BK = self.f2(reorder(seen_BCTHW, orders_BT), seed)
        features3_BD, logits3_BK = self.f3(seen_BCTHW, seed)
        features_GBD = ops.stack((features1_BD, features2_BD, features3_BD))
        return features_GBD, ops.stack((logits1_BK, logits2_BK, logits3_BK))


def reorder(maps_BCTHW: Tensor, orders_BT: Tensor) -> Tensor:
    """The same maps with frame `orders[b, t]` of clip b in place t."""
    num_clips, _, num_frames = maps_BCTHW.shape[:3]
    offsets_B1 = num_frames * ops.arange(num_clips, dtype=ms.int32).expand_dims(1)
    frames = maps_BCTHW.swapaxes(1, 2).flatten(0, 1)[(orders_BT + offsets_B1).reshape(-1)]
    return frames.reshape((num_clips, num_frames, *frames.shape[1:])).swapaxes(1, 2)


def draw_orders(form: str, num_clips: int, num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """Orders `[B, T]`, int32: one for all clips, or "corrected" one for each and never that of time.

    InputError where the maps have too few frames for the form.
    """
    least = {"published": 1, "head": 3, "corrected": 3}[form]
    if num_frames < least:
        raise InputError(
            f"the debiasing head, form {form!r}, takes feature maps of {least} frames or more; these have {num_frames}."
        )
    if form != "corrected":
        return np.tile(rng.permutation(num_frames).astype(np.int32), (num_clips, 1))
    return np.stack([_draw_disorder(num_frames, rng) for _ in range(num_clips)])


def _draw_disorder(num_frames: int, rng: np.random.Generator) -> np.ndarray:
    while True:
        order_T = rng.permutation(num_frames).astype(np.int32)
        if np.any(np.diff(order_T) < 0):
            return order_T
