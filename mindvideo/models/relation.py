# SPDX-License-Identifier: Apache-2.0
"""What compares a query with a class, and how its verdicts are read.

Each network maps pairs of embeddings, the class first, to one logit a pair:

    MatrixRelation   matrices Psi, second-order pooling   SoSN and ARN (Zhang et al., WACV 2019 and ECCV 2020)
    VectorRelation   pooled vectors                       ARN, Table 5
    MapRelation      feature maps                         RelationNet (Sung et al., CVPR 2018) in three dimensions
    Distance         anything                             ProtoNet (Snell et al., NeurIPS 2017), without parameters
    Cosine           anything                             Matching by angle, without parameters

`READINGS` says what the logits of all pairs of an episode mean. P pairs, M queries, N classes, C channels, T frames,
H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from mindspore import Tensor, nn, ops

from mindvideo.models.layers import BatchNormReLU, Float32, MaxPool, conv2d, conv3d, enter, leave


class MatrixRelation(Float32):
    """Pairs `[P, 2, C, C]` of matrices to logits `[P]`; C is `matrix_size`, at least 16.

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
        return self.fc2(x).reshape(-1)


class VectorRelation(Float32):
    """Pairs `[P, 2, C]` of vectors to logits `[P]`: three dense layers on the two, one after the other.

    The first two are 1x1 convolutions, because of their initial weights (see `layers.initialize`): with those of
    three dense layers the scores hardly depend on the pair, and training does not get away from there.
    """

    def __init__(self, channels: int, *, hidden: int = 8):
        super().__init__()
        self.fc1 = conv2d(2 * channels, channels, 1)
        self.fc2 = conv2d(channels, hidden, 1)
        self.fc3 = nn.Dense(hidden, 1)

    def construct(self, pairs_P2C: Tensor) -> Tensor:
        num_pairs, _, channels = pairs_P2C.shape
        x = ops.relu(self.fc1(enter(pairs_P2C.reshape((num_pairs, 2 * channels, 1, 1)))))
        x = leave(ops.relu(self.fc2(x)))
        return self.fc3(x.flatten(1)).reshape(-1)


class MapRelation(Float32):
    """Pairs `[P, 2, C, T, H, W]` of feature maps, H and W at least 4, to logits `[P]`.

    Two blocks of 3x3x3 convolution, BatchNorm, ReLU and max pooling by 2 (not over T where that is 1) on the stacked
    channels, then two dense layers. RelationNet flattens what the blocks leave; here its mean over T, H and W is
    taken, so that clips of any length and size fit.
    """

    def __init__(self, channels: int, *, hidden: int = 8, momentum: float = 0.1):
        super().__init__()
        self.conv1 = conv3d(2 * channels, channels, 3, padding=1)
        self.norm1 = BatchNormReLU(channels, momentum=momentum)
        self.conv2 = conv3d(channels, channels, 3, padding=1)
        self.norm2 = BatchNormReLU(channels, momentum=momentum)
        self.halve = MaxPool((2, 2, 2))
        self.halve_space = MaxPool((1, 2, 2))
        self.fc1 = nn.Dense(channels, hidden)
        self.fc2 = nn.Dense(hidden, 1)

    def construct(self, pairs_P2CTHW: Tensor) -> Tensor:
        num_frames = pairs_P2CTHW.shape[3]
        x = self.norm1(self.conv1(enter(pairs_P2CTHW.flatten(1, 2))))
        x = self.halve(x) if num_frames >= 2 else self.halve_space(x)
        x = self.norm2(self.conv2(x))
        x = self.halve(x) if num_frames >= 4 else self.halve_space(x)
        return self.fc2(ops.relu(self.fc1(leave(x).mean(axis=(2, 3, 4))))).reshape(-1)


class Distance(Float32):
    """Pairs `[P, 2, C, ...]` to logits `[P]`: the squared Euclidean distance, negated.

    It is added up over the channels, as in ProtoNet, and averaged over further axes (of maps and matrices), which
    keeps the softmax from saturating where embeddings are large.
    """

    def construct(self, pairs_P2C: Tensor) -> Tensor:
        channels = pairs_P2C.shape[2]
        return -channels * ops.square(pairs_P2C[:, 0] - pairs_P2C[:, 1]).flatten(1).mean(axis=1)


class Cosine(Float32):
    """Pairs `[P, 2, ...]` of embeddings to logits `[P]`: `scale` times the cosine of the angle between them.

    Embeddings of several streams, `[S, 9, C]` each, count by the mean of their cosines.
    """

    def __init__(self, *, scale: float = 10.0):
        super().__init__()
        self.scale = scale

    def construct(self, pairs_P2: Tensor) -> Tensor:
        streams = pairs_P2.shape[2] if pairs_P2.ndim == 5 else 1
        x_P2SD = pairs_P2.reshape((pairs_P2.shape[0], 2, streams, -1))
        x_P2SD = x_P2SD / ops.sqrt((x_P2SD * x_P2SD).sum(axis=3, keepdims=True) + 1e-8)
        return self.scale * (x_P2SD[:, 0] * x_P2SD[:, 1]).sum(axis=2).mean(axis=1)


def pair_up(classes: Tensor, queries: Tensor) -> Tensor:
    """All pairs `[M N, 2, ...]` of embeddings `[N, ...]` and `[M, ...]`, query by query."""
    shape = (queries.shape[0], *classes.shape)
    pairs = ops.stack((classes.expand_dims(0).broadcast_to(shape), queries.expand_dims(1).broadcast_to(shape)), axis=2)
    return pairs.flatten(0, 1)


class Reading(NamedTuple):
    """What the logits `[M, N]` of an episode mean.

    `outputs` turns them into what the loss is computed on, `scores` these into scores in (0, 1), and `knownness` into
    one number a query `[M]` that is the higher the surer the query belongs to one of the N classes.
    """

    outputs: Callable[[Tensor], Tensor]
    scores: Callable[[Tensor], Tensor]
    knownness: Callable[[Tensor], Tensor]


def _unchanged(x: Tensor) -> Tensor:
    return x


def _largest(outputs_MN: Tensor) -> Tensor:
    return outputs_MN.max(axis=1)


def _softmax(logits_MN: Tensor) -> Tensor:
    return ops.softmax(logits_MN, axis=1)


def _expected_probabilities(evidence_MN: Tensor) -> Tensor:
    alpha_MN = evidence_MN + 1.0
    return alpha_MN / alpha_MN.sum(axis=1, keepdims=True)


def _certainty(evidence_MN: Tensor) -> Tensor:
    total_M = evidence_MN.sum(axis=1)
    return total_M / (total_M + evidence_MN.shape[1])


READINGS = {
    # Every pair for itself: a score. A query without a class scores low everywhere.
    "relation": Reading(outputs=ops.sigmoid, scores=_unchanged, knownness=_largest),
    # Classes compete: softmax. Its probabilities sum to one for strangers too, the distance to the nearest tells.
    "distance": Reading(outputs=_unchanged, scores=_softmax, knownness=_largest),
    "cosine": Reading(outputs=_unchanged, scores=_softmax, knownness=_largest),
    # Evidence e for a Dirichlet distribution alpha = e + 1 over the classes (Sensoy et al., NeurIPS 2018); knownness
    # is 1 - u with u = N / sum(alpha). Softplus, because exp must be clipped, and then all well-known queries have the
    # same u, and ReLU has no gradient once its evidence is gone.
    "evidential": Reading(outputs=ops.softplus, scores=_expected_probabilities, knownness=_certainty),
}
