# SPDX-License-Identifier: Apache-2.0
"""Few-shot recognition from few training classes: two streams that learn, colours that need not, compared by cosines.

After Simonyan and Zisserman, "Two-stream convolutional networks for action recognition in videos", NeurIPS 2014, whose
second stream sees optical flow; this one sees how each frame differs from the one before. Embeddings are averaged with
the mirrored clip's and centred, after Wang et al., "SimpleShot", arXiv 1911.04623.

B clips, S streams, C channels, T frames, H height, W width, N pixels of a clip.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, ops

from mindvideo.models.arn import ARN, differences
from mindvideo.models.c3d import Conv4Encoder
from mindvideo.models.registry import register

CELLS = 9
# Clips come normalised with these, the loader's defaults; others shift the colours' borders.
PIXEL_MEAN, PIXEL_STD = 0.3474, 0.2100


class TwoStream(ARN):
    """Classifies by cosines what it has learnt to classify by two linear layers.

    In training embeddings `[B, 2, 9, C]` are averages in the cells of a 3x3 grid, of the frames' stream and of the
    differences'; each stream has a classifier. In test embeddings `[B, 3, 9, C]` are, for each stream, the mean unit
    vector of the clip and of its mirror image, then the clip's colours; less `centre`, which is the mean over the
    training videos (`recentre`). With episode statistics of BatchNorm embeddings are those of training.
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
        self.centre = Parameter(Tensor(np.zeros((3, CELLS, width), np.float32)), requires_grad=False)
        self.bins = max(b for b in range(2, 9) if b**3 <= CELLS * width)  # of each colour; 8 from width 57 on

    def encode_with_maps(self, clips_BCTHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Clips to embeddings, and the maps of absent attention units, which are ones."""
        phi, temporal, spatial = self.attend(self.features(clips_BCTHW))
        streams_BS9C = self._with_motion(phi, clips_BCTHW)
        if self.training:
            return streams_BS9C, temporal, spatial
        mirrored = ops.flip(clips_BCTHW, (4,))
        mirrored_BS9C = self._with_motion(self.features(mirrored), mirrored)
        views_BS9C = (_unit(streams_BS9C) + _unit(mirrored_BS9C)) / 2
        return ops.cat((views_BS9C, self._colours(clips_BCTHW)), axis=1) - self.centre, temporal, spatial

    def _with_motion(self, phi: Tensor, clips_BCTHW: Tensor) -> Tensor:
        motion = self.pooling(self.motion_encoder(differences(clips_BCTHW)))
        return ops.stack((self.pooling(phi), motion), axis=1)

    def _colours(self, clips_BCTHW: Tensor) -> Tensor:
        """Square roots of the shares of `bins`^3 colours `[B, 1, 9, C]`, a unit vector with zeros at its end."""
        levels_B3N = (clips_BCTHW * PIXEL_STD + PIXEL_MEAN).flatten(2) * (self.bins * 255 / 256)
        # The small number keeps a level that is a border on its side of it; white and black may be overshot.
        bins_B3N = ops.clamp(ops.floor(levels_B3N + 1e-3), 0.0, self.bins - 1.0)
        is_in_B3Nb = (bins_B3N.expand_dims(3) == ops.arange(self.bins).astype(ms.float32)).astype(ms.float32)
        red_BNb, green_BNb, blue_BNb = is_in_B3Nb[:, 0], is_in_B3Nb[:, 1], is_in_B3Nb[:, 2]
        pairs_BbbN = (red_BNb.expand_dims(3) * green_BNb.expand_dims(2)).flatten(2).swapaxes(1, 2)
        shares_BD = (ops.bmm(pairs_BbbN, blue_BNb) / blue_BNb.shape[1]).flatten(1)
        num_clips, width = clips_BCTHW.shape[0], self.num_features
        padding = ops.zeros((num_clips, CELLS * width - self.bins**3))
        return ops.cat((ops.sqrt(shares_BD), padding), axis=1).reshape((num_clips, 1, CELLS, width))

    def recentre(self, embeddings_BS9C: np.ndarray) -> None:
        """Take the mean of these embeddings, which have been made with the present `centre`, for the new one."""
        ops.assign(self.centre, Tensor(self.centre.asnumpy() + embeddings_BS9C.mean(axis=0)))

    def to_vectors(self, psi_B: Tensor) -> Tensor:
        """Embeddings `[B, S, 9, C]` as vectors `[B, S, C]` for a linear classifier of each stream."""
        return psi_B.mean(axis=2)


def _unit(streams_BS9C: Tensor) -> Tensor:
    return streams_BS9C / ops.sqrt((streams_BS9C * streams_BS9C).sum(axis=(2, 3), keepdims=True) + 1e-8)


@register
def two_stream(*, width: int = 64, shots: str = "mean", joint: bool = False, momentum: float = 0.1) -> TwoStream:
    """Two Conv-4 encoders, of frames and of their differences, and colours, compared by centred cosines."""
    return TwoStream(width=width, shots=shots, joint=joint, momentum=momentum)
