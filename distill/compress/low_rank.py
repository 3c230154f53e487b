"""Matrices as two factors of low rank, by singular values (arXiv 2211.09949 names it; no public code).

    W = U S V^T,   down = sqrt(S_r) V_r^T,   up = U_r sqrt(S_r)

The rank of a matrix is the smallest that keeps a share of its energy (the sum of squared singular values), or what a
budget for all matrices together buys. Activation-aware: singular values of W C with C C^T the mean of x x^T over
recordings, so that the error is that of the outputs W x and not that of the weights (SVD-LLM, arXiv 2403.07378).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from reuse_distill.distill.compress.reshaping import part_name, part_of, plain_state, rebuilt
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student
from reuse_distill.student.layer_shape import PARTS, last_factor, whole_weight
from torch import Tensor

Place = tuple[int, str]  # layer from 1, part
T = TypeVar("T")
_DAMPING = 1e-4  # of the mean diagonal, added to the covariance so that it has a root


@dataclass(frozen=True)
class Decomposition:
    """One matrix [N, C] as ``left`` [N, K] diag(``values`` [K]) ``right`` [K, C]."""

    left: Tensor
    values: Tensor
    right: Tensor

    @property
    def cost(self) -> int:
        """Weights that one more rank adds."""
        return self.left.shape[0] + self.right.shape[1]

    @property
    def whole(self) -> int:
        """Weights of the matrix itself."""
        return self.left.shape[0] * self.right.shape[1]

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """(down [R, C], up [N, R])."""
        root = self.values[:rank].sqrt()
        return root[:, None] * self.right[:rank], self.left[:, :rank] * root


def decompose(student: Student, covariances: dict[Place, Tensor] | None = None) -> dict[Place, Decomposition]:
    """Singular values of every matrix of the layers, in float64; with ``covariances`` of the outputs."""
    decompositions = {}
    for layer, shape in enumerate(student.config.layer_shapes, start=1):
        for part in shape.parts:
            weight = whole_weight(part_of(student, layer, part)).detach().double().cpu()
            root = None if covariances is None else _root(covariances[layer, part])
            left, values, right = torch.linalg.svd(weight if root is None else weight @ root, full_matrices=False)
            if root is not None:  # right @ inverse(root)
                right = torch.linalg.solve_triangular(root, right, upper=False, left=False)
            decompositions[layer, part] = Decomposition(left, values, right)
    return decompositions


def _root(covariance: Tensor) -> Tensor:
    """Lower triangular C with C C^T = ``covariance``."""
    size = covariance.shape[0]
    damping = _DAMPING * covariance.diagonal().mean().clamp(min=1e-12)
    return torch.linalg.cholesky(covariance + damping * torch.eye(size, dtype=covariance.dtype))


def input_covariances(student: Student, run: Callable[[T], Any], batches: Iterable[T]) -> dict[Place, Tensor]:
    """Mean of x x^T over all frames, for the inputs of every matrix; ``run`` runs ``student`` on a batch."""
    sums: dict[Place, Tensor] = {}
    counts: dict[Place, int] = {}
    handles = []

    def collect(place: Place) -> Callable[..., None]:
        def before(_: Any, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach().flatten(0, -2).double().cpu()
            sums[place] = sums.get(place, torch.zeros(())) + x.T @ x
            counts[place] = counts.get(place, 0) + len(x)

        return before

    for layer, shape in enumerate(student.config.layer_shapes, start=1):
        for part in shape.parts:
            handles.append(part_of(student, layer, part).register_forward_pre_hook(collect((layer, part))))
    try:
        with torch.no_grad():
            for batch in batches:
                run(batch)
    finally:
        for handle in handles:
            handle.remove()
    if not sums:
        raise RdError("no audio to measure activations on", hint="give --data with a few utterances")
    return {place: total / counts[place] for place, total in sums.items()}


def ranks_by_budget(decompositions: dict[Place, Decomposition], ratio: float) -> dict[Place, int]:
    """Ranks so that the matrices have 1 - ``ratio`` of their weights: the values that keep most energy per weight.

    Energy counts relative to each matrix. A matrix that would be no smaller stays whole, which leaves less for others.
    Raises RdError where the budget does not even buy rank 1 everywhere.
    """
    budget = weights_left([(one.right.shape[1], one.left.shape[0]) for one in decompositions.values()], ratio)
    kept_whole: set[Place] = set()
    while True:
        ranks = _greedy(decompositions, budget, kept_whole)
        larger = {p for p, rank in ranks.items() if rank * decompositions[p].cost >= decompositions[p].whole}
        if not larger:
            return {**ranks, **dict.fromkeys(kept_whole, 0)}
        kept_whole |= larger


def weights_left(sizes: Sequence[tuple[int, int]], ratio: float) -> float:
    """1 - ``ratio`` of the weights of matrices of ``sizes`` (inputs, outputs).

    Raises RdError where that does not even buy rank 1 everywhere.
    """
    budget = (1 - ratio) * sum(inputs * outputs for inputs, outputs in sizes)
    least = sum(inputs + outputs for inputs, outputs in sizes)
    if least > budget:
        raise RdError(
            f"ratio {ratio:g} leaves {int(budget)} weights, rank 1 in all {len(sizes)} matrices needs {least}",
            hint="lower --ratio",
        )
    return budget


def matrix_sizes(student: Student) -> list[tuple[int, int]]:
    """(inputs, outputs) of every matrix of the layers, factored or not."""
    return [shape.size(part) for shape in student.config.layer_shapes for part in shape.parts]


def _greedy(decompositions: dict[Place, Decomposition], budget: float, kept_whole: set[Place]) -> dict[Place, int]:
    factored = {place: one for place, one in decompositions.items() if place not in kept_whole}
    left = (
        budget - sum(decompositions[place].whole for place in kept_whole) - sum(one.cost for one in factored.values())
    )
    ranks = dict.fromkeys(factored, 1)
    steps = []
    for place, one in factored.items():
        gains = one.values.square() / one.values.square().sum() / one.cost
        steps += [(float(gain), place, one.cost) for gain in gains[1:]]
    for _, place, cost in sorted(steps, key=lambda step: -step[0]):
        if cost > left:
            break
        ranks[place] += 1
        left -= cost
    return ranks


def factored(student: Student, decompositions: dict[Place, Decomposition], ranks: dict[Place, int]) -> Student:
    """A student whose matrices are factors of ``ranks`` (0: one matrix).

    Raises RdError for a rank above full.
    """
    state = plain_state(student)
    rows = []
    for layer, shape in enumerate(student.config.layer_shapes, start=1):
        row = []
        for part in PARTS:
            rank = ranks.get((layer, part), 0)
            most = min(shape.size(part))
            if not 0 <= rank <= most:
                raise RdError(
                    f"layer {layer}: rank {rank} of {part} is outside 0..{most}",
                    hint="the full rank is the smaller side of the matrix",
                )
            row.append(rank)
            if part in shape.parts:
                _replace(state, student, (layer, part), decompositions[layer, part], rank)
        rows.append(tuple(row))
    return rebuilt(student, state, layer_ranks=tuple(rows) if any(map(any, rows)) else ())


def _replace(state: dict[str, Tensor], student: Student, place: Place, one: Decomposition, rank: int) -> None:
    """Factors in place of the matrix; without a rank the matrix in place of factors."""
    name, module = part_name(*place), part_of(student, *place)
    bias = last_factor(module).bias.detach().cpu()
    for key in [key for key in state if key.startswith(f"{name}.")]:
        del state[key]
    if not rank:
        state[f"{name}.weight"], state[f"{name}.bias"] = whole_weight(module).detach().cpu(), bias
        return
    down, up = one.factors(rank)
    state[f"{name}.down.weight"], state[f"{name}.up.weight"] = down.float(), up.float()
    state[f"{name}.up.bias"] = bias
