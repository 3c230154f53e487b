"""SKILL (arXiv 2402.16830): groups of like layers, whose means are compared instead of single layers.

Published: groups of the teacher's layers, found by hierarchical clustering of layer similarities on a small set; their
averages are what is distilled. What this file decides: likeness is linear CKA over frames; a group is as like another
as the mean over their pairs of layers; only neighbouring groups join, so a group is a stretch of the depth; and the
student's side is the mean over its own layers of the same places.

Shapes: N layers, B batch, F frames, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from reuse_distill.runtime.errors import RdError
from torch import Tensor

Groups = tuple[tuple[int, ...], ...]  # layers from 1


def groups_by_likeness(likeness: Sequence[Sequence[float]], count: int) -> Groups:
    """``count`` groups of the layers of ``likeness`` (N x N, larger is more alike); RdError for more than layers."""
    matrix = np.asarray(likeness, np.float64)
    if not 1 <= count <= len(matrix):
        raise RdError(f"loss.layer_groups is {count}", hint=f"1..{len(matrix)} groups of {len(matrix)} layers")
    groups = [[layer] for layer in range(len(matrix))]
    while len(groups) > count:
        alike = [matrix[np.ix_(left, right)].mean() for left, right in pairwise(groups)]
        at = int(np.argmax(alike))
        groups[at : at + 2] = [groups[at] + groups[at + 1]]
    return tuple(tuple(layer + 1 for layer in group) for group in groups)


def check_groups(groups: Groups, layers: int) -> None:
    """RdError where ``groups`` are not all layers, each once."""
    if sorted(layer for group in groups for layer in group) != list(range(1, layers + 1)) or not all(groups):
        raise RdError(
            f"loss.groups {[list(group) for group in groups]} are not the {layers} layers, each in one group",
            hint="such as [[1, 2], [3, 4, 5, 6]], or loss.layer_groups=2 to find them",
        )


def group_means(layers: Sequence[Tensor] | Tensor, groups: Groups) -> Tensor:
    """[N, B, F, C] -> [groups, B, F, C]."""
    return torch.stack([torch.stack([layers[layer - 1] for layer in group]).mean(0) for group in groups])
