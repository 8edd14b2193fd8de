# SPDX-License-Identifier: Apache-2.0
"""Two streams for few-shot recognition: what is seen and how it moves, each with a Conv-4 encoder of its own.

After Simonyan and Zisserman, "Two-stream convolutional networks for action recognition in videos", NeurIPS 2014, whose
second stream sees optical flow; this one sees how each frame differs from the one before.

B clips, S = 2 streams, C channels.
"""

from __future__ import annotations

from mindspore import Tensor, ops

from mindvideo.models.arn import ARN, differences
from mindvideo.models.c3d import Conv4Encoder
from mindvideo.models.registry import register


class TwoStream(ARN):
    """Embeddings are averages in the cells of a 3x3 grid, of both streams; classes are compared by their cosines.

    The streams share nothing: each has a classifier in training, and their cosines are averaged.
    """

    num_streams = 2

    def __init__(self, *, width: int = 64, shots: str = "mean", joint: bool = False, momentum: float = 0.1):
        super().__init__(
            width=width,
            attention="none",
            pooling="grid",
            comparator="cosine",
            shots=shots,
            joint=joint,
            momentum=momentum,
        )
        self.motion_encoder = Conv4Encoder(width=width, momentum=momentum)

    def encode_with_maps(self, clips_BCTHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Clips to embeddings `[B, S, 9, C]`, and the maps of absent attention units, which are ones."""
        phi, temporal, spatial = self.attend(self.features(clips_BCTHW))
        motion = self.pooling(self.motion_encoder(differences(clips_BCTHW)))
        return ops.stack((self.pooling(phi), motion), axis=1), temporal, spatial

    def to_vectors(self, psi_B: Tensor) -> Tensor:
        """Embeddings `[B, S, 9, C]` as vectors `[B, S, C]` for a linear classifier of each stream."""
        return psi_B.mean(axis=2)


@register
def two_stream(*, width: int = 64, shots: str = "mean", joint: bool = False, momentum: float = 0.1) -> TwoStream:
    """Two Conv-4 encoders, of frames and of their differences, compared by cosines."""
    return TwoStream(width=width, shots=shots, joint=joint, momentum=momentum)
