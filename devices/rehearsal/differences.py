"""Two probes side by side: how far features are apart, and which kernels, precisions and providers changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from reuse_distill.devices.rehearsal.probe import NodeTime, SampledArray, SideProbe, decoded
from reuse_distill.devices.rehearsal.probe_run import precision_of
from reuse_distill.runtime.equivalence.parity import difference
from reuse_distill.runtime.errors import RdError

# Operators that do the multiplying: what "the precision that is used" is about.
COMPUTING = ("matmul", "conv", "gemm", "attention", "fullyconnected", "lstm", "gru")


@dataclass(frozen=True)
class OutputDifference:
    """One output for one recording. ``relative`` is the root mean square of the difference over that of the output."""

    recording: str
    output: str
    frames: int  # compared
    identical: bool  # every bit of the whole output
    max_abs: float | None
    mean_cosine: float | None
    min_cosine: float | None
    relative: float
    defect: str = ""  # shapes differ, values are not finite


@dataclass(frozen=True)
class OperatorChange:
    """All nodes of one operator in one precision: how many, and their time a step in microseconds."""

    operator: str
    precision: str
    count_from: int
    count_to: int
    us_from: float
    us_to: float


@dataclass(frozen=True)
class KernelDifference:
    """How the two engines run the graph."""

    operators: tuple[OperatorChange, ...]
    precision_from: dict[str, int]  # computing nodes by the precision that they run in
    precision_to: dict[str, int]
    placement_from: dict[str, int]  # nodes by provider
    placement_to: dict[str, int]
    moved: tuple[str, ...]  # nodes of one name that run elsewhere or in another precision


def output_differences(before: SideProbe, after: SideProbe) -> tuple[OutputDifference, ...]:
    """Every output of every recording. Raises RdError where the samples of a side are not usable."""
    differences = []
    others = {result.recording: result for result in after.results}
    for result in before.results:
        theirs = {one.output: one for one in others[result.recording].outputs} if result.recording in others else {}
        for one in result.outputs:
            differences.append(_difference(result.recording, one, theirs.get(one.output)))
    return tuple(differences)


def _difference(recording: str, one: SampledArray, other: SampledArray | None) -> OutputDifference:
    if other is None or (one.shape, one.dtype, one.frames) != (other.shape, other.dtype, other.frames):
        shape = "missing" if other is None else f"{other.dtype} {list(other.shape)} of {other.frames} frames"
        defect = f"{one.dtype} {list(one.shape)} of {one.frames} frames before, {shape} after"
        return OutputDifference(recording, one.output, 0, False, None, None, None, float("inf"), defect)
    a, b = decoded(one, where=recording), decoded(other, where=recording)
    frames, identical = one.shape[-2], one.sha256 == other.sha256 and np.array_equal(a, b, equal_nan=True)
    if a.dtype.kind != "f":
        share = float(np.mean(a != b)) if a.size else 0.0
        return OutputDifference(recording, one.output, frames, identical, None, 1 - share, None, share)
    if not np.isfinite(b).all():
        defect = "values that are not finite after" + (" and before" if not np.isfinite(a).all() else "")
        return OutputDifference(recording, one.output, frames, identical, None, None, None, float("inf"), defect)
    try:
        apart = difference(b, a)
    except RdError as error:
        return OutputDifference(recording, one.output, frames, identical, None, None, None, 0.0, error.message)
    relative = float(np.linalg.norm(b.astype(np.float64) - a) / np.linalg.norm(a.astype(np.float64)))
    return OutputDifference(
        recording, one.output, frames, identical, apart.max_abs, apart.mean_cosine, apart.min_cosine, relative
    )


def kernel_difference(before: Sequence[NodeTime], after: Sequence[NodeTime]) -> KernelDifference:
    """The nodes of both sides."""
    counts: dict[tuple[str, str], list[float]] = {}
    for side, nodes in enumerate((before, after)):
        for node in nodes:
            row = counts.setdefault((node.operator, precision_of(node)), [0, 0, 0.0, 0.0])
            row[side] += 1
            row[2 + side] += node.microseconds
    ordered = sorted(counts.items(), key=lambda item: -max(item[1][2:]))
    return KernelDifference(
        operators=tuple(
            OperatorChange(operator, precision, int(row[0]), int(row[1]), round(row[2], 1), round(row[3], 1))
            for (operator, precision), row in ordered
        ),
        precision_from=_precisions(before),
        precision_to=_precisions(after),
        placement_from=dict(Counter(node.provider for node in before)),
        placement_to=dict(Counter(node.provider for node in after)),
        moved=tuple(_moved(before, after)),
    )


def _precisions(nodes: Sequence[NodeTime]) -> dict[str, int]:
    computing = (node for node in nodes if any(word in node.operator.lower() for word in COMPUTING))
    return dict(Counter(precision_of(node) for node in computing).most_common())


def _moved(before: Sequence[NodeTime], after: Sequence[NodeTime]) -> list[str]:
    others, moved = {node.name: node for node in after}, []
    for node in before:
        other = others.get(node.name)
        if other is None:
            continue
        was = f"{node.operator} in {precision_of(node)} on {node.provider}"
        now = f"{other.operator} in {precision_of(other)} on {other.provider}"
        if was != now:
            moved.append(f"{node.name}: {was}, now {now}")
    return moved
