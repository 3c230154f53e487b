"""Which student layer resembles which teacher layer: linear centred kernel alignment (Kornblith et al., 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def linear_cka(left: Tensor, right: Tensor) -> float:
    """||Y^T X||^2 / (||X^T X|| ||Y^T Y||) of centred (frames, C) and (frames, D).

    1 for features that are equal up to rotation and scale, 0 for unrelated ones.
    """
    x, y = (t.double() - t.double().mean(0) for t in (left, right))
    cross = (y.T @ x).square().sum()
    own = torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)
    return float(cross / own) if own > 0 else float("nan")


def cka_matrix(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[list[float]]:
    """CKA of every student layer (rows) with every teacher layer (columns), over the frames of all utterances.

    ``student`` and ``teacher``: one (N, F, C) per utterance, the same utterances in the same order.
    """
    ours, theirs = torch.cat(list(student), dim=1), torch.cat(list(teacher), dim=1)
    return [[linear_cka(a, b) for b in theirs] for a in ours]
