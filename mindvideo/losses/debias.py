# SPDX-License-Identifier: Apache-2.0
"""The loss that joins the branches of DEAR's debiasing head (`models/debias.py`).

G branches of which the first is the unbiased one, B clips, D features, K classes. All branches learn the classes, and
the first should not depend on what the biased others see. How that is said differs:

    joint        -HSIC of the evidence, for all branches: what the paper's models were trained with. It raises the
                 dependence (its eq. 4 and 5 want the first branch to lower it).
    alternating  HSIC of the features; lowered by the first branch in one step, raised by the others in the next.
    minimax      both in every step, by a normalised HSIC that no branch can escape by shrinking its features.
"""

from __future__ import annotations

from mindspore import Tensor, ops

from mindvideo.losses.evidential import clipped_exp, likelihood_loss, one_hot
from mindvideo.losses.hsic import biased_hsic, normalized_hsic, rbf_kernel, unbiased_hsic

OBJECTIVES = ("joint", "alternating", "minimax")
WEIGHT = 0.1  # of the whole loss
HSIC_WEIGHT = 0.5  # of the dependence within it, except in "joint"


def debias_loss(
    features_GBD: Tensor, logits_GBK: Tensor, classes_B: Tensor, objective: str, first_turn: Tensor | float = 1.0
) -> Tensor:
    """The weighted loss, a scalar; ValueError for an objective that is not in `OBJECTIVES`.

    `first_turn`, for "alternating" alone, is 1 in the first branch's steps (DEAR: the odd iterations) and else 0.
    "minimax" adds 0 to the value, and its gradients: see `dependences` of the features for how it goes.
    """
    fits_GB, terms_J = debias_parts(features_GBD, logits_GBK, classes_B, objective, first_turn)
    return fits_GB.mean(axis=1).sum() + terms_J.sum()


def debias_parts(
    features_GBD: Tensor, logits_GBK: Tensor, classes_B: Tensor, objective: str, first_turn: Tensor | float = 1.0
) -> tuple[Tensor, Tensor]:
    """The same as the losses `[G, B]` of every branch's evidence and the terms `[G - 1]` of its dependences."""
    if objective not in OBJECTIVES:
        raise ValueError(f"objective {objective!r} of debiasing is none of {OBJECTIVES}")
    alpha_GBK, target_BK = clipped_exp(logits_GBK) + 1.0, one_hot(classes_B, logits_GBK.shape[2])
    num_branches = logits_GBK.shape[0]
    fits = [likelihood_loss(alpha_GBK[g], target_BK) for g in range(num_branches)]
    if objective == "joint":
        terms = [_joint(alpha_GBK[0], alpha_GBK[g]) for g in range(1, num_branches)]
    elif objective == "alternating":
        terms = [_alternating(features_GBD[0], features_GBD[g], first_turn) for g in range(1, num_branches)]
    else:
        terms = [_minimax(features_GBD[0], features_GBD[g]) for g in range(1, num_branches)]
    return WEIGHT * ops.stack(fits), WEIGHT * ops.stack(terms)


def dependences(features_GBD: Tensor) -> Tensor:
    """Normalised HSIC `[G - 1]` of the first branch's features and each other's; to log, without gradient."""
    features_GBD = ops.stop_gradient(features_GBD)
    return ops.stack([normalized_hsic(features_GBD[0], features_GBD[g]) for g in range(1, features_GBD.shape[0])])


def _joint(first_BK: Tensor, other_BK: Tensor) -> Tensor:
    return -biased_hsic(rbf_kernel(first_BK), rbf_kernel(other_BK))


def _alternating(first_BD: Tensor, other_BD: Tensor, first_turn: Tensor | float) -> Tensor:
    kernel_BB, other_BB = rbf_kernel(first_BD), rbf_kernel(other_BD)
    lowered = unbiased_hsic(kernel_BB, ops.stop_gradient(other_BB), scaled=False)
    raised = unbiased_hsic(ops.stop_gradient(kernel_BB), other_BB, scaled=False)
    return HSIC_WEIGHT * (first_turn * lowered - (1.0 - first_turn) * raised)


def _minimax(first_BD: Tensor, other_BD: Tensor) -> Tensor:
    lowered = normalized_hsic(first_BD, ops.stop_gradient(other_BD))
    raised = normalized_hsic(ops.stop_gradient(first_BD), other_BD)
    return HSIC_WEIGHT * (lowered - raised)
