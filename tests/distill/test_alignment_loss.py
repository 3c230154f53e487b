"""LASER's losses against their definitions, cell by cell."""

from __future__ import annotations

import math

import pytest
import torch
from reuse_distill.distill.alignment_loss import distances, normalised_soft_dtw, soft_dtw, temporal_regulariser


def by_cells(d: list[list[float]], gamma: float) -> float:
    cost: dict[tuple[int, int], float] = {}
    for i, row in enumerate(d):
        for j, value in enumerate(row):
            steps = [cost[at] for at in ((i - 1, j), (i, j - 1), (i - 1, j - 1)) if at in cost] or [0.0]
            cost[i, j] = value - gamma * math.log(sum(math.exp(-step / gamma) for step in steps))
    return cost[len(d) - 1, len(d[0]) - 1]


def test_soft_dtw_of_padded_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    d = torch.rand(3, 6, 5, generator=generator)
    rows, columns = torch.tensor([6, 4, 1]), torch.tensor([5, 5, 2])
    costs = soft_dtw(d, rows, columns, gamma=0.1)
    for one, cost, n, m in zip(d, costs, rows, columns, strict=True):
        assert float(cost) == pytest.approx(by_cells(one[:n, :m].tolist(), 0.1), rel=1e-4)
    d = torch.rand(2, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([4, 3])
    assert torch.autograd.gradcheck(lambda x: soft_dtw(x, lengths, lengths), (d,))


def test_a_slower_copy_is_near_and_noise_is_not() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 8, 16, generator=generator)
    slower, other = x.repeat_interleave(2, dim=1), torch.randn(1, 16, 16, generator=generator)
    n, m = torch.tensor([8]), torch.tensor([16])
    assert abs(float(normalised_soft_dtw(x, x, n, n))) < 1e-4
    near, far = (float(normalised_soft_dtw(x, y, n, m, gamma=0.01)) for y in (slower, other))
    assert abs(near) < 0.5 < 5 < far


def test_regulariser_pushes_frames_apart() -> None:
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(2))
    lengths = torch.tensor([5, 3])
    d = distances(x, x)[1, :3, :3].tolist()
    pairs = [(i, j, ((i - j) ** 2 + 1)) for i in range(3) for j in range(3)]
    expected = sum(d[i][j] / w if i == j else w * max(0.0, 1.1 - d[i][j]) for i, j, w in pairs) / 9
    assert float(temporal_regulariser(x, lengths)[1]) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    same = torch.ones(1, 5, 8)
    apart = torch.eye(5, 8)[None]
    five = torch.tensor([5])
    assert float(temporal_regulariser(same, five)) > 10 * float(temporal_regulariser(apart, five)) >= 0
