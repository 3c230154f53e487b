"""Methods by name: from a student and the share that should be gone of the original to a smaller student.

Shares count from the uncompressed student, so a schedule can go on from what is left. ``heads`` removes as many heads
of every map (by L1), ``heads-data`` wherever they matter least; both leave a head in each map.

Two kinds: ``METHODS`` are pure functions; ``TRAINED`` train gates on the student, which takes data, steps and a folder
(``compress_run`` runs them by rd-distill's own loop), and their share is one of all parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from reuse_distill.distill.compress.gate_kinds import HardConcreteGates, SelfPinchingGates
from reuse_distill.distill.compress.gates import GatedStudent, Gates, GateSettings, GateSite, gate_sites
from reuse_distill.distill.compress.head_pruning import (
    Scores,
    data_scores,
    head_groups,
    l1_scores,
    lowest_overall,
    map_scores,
    random_scores,
    remove_heads,
)
from reuse_distill.distill.compress.low_rank import (
    decompose,
    factored,
    input_covariances,
    matrix_sizes,
    ranks_by_budget,
    weights_left,
)
from reuse_distill.distill.compress.reshaping import lowest_in_each
from reuse_distill.distill.compress.weight_pruning import global_masks, masked, semi_structured_masks
from reuse_distill.distill.compress.width_pruning import remove_rows, row_scores
from reuse_distill.runtime.errors import RdError, nearest
from reuse_distill.student import Student
from torch import Tensor

Waves = Sequence[Tensor]  # (T,) each
Method = Callable[[Student, float, Waves, int], Student]


def by_name(name: str) -> Method:
    """The pure method; RdError for another name."""
    check_name(name)
    if name in TRAINED:
        raise RdError(f"{name} is trained: it is no function of the student", hint="rd-distill compress runs it")
    return METHODS[name]


def check_name(name: str) -> None:
    """RdError where there is no such method."""
    if name not in NAMES:
        raise RdError(f"there is no compression method {name!r}", hint=nearest(name, list(NAMES)))


def gated(student: Student, kind: str, settings: GateSettings, target: float) -> GatedStudent:
    """``student`` with gates of a method of ``TRAINED``; ``target``: share of its parameters to remove."""
    sites = gate_sites(student)
    return GatedStudent(student, TRAINED[kind](sites, settings), settings, target)


def _heads(student: Student, ratio: float, waves: Waves, seed: int) -> Student:
    config = student.config
    removed = round(ratio * config.heads)
    counts = {source: config.shape_of(source).heads for source in head_groups(config)}
    if removed >= config.heads:
        raise RdError(f"--ratio {ratio:g} of {config.heads} heads leaves none in a layer", hint="lower --ratio")
    now = {source: max(0, removed - (config.heads - count)) for source, count in counts.items()}
    scores = l1_scores(student)
    return remove_heads(student, {s: lowest_in_each({s: scores[s]}, n)[s] for s, n in now.items() if n})


def _heads_to_remove(student: Student, ratio: float) -> int:
    """How many of all maps' heads together are still to go."""
    config = student.config
    groups = head_groups(config)
    left = sum(config.shape_of(source).heads for source in groups)
    return max(0, round(ratio * config.heads * len(groups)) - (config.heads * len(groups) - left))


def _heads_by_data(student: Student, ratio: float, waves: Waves, seed: int) -> Student:
    count = _heads_to_remove(student, ratio)
    if not count:
        return student
    return remove_heads(student, lowest_overall(importance(student, waves, seed), count))


def importance(student: Student, waves: Waves, seed: int) -> Scores:
    """What each head does to the last features in any direction: ``data_scores`` without a training loss."""
    student.requires_grad_(True)
    generator = torch.Generator().manual_seed(seed)

    def sensitivity(wave: Tensor) -> Tensor:
        """The features along one random direction: how much a head moves them in any direction, on average."""
        output = student(wave[None], context=student.config.context)
        features = (output.projections or output.layers)[-1]
        return (features * torch.randn(features.shape, generator=generator)).sum()

    return data_scores(student, sensitivity, waves)


