# SPDX-License-Identifier: Apache-2.0
"""Losses of episodes. M queries, N classes of the episode."""

from __future__ import annotations

from mindspore import Tensor, ops


def relation_loss(scores_MN: Tensor, target_MN: Tensor) -> Tensor:
    """ARN's main loss (eq. 4): the mean squared error of scores in (0, 1) against one-hot targets.

    The paper writes a sum over pairs; its authors' code takes the mean, which keeps the loss comparable across
    episode sizes. With five classes a constant score of 0.2 gives 0.16.
    """
    return ops.square(scores_MN - target_MN).mean()
