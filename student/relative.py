"""Gated relative position bias (WavLM, arXiv 2110.13900, section 4.1): one table for all layers, a gate per layer.

    score(i, j) = q_i k_j + g_i d_(j - i),   g_i = a_i (b_i w - 1) + 2,   (a_i, b_i) = sigmoid of a projection of x_i

The bias d depends on the distance only, in buckets that grow with it, so it is looked up once for all layers; only the
gate is computed in every layer. Shapes: B batch, F frames, H heads, D width of a head, E encoder width.
"""

from __future__ import annotations

import math

import torch
from reuse_distill.student.attention import split_heads
from torch import Tensor, nn

GATES, PARTS = 2, 4  # a and b; each is the sum of four projections


def distance_buckets(buckets: int, largest: int) -> Tensor:
    """Bucket of every distance j - i from -``largest`` to ``largest`` (farther ones share the last), int64 [2 M + 1].

    Half of the buckets are for each direction; a half of those hold one distance each, the others grow exponentially.
    """
    half, distance = buckets // 2, torch.arange(-largest, largest + 1)
    single, size = half // 2, distance.abs()
    growing = torch.log(size.float() / single) / math.log(largest / single) * (half - single)
    growing = (single + growing.clamp(min=0)).long().clamp(max=half - 1)
    return (distance > 0).long() * half + torch.where(size < single, size, growing)


class RelativePositions(nn.Module):
    """The table of all layers: a number per bucket and head."""

    def __init__(self, buckets: int, largest: int, heads: int) -> None:
        super().__init__()
        self.largest = largest
        self.weight = nn.Parameter(torch.empty(buckets, heads))
        nn.init.normal_(self.weight)

    def by_distance(self) -> Tensor:
        """[2 M + 1, H], of the distances -M … M."""
        return self.weight[distance_buckets(self.weight.shape[0], self.largest).to(self.weight.device)]

    def forward(self, x: Tensor) -> Tensor:
        """d of the frames of ``x`` [B, F, E]: [1, H, F, F]."""
        frame = torch.arange(x.shape[1], device=x.device)
        distance = (frame[None, :] - frame[:, None]).clamp(-self.largest, self.largest) + self.largest
        return self.by_distance()[distance].permute(2, 0, 1)[None]


class PositionGate(nn.Module):
    """How much of the bias a query takes: [B, F, E] -> [B, H, F, 1]."""

    def __init__(self, heads: int, depth: int) -> None:
        super().__init__()
        self.heads = heads
        self.grep_linear = nn.Linear(depth, GATES * PARTS)
        self.grep_a = nn.Parameter(torch.ones(1, heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        gates = torch.sigmoid(nn.functional.linear(split_heads(x, self.heads), *self.folded()))  # [B, H, F, 2]
        return gates[..., :1] * (gates[..., 1:] * self.grep_a - 1) + 2

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight [2, D] and bias [2] of the sums."""
        linear = self.grep_linear
        return linear.weight.unflatten(0, (GATES, PARTS)).sum(1), linear.bias.unflatten(0, (GATES, PARTS)).sum(1)
