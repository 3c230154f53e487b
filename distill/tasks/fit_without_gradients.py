"""Heads that are fitted without gradients: units by k-means, a projection by ridge regression.

k-means (HuBERT, arXiv 2106.07447, section 2.1; the numbers of the centroids are the units): k-means++ starts (Arthur
and Vassilvitskii 2007), then Lloyd's steps on all frames. A centroid without frames moves to a frame that is far from
its own, so that every unit is used. The projection maps a student's frames to a teacher's, in closed form.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from reuse_distill.runtime.errors import RdError
from torch import Tensor

STEPS = 40
SETTLED = 1e-4  # relative change of the distortion that ends the search
BLOCK = 1 << 14  # frames compared at once
SEEDED_FROM = 40  # frames per centroid that k-means++ draws from


@dataclass(frozen=True)
class Clusters:
    """Centroids (U, D) of normalised frames, and the mean squared distance to them in every step."""

    centroids: Tensor
    distortions: list[float]
    moved: int  # times that a centroid without frames was moved

    @property
    def distortion(self) -> float:
        return self.distortions[-1]


def k_means(frames: Tensor, units: int, *, seed: int, steps: int = STEPS) -> Clusters:
    """Clusters of ``frames`` (n, D). Raises RdError where there are fewer different frames than units."""
    if len(frames) < units or len(torch.unique(frames[: 4 * units], dim=0)) + max(len(frames) - 4 * units, 0) < units:
        raise RdError(f"{len(frames)} frames for {units} units", hint="give more audio, or ask for fewer units")
    generator = torch.Generator().manual_seed(seed)
    centroids = _seeded(frames, units, generator)
    distortions: list[float] = []
    moved = 0
    for _ in range(steps):
        nearest, distances = assign(frames, centroids)
        distortions.append(float(distances.mean()))
        centroids, empty = _means(frames, nearest, distances, centroids)
        moved += empty
        settled = len(distortions) > 1 and distortions[-2] - distortions[-1] < SETTLED * distortions[-2]
        if settled and not empty:
            break
    return Clusters(centroids, [*distortions, float(assign(frames, centroids)[1].mean())], moved)


def assign(frames: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """(number of the nearest centroid (n,), squared distance to it (n,))."""
    half = 0.5 * centroids.square().sum(1)
    numbers, distances = [], []
    for block in frames.split(BLOCK):
        scores = block @ centroids.T - half
        best, number = scores.max(1)
        numbers.append(number)
        distances.append((block.square().sum(1) - 2 * best).clamp(min=0))
    return torch.cat(numbers), torch.cat(distances)


def _seeded(frames: Tensor, units: int, generator: torch.Generator) -> Tensor:
    """k-means++: each start is drawn with a probability in proportion to its squared distance to those before it."""
    chosen = torch.randperm(len(frames), generator=generator)[: SEEDED_FROM * units]
    pool = frames[chosen]
    centroids = [pool[0]]
    nearest = (pool - pool[0]).square().sum(1)
    for _ in range(1, units):
        if not nearest.sum() > 0:
            raise RdError(f"the frames have {len(centroids)} different values, {units} units were requested")
        at = int(torch.multinomial(nearest, 1, generator=generator))
        centroids.append(pool[at])
        nearest = torch.minimum(nearest, (pool - pool[at]).square().sum(1))
    return torch.stack(centroids)


def _means(frames: Tensor, nearest: Tensor, distances: Tensor, before: Tensor) -> tuple[Tensor, int]:
    """(mean of each centroid's frames, how many had none and were moved to the frames furthest from theirs)."""
    counts = torch.bincount(nearest, minlength=len(before))
    sums = torch.zeros_like(before).index_add_(0, nearest, frames)
    means = sums / counts.clamp(min=1)[:, None]
    empty = torch.nonzero(counts == 0)[:, 0]
    if len(empty):
        means[empty] = frames[distances.topk(len(empty)).indices]
    return means, len(empty)


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
