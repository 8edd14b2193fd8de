# SPDX-License-Identifier: Apache-2.0
"""ARN: few-shot action recognition with permutation-invariant attention.

Zhang, Zhang, Qi, Li, Torr, Koniusz, ECCV 2020 (arXiv 2001.03905v3). Equation numbers are that paper's.

    clip V -> encoder f -> Phi -> attention -> pooling g -> Psi -> pair with each class -> comparator r -> score

B clips, N classes of an episode (way), K support clips a class (shot), M query clips, C channels, T frames,
H height, W width. Two points follow the authors' evaluation code, because the paper is silent or misprints them: the
autocorrelation is divided by its trace before power normalisation, and eq. 5 is used as tanh(sigma x / 2).
"""

from __future__ import annotations

from mindspore import Tensor, nn, ops

from mindvideo.models.c3d import Conv4Encoder
from mindvideo.models.layers import BatchNormReLU, MaxPool, conv2d, conv3d, enter, leave
from mindvideo.models.registry import register


class SpatialAttention(nn.Cell):
    """The spatial unit (Fig. 3): features `[B, C, T, H, W]` to a sigmoid map S `[B, 1, 1, H, W]`.

    Two poolings shorten T fourfold; time steps left after them (T > 7) are reduced by their maximum, so any clip
    length gives one map.
    """

    def __init__(self, channels: int, *, hidden: int = 16, momentum: float = 0.1):
        super().__init__()
        self.conv1 = conv3d(channels, hidden, 3, padding=1)
        self.norm1 = BatchNormReLU(hidden, momentum=momentum)
        self.halve_time = MaxPool((2, 1, 1))
        self.conv2 = conv3d(hidden, hidden, 3, padding=1)
        self.norm2 = BatchNormReLU(hidden, momentum=momentum)
        self.conv3 = conv3d(hidden, 1, 1)

    def construct(self, phi_BCTHW: Tensor) -> Tensor:
        num_frames = phi_BCTHW.shape[2]
        x = self.norm1(self.conv1(enter(phi_BCTHW)))
        x = self.halve_time(x) if num_frames >= 2 else x
        x = self.norm2(self.conv2(x))
        x = self.halve_time(x) if num_frames >= 4 else x
        return ops.sigmoid(leave(self.conv3(enter(leave(x).max(axis=2, keepdims=True)))))


class SecondOrderPooling(nn.Cell):
    """Features `[B, C, T, H, W]` to power-normalised autocorrelation matrices Psi `[B, C, C]` (eq. 3 and 5).

    Psi = tanh(sigma / 2 * A / trace(A)) with A = Phi Phi^T / (T H W). All-zero features give a zero matrix.
    """

    def __init__(self, *, sigma: float = 100.0):
        super().__init__()
        self.sigma = sigma

    def construct(self, phi_BCTHW: Tensor) -> Tensor:
        phi_BCN = phi_BCTHW.reshape((phi_BCTHW.shape[0], phi_BCTHW.shape[1], -1))
        autocorr_BCC = ops.bmm(phi_BCN, phi_BCN.swapaxes(1, 2)) / phi_BCN.shape[2]
        # trace(Phi Phi^T) is the squared norm; written so, its gradient needs no scatter.
        trace_B11 = (phi_BCN * phi_BCN).sum(axis=(1, 2), keepdims=True) / phi_BCN.shape[2]
        # 2 sigmoid(2x) - 1 = tanh(x): MindSpore's own tanh on CPU is off by up to 1e-4.
        return 2.0 * ops.sigmoid(self.sigma * autocorr_BCC / ops.clamp(trace_B11, min=1e-20)) - 1.0


