"""Everything that an analysis page shows of a student, computed: scores of heads, layers by likeness, cost by length.

Shapes: H heads, F frames, N layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from reuse_distill.distill.compress.head_pruning import Scores, head_groups, l1_scores
from reuse_distill.distill.compress.map_scores import map_scores, maps_of
from reuse_distill.distill.compress.methods import importance
from reuse_distill.distill.compress.row_pruning import row_scores
from reuse_distill.distill.evaluation.cka import cka_matrix
from reuse_distill.runtime.geometry import SAMPLE_RATE_HZ, frames_for
from reuse_distill.student import Student, StudentConfig
from reuse_distill.student.cost import macs
from torch import Tensor

LENGTHS_S = (1, 2, 5, 10, 20, 30, 60)  # of utterances that costs are counted for
PICTURE_S = 2.0  # of the first recording: what the pictures of maps show
# Parts of ``student.cost`` under the names of the page.
PARTS = {
    "front end": ("mel", "conv", "input_projection", "reduction"),
    "positions": ("position", "gates"),
    "projections (Q, K, V, output)": ("projections",),
    "attention products": ("attention",),
    "feed-forward": ("ffn",),
    "projection heads": ("heads",),
}


@dataclass(frozen=True)
class HeadRow:
    """One head of a map; ``layers``: the computing layer and its reusers. Ranks from 1: who goes first."""

    layers: tuple[int, ...]
    head: int  # from 1
    diagonality: float
    entropy: float
    importance: float
    l1: float
    importance_rank: int
    diagonality_rank: int  # 1: the most diagonal


@dataclass(frozen=True)
class StudentAnalysis:
    """Of one student on some recordings."""

    config: StudentConfig
    parameters: int
    recordings: int
    heads: tuple[HeadRow, ...]
    maps: dict[int, np.ndarray]  # computing layer -> [H, F, F] of the first recording
    likeness: list[list[float]]  # CKA of every layer with every other, N x N
    weak_units: dict[int, float]  # layer -> L1 of its weakest tenth of feed-forward units over that of its median unit
    macs_per_second: dict[int, dict[str, float]]  # seconds of an utterance -> part -> MACs per second of audio

    @property
    def diagonal_and_important(self) -> float:
        """Rank correlation (Spearman's) of diagonality and importance; 1: the most diagonal heads matter most."""
        return rank_correlation([row.diagonality for row in self.heads], [row.importance for row in self.heads])


def analyse(student: Student, waves: Sequence[Tensor], *, seed: int = 0) -> StudentAnalysis:
    """Scores on ``waves`` (T,) each; RdError where there are none."""
    config = student.config
    diagonality, entropy = map_scores(student, waves)
    important, l1 = importance(student, waves, seed), l1_scores(student)
    student.requires_grad_(False)
    pictures = maps_of(student, waves[0][: int(PICTURE_S * SAMPLE_RATE_HZ)])
    with torch.no_grad():
        layers = [torch.cat(student(wave[None], context=config.context).layers) for wave in waves]
    return StudentAnalysis(
        config=config,
        parameters=sum(p.numel() for p in student.parameters()),
        recordings=len(waves),
        heads=_rows(config, diagonality, entropy, important, l1),
        maps={source: maps.numpy() for source, maps in pictures.items()},
        likeness=cka_matrix(layers, layers),
        weak_units={layer: _weakest(values) for layer, values in row_scores(student).items()},
        macs_per_second={seconds: cost_by_part(config, seconds) for seconds in LENGTHS_S},
    )


def _rows(
    config: StudentConfig, diagonality: Scores, entropy: Scores, important: Scores, l1: Scores
) -> tuple[HeadRow, ...]:
    least, most_diagonal = _ranks(important), _ranks({s: [-v for v in values] for s, values in diagonality.items()})
    return tuple(
        HeadRow(
            layers=layers,
            head=head + 1,
            diagonality=diagonality[source][head],
            entropy=entropy[source][head],
            importance=important[source][head],
            l1=l1[source][head],
            importance_rank=least[source, head],
            diagonality_rank=most_diagonal[source, head],
        )
        for source, layers in head_groups(config).items()
        for head in range(len(l1[source]))
    )


def _ranks(scores: Scores) -> dict[tuple[int, int], int]:
    """Place of every head, 1 for the lowest score of all maps."""
    order = sorted((value, source, head) for source, values in scores.items() for head, value in enumerate(values))
    return {(source, head): place for place, (_, source, head) in enumerate(order, start=1)}


def _weakest(values: Sequence[float]) -> float:
    weakest = sorted(values)[: max(1, len(values) // 10)]
    return float(np.mean(weakest) / np.median(values))


def cost_by_part(config: StudentConfig, seconds: float) -> dict[str, float]:
    """MACs per second of audio of an utterance of so many seconds, under the names of ``PARTS``."""
    frames = frames_for(round(seconds * SAMPLE_RATE_HZ)) * 320 // config.hop_samples
    counted = macs(config, frames)
    return {name: sum(counted.get(part, 0) for part in parts) / seconds for name, parts in PARTS.items()}


def rank_correlation(left: Sequence[float], right: Sequence[float]) -> float:
    """Spearman's: the correlation of ranks, ties by their mean rank; NaN where one side does not vary."""
    ranks = [_mean_ranks(np.asarray(one, np.float64)) for one in (left, right)]
    if any(one.std() == 0 for one in ranks):
        return float("nan")
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])
