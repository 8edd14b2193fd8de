# SPDX-License-Identifier: Apache-2.0
"""What the robust-classification system puts before an image classifier: gradient concealment and random resizing.

Neither makes a network robust. Gradient concealment changes what an image looks like to the network by no more than
1.5e-8, and its gradient by factors up to 1e12 of either sign: it defeats attacks that follow the gradient, and no
others (Athalye, Carlini, Wagner, *Obfuscated Gradients Give a False Sense of Security*, ICML 2018, call it a shattered
gradient). It is here to reproduce the published table, and the column that the table lacks.

B images, C channels, H height, W width, S side of the padded image.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindvideo.errors import InputError
from mindvideo.models.layers import Float32
from mindvideo.noise import Uniform

_STREAM = 60  # of random numbers; ConvNeXt's end before


class GradientConcealment(Float32):
    """x + epsilon sin(frequency x), in float32 whatever comes in (float16 has no 1e20).

    Args:
        identity_gradient: let gradients pass as if x came out: backward pass differentiable approximation (BPDA), by
            which an attack takes the concealment away.
    """

    def __init__(self, frequency: float = 1e20, epsilon: float = 1e-8, *, identity_gradient: bool = False):
        super().__init__()
        self.frequency, self.epsilon, self.identity_gradient = frequency, epsilon, identity_gradient

    def construct(self, x: Tensor) -> Tensor:
        x32 = x.astype(ms.float32)
        wave = self.epsilon * ops.sin(self.frequency * x32)
        if self.identity_gradient:
            wave = ops.stop_gradient(wave)
        return (x32 + wave).astype(x.dtype)


class ResizedPadding(nn.Cell):
    """Random resizing and padding (after Xie et al., ICLR 2018): an image `[H, W]` is shrunk to l x l (nearest), l one
    of `least` to `size` - 1, and laid anywhere on `[size, size]` zeros, leaving a row and a column free at the end.

    Each image of a batch has its own draw (the published code draws once a batch), by the seed that `construct` is
    given.
    """

    def __init__(self, size: int = 224, least: int = 218):
        super().__init__()
        if not 1 <= least < size:
            raise InputError(f"resizing to {least} pixels or more: it must be in [1, {size - 1}] for images of {size}.")
        self.size, self.least = size, least
        self.uniform = Uniform(_STREAM)

    def construct(self, x_BCHW: Tensor, seed: Tensor) -> Tensor:
        return self.place(x_BCHW, *self.draw(seed, x_BCHW.shape[0]))

    def draw(self, seed: Tensor, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Side, left and top edge of `batch` images, int32: each uniform in what is allowed."""
        first_B, second_B, third_B = self.uniform(seed, 3 * batch).reshape((3, batch)).unbind(0)
        sides_B = self.least + ops.floor(first_B * (self.size - self.least))
        free_B = self.size - sides_B
        edges = (sides_B, ops.floor(second_B * free_B), ops.floor(third_B * free_B))
        return tuple([edge_B.astype(ms.int32) for edge_B in edges])

    def place(self, x_BCHW: Tensor, sides_B: Tensor, lefts_B: Tensor, tops_B: Tensor) -> Tensor:
        """The images resized to the sides and laid with their edges there, `[B, C, S, S]`."""
        rows_BSH = self._picked(x_BCHW.shape[2], sides_B, tops_B).expand_dims(1)
        columns_BSW = self._picked(x_BCHW.shape[3], sides_B, lefts_B).expand_dims(1)
        return ops.matmul(ops.matmul(rows_BSH, x_BCHW), columns_BSW.swapaxes(2, 3))

    def _picked(self, extent: int, sides_B: Tensor, starts_B: Tensor) -> Tensor:
        """Resizing and padding along an axis of `extent` pixels as a matrix `[B, S, extent]` of zeros and ones.

        Place p of the resized axis shows pixel floor(p extent / l).
        """
        places_BS = ops.arange(0, self.size, 1, dtype=ms.int32) - starts_B.expand_dims(1)
        sides_B1 = sides_B.expand_dims(1)
        inside_BS = ops.logical_and(places_BS >= 0, places_BS < sides_B1)
        pixels_BS = ops.relu(places_BS) * extent // sides_B1
        same_BSE = pixels_BS.expand_dims(2) == ops.arange(0, extent, 1, dtype=ms.int32)
        return ops.logical_and(same_BSE, inside_BS.expand_dims(2)).astype(ms.float32)


def placements(size: int = 224, least: int = 218) -> np.ndarray:
    """Every (side, left, top) that ResizedPadding can draw, `[N, 3]`: 91 of the published ones."""
    return np.array(
        [(side, left, top) for side in range(least, size) for left in range(size - side) for top in range(size - side)],
        np.int32,
    )


class Defended(nn.Cell):
    """An image classifier behind what is put before it: images `[B, 3, H, W]` in [0, 1] to logits `[B, K]`.

    Args:
        network: images and dropout's seed to logits.
        concealment: None for none.
        padding: None for none; else each call needs the seed `draw` (uint32 scalar), in evaluation too.
    """

    def __init__(
        self, network: nn.Cell, concealment: GradientConcealment | None = None, padding: ResizedPadding | None = None
    ):
        super().__init__(auto_prefix=False)  # the network's parameters keep their names
        self.network, self.concealment, self.padding = network, concealment, padding

    def construct(self, images_BCHW: Tensor, draw: Tensor | None = None, seed: Tensor | None = None) -> Tensor:
        if self.concealment is not None:
            images_BCHW = self.concealment(images_BCHW)
        if self.padding is not None:
            images_BCHW = self.padding(images_BCHW, draw)
        return self.network(images_BCHW, seed)
