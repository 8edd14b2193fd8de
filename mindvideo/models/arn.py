# SPDX-License-Identifier: Apache-2.0
"""ARN: few-shot action recognition with permutation-invariant attention, and the baselines that it is compared with.

Zhang, Zhang, Qi, Li, Torr, Koniusz, ECCV 2020 (arXiv 2001.03905v3). Equation numbers are that paper's.

    clip V -> encoder f -> Phi -> attention -> pooling g -> Psi -> pair with each class -> comparator r -> score

B clips, N classes of an episode (way), K support clips a class (shot), M query clips, C channels, T frames,
H height, W width. Three points follow the authors' evaluation code, because the paper is silent or misprints them: the
autocorrelation is divided by its trace before power normalisation, eq. 5 is used as tanh(sigma x / 2), and the
attention maps are sigmoids.
"""

from __future__ import annotations

from collections.abc import Collection

from mindspore import Tensor, nn, ops

from mindvideo.errors import InputError
from mindvideo.models.c3d import Conv4Encoder
from mindvideo.models.layers import BatchNormReLU, Float32, MaxPool, conv3d, enter, leave
from mindvideo.models.registry import register
from mindvideo.models.relation import READINGS, Cosine, Distance, MapRelation, MatrixRelation, VectorRelation, pair_up

ATTENTION = ("none", "spatial", "temporal", "both")
POOLINGS = ("none", "average", "average_pn", "max", "second_order", "second_order_pn", "grid")
INPUTS = ("frames", "differences")
SHOTS = ("mean", "max")


class SpatialAttention(nn.Cell):
    """The spatial unit (Fig. 3): features `[B, C, T, H, W]` to a sigmoid map S `[B, 1, 1, H, W]`.

    Two poolings shorten T fourfold; time steps left after them (T > 7) are reduced by their maximum, so any clip
    length gives one map.
    """

    def __init__(self, channels: int, *, hidden: int = 16, momentum: float = 0.1):
        super().__init__()
        self.conv1, self.norm1, self.conv2, self.norm2, self.conv3 = _unit_layers(channels, hidden, momentum)
        self.halve_time = MaxPool((2, 1, 1))

    def logits(self, phi_BCTHW: Tensor) -> Tensor:
        """The map before its sigmoid."""
        num_frames = phi_BCTHW.shape[2]
        x = self.norm1(self.conv1(enter(phi_BCTHW)))
        x = self.halve_time(x) if num_frames >= 2 else x
        x = self.norm2(self.conv2(x))
        x = self.halve_time(x) if num_frames >= 4 else x
        return leave(self.conv3(enter(leave(x).max(axis=2, keepdims=True))))

    def construct(self, phi_BCTHW: Tensor) -> Tensor:
        return ops.sigmoid(self.logits(phi_BCTHW))


class TemporalAttention(nn.Cell):
    """The temporal unit (Fig. 3): features `[B, C, T, H, W]` to a sigmoid map T `[B, 1, T, 1, 1]`.

    A 4x4 pooling (skipped where H or W is less) and later the maximum over what is left of H and W: for the paper's
    32x32 features the latter is the authors' 8x8 pooling, and any other size gives one map too.
    """

    def __init__(self, channels: int, *, hidden: int = 16, momentum: float = 0.1):
        super().__init__()
        self.conv1, self.norm1, self.conv2, self.norm2, self.conv3 = _unit_layers(channels, hidden, momentum)
        self.shrink = MaxPool((1, 4, 4))

    def logits(self, phi_BCTHW: Tensor) -> Tensor:
        """The map before its sigmoid."""
        x = self.norm1(self.conv1(enter(phi_BCTHW)))
        x = self.shrink(x) if min(phi_BCTHW.shape[3:]) >= 4 else x
        x = self.norm2(self.conv2(x))
        return leave(self.conv3(enter(leave(x).max(axis=(3, 4), keepdims=True))))

    def construct(self, phi_BCTHW: Tensor) -> Tensor:
        return ops.sigmoid(self.logits(phi_BCTHW))


