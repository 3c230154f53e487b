"""Projection heads from student to teacher width: used by the losses, and what some families are evaluated by.

Shapes: B batch, F frames, S reduced steps (``student.reduction``; S = F without reduction), C student width, W teacher
width, N heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Head(nn.Module):
    """Linear head of one layer. FitHuBERT's undoes the time reduction first (arXiv 2207.00555)."""

    def __init__(self, width: int, head_width: int, *, time_reduction: int = 1) -> None:
        super().__init__()
        self.upsampler = None
        if time_reduction > 1:
            self.upsampler = nn.ConvTranspose1d(width, width, time_reduction, time_reduction)
        self.lin_proj = nn.Linear(width, head_width)

    def forward(self, x: Tensor, frames: int | None = None) -> Tensor:
        """[B, S, C] -> [B, F, W]; ``frames`` is F where there is a reduction to undo."""
        if self.upsampler is not None:
            x = self.upsampler(x.transpose(1, 2)).transpose(1, 2)[:, :frames]
        return self.lin_proj(x)


class SplitHeads(nn.Module):
    """DistilHuBERT's heads on the last layer (arXiv 2110.01900): a hidden layer each, and a linear one.

    Parameter names and shapes are those of the public checkpoints' ``output_layer``.
    """

    def __init__(self, width: int, head_width: int, heads: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width * heads)
        self.weight = nn.Parameter(torch.empty(heads, width, head_width))
        self.bias = nn.Parameter(torch.empty(1, 1, heads, head_width))
        for parameter in (self.weight, self.bias):
            nn.init.uniform_(parameter, -(width**-0.5), width**-0.5)

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, F, C] -> N times [B, F, W]."""
        batch, frames, width = x.shape
        hidden = nn.functional.gelu(self.inner(x)).reshape(batch, frames, -1, width)  # [B, F, N, C]
        predicted = torch.einsum("bfnc,ncw->bfnw", hidden, self.weight) + self.bias
        return list(predicted.unbind(2))
