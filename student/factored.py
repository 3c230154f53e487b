"""A linear layer as two of low rank: W x + b = U (V x) + b.

Shapes: C inputs, N outputs, R rank.
"""

from __future__ import annotations

from torch import Tensor, nn


class FactoredLinear(nn.Module):
    """``down`` [R, C] without bias, then ``up`` [N, R] with the layer's bias."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., N]."""
        return self.up(self.down(x))


def linear(inputs: int, outputs: int, rank: int = 0) -> nn.Linear | FactoredLinear:
    """A linear layer, factored where ``rank`` is not 0."""
    return FactoredLinear(inputs, outputs, rank) if rank else nn.Linear(inputs, outputs)


def last_factor(module: nn.Linear | FactoredLinear) -> nn.Linear:
    """The linear layer that gives the outputs: scaling its weight and bias scales the whole."""
    return module.up if isinstance(module, FactoredLinear) else module


def whole_weight(module: nn.Linear | FactoredLinear) -> Tensor:
    """The matrix [N, C], factors multiplied."""
    return module.up.weight @ module.down.weight if isinstance(module, FactoredLinear) else module.weight
