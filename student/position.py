"""Where frames stand: grouped convolutions over them, or gated relative position bias.

Of a convolution with K taps frame t sees frames t - (K-1-R) … t + R.

The bias (WavLM, arXiv 2110.13900, section 4.1) is one table for all layers, with a gate per layer:

    score(i, j) = q_i k_j + g_i d_(j - i),   g_i = a_i (b_i w - 1) + 2,   (a_i, b_i) = sigmoid of a projection of x_i

The bias d depends on the distance only, in buckets that grow with it, so it is looked up once for all layers; only the
gate is computed in every layer. Shapes: B batch, F frames, H heads, D width of a head, E encoder width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from reuse_distill.student.attention import split_heads
from torch import Tensor, nn

GATES, PARTS = 2, 4  # a and b; each is the sum of four projections


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
