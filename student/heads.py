"""What stands around the layers: time reduction before them, projection heads after them.

Projection heads go from student to teacher width: the losses use them, and some families are evaluated by them.

Time reduction (FitHuBERT, arXiv 2207.00555): the layers see k frames as one step. A step of which not all frames exist
is seen by no step, so that the others are what the published code computes, which leaves such a step out.

Shapes: B batch, F frames, S = ceil(F / k) steps (S = F without reduction), C student width, W teacher width, N heads.
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
        """[B, F, C] -> [B, S, C]; ``exists`` as in ``filled``."""
        return super().forward(filled(x, self.factor, exists).transpose(1, 2)).transpose(1, 2)


def filled(x: Tensor, factor: int, exists: Tensor | None = None) -> Tensor:
    """[B, F, C] -> [B, F + k - 1, C]: a frame of a step that does not exist repeats the one before it.

    ``exists`` [B, F] is 1 where a frame does and 0 where not, and what is there is finite; None: all do.
    """
    for _ in range(factor - 1 if exists is not None else 0):
        assert exists is not None  # noqa: S101  (the range is empty otherwise)
        before = torch.cat([x[:, :1], x[:, :-1]], 1)
        x = exists[..., None] * x + (1 - exists[..., None]) * before
    return torch.cat([x, x[:, -1:].expand(-1, factor - 1, -1)], 1)


def seen(exists: Tensor, factor: int) -> Tensor:
    """[..., F] -> [..., S], both 0/1: where a step may be seen by others: all its frames exist, or it is the first one.

    The first existing frame has to begin a step; the first step is then whole wherever there is another one.
    """
    nothing = 0 * exists[..., :1]
    before = torch.cat([nothing, exists[..., :-1]], -1)
    whole = exists  # of a frame: it and the k - 1 before it exist
    for _ in range(factor - 1):
        whole = exists * torch.cat([nothing, whole[..., :-1]], -1)
    whole = torch.cat([whole, *[nothing] * (factor - 1)], -1)[..., factor - 1 :: factor]
    first = (exists * (1 - before))[..., ::factor]
    return whole + (1 - whole) * first


def restored(x: Tensor, factor: int, frames: int | None) -> Tensor:
    """[..., S, C] -> [..., F, C]: every frame gets its step; ``frames`` None: F = k S."""
    return in_frames(torch.cat([x] * factor, -1), factor, frames)


def in_frames(x: Tensor, factor: int, frames: int | None) -> Tensor:
    """[..., S, k C] -> [..., F, C]: what a step has for each of its frames, one after the other; None: F = k S."""
    *before, steps, width = x.shape
    x = x.reshape(*before, steps * factor, width // factor)
    return x if frames is None else x[..., :frames, :]


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
