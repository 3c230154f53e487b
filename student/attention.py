"""Attention whose map is computed once and reused (ARMHuBERT section 3.1).

    computing layer:  P = softmax(Q K^T / sqrt(D)),   y = P V
    reusing layer:    y = P' V  with the map P' of the last computing layer; no query, no key

``shared`` reuse takes the map itself (P' = P, the method as published); ``renormalised`` takes softmax(P), which is
what the released checkpoints were trained with. Shapes: B batch, H heads, F queries, S keys, D width of a head.
"""

from __future__ import annotations

import math

import torch
from reuse_distill.student.factored import FactoredLinear, linear
from reuse_distill.student.layer_shape import LayerShape
from torch import Tensor, nn

MASKED = -1e4  # finite: -inf and finfo.min overflow in fp16 and upset phone NPUs


def score_bias(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a key may be seen, -1e4 where not. ``allowed`` bool or 0/1, any shape."""
    return (1.0 - allowed.to(dtype)) * MASKED


def compute_map(scores: Tensor, bias: Tensor | None) -> Tensor:
    """softmax over the keys of ``scores`` [B, H, F, S], already scaled."""
    return torch.softmax(scores if bias is None else scores + bias, dim=-1)


def reuse_map(source: Tensor, bias: Tensor | None, *, mode: str) -> Tensor:
    """The map a reusing layer weights its values with, from the computing layer's map [B, H, F, S]."""
    return source if mode == "shared" else compute_map(source, bias)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, F, H*D] -> [B, H, F, D]."""
    batch, frames, width = x.shape
    return x.reshape(batch, frames, heads, width // heads).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """[B, H, F, D] -> [B, F, H*D]."""
    batch, heads, frames, depth = x.shape
    return x.transpose(1, 2).reshape(batch, frames, heads * depth)


class Attention(nn.Module):
    """Projections of one layer; query and key exist only where the layer computes its map."""

    def __init__(self, shape: LayerShape, *, reuse_mode: str, dropout: float) -> None:
        super().__init__()
        self.heads, self.reuse, self.reuse_mode = shape.heads, not shape.computes, reuse_mode
        self.scale = 1 / math.sqrt(shape.head_dim)

        def part(name: str) -> nn.Linear | FactoredLinear:
            return linear(*shape.size(name), shape.rank(name))

        if shape.computes:
            self.k_proj = part("k_proj")
            self.q_proj = part("q_proj")
        self.v_proj = part("v_proj")
        self.out_proj = part("out_proj")
        self.dropout = nn.Dropout(dropout)

    def queries(self, x: Tensor) -> Tensor:
        """Scaled queries [B, H, F, D]."""
        return split_heads(self.scaled_queries(x), self.heads)

    def scaled_queries(self, x: Tensor) -> Tensor:
        """[.., F, C] -> [.., F, H*D]; the scale is 1 where it is folded into the projection."""
        queries = self.q_proj(x)
        return queries if self.scale == 1 else queries * self.scale

    def keys(self, x: Tensor) -> Tensor:
        return split_heads(self.k_proj(x), self.heads)

    def values(self, x: Tensor) -> Tensor:
        return split_heads(self.v_proj(x), self.heads)

    def forward(self, x: Tensor, source: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Attend within ``x`` [B, F, C].

        ``source`` is the map [B, H, F, F] of the last computing layer (None for the first layer), ``bias``
        broadcasts to it. Returns (output [B, F, C], the last computed map).
        """
        if self.reuse:
            if source is None:
                raise ValueError("a reusing layer needs the map of a layer before it")
            weights, computed = reuse_map(source, bias, mode=self.reuse_mode), source
        else:
            weights = computed = compute_map(self.queries(x) @ self.keys(x).transpose(-1, -2), bias)
        context = self.dropout(weights) @ self.values(x)  # [B, H, F, D]
        return self.out_proj(join_heads(context)), computed
