# SPDX-License-Identifier: Apache-2.0
"""Losses of episodes. M queries, N classes of the episode, B clips, L training classes."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, ops


def relation_loss(scores_MN: Tensor, target_MN: Tensor) -> Tensor:
    """ARN's main loss (eq. 4): the mean squared error of scores in (0, 1) against one-hot targets.

    The paper writes a sum over pairs; its authors' code takes the mean, which keeps the loss comparable across
    episode sizes. With five classes a constant score of 0.2 gives 0.16.
    """
    return ops.square(scores_MN - target_MN).mean()


def classification_loss(logits_BL: Tensor, classes_B: Tensor) -> Tensor:
    """Mean softmax cross-entropy against class numbers.

    Written out because the sum of MindSpore's own is not the same from run to run on a CPU.
    """
    chosen_BL = ops.one_hot(classes_B, logits_BL.shape[1], Tensor(1.0, ms.float32), Tensor(0.0, ms.float32))
    return -(ops.log_softmax(logits_BL, axis=1) * chosen_BL).sum(axis=1).mean()
