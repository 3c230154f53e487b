"""LASER (arXiv 2406.09153): an utterance and its perturbed copy are aligned softly and pulled together.

    loss = normalised soft-DTW(x, y) + weight (IDM(x) + IDM(y))

Soft-DTW (Cuturi and Blondel, arXiv 1703.01541): R(i, j) = d(i, j) + softmin(R(i-1, j), R(i, j-1), R(i-1, j-1)) with
softmin(v) = -gamma log sum exp(-v / gamma), normalised so that a sequence with itself gives 0. IDM, the temporal
regulariser, keeps frames that are apart in time apart: over all pairs of frames of one sequence of n, divided by n^2,
d(i, j) / ((i-j)^2 + 1) within ``sigma`` frames, else ((i-j)^2 + 1) max(0, margin - d(i, j)). Published for HuBERT:
gamma 0.1, sigma 0, margin 1.1, weight 0.4. Decided here: d is the squared Euclidean distance of frames of length 1.

Shapes: B batch, N and M frames, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_FAR = 1e6  # of cells outside the matrix: finite, so that gradients are


def at_speed(wave: Tensor, lengths: Tensor, speed: float) -> tuple[Tensor, Tensor]:
    """Samples [B, T] played ``speed`` times as fast, tempo and pitch together, and their lengths [B]."""
    if speed == 1:
        return wave, lengths
    samples = max(1, round(wave.shape[1] / speed))
    played = F.interpolate(wave[:, None], size=samples, mode="linear", align_corners=False)[:, 0]
    return played, (lengths.double() / speed).floor().clamp(max=samples).to(lengths.dtype)


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances of frames as directions: [B, N, C], [B, M, C] -> [B, N, M], float32, within 0..4."""
    return 2 - 2 * F.normalize(x.float(), dim=-1) @ F.normalize(y.float(), dim=-1).transpose(1, 2)


def soft_dtw(d: Tensor, rows: Tensor, columns: Tensor, *, gamma: float = 0.1) -> Tensor:
    """[B] costs of distances ``d`` [B, N, M], of which the first ``rows`` [B] and ``columns`` [B] exist."""
    batch, n, m = d.shape
    skewed = d.new_full((batch, n, n + m - 1), _FAR)
    row = torch.arange(n, device=d.device)[:, None].expand(n, m)
    skewed[:, row, row + torch.arange(m, device=d.device)] = d  # column k holds the cells with i + j = k
    far = d.new_full((batch, 1), _FAR)
    before, last = d.new_full((batch, n), _FAR), d.new_full((batch, n), _FAR)  # diagonals k - 2 and k - 1
    diagonals = []
    for k in range(n + m - 1):
        corner = torch.zeros_like(far) if k == 0 else far
        steps = torch.stack([torch.cat([far, last[:, :-1]], 1), last, torch.cat([corner, before[:, :-1]], 1)])
        here = skewed[:, :, k] - gamma * torch.logsumexp(-steps / gamma, dim=0)
        before, last = last, here
        diagonals.append(here)
    return torch.stack(diagonals)[rows + columns - 2, torch.arange(batch, device=d.device), rows - 1]


def normalised_soft_dtw(x: Tensor, y: Tensor, rows: Tensor, columns: Tensor, *, gamma: float = 0.1) -> Tensor:
    """[B]: soft-DTW(x, y) - (soft-DTW(x, x) + soft-DTW(y, y)) / 2, which is 0 where x is y."""
    own = soft_dtw(distances(x, x), rows, rows, gamma=gamma) + soft_dtw(distances(y, y), columns, columns, gamma=gamma)
    return soft_dtw(distances(x, y), rows, columns, gamma=gamma) - own / 2


def temporal_regulariser(x: Tensor, rows: Tensor, *, sigma: int = 0, margin: float = 1.1) -> Tensor:
    """IDM of each sequence, [B, N, C] -> [B]; frames from ``rows`` [B] on do not exist."""
    d, frame = distances(x, x), torch.arange(x.shape[1], device=x.device)
    apart = (frame[:, None] - frame[None, :]).abs()
    weight = apart.float().square() + 1
    each = torch.where(apart <= sigma, d / weight, weight * (margin - d).clamp(min=0))
    exists = (frame[None, :] < rows[:, None]).float()
    return (each * exists[:, :, None] * exists[:, None, :]).sum((1, 2)) / rows.float().square()
