# SPDX-License-Identifier: Apache-2.0
"""ML-Decoder: a classification head whose queries attend to the places of a feature map (Ridnik et al., WACV 2023).

B samples, L memory places, C features of each, E decoder width, G groups with one query each, F classes a group,
K classes.
"""

from __future__ import annotations

import math

import numpy as np
from mindspore import Parameter, Tensor, ops
from mindspore.common.initializer import Normal, initializer

from mindvideo.errors import InputError
from mindvideo.models.layers import Attention, Float32, LayerNorm, dense, draw_uniform, initialize_dense, put
from mindvideo.noise import Dropout

MOST_GROUPS = 100  # the authors' default


class MLDecoder(Float32):
    """Feature maps `[B, C, H, W]`, or memory `[B, L, C]`, to logits `[B, K]` of any number of classes.

    One decoder layer, without self-attention of the queries and normalised after each sum:

        M = relu(embed memory)
        t = norm1(q + q)    t = norm2(t + attention(t, M))    t = norm3(t + fc2 relu(fc1 t))

    and then each group's F logits are t_g P_g + bias ("group fully connected"). F is K / G rounded up; what the last
    groups have too much is cut off. (The authors' code adds 0.999 instead of rounding up, which lacks classes where
    K / G is just above a whole number, such as 2001 classes in 2000 groups.)

    Args:
        num_groups: G, no more than there are classes.
        learned_queries: train the queries too; the paper's are random and stay so.
        dropout: in training, that is where `construct` is given a `seed` (uint32 scalar) for its masks.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        width: int = 768,
        num_groups: int = MOST_GROUPS,
        num_heads: int = 8,
        hidden: int = 2048,
        dropout: float = 0.1,
        learned_queries: bool = False,
    ):
        super().__init__()
        if num_classes < 1 or num_groups < 1:
            raise InputError(f"ML-Decoder of {num_classes} classes in {num_groups} groups: both must be at least 1.")
        num_groups = min(num_groups, num_classes)
        self.num_classes = num_classes
        self.embed = dense(in_features, width)
        self.queries = Parameter(initializer(Normal(1.0), (num_groups, width)), requires_grad=learned_queries)
        self.attention = Attention(width, num_heads, bias=True, dropout=dropout, stream=0)
        self.fc1, self.fc2 = dense(width, hidden), dense(hidden, width)
        self.norm1, self.norm2, self.norm3 = LayerNorm(width), LayerNorm(width), LayerNorm(width)
        self.drop1, self.drop2, self.drop3, self.drop4 = (Dropout(dropout, stream) for stream in range(1, 5))
        per_group = math.ceil(num_classes / num_groups)
        std = math.sqrt(2.0 / (per_group * (width + num_groups)))  # Xavier's, as PyTorch counts these three axes
        self.pooling = Parameter(initializer(Normal(std), (num_groups, width, per_group)))
        self.bias = Parameter(initializer("zeros", (num_classes,)))
        self.pooling_std = std

    def construct(self, features: Tensor, seed: Tensor | None = None) -> Tensor:
        return self.classify(self.decode(self.remember(features), seed))

    def remember(self, features: Tensor) -> Tensor:
        """The memory `[B, L, E]` that the queries attend to."""
        if features.ndim == 4:
            features = features.flatten(start_dim=2).swapaxes(1, 2)
        return ops.relu(self.embed(features))

    def decode(self, memory_BLE: Tensor, seed: Tensor | None = None) -> Tensor:
        """What each query finds in the memory: `[B, G, E]`."""
        queries_BGE = ops.tile(self.queries.expand_dims(0), (memory_BLE.shape[0], 1, 1))
        found_BGE = self.norm1(queries_BGE + self.drop1(queries_BGE, seed))
        found_BGE = self.norm2(found_BGE + self.drop2(self.attention(found_BGE, memory_BLE, seed), seed))
        hidden = self.drop3(ops.relu(self.fc1(found_BGE)), seed)
        return self.norm3(found_BGE + self.drop4(self.fc2(hidden), seed))

    def classify(self, found_BGE: Tensor) -> Tensor:
        """Logits `[B, K]` of what the queries found."""
        logits_GBF = ops.matmul(found_BGE.swapaxes(0, 1), self.pooling)
        logits = logits_GBF.swapaxes(0, 1).reshape((found_BGE.shape[0], -1))
        return logits[:, : self.num_classes] + self.bias

    def initialize(self, rng: np.random.Generator) -> None:
        """Draw all weights anew as the authors' code does."""
        initialize_dense(self, rng)
        bound = math.sqrt(6.0 / (4.0 * self.queries.shape[1]))  # Xavier's of query, key and value stacked
        for projection in (self.attention.query, self.attention.key, self.attention.value):
            draw_uniform(projection.weight, bound, rng)
            put(projection.bias, 0.0)
        put(self.attention.output.bias, 0.0)
        put(self.queries, rng.standard_normal(self.queries.shape))
        put(self.pooling, self.pooling_std * rng.standard_normal(self.pooling.shape))
        put(self.bias, 0.0)
        for norm in (self.norm1, self.norm2, self.norm3):
            put(norm.gamma, 1.0)
            put(norm.beta, 0.0)
