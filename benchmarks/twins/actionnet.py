# SPDX-License-Identifier: Apache-2.0
"""ActionNet in torch: attention over the poses of a clip, under ML-Decoder (Ridnik et al., "ML-Decoder: Scalable and
Versatile Classification Head", WACV 2023)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool1d, scaled_dot_product_attention


class SelfAttention(nn.Module):
    def __init__(self, width: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.Q, self.K, self.V = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.fc = nn.Sequential(nn.Linear(width, width, bias=False), nn.Dropout(dropout))

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.heads(self.Q(x)), self.heads(self.K(x)), self.heads(self.V(x))
        found = scaled_dot_product_attention(query, key, value, dropout_p=self.dropout if self.training else 0.0)
        return self.fc(found.transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    """A transformer's decoder layer without self-attention of the queries."""

    def __init__(self, width: int, num_heads: int, hidden: int, dropout: float):
        super().__init__()
        self.multihead_attn = nn.MultiheadAttention(width, num_heads, dropout, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        x = self.norm1(queries + self.dropout(queries))
        x = self.norm2(x + self.dropout(self.multihead_attn(x, memory, memory, need_weights=False)[0]))
        return self.norm3(x + self.dropout(self.linear2(self.dropout(torch.relu(self.linear1(x))))))


class MLDecoder(nn.Module):
    """Memory `[B, L, C]` to logits, with a fixed query for each group of classes."""

    def __init__(self, in_features: int, num_classes: int, *, width: int = 768, most_groups: int = 100):
        super().__init__()
        self.num_classes, num_groups = num_classes, min(most_groups, num_classes)
        per_group = math.ceil(num_classes / num_groups)
        self.embed_standart = nn.Linear(in_features, width)
        self.query_embed = nn.Embedding(num_groups, width).requires_grad_(False)
        self.layers = nn.ModuleList((DecoderLayer(width, 8, 2048, 0.1),))
        self.duplicate_pooling = nn.Parameter(nn.init.xavier_normal_(torch.empty(num_groups, width, per_group)))
        self.duplicate_pooling_bias = nn.Parameter(torch.zeros(num_classes))

    def forward(self, x: Tensor) -> Tensor:
        memory = torch.relu(self.embed_standart(x))
        found = self.query_embed.weight.expand(len(x), -1, -1)
        for layer in self.layers:
            found = layer(found, memory)
        logits = torch.einsum("bgd,gdf->bgf", found, self.duplicate_pooling).flatten(1)
        return logits[:, : self.num_classes] + self.duplicate_pooling_bias


class ActionNet(nn.Module):
    """Poses `[B, T, 24, 6]` to logits; frames are pooled to `length` tokens."""

    def __init__(self, num_classes: int, dropout: float, *, width: int = 1280, length: int):
        super().__init__()
        self.length = length
        self.map = nn.Linear(24 * 6, width)
        self.lstm = SelfAttention(width, 8, dropout)
        self.decoder = nn.ModuleDict({"decoder": MLDecoder(width, num_classes)})

    def forward(self, poses: Tensor) -> Tensor:
        x = adaptive_avg_pool1d(self.map(poses.flatten(2)).transpose(1, 2), self.length).transpose(1, 2)
        return self.decoder["decoder"](x + self.lstm(x))
