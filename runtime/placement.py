"""Which provider runs which node of a graph, as ONNX Runtime tells it after it has divided the graph among them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

from reuse_distill.runtime.providers import NAMES


@dataclass(frozen=True)
class PlacedNode:
    """One node and the provider that runs it, by our name (cpu, cuda, …)."""

    node: str
    op: str
    provider: str


def read_nodes(session: Any) -> tuple[PlacedNode, ...] | None:
    """Every node of ``session``, or None where ONNX Runtime does not tell: before 1.24, and of ``.ort`` files."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    nodes = tuple(
        PlacedNode(node.name, node.op_type, NAMES.get(part.ep_name, part.ep_name))
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    )
    return nodes or None


def count(nodes: Sequence[PlacedNode] | None) -> dict[str, int] | None:
    """Nodes per provider, most first; None stays None."""
    return None if nodes is None else dict(Counter(node.provider for node in nodes).most_common())


def placement_lines(nodes: Sequence[PlacedNode]) -> Iterator[str]:
    """A JSON object per node."""
    for node in nodes:
        yield json.dumps(asdict(node))


def placement_summary(nodes: Sequence[PlacedNode]) -> str:
    """One line per provider: how many nodes, and of which operators."""
    lines = []
    for provider, total in (count(nodes) or {}).items():
        operators = Counter(node.op for node in nodes if node.provider == provider)
        lines.append(f"{provider}: {total} nodes: {', '.join(f'{n} {op}' for op, n in operators.most_common())}")
    return "\n".join(lines)


@runtime_checkable
class ReportsNodes(Protocol):
    """A backend whose engine reports which provider runs which node; None where this version or file does not."""

    @property
    def nodes(self) -> tuple[PlacedNode, ...] | None: ...
