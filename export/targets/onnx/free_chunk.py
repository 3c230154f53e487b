"""One step graph for every chunk size C, from the graphs of two sizes: what differs between them is linear in C.

A converter that is given C as a symbol reasons for minutes about sums like 320 C + 80. Two conversions with numbers
are quick, and tell the same: they have the same nodes and weights, and whole numbers (ends of slices, shapes) that
differ by so much for each frame. These become a * C + b, with C read off the input ``fresh``. Anything else that
differs is refused; parity at every size and across switches is measured on the finished artifact.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from reuse_distill.runtime.bundle_format.stepspec import CHUNK_AXIS, FRESH, WINDOW_AXIS
from reuse_distill.runtime.errors import RdError

SIZES = (5, 7)  # converted with; neither is a size that a step has by itself
AXES = {"samples": {1: WINDOW_AXIS}, FRESH: {1: CHUNK_AXIS}}


@dataclass
class _Expressions:
    """Nodes that compute whole numbers from the chunk size, each made once."""

    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    known: dict[tuple[tuple[int, ...], tuple[int, ...]], str] = field(default_factory=dict)

    def of(self, slope: np.ndarray, offset: np.ndarray) -> str:
        """Name of the value slope * C + offset, (n,) int64."""
        from onnx import helper

        key = (tuple(slope.tolist()), tuple(offset.tolist()))
        if key in self.known:
            return self.known[key]
        if not self.nodes:
            self.nodes.append(helper.make_node("Shape", [FRESH], ["chunk_frames"], "chunk_frames", start=1, end=2))
        value, number = "chunk_frames", len(self.known)
        for op, operand, idle in (("Mul", slope, 1), ("Add", offset, 0)):
            if (operand == idle).all() and (op == "Add" or len(operand) == 1):
                continue
            constant, result = f"of_chunk_{number}_{op}_operand", f"of_chunk_{number}_{op}"
            self.constants[constant] = operand
            self.nodes.append(helper.make_node(op, [value, constant], [result], result))
            value = result
        self.known[key] = value
        return value


def free_chunk(one: Any, other: Any, sizes: tuple[int, int] = SIZES) -> Any:
    """The ONNX model ``one``, converted with chunks of ``sizes[0]`` frames, for any size.

    ``other`` is the same step converted with ``sizes[1]``. Raises RdError where they differ in more than whole numbers.
    """
    from onnx import numpy_helper

    ours, theirs = one.graph, other.graph
    mine, yours = ({i.name: numpy_helper.to_array(i) for i in g.initializer} for g in (ours, theirs))
    if len(ours.node) != len(theirs.node):
        raise _different(f"{len(ours.node)} and {len(theirs.node)} nodes")
    same = dict(zip([p.name for p in ours.input], [p.name for p in theirs.input], strict=True))
    expressions = _Expressions()
    for node, twin in zip(ours.node, theirs.node, strict=True):
        if node.op_type != twin.op_type or len(node.input) != len(twin.input) or _attributes(node) != _attributes(twin):
            raise _different(f"node {node.name} ({node.op_type}) and {twin.name} ({twin.op_type})")
        for index, (name, twin_name) in enumerate(zip(node.input, twin.input, strict=True)):
            if name not in mine:
                if same.get(name, name if not name else None) != twin_name:
                    raise _different(f"node {node.name} takes {name}, its twin {twin_name}")
                continue
            expression = _compared(mine[name], yours.get(twin_name), sizes, node.name)
            if expression is not None:
                node.input[index] = expressions.of(*expression)
        same.update(zip(node.output, twin.output, strict=True))
    ours.initializer.extend(numpy_helper.from_array(v, k) for k, v in expressions.constants.items())
    for port, twin_port in zip((*ours.input, *ours.output), (*theirs.input, *theirs.output), strict=True):
        _free_axes(port, twin_port)
    nodes = [*expressions.nodes, *ours.node]
    del ours.node[:], ours.value_info[:]
    ours.node.extend(nodes)
    _drop_unused(ours)
    return one


def _compared(
    mine: np.ndarray, yours: np.ndarray | None, sizes: tuple[int, int], node: str
) -> tuple[np.ndarray, np.ndarray] | None:
    """(slope, offset) of a constant that depends on the chunk size; None of one that does not."""
    if yours is None or mine.shape != yours.shape or mine.dtype != yours.dtype:
        raise _different(f"a constant of node {node} has another shape or type")
    if np.array_equal(mine, yours):
        return None
    slope, rest = np.divmod(yours - mine, sizes[1] - sizes[0]) if mine.dtype == np.int64 else (mine, np.ones(1))
    if mine.ndim != 1 or rest.any():
        raise _different(f"a constant of node {node}: {mine.ravel()[:4]} and {yours.ravel()[:4]}")
    return slope, mine - slope * sizes[0]


def _free_axes(port: Any, twin: Any) -> None:
    """Name the axes of an input or output that have another size in its twin."""
    for axis, (dim, other) in enumerate(
        zip(port.type.tensor_type.shape.dim, twin.type.tensor_type.shape.dim, strict=True)
    ):
        if dim.dim_value != other.dim_value:
            dim.dim_param = AXES.get(port.name, {}).get(axis, CHUNK_AXIS)  # takes the number's place


def _attributes(node: Any) -> list[bytes]:
    return sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)


def _drop_unused(graph: Any) -> None:
    """Remove constants that no node takes any more."""
    used = {name for node in graph.node for name in node.input} | {port.name for port in graph.output}
    kept = [initializer for initializer in graph.initializer if initializer.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _different(what: str) -> RdError:
    return RdError(
        f"steps of {SIZES[0]} and {SIZES[1]} frames were converted to different graphs: {what}",
        hint="export one bundle for each size, and report this with the versions in constraints.txt",
    )
