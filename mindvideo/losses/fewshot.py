# SPDX-License-Identifier: Apache-2.0
"""Losses of episodes. M queries, N classes of the episode, B clips, L training classes.

Targets `[M, N]` are one-hot; the row of a query that belongs to none of the classes is all zero.
"""

from __future__ import annotations

from mindspore import Tensor, ops

from mindvideo.losses import evidential
from mindvideo.losses.evidential import likelihood_loss, one_hot, wrong_evidence


def episode_loss(comparator: str, outputs_MN: Tensor, target_MN: Tensor, annealing: Tensor | float = 1.0) -> Tensor:
    """The loss that goes with the outputs of a "relation", "distance", "cosine" or "evidential" comparator.

    `annealing` in [0, 1] serves the last alone: see `evidential_loss` and `annealing_weight`.
    """
    if comparator == "relation":
        return relation_loss(outputs_MN, target_MN)
    if comparator in ("distance", "cosine"):
        return prototype_loss(outputs_MN, target_MN)
    return evidential_loss(outputs_MN, target_MN, annealing)


def relation_loss(scores_MN: Tensor, target_MN: Tensor) -> Tensor:
    """ARN's main loss (eq. 4): the mean squared error of scores in (0, 1) against the targets.

    The paper writes a sum over pairs; its authors' code takes the mean, which keeps the loss comparable across
    episode sizes. With five classes a constant score of 0.2 gives 0.16.
    """
    return ops.square(scores_MN - target_MN).mean()


def prototype_loss(logits_MN: Tensor, target_MN: Tensor) -> Tensor:
    """Softmax cross-entropy (Snell et al., NeurIPS 2017), the mean over the queries that have a class.

    Written out because the sum of MindSpore's own is not the same from run to run on a CPU.
    """
    each_M = -(ops.log_softmax(logits_MN, axis=1) * target_MN).sum(axis=1)
    return each_M.sum() / ops.clamp(target_MN.sum(), min=1.0)


def evidential_loss(evidence_MN: Tensor, target_MN: Tensor, annealing: Tensor | float) -> Tensor:
    """Evidence >= 0 as a Dirichlet distribution alpha = e + 1 (Sensoy et al., NeurIPS 2018), the mean over queries.

    A query pays ln S - ln alpha of its own class, S being the sum of its alphas, and `annealing` times the divergence
    from the uniform distribution of its evidence for all other classes; without a class of its own it pays only for
    evidence, whichever it is.
    """
    alpha_MN = evidence_MN + 1.0
    return (likelihood_loss(alpha_MN, target_MN) + annealing * wrong_evidence(alpha_MN, target_MN)).mean()


def annealing_weight(progress: float) -> float:
    """The weight of wrong evidence when the share `progress` of the training is done: 0.01 rises to 1 exponentially."""
    return evidential.annealing_weight("exp", progress, 1.0)


def classification_loss(logits_BL: Tensor, classes_B: Tensor) -> Tensor:
    """Mean softmax cross-entropy against class numbers."""
    return prototype_loss(logits_BL, one_hot(classes_B, logits_BL.shape[1]))
