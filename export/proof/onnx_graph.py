"""Reads an ONNX file for the proof: plain, Q/DQ, and with ONNX Runtime's fused operators."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.proof.graph import ProofGraph, ProofNode

_MATMULS = {
    "MatMul",
    "Gemm",
    "FusedMatMul",
    "MatMulInteger",
    "QLinearMatMul",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "MatMulNBits",
}
# Where they are not all inputs: the zero point of an input that is quantised as it comes is computed too.
_OPERANDS = {
    "MatMulInteger": (0, 1),
    "MatMulIntegerToFloat": (0, 1),
    "DynamicQuantizeMatMul": (0, 1),
    "QLinearMatMul": (0, 3),
}
_LAYOUT = {"Transpose", "Reshape", "Slice", "Split", "Squeeze", "Unsqueeze", "Identity", "Cast", "Flatten", "Expand"}
_QUANTISERS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
_ADDS = {"Add", "QLinearAdd"}
SCALED = "FusedMatMul"  # its attribute alpha multiplies the product


@dataclass(frozen=True)
class Operation:
    """One node of an ONNX graph, in whatever file it is kept. Empty names are operands left out."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    integers: Mapping[str, int] = field(default_factory=dict)  # attributes
    scale: float = 1.0  # that an optimiser has fused into a product


def read_onnx(file: Path) -> ProofGraph:
    """The proof's view of an ONNX file; weights kept in a file beside it need not be there."""
    import onnx

    graph = onnx.load(str(file), load_external_data=False).graph
    elements = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    return ProofGraph(file.name, tuple(proof_nodes(map(_operation, graph.node), elements)))


def _operation(node: Any) -> Operation:
    integers = {attribute.name: attribute.i for attribute in node.attribute}
    scale = next((a.f for a in node.attribute if node.op_type == SCALED and a.name == "alpha"), 1.0)
    return Operation(node.name, node.op_type, tuple(node.input), tuple(node.output), integers, scale)


def proof_nodes(operations: Iterable[Operation], elements: dict[str, int]) -> list[ProofNode]:
    """``operations`` in execution order as the proof sees them; ``elements`` of every initialiser."""
    elements = dict(elements)
    producer: dict[str, str] = {}
    nodes: list[ProofNode] = []
    for index, node in enumerate(operations):
        if node.op == "Constant" or (node.inputs and all(name in elements or not name for name in node.inputs)):
            # Computed from constants only: as good as a constant of its first input's size.
            size = max((elements.get(name, 0) for name in node.inputs), default=0)
            elements.update(dict.fromkeys(node.outputs, size))
            continue
        name = node.name or f"{node.op}_{index}"
        inputs = tuple(producer[value] for value in node.inputs if value in producer)
        constant = max((elements[value] for value in node.inputs if value in elements), default=0)
        # Not `inputs`: a cache is an input of the graph and nothing in it produces it, but no weight either.
        operands = [node.inputs[i] for i in _OPERANDS.get(node.op, range(len(node.inputs))) if i < len(node.inputs)]
        computed = sum(bool(value) and value not in elements for value in operands)
        # A scaled product is no product of what it takes: a map may not be scaled on its way.
        kind = _kind(node.op, computed) if node.scale == 1 else "other"
        nodes.append(ProofNode(name, node.op, kind, inputs, _weights(node, constant)))
        producer.update(dict.fromkeys(node.outputs, name))
    return nodes


def _kind(op: str, computed: int) -> str:
    if op == "Softmax":
        return "softmax"
    if op in _MATMULS:
        return "product" if computed >= 2 and op != "MatMulNBits" else "projection"
    if op in _ADDS:
        return "add"
    return "layout" if op in _LAYOUT | _QUANTISERS else "other"


def _weights(node: Operation, constant: int) -> int:
    if node.op == "MatMulNBits":
        return node.integers["K"] * node.integers["N"]
    return constant if node.op in _MATMULS else 0
