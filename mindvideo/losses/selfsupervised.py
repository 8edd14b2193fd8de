# SPDX-License-Identifier: Apache-2.0
"""ARN's loss between the attention of a clip and of its augmentation. B clips, L entries of a flat attention map."""

from __future__ import annotations

from mindspore import Tensor, ops


def alignment_loss(map_BL: Tensor, augmented_BL: Tensor, order_BL: Tensor, strictness: float) -> Tensor:
    """Attention by alignment (arXiv 2001.03905v3, eq. 14), with gradients for both maps.

    `map_BL` is the attention of the clips, `augmented_BL` that of the augmented clips; `order_BL`, int32, moves the
    first as the clips were moved: entry l of clip b comes from entry `order[b, l]`. The moved map and the other should
    differ by `strictness`, lambda in the paper, at every entry; 0 is the squared error. The paper writes a sum over
    entries and clips; the mean does not depend on their numbers, and is of the size that its Fig. 5a shows.
    """
    moved_BL = ops.gather_elements(map_BL, 1, order_BL)
    return ops.square(ops.abs(moved_BL - augmented_BL) - strictness).mean()
