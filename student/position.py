"""Where frames stand: grouped convolutions over them. Of one with K taps frame t sees frames t - (K-1-R) … t + R."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WeightNormConv(nn.Module):
    """Grouped convolution with weight norm over output and input channels, one gain per kernel tap.

    The parameter names and shapes (``weight_g`` [1, 1, K], ``weight_v`` [C, C/groups, K]) are those of the
    public checkpoints; ``weight`` is what artifacts contain.
    """

    def __init__(self, channels: int, kernel: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.groups = groups
        self.weight_v = nn.Parameter(torch.empty(channels, channels // groups, kernel))
        nn.init.normal_(self.weight_v, std=math.sqrt(4 * (1 - dropout) / (kernel * channels)))
        self.weight_g = nn.Parameter(self._norm().detach().clone())
        self.bias = nn.Parameter(torch.zeros(channels))

    def _norm(self) -> Tensor:
        return self.weight_v.square().sum((0, 1), keepdim=True).sqrt()  # [1, 1, K]

    @property
    def weight(self) -> Tensor:
        """The folded kernel [C, C/groups, K]."""
        return self.weight_v * (self.weight_g / self._norm())

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, F + K - 1] -> [B, C, F]."""
        return F.conv1d(x, self.weight, self.bias, groups=self.groups)


def pad_context(x: Tensor, *, kernel: int, lookahead: int) -> Tensor:
    """Zeros for the frames before the start and after the end: [B, C, F] -> [B, C, F + K - 1]."""
    return F.pad(x, (kernel - 1 - lookahead, lookahead))


class NormedConv(nn.Module):
    """A batch norm, then a plain convolution (HuBERT with ``conv_pos_batch_norm``)."""

    def __init__(self, channels: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)
        self.conv = nn.Conv1d(channels, channels, kernel, groups=groups)

    def forward(self, x: Tensor, valid: Tensor | None, *, lookahead: int) -> Tensor:
        """[B, C, F] -> [B, C, F]; ``valid`` [B, 1, F] 1 where a frame exists (None: everywhere)."""
        x = self.norm(x)
        x = x if valid is None else x * valid
        return F.gelu(self.conv(pad_context(x, kernel=self.conv.kernel_size[0], lookahead=lookahead)))


class ConvStack(nn.ModuleList):
    """Several convolutions, a norm without parameters and GELU after each (data2vec, arXiv 2202.03555)."""

    def __init__(self, channels: int, kernel: int, groups: int, layers: int) -> None:
        super().__init__(nn.Conv1d(channels, channels, kernel, groups=groups) for _ in range(layers))

    def forward(self, x: Tensor, valid: Tensor | None, *, lookahead: int) -> Tensor:
        """As ``NormedConv.forward``: zeros stand for what is not there before every convolution."""
        for conv in self:
            x = conv(pad_context(x, kernel=conv.kernel_size[0], lookahead=lookahead))
            x = F.gelu(F.layer_norm(x.transpose(1, 2), (x.shape[1],)).transpose(1, 2))
            x = x if valid is None else x * valid
        return x


class AbsolutePositions(nn.Module):
    """A vector per frame of the window, added."""

    def __init__(self, frames: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(frames, width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, F, C] -> [B, F, C]."""
        return x + self.weight
