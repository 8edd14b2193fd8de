# SPDX-License-Identifier: Apache-2.0
"""ActionNet: actions from sequences of joint rotations, by attention over their poses (the published "ActNet" of the
HUAWEI CSIG 2022 action recognition challenge), and what it lacks to tell an action from its reverse.

B clips, T frames (padded), J = 24 joints, 6 numbers of each, L tokens that frames are pooled to, D width, K classes.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindvideo.models.layers import Attention, dense, initialize_dense
from mindvideo.models.mldecoder import MOST_GROUPS, MLDecoder
from mindvideo.models.registry import register
from mindvideo.noise import Dropout

NUM_JOINTS, NUM_VALUES = 24, 6  # SMPL's joints; the first two rows of a rotation matrix
NUM_CHANNELS = NUM_JOINTS * NUM_VALUES


class ActionNet(nn.Cell):
    """ActionNet: attention over poses `[B, T, 24, 6]` (rotation-6D), under ML-Decoder, to logits `[B, K]`.

        x = pool(embed poses)    x = x + dropout(attention(x, x))    logits = ML-Decoder(x)

    with one linear layer for all joints, adaptive average pooling over time to L tokens, and attention of 8 heads
    without biases. Attention does not see the order of its tokens, so this, the published model, gives a clip and the
    same clip played backwards the same logits. Two options, off in the published model, change that:

    Args:
        width, length: D and L.
        positional: add sines of the tokens' places (Vaswani et al., NeurIPS 2017) to x.
        motion: add a linear layer's view of the change over so many frames, signed and absolute, pooled like the poses,
            to x; 0: none.
        dropout: of attention weights and of the attention's output; ML-Decoder has its own 0.1. Both act in training,
            that is where `construct` is given a `seed` (uint32 scalar) for their masks.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        width: int = 1280,
        length: int = 800,
        dropout: float = 0.5,
        decoder_width: int = 768,
        num_groups: int = MOST_GROUPS,
        learned_queries: bool = False,
        positional: bool = False,
        motion: int = 0,
        num_heads: int = 8,
    ):
        super().__init__()
        self.length, self.motion = length, motion
        self.embed = dense(NUM_CHANNELS, width)
        self.embed_motion = dense(2 * NUM_CHANNELS, width, has_bias=False) if motion > 0 else None
        self.places = Tensor(sinusoids(length, width)) if positional else None
        self.attention = Attention(width, num_heads, bias=False, dropout=dropout, stream=5)
        self.dropout = Dropout(dropout, stream=6)
        self.decoder = MLDecoder(
            width, num_classes, width=decoder_width, num_groups=num_groups, num_heads=num_heads,
            learned_queries=learned_queries,
        )  # fmt: skip

    def construct(self, poses_BTJC: Tensor, lengths_B: Tensor | None = None, seed: Tensor | None = None) -> Tensor:
        """`lengths_B` (int32) says how many frames of each clip count, all without it; what stands behind them must be
        finite and changes nothing."""
        tokens_BLD = self.tokens(poses_BTJC, lengths_B)
        tokens_BLD = tokens_BLD + self.dropout(self.attention(tokens_BLD, tokens_BLD, seed), seed)
        return self.decoder(tokens_BLD, seed)

    def tokens(self, poses_BTJC: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """What the attention sees, `[B, L, D]`.

        The published order, embedding before pooling, gives the same, as both are linear, and costs more.
        """
        batch, num_frames = poses_BTJC.shape[:2]
        poses_BTC = poses_BTJC.reshape((batch, num_frames, -1))
        weights_BLT = pooling_weights(lengths_B, num_frames, self.length)
        tokens_BLD = self.embed(ops.matmul(weights_BLT, poses_BTC))
        if self.embed_motion is not None:
            tokens_BLD = tokens_BLD + self.embed_motion(ops.matmul(weights_BLT, motion_of(poses_BTC, self.motion)))
        return tokens_BLD if self.places is None else tokens_BLD + self.places

    def initialize(self, seed: int) -> None:
        """Draw all weights anew from `seed` alone, as PyTorch's defaults and ML-Decoder's authors do."""
        rng = np.random.default_rng(seed)
        initialize_dense(self, rng)
        self.decoder.initialize(rng)


def pooling_weights(lengths_B: Tensor | None, num_frames: int, length: int) -> Tensor:
    """Adaptive average pooling as a matrix `[B, L, T]` (`[1, L, T]` without lengths), whose product with frames it is.

    Token i of L is the mean of the frames from floor(i n / L) to ceil((i + 1) n / L) - 1, n being the clip's length.
    """
    lengths_B1 = ops.full((1, 1), num_frames, dtype=ms.int32) if lengths_B is None else lengths_B.expand_dims(1)
    tokens_L = ops.arange(0, length, 1, dtype=ms.int32)
    starts_BL1 = (tokens_L * lengths_B1 // length).expand_dims(2)
    stops_BL1 = (((tokens_L + 1) * lengths_B1 + (length - 1)) // length).expand_dims(2)
    frames_T = ops.arange(0, num_frames, 1, dtype=ms.int32)
    inside_BLT = ops.logical_and(frames_T >= starts_BL1, frames_T < stops_BL1)
    return inside_BLT.astype(ms.float32) / (stops_BL1 - starts_BL1).astype(ms.float32)


def motion_of(poses_BTC: Tensor, lag: int) -> Tensor:
    """What has changed since `lag` frames before, or since the first frame, and its absolute value, `[B, T, 2 C]`."""
    before_T = ops.relu(ops.arange(-lag, poses_BTC.shape[1] - lag, 1, dtype=ms.int32))
    change_BTC = poses_BTC - ops.gather(poses_BTC, before_T, 1)
    return ops.cat((change_BTC, ops.abs(change_BTC)), axis=2)


def sinusoids(length: int, width: int) -> np.ndarray:
    """Vaswani's positional encoding `[L, D]`, float32: sines in the even features, cosines in the odd ones."""
    rates_D = 10_000.0 ** (-(np.arange(width) // 2 * 2) / width)
    angles_LD = np.arange(length)[:, None] * rates_D
    return np.where(np.arange(width) % 2, np.cos(angles_LD), np.sin(angles_LD)).astype(np.float32)


register(ActionNet, "actionnet")
