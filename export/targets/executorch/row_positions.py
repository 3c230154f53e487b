"""Where frames stand, in rows: positional convolutions of every kind, and WavLM's gated distances.

Shape legend: F frames, E encoder width, H heads, D width of a head, K taps of a positional convolution, R look-ahead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from reuse_distill.export.capture.simplify import BiasByDistance
from reuse_distill.student import Student
from reuse_distill.student.position import ConvStack, NormedConv
from torch import Tensor, nn


def in_two_dimensions(conv: nn.Conv1d) -> nn.Conv2d:
    """The convolution over [1, C, T, 1]."""
    (kernel,), (stride,), bias = conv.kernel_size, conv.stride, conv.bias
    flat = nn.Conv2d(
        conv.in_channels, conv.out_channels, (kernel, 1), (stride, 1), groups=conv.groups, bias=bias is not None
    )
    with torch.no_grad():
        flat.weight.copy_(conv.weight[..., None])
        if bias is not None and flat.bias is not None:
            flat.bias.copy_(bias)
    return flat


def rows(x: Tensor) -> Tensor:
    """[1, C, F, 1] -> [F, C]; squeezed, not reshaped, so that no F is special."""
    return x.permute(0, 2, 3, 1).squeeze(2).squeeze(0)


def columns(x: Tensor) -> Tensor:
    """[F, C] -> [1, C, F, 1]."""
    return x.transpose(0, 1)[None, :, :, None]


class PositionRows(nn.Module):
    """What is added to the frames for their position: [F, E] -> [F, E]."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        part, config = student.encoder.pos_conv[0], student.config
        self.before, self.after = config.position_kernel - 1 - config.lookahead_frames, config.lookahead_frames
        self.padded_by_zeros = student.post_extract_proj is not None
        normed, stacked = isinstance(part, NormedConv), isinstance(part, ConvStack)
        self.norm = part.norm if normed else None
        self.norms_after = stacked
        convs = list(part) if stacked else [part.conv if normed else part]
        self.convs = nn.ModuleList(in_two_dimensions(conv) for conv in convs)

    def forward(self, x: Tensor, exists: Tensor | None) -> Tensor:
        """``exists`` [1, F] is 1 where a frame does, the others of ``x`` are zeros; None: all do."""
        if self.norm is not None:
            scale = self.norm.weight * torch.rsqrt(self.norm.running_var + self.norm.eps)
            x = self._existing((x - self.norm.running_mean) * scale + self.norm.bias, exists)
        if not self.norms_after:
            return self.of_heard(self.padded(x))
        for conv in self.convs:
            x = rows(conv(columns(self.padded(x)))).contiguous()  # of columns, torch would make one frame special
            x = self._existing(F.gelu(F.layer_norm(x, (x.shape[1],))), exists)
        return x

    def of_heard(self, heard: Tensor) -> Tensor:
        """The only convolution and its GELU, of frames with their context: [F + K - 1, E] -> [F, E]."""
        return rows(F.gelu(self.convs[0](columns(heard))))

    def padded(self, x: Tensor) -> Tensor:
        """[F, E] -> [F + K - 1, E], zeros where no frame is."""
        if not self.padded_by_zeros:
            return F.pad(x, (0, 0, self.before, self.after))
        # XNNPACK cannot load a pad of what an int8 product gives.
        return torch.cat([torch.zeros(self.before, x.shape[1]), x, torch.zeros(self.after, x.shape[1])])

    def _existing(self, x: Tensor, exists: Tensor | None) -> Tensor:
        return x if exists is None else x * exists.transpose(0, 1)


def distances(relative: BiasByDistance | None, x: Tensor) -> Tensor | None:
    """The relative position bias [H, F, F] of the frames ``x`` [F, E]; None where the encoder has none."""
    if relative is None:
        return None
    frame = torch.arange(x.shape[0])
    distance = (frame[None, :] - frame[:, None]).clamp(-relative.largest, relative.largest) + relative.largest
    return F.embedding(distance, relative.table).permute(2, 0, 1)


def gated(positions: Tensor | None, bias: Tensor | None) -> Callable[[Any, Tensor], Tensor | None]:
    """What is added to a layer's scores, as ``TransformerLayer.gated``: ``positions`` [H, F, F], ``bias`` [F]."""

    def added(layer: Any, inner: Tensor) -> Tensor | None:
        """``inner`` [F, E]: what the layer's attention sees."""
        gate = layer.gate
        if gate is None or positions is None:
            return bias
        heads = inner.reshape(inner.shape[0], gate.heads, inner.shape[1] // gate.heads).transpose(0, 1)  # [H, F, D]
        gates = torch.sigmoid(gate.linear(heads))  # [H, F, 2]
        share = gates[..., :1] * (gates[..., 1:] * gate.grep_a[0] - 1) + 2
        return share * positions if bias is None else share * positions + bias

    return added
