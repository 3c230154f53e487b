"""Hard-concrete gates (Louizos et al., arXiv 1712.01312): 0 and 1 with probabilities that have a gradient.

    s = sigmoid((log u - log(1 - u) + logit) / temperature),   z = clamp(s (high - low) + low, 0, 1),   u uniform
    P(z > 0) = sigmoid(logit - temperature log(-low / high))

One z per gate and step, for the whole batch, as DPHuBERT draws them (arXiv 2305.17651). Outside training nothing is
drawn: z = clamp(sigmoid(logit) (high - low) + low, 0, 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from reuse_distill.distill.compress.gates import GateSettings, GateSite
from reuse_distill.student import Student
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
