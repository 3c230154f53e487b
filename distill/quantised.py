"""Quantisation-aware training: the student as int8 artifacts will compute it, with gradients that pass through.

Weights of linear layers and convolutions are rounded to int8 per output channel (symmetric), their inputs to 8 bits per
tensor with a range that follows the data. The first convolution and the positional one stay float, as in the exported
files; so do products of attention, softmax and norms.
"""

from __future__ import annotations

from typing import Any

import torch
from reuse_distill.student import Student, StudentOutput
from torch import Tensor, nn
from torch.func import functional_call

LEVELS = 127  # int8 without -128
STEPS = 255  # 8-bit activations
MOMENTUM = 0.99  # of the running range
IN_FLOAT = ("feature_extractor.conv_layers.0.", "encoder.pos_conv.")


def rounded_weight(weight: Tensor) -> Tensor:
    """``weight`` on the int8 grid of each output channel (dimension 0); the gradient is that of the identity."""
    flat = weight.detach().flatten(1).abs().amax(1).clamp(min=1e-12)
    scale = (flat / LEVELS).reshape(-1, *(1,) * (weight.dim() - 1))
    return weight + ((weight / scale).round() * scale - weight).detach()


class ActivationRange(nn.Module):
    """Rounds to 8 bits within a running range of the data; the gradient passes inside the range, stops outside."""

    low: Tensor
    high: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self._follow(x.detach())
        scale = (self.high - self.low).clamp(min=1e-8) / STEPS
        zero = (-self.low / scale).round()
        inside = x.clamp(-zero * scale, (STEPS - zero) * scale)
        return inside + ((inside / scale).round() * scale - inside).detach()

    @torch.no_grad()
    def _follow(self, x: Tensor) -> None:
        low, high = x.min().clamp(max=0).float(), x.max().clamp(min=0).float()
        keep = torch.where(self.seen, MOMENTUM, 0.0)
        self.low.copy_(keep * self.low + (1 - keep) * low)
        self.high.copy_(keep * self.high + (1 - keep) * high)
        self.seen.fill_(True)


class QuantisedStudent(nn.Module):
    """A student under simulated int8. ``student`` keeps its float weights: those are trained and saved."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student
        self.targets = quantised_modules(student)
        self.ranges = nn.ModuleList(ActivationRange() for _ in self.targets)
        for name, activation in zip(self.targets, self.ranges, strict=True):
            student.get_submodule(name).register_forward_pre_hook(_rounding(activation))

    def forward(self, *args: Any, **kwargs: Any) -> StudentOutput:
        """As ``Student.forward``."""
        weights = {f"{n}.weight": rounded_weight(self.student.get_submodule(n).weight) for n in self.targets}
        return functional_call(self.student, weights, args, kwargs)


def quantised_modules(student: Student) -> list[str]:
    """Names of the linear layers and convolutions that int8 artifacts hold as int8."""
    return [
        name
        for name, module in student.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d) and not f"{name}.".startswith(IN_FLOAT)
    ]


def _rounding(activation: ActivationRange) -> Any:
    def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (activation(args[0]), *args[1:])

    return before
