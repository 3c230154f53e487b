"""A student made ready for artifacts: the same function with fewer operations."""

from __future__ import annotations

import copy
import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from student import Student
from student.frontend import TimeNorm
from student.position import WeightNormConv


def prepared(student: Student, depth: int) -> Student:
    """A float32 eval-mode copy of the first ``depth`` layers with weight norm folded into the kernel and 1/sqrt(D)
    into the query projection.

    Quantisers need constant weights: a weight-norm product in the graph is none. Layers above the last exported one
    are left out here because a step would keep their caches, and compute what those hold.
    """
    ready = cut(copy.deepcopy(student).float().eval(), depth)
    conv = ready.encoder.pos_conv[0]
    if isinstance(conv, WeightNormConv):
        ready.encoder.pos_conv[0] = folded(conv)
    norm = ready.feature_extractor.conv_layers[0][2]
    if isinstance(norm, TimeNorm):
        ready.feature_extractor.conv_layers[0][2] = FusedTimeNorm(norm)
    for layer in ready.encoder.layers:
        attention = layer.self_attn
        if not attention.reuse:
            with torch.no_grad():
                attention.q_proj.weight.mul_(attention.scale)
                attention.q_proj.bias.mul_(attention.scale)
            attention.scale = 1.0
    return ready.requires_grad_(False)


def cut(student: Student, depth: int) -> Student:
    """``student`` itself without the layers and heads after layer ``depth`` (counted from 1)."""
    config = student.config
    kept = tuple(number for number in config.reuse_layers if number <= depth)
    student.config = dataclasses.replace(config, layers=depth, reuse_layers=kept)
    student.encoder.layers = student.encoder.layers[:depth]
    if student.proj_head is not None:
        student.proj_head = student.proj_head[:depth]
    return student


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


def folded(conv: WeightNormConv) -> nn.Conv1d:
    """The positional convolution with its weight norm multiplied out."""
    channels, per_group, kernel = conv.weight_v.shape
    plain = nn.Conv1d(channels, channels, kernel, groups=channels // per_group)
    with torch.no_grad():
        plain.weight.copy_(conv.weight)
        plain.bias.copy_(conv.bias)
    return plain
