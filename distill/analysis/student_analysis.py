"""Everything that an analysis page shows of a student, computed: scores of heads, layers by likeness, cost by length.

Exported bundles are timed on utterances of several lengths: engines and precisions of one student, in turns.

Shapes: H heads, F frames, N layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reuse_distill.distill.compress.head_pruning import Scores, head_groups, l1_scores, map_scores, maps_of
from reuse_distill.distill.compress.methods import importance
from reuse_distill.distill.compress.width_pruning import row_scores
from reuse_distill.distill.evaluation.features import cka_matrix
from reuse_distill.distill.tradeoff.side_by_side import LENGTHS_S, Spread, machine, ratios, spread, take_turns
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.bundle_format.bundle import read_bundle
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import SAMPLE_RATE_HZ, frames_for
from reuse_distill.student import Student, StudentConfig
from reuse_distill.student.cost import macs
from torch import Tensor

COUNTED_LENGTHS_S = (1, 2, 5, 10, 20, 30, 60)  # of utterances that costs are counted for
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
REPEATS = 10


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
        macs_per_second={seconds: cost_by_part(config, seconds) for seconds in COUNTED_LENGTHS_S},
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


@dataclass(frozen=True)
class BundleTimes:
    """Processor time of one bundle, seconds per second of audio, by the length of the utterance in seconds."""

    name: str
    target: str
    precision: str
    kind: str
    size_bytes: int
    processor_s: dict[int, Spread]
    faster: dict[int, Spread]  # times the first bundle, turn by turn


@dataclass(frozen=True)
class MeasuredBundles:
    """Bundles that took turns on one machine, one thread each."""

    bundles: tuple[BundleTimes, ...]
    machine: dict[str, Any]
    repeats: int


def timed_bundles(folders: Sequence[Path], wave: np.ndarray, *, repeats: int = REPEATS) -> MeasuredBundles:
    """The first seconds of ``wave`` (T,), repeated where it is too short, by every bundle in turns.

    Raises RdError for folders that are no bundles, and where there is no audio.
    """
    if not len(wave):
        raise RdError("there is no audio to time bundles with", hint="--data: recordings of a few seconds")
    bundles = [read_bundle(folder) for folder in folders]
    encoders = [Encoder.load(bundle.path, threads=1) for bundle in bundles]
    wave = np.resize(wave, max(LENGTHS_S) * SAMPLE_RATE_HZ).astype(np.float32)
    seconds_of: dict[int, dict[str, list[float]]] = {}
    for seconds in LENGTHS_S:
        piece = wave[: seconds * SAMPLE_RATE_HZ]
        calls = {f"{n}": partial(one.extract, piece, SAMPLE_RATE_HZ) for n, one in enumerate(encoders)}
        turns = take_turns(calls, repeats=repeats)
        seconds_of[seconds] = {n: [s / seconds for s in one.processor_s] for n, one in turns.items()}
    rows = [
        BundleTimes(
            name=_name(bundle.path),
            target=bundle.manifest.target,
            precision=bundle.manifest.precision,
            kind=bundle.manifest.kind,
            size_bytes=bundle.manifest.artifact_bytes,
            processor_s={seconds: spread(times[f"{n}"]) for seconds, times in seconds_of.items()},
            faster={seconds: ratios(times["0"], times[f"{n}"]) for seconds, times in seconds_of.items()},
        )
        for n, bundle in enumerate(bundles)
    ]
    return MeasuredBundles(tuple(rows), machine(1), repeats)


def _name(folder: Path) -> str:
    """The folder, or what it lies in where it is a trade-off's ``POINT/bundle``."""
    path = folder.resolve()
    return path.parent.name if path.name == "bundle" else path.name
