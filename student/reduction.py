"""Time reduction (FitHuBERT, arXiv 2207.00555): the layers see k frames as one step.

A step of which not all frames exist is seen by no step, so that the others are what the published code computes, which
leaves such a step out. Shapes: B batch, F frames, S = ceil(F / k) steps, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TimeReduction(nn.Conv1d):
    """Convolution of width and stride k over frames."""

    def __init__(self, width: int, factor: int) -> None:
        super().__init__(width, width, factor, factor)
        self.factor = factor

    def forward(self, x: Tensor, exists: Tensor | None = None) -> Tensor:
        """[B, F, C] -> [B, S, C]. A frame of a step that does not exist repeats the one before it.

        ``exists`` [B, F] is 1 where a frame does and 0 where not, and what is there is finite; None: all do.
        """
        for _ in range(self.factor - 1 if exists is not None else 0):
            assert exists is not None  # noqa: S101  (the range is empty otherwise)
            before = torch.cat([x[:, :1], x[:, :-1]], 1)
            x = exists[..., None] * x + (1 - exists[..., None]) * before
        tail = x[:, -1:].expand(-1, self.factor - 1, -1)
        return super().forward(torch.cat([x, tail], 1).transpose(1, 2)).transpose(1, 2)

    def seen(self, exists: Tensor) -> Tensor:
        """[B, F] -> [B, S], both 0/1: where a step may be seen by others: all its frames exist, or it is the first one.

        The first existing frame has to begin a step; the first step is then whole wherever there is another one.
        """
        nothing, k = torch.zeros_like(exists[:, :1]), self.factor
        before = torch.cat([nothing, exists[:, :-1]], 1)
        whole = exists  # of a frame: it and the k - 1 before it exist
        for _ in range(k - 1):
            whole = exists * torch.cat([nothing, whole[:, :-1]], 1)
        whole = torch.cat([whole, *[nothing] * (k - 1)], 1)[:, k - 1 :: k]
        first = (exists * (1 - before))[:, ::k]
        return whole + (1 - whole) * first


def restored(x: Tensor, factor: int, frames: int) -> Tensor:
    """[B, S, C] -> [B, F, C]: every frame gets its step."""
    batch, steps, width = x.shape
    return torch.cat([x] * factor, -1).reshape(batch, steps * factor, width)[:, :frames]
