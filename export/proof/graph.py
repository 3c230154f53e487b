"""A finished artifact's graph, reduced to what the proof asks: who takes what from whom.

Each target has a reader that fills this from its own file (ONNX, MIL program, ExecuTorch program, engine inspector).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

KINDS = ("softmax", "product", "projection", "add", "layout", "other")


@dataclass(frozen=True)
class ProofNode:
    """One operation.

    softmax: over the last axis. product: matrix product of two computed values. projection: matrix product with a
    constant weight. add: sum. layout: moves, casts, quantises or dequantises values and computes nothing else.
    """

    name: str
    op: str  # the target's own name of the operation
    kind: str
    inputs: tuple[str, ...]  # nodes that produce its computed inputs, in operand order
    weight_elements: int = 0  # of a projection
    moves: str = ""  # what it does to the axes of its first input, in static numbers; empty: nothing, or not told


@dataclass(frozen=True)
class ProofGraph:
    """All nodes in execution order."""

    file: str
    nodes: tuple[ProofNode, ...]

    @cached_property
    def by_name(self) -> dict[str, ProofNode]:
        return {node.name: node for node in self.nodes}

    def of_kind(self, kind: str) -> list[ProofNode]:
        return [node for node in self.nodes if node.kind == kind]

    def through_layout(self, name: str) -> tuple[ProofNode | None, tuple[ProofNode, ...]]:
        """The first node at or above ``name`` that is not layout, and the layout passed on the way."""
        passed: list[ProofNode] = []
        node = self.by_name.get(name)
        while node is not None and node.kind == "layout":
            passed.append(node)
            node = self.by_name.get(node.inputs[0]) if node.inputs else None
        return node, tuple(passed)

    @cached_property
    def _projections_above(self) -> dict[str, frozenset[str]]:
        above: dict[str, frozenset[str]] = {}
        for node in self.nodes:  # execution order: producers come first
            projections = {node.name} if node.kind == "projection" else set()
            above[node.name] = frozenset(projections.union(*(above.get(name, frozenset()) for name in node.inputs)))
        return above

    def projections_above(self, names: Iterator[str] | list[str]) -> frozenset[str]:
        """All projections that the named nodes depend on, themselves included."""
        return frozenset().union(*(self._projections_above[name] for name in names))