def _unit_layers(channels: int, hidden: int, momentum: float) -> tuple[nn.Cell, ...]:
    """What both attention units are made of but for their poolings."""
    return (
        conv3d(channels, hidden, 3, padding=1),
        BatchNormReLU(hidden, momentum=momentum),
        conv3d(hidden, hidden, 3, padding=1),
        BatchNormReLU(hidden, momentum=momentum),
        conv3d(hidden, 1, 1),
    )


def _unchanged(phi_BCTHW: Tensor) -> Tensor:
    return phi_BCTHW


def _average(phi_BCTHW: Tensor) -> Tensor:
    return phi_BCTHW.mean(axis=(2, 3, 4))


def _maximum(phi_BCTHW: Tensor) -> Tensor:
    return phi_BCTHW.max(axis=(2, 3, 4))


def _grid(phi_BCTHW: Tensor) -> Tensor:
    """Averages `[B, 9, C]` over time in the cells of a 3x3 grid, row by row; H and W are at least 3."""
    phi_BCHW = phi_BCTHW.mean(axis=2)
    height, width = phi_BCHW.shape[2:]
    cells = []
    for i in range(3):
        row = phi_BCHW[:, :, height * i // 3 : height * (i + 1) // 3]
        for j in range(3):
            cells.append(row[..., width * j // 3 : width * (j + 1) // 3].mean(axis=(2, 3)))
    return ops.stack(cells, axis=1)


def _autocorrelation(phi_BCTHW: Tensor) -> Tensor:
    """A / trace(A) `[B, C, C]` with A = Phi Phi^T / (T H W) (eq. 3); all-zero features give a zero matrix."""
    phi_BCN = phi_BCTHW.flatten(2)
    autocorr_BCC = ops.bmm(phi_BCN, phi_BCN.swapaxes(1, 2)) / phi_BCN.shape[2]
    # trace(Phi Phi^T) is the squared norm; written so, its gradient needs no scatter.
    trace_B11 = (phi_BCN * phi_BCN).sum(axis=(1, 2), keepdims=True) / phi_BCN.shape[2]
    return autocorr_BCC / ops.clamp(trace_B11, min=1e-20)


def power_normalize(x: Tensor, sigma: float) -> Tensor:
    """tanh(sigma x / 2) for each element.

    Written with expm1, which on a CPU is off by 1e-7; MindSpore's tanh is by up to 1e-4, its exp and sigmoid by up to
    1e-6, and batch norms behind them make a hundred times as much of it in the gradients.
    """
    y = ops.expm1(ops.clamp(-sigma * x, max=40.0))  # the bound, where tanh is -1 already, keeps y finite
    return -y / (y + 2.0)


_REDUCTIONS = {
    "none": _unchanged,
    "average": _average,
    "max": _maximum,
    "second_order": _autocorrelation,
    "grid": _grid,
}


class Pooling(Float32):
    """Features `[B, C, T, H, W]` to the embedding Psi: as they are, or `[B, C]`, or `[B, C, C]` (Table 5).

    "grid", which is not the paper's, keeps roughly where things are: the averages of nine cells, `[B, 9, C]`.
    `kind` is one of `POOLINGS`; "_pn" ends in power normalisation, eta(x) = tanh(sigma x / 2) for each element (eq. 5).
    The matrices' entries are about 1 / C, for which `sigma` is meant; averages are about 1, so that "average_pn" is all
    ones, without gradient, unless `sigma` is about 1 too.
    """

    def __init__(self, kind: str, *, sigma: float = 100.0):
        super().__init__()
        self.reduce = _REDUCTIONS[kind.removesuffix("_pn")]
        self.power_normalized, self.sigma = kind.endswith("_pn"), sigma

    def construct(self, phi_BCTHW: Tensor) -> Tensor:
        psi = self.reduce(phi_BCTHW)
        return power_normalize(psi, self.sigma) if self.power_normalized else psi


class Discriminator(nn.Cell):
    """The self-supervision's classifier d (eq. 9): features `[B, C, T, H, W]` to logits `[B, K]` of augmentations.

    Two blocks of 3x3x3 convolution, BatchNorm, ReLU and max pooling by 2, then two dense layers. An axis of length 1
    is not pooled, so none vanishes. `features_THW` are the extents of the features, which the first dense layer
    depends on.
    """

    def __init__(
        self,
        channels: int,
        features_THW: tuple[int, int, int],
        num_classes: int,
        *,
        hidden: int = 1024,
        momentum: float = 0.1,
    ):
        super().__init__()
        halved_THW = tuple(max(1, extent // 2) for extent in features_THW)
        time, height, width = (max(1, extent // 2) for extent in halved_THW)
        self.conv1 = conv3d(channels, channels, 3, padding=1)
        self.norm1 = BatchNormReLU(channels, momentum=momentum)
        self.pool1 = MaxPool(tuple(min(2, extent) for extent in features_THW))
        self.conv2 = conv3d(channels, channels, 3, padding=1)
        self.norm2 = BatchNormReLU(channels, momentum=momentum)
        self.pool2 = MaxPool(tuple(min(2, extent) for extent in halved_THW))
        self.fc1 = nn.Dense(channels * time * height * width, hidden)
        self.fc2 = nn.Dense(hidden, num_classes)

    def construct(self, phi_BCTHW: Tensor) -> Tensor:
        x = self.pool1(self.norm1(self.conv1(enter(phi_BCTHW))))
        x = leave(self.pool2(self.norm2(self.conv2(x))))
        return self.fc2(ops.relu(self.fc1(x.flatten(1))))


class ARN(nn.Cell):
    """Scores of every query against every class of an episode; any way, shot, clip length and size.

    Support and query are encoded in two calls, support first, so that in training each group has its own
    BatchNorm statistics and the running ones end with the query's (the authors' order); `joint` makes it one call.
    `kind` names the comparator, which decides the loss, and `num_features` is the length of `to_vectors`.
    """

    num_streams = 1

    def __init__(
        self,
        *,
        input: str = "frames",
        width: int = 64,
        attention: str = "spatial",
        alpha_temporal: float = 1.0,
        alpha_spatial: float = 1.0,
        pooling: str = "second_order_pn",
        comparator: str = "relation",
        shots: str = "mean",
        joint: bool = False,
        sigma: float = 100.0,
        momentum: float = 0.1,
    ):
        """`input` says whether the encoder sees the frames or how each differs from the one before, that is motion;
        `width` is the number of feature channels; `attention`, `pooling`, `comparator` and `shots` (how the
        embeddings of a class become one) are among `ATTENTION`, `POOLINGS`, `READINGS` and `SHOTS`, or it is an
        InputError; the alphas are those of eq. 7-8 and serve the units that are there; `sigma` is the slope of power
        normalisation, `momentum` the weight of the newest batch in BatchNorm's running statistics."""
        super().__init__()
        _check("input", input, INPUTS)
        _check("attention", attention, ATTENTION)
        _check("pooling", pooling, POOLINGS)
        _check("comparator", comparator, READINGS)
        _check("shots", shots, SHOTS)
        self.encoder = Conv4Encoder(width=width, momentum=momentum)
        self.alpha_temporal, self.alpha_spatial = alpha_temporal, alpha_spatial
        has_temporal, has_spatial = attention in ("temporal", "both"), attention in ("spatial", "both")
        self.temporal_attention = TemporalAttention(width, momentum=momentum) if has_temporal else None
        self.spatial_attention = SpatialAttention(width, momentum=momentum) if has_spatial else None
        self.pooling = Pooling(pooling, sigma=sigma)
        self.comparator = _make_comparator(comparator, pooling, width, momentum)
        self.takes_differences = input == "differences"
        self.take_maximum, self.joint, self.kind = shots == "max", joint, comparator
        self.to_outputs, self.to_scores, self.to_knownness = READINGS[comparator]
        self.num_features = width * width if pooling.startswith("second_order") else width
        self.averages_cells = pooling == "grid"

    def features(self, clips_BCTHW: Tensor) -> Tensor:
        """Clips to features Phi `[B, C, T', H', W']`."""
        return self.encoder(differences(clips_BCTHW) if self.takes_differences else clips_BCTHW)

    def attend(self, phi_BCTHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Phi* (eq. 7-8), the temporal map `[B, 1, T, 1, 1]` and the spatial map `[B, 1, 1, H, W]`.

        Phi* = (alpha_t + T) (alpha_s + S) Phi. Where a unit is absent its factor is 1 and its map all ones.
        """
        num_clips, _, frames, height, width = phi_BCTHW.shape
        temporal, spatial = ops.ones((num_clips, 1, frames, 1, 1)), ops.ones((num_clips, 1, 1, height, width))
        weighted = phi_BCTHW
        if self.temporal_attention is not None:
            temporal = self.temporal_attention(phi_BCTHW)
            weighted = (self.alpha_temporal + temporal) * weighted
        if self.spatial_attention is not None:
            spatial = self.spatial_attention(phi_BCTHW)
            weighted = (self.alpha_spatial + spatial) * weighted
        return weighted, temporal, spatial

    def encode_with_maps(self, clips_BCTHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Clips to embeddings Psi `[B, ...]` and the two maps of `attend`."""
        weighted, temporal, spatial = self.attend(self.features(clips_BCTHW))
        return self.pooling(weighted), temporal, spatial

    def encode(self, clips_BCTHW: Tensor) -> Tensor:
        """Clips to embeddings Psi: `[B, C, C]`, `[B, C]` or `[B, C, T, H, W]`, as the pooling is."""
        return self.encode_with_maps(clips_BCTHW)[0]

    def encode_episode_with_maps(
        self, support_NKCTHW: Tensor, query_MCTHW: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Embeddings of the support `[N, K, ...]` and of the queries `[M, ...]`, and the two maps of all these clips,
        the support's first."""
        way, shot = support_NKCTHW.shape[:2]
        support = support_NKCTHW.flatten(0, 1)
        if self.joint:
            psi, temporal, spatial = self.encode_with_maps(ops.cat((support, query_MCTHW)))
            support_psi, query_psi = psi[: way * shot], psi[way * shot :]
        else:
            support_psi, support_temporal, support_spatial = self.encode_with_maps(support)
            query_psi, query_temporal, query_spatial = self.encode_with_maps(query_MCTHW)
            temporal = ops.cat((support_temporal, query_temporal))
            spatial = ops.cat((support_spatial, query_spatial))
        return support_psi.reshape((way, shot, *support_psi.shape[1:])), query_psi, temporal, spatial

    def encode_episode(self, support_NKCTHW: Tensor, query_MCTHW: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of the support `[N, K, ...]` and of the queries `[M, ...]`."""
        return self.encode_episode_with_maps(support_NKCTHW, query_MCTHW)[:2]

    def relate(self, support_NK: Tensor, query_M: Tensor) -> Tensor:
        """The comparator's outputs `[M, N]` for embedded queries and classes, which the loss is computed on.

        Each class is the mean or maximum of its K embeddings (eq. 1). `scores` and `knownness` read the outputs.
        """
        classes_N = support_NK.max(axis=1) if self.take_maximum else support_NK.mean(axis=1)
        logits = self.comparator(pair_up(classes_N, query_M))
        return self.to_outputs(logits.reshape((query_M.shape[0], classes_N.shape[0])))

    def scores(self, outputs_MN: Tensor) -> Tensor:
        """Scores `[M, N]` in (0, 1); the highest names the class."""
        return self.to_scores(outputs_MN)

    def knownness(self, outputs_MN: Tensor) -> Tensor:
        """One number a query `[M]`, the higher the surer it belongs to one of the classes at all."""
        return self.to_knownness(outputs_MN)

    def compare(self, support_NK: Tensor, query_M: Tensor) -> Tensor:
        """Scores `[M, N]` of embedded queries against embedded classes."""
        return self.scores(self.relate(support_NK, query_M))

    def to_vectors(self, psi_B: Tensor) -> Tensor:
        """Embeddings as vectors `[B, 1, num_features]` for a linear classifier of each stream, here one: maps and
        cells averaged, matrices flattened."""
        if psi_B.ndim == 5:
            return psi_B.mean(axis=(2, 3, 4)).expand_dims(1)
        if self.averages_cells:
            return psi_B.mean(axis=1, keepdims=True)
        return psi_B.flatten(1).expand_dims(1)

    def construct(self, support_NKCTHW: Tensor, query_MCTHW: Tensor) -> Tensor:
        support_NK, query_M = self.encode_episode(support_NKCTHW, query_MCTHW)
        return self.compare(support_NK, query_M)


def _check(option: str, value: str, allowed: Collection[str]) -> None:
    if value not in allowed:
        raise InputError(f"model option {option} is {value!r}; it must be one of {', '.join(allowed)}.")


def differences(clips_BCTHW: Tensor) -> Tensor:
    """Each frame but the first less the one before it: `[B, C, T - 1, H, W]`."""
    return clips_BCTHW[:, :, 1:] - clips_BCTHW[:, :, :-1]


def _make_comparator(comparator: str, pooling: str, width: int, momentum: float) -> nn.Cell:
    """The network for the embeddings that `pooling` gives."""
    if comparator in ("distance", "cosine"):
        return Distance() if comparator == "distance" else Cosine()
    if pooling == "none":
        return MapRelation(width, momentum=momentum)
    if pooling == "grid":
        raise InputError(
            f"model option pooling is grid; that goes with comparator distance or cosine, not {comparator}."
        )
    if not pooling.startswith("second_order"):
        return VectorRelation(width)
    if width < 16:
        raise InputError(f"model option width is {width}; matrices are compared from width 16 on.")
    return MatrixRelation(width, width=width, momentum=momentum)


@register
def arn(
    *,
    input: str = "frames",
    width: int = 64,
    attention: str = "spatial",
    alpha_temporal: float = 1.0,
    alpha_spatial: float = 1.0,
    pooling: str = "second_order_pn",
    comparator: str = "relation",
    shots: str = "mean",
    joint: bool = False,
    sigma: float = 100.0,
    momentum: float = 0.1,
) -> ARN:
    """ARN with the Conv-4-64 encoder; with the default options it has the spatial attention unit."""
    return ARN(
        input=input, width=width, attention=attention, alpha_temporal=alpha_temporal, alpha_spatial=alpha_spatial,
        pooling=pooling, comparator=comparator, shots=shots, joint=joint, sigma=sigma, momentum=momentum,
    )  # fmt: skip


@register
def sosn(
    *, width: int = 64, shots: str = "mean", joint: bool = False, sigma: float = 100.0, momentum: float = 0.1
) -> ARN:
    """SoSN on Conv-4-64: ARN without attention."""
    return ARN(width=width, attention="none", shots=shots, joint=joint, sigma=sigma, momentum=momentum)


@register
def relationnet(*, width: int = 64, shots: str = "mean", joint: bool = False, momentum: float = 0.1) -> ARN:
    """RelationNet on Conv-4-64: feature maps compared by convolutions."""
    return ARN(width=width, attention="none", pooling="none", shots=shots, joint=joint, momentum=momentum)


@register
def protonet(*, width: int = 64, shots: str = "mean", joint: bool = False, momentum: float = 0.1) -> ARN:
    """ProtoNet on Conv-4-64: the nearest class mean of averaged features.

    Snell et al. flatten the feature maps; their average is smaller and the same for clips of any size.
    """
    return ARN(
        width=width, attention="none", pooling="average", comparator="distance", shots=shots, joint=joint,
        momentum=momentum,
    )  # fmt: skip
