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

    def forward(self, x: Tensor, valid_frames: Tensor | None = None) -> Tensor:
        """[B, F, C] -> [B, S, C]. Frames after the last of ``valid_frames`` [B] (None: all) repeat that one."""
        frames = x.shape[1]
        if valid_frames is not None:
            last = (valid_frames - 1).clamp(min=0)[:, None]  # [B, 1]
            index = torch.minimum(torch.arange(frames, device=x.device)[None], last)  # [B, F]
            x = x.gather(1, index[..., None].expand_as(x))
        tail = x[:, -1:].expand(-1, self.factor - 1, -1)
        return super().forward(torch.cat([x, tail], 1).transpose(1, 2)).transpose(1, 2)

    def seen(self, frames: int, valid_frames: Tensor | None, like: Tensor) -> Tensor:
        """[B or 1, S] true where a step may be seen by others: all its frames exist, or it is the only one."""
        step = torch.arange((frames + self.factor - 1) // self.factor, device=like.device)[None]  # [1, S]
        existing = frames if valid_frames is None else valid_frames[:, None]
        return ((step + 1) * self.factor <= existing) | (step == 0)

    def restore(self, x: Tensor, frames: int) -> Tensor:
        """[B, S, C] -> [B, F, C]: every frame gets its step."""
        return x.repeat_interleave(self.factor, dim=1)[:, :frames]
