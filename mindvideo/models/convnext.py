# SPDX-License-Identifier: Apache-2.0
"""ConvNeXt (Liu et al., *A ConvNet for the 2020s*, CVPR 2022), with its own classifier, the robust-classification
system's head, or ML-Decoder.

B images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindvideo.errors import InputError
from mindvideo.models.layers import (
    GELU,
    Conv,
    Float32,
    LayerNorm,
    Normalize,
    dense,
    enter,
    from_channels_last,
    initialize_dense,
    is_native,
    leave,
    put,
    space_axes,
    to_channels_last,
)
from mindvideo.models.mldecoder import MLDecoder
from mindvideo.models.registry import register
from mindvideo.native import tokens
from mindvideo.noise import Dropout, Uniform

EPSILON = 1e-6  # of the backbone's layer normalisation
HEADS = ("linear", "fc", "ml_decoder")
_PATH_STREAM, _HEAD_STREAM = 10, 7  # of random numbers; ML-Decoder takes 0 to 4


class Block(nn.Cell):
    """x + path(scale * fc2 gelu(fc1 norm(depthwise x))): a 7 x 7 convolution of each channel, then two dense layers of
    each place. `path` leaves a sample's whole branch out with probability `drop` in training (stochastic depth)."""

    def __init__(self, channels: int, scale: float, drop: float, stream: int):
        super().__init__()
        self.depthwise = Conv(channels, channels, (7, 7), stride=(1, 1), padding=(3, 3), groups=channels)
        self.norm = LayerNorm(channels, EPSILON)
        self.fc1, self.fc2 = dense(channels, 4 * channels), dense(4 * channels, channels)
        self.gelu = GELU()
        self.dense = tokens.BiasedDense() if is_native() else None
        self.matmul = ops.MatMul(transpose_b=True)
        self.scale = Parameter(Tensor(np.full(channels, scale, np.float32)))
        self.drop, self.uniform = drop, Uniform(stream)

    def construct(self, x: Tensor, seed: Tensor | None = None) -> Tensor:
        branch_BHWC = self.norm(to_channels_last(self.depthwise(x)))
        hidden_BHWC = self.gelu(self.fc1(branch_BHWC))
        # The scale goes into the layer's weights: its own gradient is then a sum over these, not over all places.
        weight, bias = self.fc2.weight * self.scale.expand_dims(1), self.fc2.bias * self.scale
        if self.dense is not None:
            branch_BHWC = self.dense(hidden_BHWC, weight, bias)
        else:
            weight = weight.astype(hidden_BHWC.dtype)  # of mixed precision
            branch_BHWC = self.matmul(hidden_BHWC.reshape((-1, weight.shape[1])), weight) + bias
            branch_BHWC = branch_BHWC.reshape((*hidden_BHWC.shape[:-1], -1))
        if seed is not None and self.drop > 0.0:
            kept_B = (self.uniform(seed, x.shape[0]) >= self.drop).astype(x.dtype)
            branch_BHWC = branch_BHWC * (kept_B * (1.0 / (1.0 - self.drop))).reshape((-1, 1, 1, 1))
        return x + from_channels_last(branch_BHWC)


class Shrink(nn.Cell):
    """Non-overlapping patches of each map to one place, with layer normalisation before, or after (the stem)."""

    def __init__(self, in_channels: int, out_channels: int, patch: int, *, norm_first: bool):
        super().__init__()
        self.norm_first = norm_first
        self.norm = LayerNorm(in_channels if norm_first else out_channels, EPSILON)
        self.conv = Conv(in_channels, out_channels, (patch, patch), stride=(patch, patch), padding=(0, 0))

    def construct(self, x: Tensor) -> Tensor:
        if self.norm_first:
            return self.conv(self._normalize(x))
        return self._normalize(self.conv(x))

    def _normalize(self, x: Tensor) -> Tensor:
        return from_channels_last(self.norm(to_channels_last(x)))


class FullyConnectedHead(Float32):
    """The published head: two times dense, GELU, dropout 0.2 and layer normalisation, to 512 and 256, then dense."""

    def __init__(self, in_features: int, num_classes: int):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = dense(in_features, 512), dense(512, 256), dense(256, num_classes)
        self.norm1, self.norm2 = LayerNorm(512), LayerNorm(256)
        self.gelu = GELU()
        self.drop1, self.drop2 = Dropout(0.2, _HEAD_STREAM), Dropout(0.2, _HEAD_STREAM + 1)

    def construct(self, features_BC: Tensor, seed: Tensor | None = None) -> Tensor:
        hidden = self.norm1(self.drop1(self.gelu(self.fc1(features_BC)), seed))
        hidden = self.norm2(self.drop2(self.gelu(self.fc2(hidden)), seed))
        return self.fc3(hidden)