class Comparator(nn.Cell):
    """The relation network r: pairs `[P, 2, C, C]` of class and query matrices to scores `[P]` in (0, 1).

    Four 3x3 convolutions, the last three residual, each followed by 2x2 max pooling, then two dense layers.
    """

    def __init__(self, matrix_size: int, *, width: int = 64, hidden: int = 8, momentum: float = 0.1):
        super().__init__()
        self.conv1 = conv2d(2, width, 3, padding=1)
        self.norm1 = BatchNormReLU(width, momentum=momentum)
        self.conv2 = conv2d(width, width, 3, padding=1)
        self.norm2 = BatchNormReLU(width, momentum=momentum)
        self.conv3 = conv2d(width, width, 3, padding=1)
        self.norm3 = BatchNormReLU(width, momentum=momentum)
        self.conv4 = conv2d(width, width, 3, padding=1)
        self.norm4 = BatchNormReLU(width, momentum=momentum)
        self.pool = MaxPool((2, 2))
        self.fc1 = nn.Dense(width * (matrix_size // 16) ** 2, hidden)
        self.fc2 = nn.Dense(hidden, 1)

    def construct(self, pairs_P2CC: Tensor) -> Tensor:
        x = self.pool(self.norm1(self.conv1(enter(pairs_P2CC))))
        x = self.pool(x + self.norm2(self.conv2(x)))
        x = self.pool(x + self.norm3(self.conv3(x)))
        x = leave(self.pool(x + self.norm4(self.conv4(x))))
        x = ops.relu(self.fc1(x.reshape((x.shape[0], -1))))
        return ops.sigmoid(self.fc2(x)).reshape(-1)


class ARN(nn.Cell):
    """Scores of every query against every class of an episode; any way, shot, clip length and size.

    Support and query are encoded in two calls, support first, so that in training each group has its own
    BatchNorm statistics and the running ones end with the query's (the authors' order).
    """

    def __init__(self, *, width: int = 64, attention: str = "spatial", sigma: float = 100.0, momentum: float = 0.1):
        """`attention` is "none" or "spatial"; `width` is the number of feature channels, at least 16;
        `momentum` the weight of the newest batch in BatchNorm's running statistics."""
        super().__init__()
        self.num_features = width * width
        self.encoder = Conv4Encoder(width=width, momentum=momentum)
        self.spatial_attention = SpatialAttention(width, momentum=momentum) if attention == "spatial" else None
        self.pooling = SecondOrderPooling(sigma=sigma)
        self.comparator = Comparator(width, width=width, momentum=momentum)

    def encode(self, clips_BCTHW: Tensor) -> Tensor:
        """Clips to matrices Psi `[B, C, C]`: encoder, attention (eq. 7: Phi * (1 + S)), pooling."""
        phi = self.encoder(clips_BCTHW)
        if self.spatial_attention is not None:
            phi = phi * (1.0 + self.spatial_attention(phi))
        return self.pooling(phi)

    def compare(self, support_NKCC: Tensor, query_MCC: Tensor) -> Tensor:
        """Scores `[M, N]` of query matrices against the mean of each class's K support matrices (eq. 1)."""
        classes_NCC = support_NKCC.mean(axis=1)
        way, size = classes_NCC.shape[0], classes_NCC.shape[-1]
        num_queries = query_MCC.shape[0]
        shape = (num_queries, way, size, size)
        pairs = ops.stack(
            (classes_NCC.expand_dims(0).broadcast_to(shape), query_MCC.expand_dims(1).broadcast_to(shape)),
            axis=2,
        )
        return self.comparator(pairs.reshape((-1, 2, size, size))).reshape((num_queries, way))

    def encode_episode(self, support_NKCTHW: Tensor, query_MCTHW: Tensor) -> tuple[Tensor, Tensor]:
        """Matrices of the support `[N, K, C, C]` and of the queries `[M, C, C]`."""
        way, shot = support_NKCTHW.shape[:2]
        support_psi = self.encode(support_NKCTHW.reshape((way * shot, *support_NKCTHW.shape[2:])))
        query_psi = self.encode(query_MCTHW)
        return support_psi.reshape((way, shot, *support_psi.shape[1:])), query_psi

    def construct(self, support_NKCTHW: Tensor, query_MCTHW: Tensor) -> Tensor:
        support_NKCC, query_MCC = self.encode_episode(support_NKCTHW, query_MCTHW)
        return self.compare(support_NKCC, query_MCC)


@register
def arn(*, width: int = 64, attention: str = "spatial", sigma: float = 100.0, momentum: float = 0.1) -> ARN:
    """ARN with the Conv-4-64 encoder and the spatial attention unit."""
    return ARN(width=width, attention=attention, sigma=sigma, momentum=momentum)
