"""Kinds of gates: hard-concrete ones, and self-pinching ones of one threshold per layer.

Hard-concrete (Louizos et al., arXiv 1712.01312): 0 and 1 with probabilities that have a gradient.

    s = sigmoid((log u - log(1 - u) + logit) / temperature),   z = clamp(s (high - low) + low, 0, 1),   u uniform
    P(z > 0) = sigmoid(logit - temperature log(-low / high))

One z per gate and step, for the whole batch, as DPHuBERT draws them (arXiv 2305.17651). Outside training nothing is
drawn: z = clamp(sigmoid(logit) (high - low) + low, 0, 1).

Self-pinching (Xu et al., arXiv 2505.22608): one learned threshold per layer closes what has small weights. Published
are the idea (a single learned threshold per layer, trained together with the weights, pruning neuron by neuron) and
results; the formula was not available here. What this file decides: a head's or unit's size s is the L1 norm of its
weights (as the study's scores) over the mean of its site, so that 1 is an average one at any width;

    gate = 1 where s > threshold, else 0;   its gradient is that of sigmoid((s - threshold) / TEMPERATURE)

to the threshold and to the weights, which can leave a gate by growing. ``layer`` is a site here: the heads of a map,
the units of a feed-forward block, the channels of a convolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from reuse_distill.distill.compress.gates import GateSettings, GateSite
from reuse_distill.distill.compress.head_pruning import head_groups
from reuse_distill.distill.compress.reshaping import part_of
from reuse_distill.distill.compress.width_pruning import convolution_name
from reuse_distill.student import Student
from reuse_distill.student.layer_shape import last_factor, whole_weight
from torch import Tensor, nn


class HardConcreteGates(nn.Module):
    """Implements ``Gates`` with a logit per gate."""

    def __init__(self, sites: Sequence[GateSite], settings: GateSettings) -> None:
        super().__init__()
        self.temperature = settings.temperature
        self.low, self.high = settings.stretch
        self.shift = self.temperature * math.log(-self.low / self.high)
        start = math.log(1 / settings.closed_at_start - 1) + self.shift  # P(z > 0) = 1 - closed_at_start
        self.logits = nn.ParameterDict({site.key: nn.Parameter(torch.full((site.count,), start)) for site in sites})

    def values(self, student: Student) -> dict[str, Tensor]:
        if not self.training:
            return self.final(student)
        return {key: self._drawn(logits) for key, logits in self.logits.items()}

    def _drawn(self, logits: Tensor) -> Tensor:
        u = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
        return self._stretched(torch.sigmoid((u.log() - (1 - u).log() + logits) / self.temperature))

    def _stretched(self, s: Tensor) -> Tensor:
        return (s * (self.high - self.low) + self.low).clamp(0, 1)

    def open(self, student: Student) -> dict[str, Tensor]:
        return {key: torch.sigmoid(logits - self.shift).sum() for key, logits in self.logits.items()}

    def margins(self, student: Student) -> dict[str, Tensor]:
        return dict(self.logits.items())

    def final(self, student: Student) -> dict[str, Tensor]:
        return {key: self._stretched(torch.sigmoid(logits)) for key, logits in self.logits.items()}


TEMPERATURE = 0.1


class SelfPinchingGates(nn.Module):
    """Implements ``Gates`` with a threshold per site."""

    def __init__(self, sites: Sequence[GateSite], settings: GateSettings) -> None:
        super().__init__()
        self.sites = tuple(sites)
        self.thresholds = nn.ParameterDict({site.key: nn.Parameter(torch.zeros(())) for site in sites})

    def values(self, student: Student) -> dict[str, Tensor]:
        return {key: _step(margin) for key, margin in self.margins(student).items()}

    def open(self, student: Student) -> dict[str, Tensor]:
        return {key: _step(margin).sum() for key, margin in self.margins(student).items()}

    def margins(self, student: Student) -> dict[str, Tensor]:
        return {site.key: sizes(student, site) - self.thresholds[site.key] for site in self.sites}

    def final(self, student: Student) -> dict[str, Tensor]:
        return {site.key: torch.ones(site.count) for site in self.sites}


def _step(margin: Tensor) -> Tensor:
    """1 where ``margin`` > 0, with the gradient of a sigmoid."""
    soft = torch.sigmoid(margin / TEMPERATURE)
    return (margin > 0).to(margin.dtype) + soft - soft.detach()


def sizes(student: Student, site: GateSite) -> Tensor:
    """[count]: L1 norm of the weights of each head, unit or channel, over their mean; has a gradient."""
    if site.kind == "channels":
        kernel = student.get_submodule(convolution_name(site.number)).weight
        after = student.get_submodule(convolution_name(site.number + 1)).weight
        total = kernel.abs().sum((1, 2)) + after.abs().sum((0, 2))
    elif site.kind == "units":
        inner, outer = (part_of(student, site.number, part) for part in ("fc1", "fc2"))
        into = whole_weight(inner).abs().sum(1) + last_factor(inner).bias.abs()
        total = into + whole_weight(outer).abs().sum(0)
    else:
        total = sum(
            (_head_sizes(student, layer) for layer in head_groups(student.config)[site.number]), torch.zeros(())
        )
    return total / total.mean()


def _head_sizes(student: Student, layer: int) -> Tensor:
    shape = student.config.shape_of(layer)
    total = whole_weight(part_of(student, layer, "out_proj")).abs().sum(0)
    for part in ("q_proj", "k_proj", "v_proj"):
        if part in shape.parts:
            module = part_of(student, layer, part)
            total = total + whole_weight(module).abs().sum(1) + last_factor(module).bias.abs()
    return total.reshape(shape.heads, -1).sum(1)
