# SPDX-License-Identifier: Apache-2.0
"""What turns pooled features into logits. A head knows no backbone and no loss.

Features are `vectors_BSC`: B clips, S segments whose logits are averaged (1 for networks in three dimensions, the
frames for two), C features; K classes. `construct(vectors_BSC)` gives logits `[B, K]`, `sample(vectors_BSC, seed)` the
ones of a pass that is random by a uint32 scalar. For training there is `outputs(vectors_BSC, classes_B, seed)`: logits,
and what is to be added to the loss as it is, 0 for most heads. The logits are linear in the features (the Euclidean
ones are meant for one segment), so the segments are averaged before.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from functools import partial

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, Uniform, initializer

from mindvideo.errors import InputError
from mindvideo.noise import Dropout, StandardNormal

INITIAL_STD = 0.01
STREAM = 0  # of the heads' random numbers; they take 0 to 2, training heads others


class LinearHead(nn.Cell):
    """Dropout, then a dense layer, initially N(0, 0.01^2) and bias 0 (DEAR: TSM's N(0, 0.001^2)).

    It is the evidential head too: what makes its logits evidence are the loss and the scores.
    """

    def __init__(self, num_features: int, num_classes: int, *, dropout: float = 0.5):
        super().__init__()
        self.dropout = Dropout(dropout, STREAM)
        self.fc = nn.Dense(num_features, num_classes, weight_init=Normal(INITIAL_STD), bias_init="zeros")

    def construct(self, vectors_BSC: Tensor) -> Tensor:
        return self.sample(vectors_BSC)

    def sample(self, vectors_BSC: Tensor, seed: Tensor | None = None) -> Tensor:
        """Logits with dropout (Monte Carlo dropout: Gal and Ghahramani, ICML 2016)."""
        return self.fc(self.dropout(vectors_BSC, seed).mean(axis=1))

    def outputs(self, vectors_BSC: Tensor, classes_B: Tensor, seed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits and 0; the classes are not needed."""
        return self.sample(vectors_BSC, seed), ops.zeros((), ms.float32)


class BayesianHead(nn.Cell):
    """A dense layer whose weights are normally distributed, w = mu + ln(1 + exp(rho)) eps: Bayes by Backprop (Blundell
    et al., ICML 2015) with DEAR's numbers.

    mu is initially U(-0.2, 0.2), rho U(-5, -4), and `log_prior` the prior. eps comes from the seed; that of `construct`
    is always the same. P draws.

    Args:
        draws: how many `construct` averages, besides the one with all weights at mu; DEAR's 10. What measures the
            spread of the draws (BALD) must use `sample`: a mean with the one at mu has half of it.
        train_draws: how many `outputs` averages.
        complexity: weight of the divergence from the prior; DEAR's, not one over the number of batches.
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        dropout: float = 0.0,
        draws: int = 10,
        train_draws: int = 2,
        complexity: float = 1e-6,
    ):
        super().__init__()
        self.dropout, self.normal = Dropout(dropout, STREAM), StandardNormal(STREAM + 1)
        self.test_seed = Tensor(0, ms.uint32)
        weight_shape, bias_shape = (num_classes, num_features), (num_classes,)
        self.weight_mu = Parameter(initializer(Uniform(0.2), weight_shape))
        self.weight_rho = Parameter(initializer(Uniform(0.5), weight_shape).init_data() - 4.5)
        self.bias_mu = Parameter(initializer(Uniform(0.2), bias_shape))
        self.bias_rho = Parameter(initializer(Uniform(0.5), bias_shape).init_data() - 4.5)
        self.draws, self.train_draws, self.complexity = draws, train_draws, complexity

    def construct(self, vectors_BSC: Tensor) -> Tensor:
        drawn_PKD = self._noise(self.test_seed, self.draws)
        noise_PKD = ops.cat((drawn_PKD, ops.zeros_like(drawn_PKD[:1])))
        return self.logits_of(vectors_BSC, noise_PKD).mean(axis=0)

    def sample(self, vectors_BSC: Tensor, seed: Tensor) -> Tensor:
        """Logits of one draw of the weights."""
        return self.logits_of(vectors_BSC, self._noise(seed, 1)).squeeze(0)

    def outputs(self, vectors_BSC: Tensor, classes_B: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and the weighted divergence from the prior; the classes are not needed."""
        noise_PKD = self._noise(seed, self.train_draws)
        return self.logits_of(vectors_BSC, noise_PKD, seed).mean(axis=0), self.penalty_of(noise_PKD)

    def logits_of(self, vectors_BSC: Tensor, noise_PKD: Tensor, seed: Tensor | None = None) -> Tensor:
        """Logits `[P, B, K]` with these eps, and dropout by the seed; D is C + 1, the last column is the bias's."""
        x_BC = self.dropout(vectors_BSC, seed).mean(axis=1)
        weight_PKC, bias_PK = self._weights(noise_PKD)
        return ops.matmul(x_BC, weight_PKC.swapaxes(1, 2)) + bias_PK.expand_dims(1)

    def penalty_of(self, noise_PKD: Tensor) -> Tensor:
        """The weighted divergence ln q - ln p of the weights with these eps, summed over the layer, mean over P."""
        weight_PKC, bias_PK = self._weights(noise_PKD)
        posterior = log_posterior(self.weight_rho, noise_PKD[..., :-1]) + log_posterior(
            self.bias_rho, noise_PKD[..., -1]
        )
        prior = log_prior(weight_PKC) + log_prior(bias_PK)
        return self.complexity * (posterior - prior) / noise_PKD.shape[0]

    def _noise(self, seed: Tensor, draws: int) -> Tensor:
        num_classes, num_features = self.weight_mu.shape
        return self.normal(seed, (draws, num_classes, num_features + 1))

    def _weights(self, noise_PKD: Tensor) -> tuple[Tensor, Tensor]:
        weight_PKC = self.weight_mu + ops.softplus(self.weight_rho) * noise_PKD[..., :-1]
        return weight_PKC, self.bias_mu + ops.softplus(self.bias_rho) * noise_PKD[..., -1]


def log_posterior(rho: Tensor, noise: Tensor) -> Tensor:
    """Logarithm of the density, summed over all, of mu + ln(1 + exp(rho)) eps drawn with `noise` as eps."""
    return -(0.5 * ops.square(noise) + ops.log(ops.softplus(rho)) + 0.5 * math.log(2 * math.pi)).sum()


def log_prior(weights: Tensor) -> Tensor:
    """Logarithm of the density 0.5 N(0, 1) + 0.5 N(0, e^-12), standard deviation e^-6, summed over all.

    The two are added as logarithms: as densities both vanish beyond 13 standard deviations, and DEAR's logarithm with
    them.
    """
    wide = -0.5 * ops.square(weights)
    narrow = 6.0 - 0.5 * math.exp(12.0) * ops.square(weights)
    joined = ops.maximum(wide, narrow) + ops.log1p(ops.exp(-ops.abs(wide - narrow)))
    return (joined - math.log(2.0) - 0.5 * math.log(2 * math.pi)).sum()


class ReciprocalHead(nn.Cell):
    """Logits by the distance from a learnt point of each class: reciprocal points, which a clip of the class is far
    from (RPL, Chen et al., ECCV 2020), or prototypes, which it is near (GCPL, Yang et al., CVPR 2018).

    `euclidean` is their authors' way: the squared distance, a mean over the features. DEAR takes the scalar product
    for the distance, which makes linear classifiers of both, and in RPL shrinks the features instead of bounding their
    distance. The penalty, weighted by 0.1, is

        RPL, DEAR's    mean((f - R)^2) / 2                   with a learnt number R, 0 at first
        RPL            mean over clips of (|f - c_y|^2 / C - R)^2
        GCPL, both     mean((f - c_y)^2) / 2
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        prototypes: bool = False,
        euclidean: bool = False,
        dropout: float = 0.5,
    ):
        super().__init__()
        self.prototypes, self.euclidean = prototypes, euclidean
        self.dropout = Dropout(dropout, STREAM)
        self.centers = Parameter(initializer(Normal(INITIAL_STD), (num_classes, num_features)))
        self.radius = None if prototypes else Parameter(initializer("zeros", (1,)))

    def construct(self, vectors_BSC: Tensor) -> Tensor:
        return self.sample(vectors_BSC)

    def sample(self, vectors_BSC: Tensor, seed: Tensor | None = None) -> Tensor:
        """Logits with dropout."""
        return self._logits(self.dropout(vectors_BSC, seed).mean(axis=1))

    def outputs(self, vectors_BSC: Tensor, classes_B: Tensor, seed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits and the weighted penalty."""
        features_BC = self.dropout(vectors_BSC, seed).mean(axis=1)
        return self._logits(features_BC), 0.1 * self._penalty(features_BC, classes_B)

    def _logits(self, features_BC: Tensor) -> Tensor:
        if self.euclidean:
            distance_BK = ops.square(features_BC.expand_dims(1) - self.centers).mean(axis=2)
        else:
            distance_BK = ops.matmul(features_BC, self.centers.T)
        return -distance_BK if self.prototypes else distance_BK

    def _penalty(self, features_BC: Tensor, classes_B: Tensor) -> Tensor:
        if self.radius is not None and not self.euclidean:
            return 0.5 * ops.square(features_BC - self.radius).mean()
        squares_BC = ops.square(features_BC - ops.gather(self.centers, classes_B, 0))
        if self.radius is None:
            return 0.5 * squares_BC.mean()
        return ops.square(squares_BC.mean(axis=1) - self.radius).mean()


HEADS: dict[str, Callable[..., nn.Cell]] = {
    "linear": LinearHead,
    "evidential": LinearHead,
    "bayesian": BayesianHead,
    "rpl": ReciprocalHead,
    "gcpl": partial(ReciprocalHead, prototypes=True),
    "rpl_euclidean": partial(ReciprocalHead, euclidean=True),
    "gcpl_euclidean": partial(ReciprocalHead, prototypes=True, euclidean=True),
}


def make_head(kind: str, num_features: int, num_classes: int, **options: float) -> nn.Cell:
    """A head of a kind in `HEADS`, with the options of its class (`dropout`, ...); InputError for another kind."""
    if kind not in HEADS:
        close = difflib.get_close_matches(kind, HEADS, n=1)
        hint = f", did you mean {close[0]!r}?" if close else "."
        raise InputError(f"unknown head {kind!r}{hint} Known: {', '.join(HEADS)}.")
    return HEADS[kind](num_features, num_classes, **options)
