"""A linear map from a student's frames to a teacher's, by ridge regression in closed form."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

RIDGE = 1e-3  # of the mean variance of an input


@dataclass
class Ridge:
    """Sums over frames: x (n, D) normalised by nothing, y (n, K). Add pairs, then ``solve``."""

    count: int = 0
    x_sum: Tensor = field(default_factory=lambda: torch.zeros(()))
    y_sum: Tensor = field(default_factory=lambda: torch.zeros(()))
    xx: Tensor = field(default_factory=lambda: torch.zeros(()))
    xy: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, x: Tensor, y: Tensor) -> None:
        """Frames of one recording, x (F, D) and y (F, K)."""
        x, y = x.double(), y.double()
        self.count += len(x)
        self.x_sum, self.y_sum = self.x_sum + x.sum(0), self.y_sum + y.sum(0)
        self.xx, self.xy = self.xx + x.T @ x, self.xy + x.T @ y

    def solve(self) -> tuple[Tensor, Tensor]:
        """Weight (K, D) and bias (K,) with the least squared error."""
        mean_x, mean_y = self.x_sum / self.count, self.y_sum / self.count
        covariance = self.xx / self.count - torch.outer(mean_x, mean_x)
        cross = self.xy / self.count - torch.outer(mean_x, mean_y)
        penalty = RIDGE * covariance.diagonal().mean() * torch.eye(len(mean_x), dtype=torch.float64)
        weight = torch.linalg.solve(covariance + penalty, cross)  # (D, K)
        return weight.T.float(), (mean_y - mean_x @ weight).float()