class ConvNeXt(nn.Cell):
    """ConvNeXt-tiny: images `[B, 3, H, W]` to logits `[B, K]`.

    Args:
        head: `linear`, the paper's (average over places, layer normalisation, dense); `fc`, the robust-classification
            system's FullyConnectedHead on the average, without that normalisation; `ml_decoder` on the whole map.
        width: channels of the first stage, 96 in ConvNeXt-tiny; each further stage has twice as many.
        depth: blocks of each stage, three times as many in the third: 3 in ConvNeXt-tiny.
        patch: pixels of the stem's patches.
        layer_scale: what each block's branch is multiplied by at first. The paper's 1e-6 needs long training.
        normalize: take ImageNet's mean and deviation off the images first. The robust-classification system does not.
        drop_path: largest probability of stochastic depth, that of the last block; it grows linearly from 0. Like the
            head's dropout it acts in training, that is where `construct` is given a `seed` (uint32 scalar).
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        head: str = "linear",
        width: int = 96,
        depth: int = 3,
        patch: int = 4,
        layer_scale: float = 1e-6,
        normalize: bool = False,
        drop_path: float = 0.1,
    ):
        super().__init__()
        if head not in HEADS:
            raise InputError(f"unknown head {head!r} of ConvNeXt, choose from {', '.join(HEADS)}")
        widths, depths = [width * 2**stage for stage in range(4)], [depth, depth, 3 * depth, depth]
        drops = np.linspace(0.0, drop_path, sum(depths))
        self.normalize = Normalize() if normalize else None
        self.shrinks = nn.CellList([Shrink(3, width, patch, norm_first=False)])
        self.shrinks.extend([Shrink(few, 2 * few, 2, norm_first=True) for few in widths[:-1]])
        self.stages = nn.CellList()
        for stage, (channels, count) in enumerate(zip(widths, depths, strict=True)):
            first = sum(depths[:stage])
            places = range(first, first + count)
            blocks = [Block(channels, layer_scale, float(drops[place]), _PATH_STREAM + place) for place in places]
            self.stages.append(nn.CellList(blocks))
        self.num_features, self.head_name = widths[-1], head
        self.norm = LayerNorm(self.num_features, EPSILON) if head == "linear" else None
        if head == "ml_decoder":
            self.head = MLDecoder(self.num_features, num_classes)
        else:
            make = FullyConnectedHead if head == "fc" else dense
            self.head = make(self.num_features, num_classes)

    def construct(self, images_BCHW: Tensor, seed: Tensor | None = None) -> Tensor:
        x = self.features(images_BCHW, seed)
        if self.head_name == "ml_decoder":
            return self.head(leave(x), seed)
        pooled_BC = x.mean(space_axes())
        return self.head(self.norm(pooled_BC)) if self.norm is not None else self.head(pooled_BC, seed)

    def features(self, images_BCHW: Tensor, seed: Tensor | None = None) -> Tensor:
        """The last stage's map, in the layout of the parts (`layers.leave` makes it `[B, C, H, W]`)."""
        x = enter(images_BCHW if self.normalize is None else self.normalize(images_BCHW))
        for shrink, blocks in zip(self.shrinks, self.stages):  # noqa: B905 (graphs know no `strict`)
            x = shrink(x)
            for block in blocks:
                x = block(x, seed)
        return x

    def initialize(self, seed: int) -> None:
        """Draw all weights anew from `seed` alone: the backbone and the paper's head N(0, 0.02^2) with zero bias,
        the two other heads as PyTorch's defaults and ML-Decoder's authors do."""
        rng = np.random.default_rng(seed)
        if isinstance(self.head, MLDecoder):
            self.head.initialize(rng)
        elif isinstance(self.head, FullyConnectedHead):
            initialize_dense(self.head, rng)
        for name, cell in self.cells_and_names():
            if isinstance(cell, (Conv, nn.Dense)) and (not name.startswith("head") or self.head_name == "linear"):
                put(cell.weight, 0.02 * rng.standard_normal(cell.weight.shape))
                put(cell.bias, 0.0)


register(ConvNeXt, "convnext_tiny")
