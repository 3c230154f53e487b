"""A student made ready for artifacts: the same function with fewer operations."""

from __future__ import annotations

import copy
import dataclasses

import torch
import torch.nn.functional as F
from reuse_distill.student import Student
from reuse_distill.student.attention import split_heads
from reuse_distill.student.front_ends.frontend import TimeNorm
from reuse_distill.student.heads import Head, SplitHeads, in_frames
from reuse_distill.student.layer_shape import last_factor
from reuse_distill.student.position import PositionGate, RelativePositions, WeightNormConv
from torch import Tensor, nn


def prepared(student: Student, depth: int) -> Student:
    """A float32 eval-mode copy of the first ``depth`` layers with weight norm folded into the kernel, 1/sqrt(D) into
    the query projection and the heads' upsampling into their projection; heads on the last layer each by itself.

    Quantisers need constant weights: a weight-norm product in the graph is none. Layers above the last exported one
    are left out here because a step would keep their caches, and compute what those hold.
    """
    ready = cut(copy.deepcopy(student).float().eval(), depth)
    ready.config = dataclasses.replace(ready.config, normalise_input=None)  # the input's contract: see capture
    conv = ready.encoder.pos_conv[0]
    if isinstance(conv, WeightNormConv):
        ready.encoder.pos_conv[0] = folded(conv)
    if ready.config.conv_norm == "group":
        norm = ready.feature_extractor.conv_layers[0][2]
        if isinstance(norm, TimeNorm):
            ready.feature_extractor.conv_layers[0][2] = FusedTimeNorm(norm)
    for layer in ready.encoder.layers:
        attention = layer.self_attn
        if not attention.reuse:
            with torch.no_grad():
                outer = last_factor(attention.q_proj)
                outer.weight.mul_(attention.scale)
                outer.bias.mul_(attention.scale)
            attention.scale = 1.0
    if ready.encoder.relative is not None:
        ready.encoder.relative = BiasByDistance(ready.encoder.relative)
        for layer in ready.encoder.layers:
            layer.gate = None if layer.gate is None else FoldedGate(layer.gate)
    if ready.proj_head is not None and ready.config.time_reduction > 1:
        ready.proj_head = nn.ModuleList(FoldedHead(head) for head in ready.proj_head)
    if ready.split_heads is not None:
        ready.split_heads = SingleHeads(ready.split_heads)
    return ready.requires_grad_(False)


def cut(student: Student, depth: int) -> Student:
    """``student`` itself without the layers and heads after layer ``depth`` (counted from 1)."""
    config = student.config
    kept = tuple(number for number in config.reuse_layers if number <= depth)
    final_norm = config.final_norm and (depth == config.layers or not config.norm_first)
    student.config = dataclasses.replace(
        config,
        layers=depth,
        reuse_layers=kept,
        final_norm=final_norm,
        layer_heads=config.layer_heads[:depth],
        layer_ffn_widths=config.layer_ffn_widths[:depth],
        layer_ranks=config.layer_ranks[:depth],
    )
    if not final_norm:  # it is for the last layer of the whole encoder only
        student.encoder.layer_norm = nn.Identity()
    student.encoder.layers = student.encoder.layers[:depth]
    if student.proj_head is not None:
        student.proj_head = student.proj_head[:depth]
    return student


class BiasByDistance(nn.Module):
    """The relative position bias with its buckets looked up: one table of distances, gathered once for all layers."""

    def __init__(self, relative: RelativePositions) -> None:
        super().__init__()
        self.largest = relative.largest
        self.register_buffer("table", relative.by_distance().detach().clone())  # [2 M + 1, H]

    def forward(self, x: Tensor) -> Tensor:
        """Of the frames of ``x`` [B, F, E]: [1, H, F, F]."""
        frame = torch.arange(x.shape[1], device=x.device)
        distance = (frame[None, :] - frame[:, None]).clamp(-self.largest, self.largest) + self.largest
        return F.embedding(distance, self.table).permute(2, 0, 1)[None]


class FoldedGate(nn.Module):
    """The gate of the bias with the sums of its projections folded into one small matrix."""

    def __init__(self, gate: PositionGate) -> None:
        super().__init__()
        self.heads = gate.heads
        weight, bias = gate.folded()
        self.linear = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            self.linear.weight.copy_(weight)
            self.linear.bias.copy_(bias)
        self.grep_a = gate.grep_a

    def forward(self, x: Tensor) -> Tensor:
        """[B, F, E] -> [B, H, F, 1]."""
        gates = torch.sigmoid(self.linear(split_heads(x, self.heads)))
        return gates[..., :1] * (gates[..., 1:] * self.grep_a - 1) + 2


class FusedTimeNorm(TimeNorm):
    """TimeNorm of one whole utterance as a single instance norm: one group per channel is the same thing."""

    def __init__(self, norm: TimeNorm) -> None:
        super().__init__(len(norm.weight), norm.eps)
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """[1, C, T] -> [1, C, T]."""
        if valid is not None:
            return TimeNorm.forward(self, x, valid)
        return F.instance_norm(x, weight=self.weight, bias=self.bias, use_input_stats=True, eps=self.eps)


class FoldedHead(nn.Module):
    """A head that undoes time reduction as one linear layer: both of its parts are linear and a step gives k frames."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        up, down = head.upsampler, head.lin_proj
        assert up is not None  # noqa: S101  (of students that reduce time)
        width, _, self.factor = up.weight.shape  # [C, C', k]
        self.lin_proj = nn.Linear(width, self.factor * down.out_features)
        with torch.no_grad():
            self.lin_proj.weight.copy_(torch.einsum("wd,cdk->kwc", down.weight, up.weight).flatten(0, 1))
            self.lin_proj.bias.copy_((down.weight @ up.bias + down.bias).repeat(self.factor))

    def forward(self, x: Tensor, frames: int | None = None) -> Tensor:
        """[..., S, C] -> [..., F, W]."""
        return in_frames(self.lin_proj(x), self.factor, frames)


class SingleHeads(nn.ModuleList):
    """DistilHuBERT's heads apart from each other, so that an artifact holds those that it gives."""

    def __init__(self, heads: SplitHeads) -> None:
        count, width, head_width = heads.weight.shape
        super().__init__(
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, head_width)) for _ in range(count)
        )
        with torch.no_grad():
            for number, (inner, _, outer) in enumerate(self):
                rows = slice(number * width, (number + 1) * width)
                inner.weight.copy_(heads.inner.weight[rows])
                inner.bias.copy_(heads.inner.bias[rows])
                outer.weight.copy_(heads.weight[number].T)
                outer.bias.copy_(heads.bias[0, 0, number])

    def forward(self, x: Tensor) -> list[Tensor]:
        """[..., F, C] -> N times [..., F, W]."""
        return [head(x) for head in self]


def folded(conv: WeightNormConv) -> nn.Conv1d:
    """The positional convolution with its weight norm multiplied out."""
    channels, per_group, kernel = conv.weight_v.shape
    plain = nn.Conv1d(channels, channels, kernel, groups=channels // per_group)
    with torch.no_grad():
        plain.weight.copy_(conv.weight)
        plain.bias.copy_(conv.bias)
    return plain
