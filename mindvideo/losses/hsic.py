# SPDX-License-Identifier: Apache-2.0
"""The Hilbert-Schmidt independence criterion: how much two descriptions of the same clips depend on each other.

N clips, D features. The estimators take the kernels `[N, N]` of the two descriptions. With fewer than four clips they
give 0, as the unbiased one does not exist there.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, ops

MIN_CLIPS = 4


def rbf_kernel(x_ND: Tensor, variance: Tensor | float | None = None) -> Tensor:
    """exp(-|x_i - x_j|^2 / (2 variance)) - 1 `[N, N]`; DEAR's variance is D, which is what None means.

    No estimator sees the constant, and without it float32 keeps the digits of kernels that are nearly 1 everywhere, as
    DEAR's are.
    """
    return ops.expm1(-_squared_distances(x_ND) / (2.0 * (x_ND.shape[1] if variance is None else variance)))


def median_variance(x_ND: Tensor) -> Tensor:
    """The median squared distance of two different clips, a constant: so wide an RBF kernel that it sees all scales.

    Of an even number of distances it is the upper of the middle two; never 0.
    """
    num_clips = x_ND.shape[0]
    # Of the sorted entries the first N are the diagonal's zeros, and every pair follows twice.
    sorted_NN, _ = ops.sort(ops.stop_gradient(_squared_distances(x_ND)).reshape(-1))
    return ops.clamp(sorted_NN[num_clips + num_clips * (num_clips - 1) // 2], min=1e-12)


def biased_hsic(kernel_NN: Tensor, other_NN: Tensor) -> Tensor:
    """tr(K H L H) / (N - 1)^2 (Gretton et al., ALT 2005); never negative."""
    num_clips = kernel_NN.shape[0]
    if num_clips < MIN_CLIPS:
        return ops.zeros((), ms.float32)
    centred_NN = kernel_NN - kernel_NN.mean(axis=0, keep_dims=True)
    other_centred_NN = other_NN - other_NN.mean(axis=1, keep_dims=True)
    return (centred_NN * other_centred_NN).sum() / (num_clips - 1) ** 2


def unbiased_hsic(kernel_NN: Tensor, other_NN: Tensor, *, scaled: bool = True) -> Tensor:
    """Song et al., JMLR 2012; negative about as often as positive where there is no dependence.

    Not `scaled`, it lacks the factor 1 / (N (N - 3)), as DEAR's alternating debiasing does.
    """
    num_clips = kernel_NN.shape[0]
    if num_clips < MIN_CLIPS:
        return ops.zeros((), ms.float32)
    hsic = (_u_centred(kernel_NN) * _u_centred(other_NN)).sum()
    return hsic / (num_clips * (num_clips - 3)) if scaled else hsic


def normalized_hsic(x_ND: Tensor, y_NE: Tensor) -> Tensor:
    """HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)) in [0, 1], biased, with RBF kernels of the median width.

    It is the same for features of any scale, so that dependence cannot be feigned or hidden by shrinking them
    (centred kernel alignment: Cortes et al., JMLR 2012).
    """
    if x_ND.shape[0] < MIN_CLIPS:
        return ops.zeros((), ms.float32)
    kernel_NN = rbf_kernel(x_ND, median_variance(x_ND))
    other_NN = rbf_kernel(y_NE, median_variance(y_NE))
    own = biased_hsic(kernel_NN, kernel_NN) * biased_hsic(other_NN, other_NN)
    return biased_hsic(kernel_NN, other_NN) / ops.sqrt(own + 1e-12)


def _u_centred(kernel_NN: Tensor) -> Tensor:
    """The kernel with a diagonal of 0 and rows and columns that sum to 0 (Szekely and Rizzo, Ann. Stat. 2014):
    Song's estimator is the sum of products of two such, which keeps the digits that cancel in its own form."""
    num_clips = kernel_NN.shape[0]
    off_diagonal_NN = 1.0 - ops.eye(num_clips, num_clips, ms.float32)
    kernel_NN = kernel_NN * off_diagonal_NN
    rows_N1 = kernel_NN.sum(axis=1, keepdims=True) / (num_clips - 2)
    return (kernel_NN - rows_N1 - rows_N1.T + rows_N1.sum() / (num_clips - 1)) * off_diagonal_NN


def _squared_distances(x_ND: Tensor) -> Tensor:
    """`[N, N]`, by differences: squares of large evidence would lose them."""
    return ops.square(x_ND.expand_dims(0) - x_ND.expand_dims(1)).sum(axis=2)