def _diagonal_heads(student: Student, ratio: float, waves: Waves, seed: int) -> Student:
    """The most diagonal heads of all maps go first: an experiment (arXiv 2211.09949 finds that they matter)."""
    count = _heads_to_remove(student, ratio)
    if not count:
        return student
    scores, _ = map_scores(student, waves)
    return remove_heads(student, lowest_overall({s: [-v for v in values] for s, values in scores.items()}, count))


def _random_heads(student: Student, ratio: float, waves: Waves, seed: int) -> Student:
    count = _heads_to_remove(student, ratio)
    return remove_heads(student, lowest_overall(random_scores(student, seed), count)) if count else student


def _rows(student: Student, ratio: float, waves: Waves, seed: int) -> Student:
    width, gone = student.config.ffn_width, round(ratio * student.config.ffn_width)
    if gone >= width:
        raise RdError(f"--ratio {ratio:g} of {width} feed-forward units leaves none", hint="lower --ratio")
    scores = row_scores(student)
    now = {layer: max(0, gone - (width - len(values))) for layer, values in scores.items()}
    return remove_rows(
        student, {one: lowest_in_each({one: scores[one]}, n, parts="units")[one] for one, n in now.items() if n}
    )


def _weights(student: Student, ratio: float, waves: Waves, seed: int) -> Student:
    return masked(student, global_masks(student, ratio))


def _two_of_four(student: Student, ratio: float, waves: Waves, seed: int) -> Student:
    if ratio != 0.5:
        raise RdError(f"--ratio {ratio:g} with 2:4, which removes half", hint="--ratio 0.5 and --schedule 1")
    return masked(student, semi_structured_masks(student))


def _low_rank(student: Student, ratio: float, waves: Waves, seed: int) -> Student:
    decompositions = decompose(student)
    return factored(student, decompositions, ranks_by_budget(decompositions, ratio))


def _low_rank_by_data(student: Student, ratio: float, waves: Waves, seed: int) -> Student:
    def run(wave: Tensor) -> object:
        return student(wave[None], context=student.config.context)

    decompositions = decompose(student, input_covariances(student, run, waves))
    return factored(student, decompositions, ranks_by_budget(decompositions, ratio))


METHODS: dict[str, Method] = {
    "heads": _heads,
    "heads-data": _heads_by_data,
    "heads-diagonal": _diagonal_heads,
    "heads-random": _random_heads,
    "rows": _rows,
    "weights": _weights,
    "2:4": _two_of_four,
    "low-rank": _low_rank,
    "low-rank-data": _low_rank_by_data,
}
TRAINED: dict[str, Callable[[Sequence[GateSite], GateSettings], Gates]] = {
    "gates": HardConcreteGates,
    "pinch": SelfPinchingGates,
}
NAMES = (*METHODS, *TRAINED)
BY_DATA = ("heads-data", "heads-diagonal", "low-rank-data")
SPARSE = ("weights", "2:4")  # recovery keeps their zeros


def shape_left(student: Student, name: str, ratio: float) -> Student:
    """A student of the size that the pure method ``name`` leaves, within a second and without audio.

    Which heads go is not what the method decides. Raises RdError for a share that cannot be removed.
    """
    if name in ("low-rank", "low-rank-data"):  # factors stand for matrices of the same size
        weights_left(matrix_sizes(student), ratio)
        return student
    if name == "weights":
        return student
    as_many = "heads-random" if name in ("heads-data", "heads-diagonal") else name
    return by_name(as_many)(student, ratio, (), 0)


def split_names(text: str) -> tuple[str, ...]:
    """``heads+rows`` -> both, in this order. Raises RdError for a name that there is not, and one given twice."""
    names = tuple(text.split("+"))
    for name in names:
        check_name(name)
    if len(set(names)) != len(names):
        raise RdError(f"{text} names a method twice", hint="a schedule repeats all of its methods: --schedule 3")
    if set(names[1:]) & set(TRAINED):
        raise RdError(f"{text} trains gates on what another method left", hint="put gates or pinch first, one of them")
    if set(names) & set(SPARSE) and names[-1] not in SPARSE:
        raise RdError(f"{text} prunes weights before it reshapes them", hint="put weights or 2:4 last")
    return names
