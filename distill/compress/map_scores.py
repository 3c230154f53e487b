"""Heads by what their attention maps look like: how diagonal, how spread.

    diagonality = - mean over queries of sum over keys of P(q, k) |q - k| / F     (arXiv 2006.03265), 0 where diagonal
    entropy     = - mean over queries of sum over keys of P(q, k) log P(q, k) / log F    of 0..1, 1 where flat

Maps are those of the computing layers: a layer that reuses one has the same. Shapes: H heads, F frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from reuse_distill.distill.compress.head_pruning import Scores, head_groups
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student
from torch import Tensor


def diagonality(maps: Tensor) -> Tensor:
    """[..., F, F] -> [...]."""
    frame = torch.arange(maps.shape[-1], device=maps.device, dtype=maps.dtype)
    distance = (frame[:, None] - frame[None, :]).abs() / maps.shape[-1]
    return -(maps * distance).sum(-1).mean(-1)


def entropy(maps: Tensor) -> Tensor:
    """[..., F, F] -> [...]; maps of one frame have none."""
    each = -torch.special.xlogy(maps, maps).sum(-1).mean(-1)
    return each / math.log(max(2, maps.shape[-1]))


@torch.no_grad()
def maps_of(student: Student, wave: Tensor) -> dict[int, Tensor]:
    """Computing layer -> map [H, F, F] of one recording [T], in the chunks that the student is meant for."""
    maps = student(wave[None], context=student.config.context, with_maps=True).maps
    return {source: maps[source - 1][0].float().cpu() for source in head_groups(student.config)}


def map_scores(student: Student, waves: Sequence[Tensor]) -> tuple[Scores, Scores]:
    """(diagonality, entropy) of every head, means over recordings. Raises RdError where there are none."""
    if not waves:
        raise RdError("no audio to look at maps on", hint="give --data with a few utterances")
    sums: dict[int, Tensor] = {}
    for wave in waves:
        for source, maps in maps_of(student, wave).items():
            both = torch.stack([diagonality(maps), entropy(maps)]) / len(waves)
            sums[source] = sums[source] + both if source in sums else both
    return {s: v[0].tolist() for s, v in sums.items()}, {s: v[1].tolist() for s, v in sums.items()}


def random_scores(student: Student, seed: int) -> Scores:
    """A number per head, drawn: any order is as likely as another."""
    shapes = student.config.layer_shapes
    counts = {source: shapes[source - 1].heads for source in head_groups(student.config)}
    draws = np.random.default_rng(seed).random(sum(counts.values())).tolist()
    return {source: [draws.pop() for _ in range(count)] for source, count in counts.items()}
