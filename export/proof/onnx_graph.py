"""Reads an ONNX file for the proof: plain, Q/DQ, and with ONNX Runtime's fused operators."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from export.proof.graph import ProofGraph, ProofNode

_MATMULS = {"MatMul", "Gemm", "FusedMatMul", "MatMulInteger", "QLinearMatMul", "MatMulIntegerToFloat", "MatMulNBits"}
_LAYOUT = {"Transpose", "Reshape", "Slice", "Split", "Squeeze", "Unsqueeze", "Identity", "Cast", "Flatten", "Expand"}
_QUANTISERS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}


def read_onnx(file: Path) -> ProofGraph:
    """The proof's view of an ONNX file; weights kept in a file beside it need not be there."""
    import onnx

    model = onnx.load(str(file), load_external_data=False)
    return ProofGraph(file.name, tuple(_nodes(model.graph)))


def _nodes(graph: Any) -> list[ProofNode]:
    elements = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    producer: dict[str, str] = {}
    nodes: list[ProofNode] = []
    for index, node in enumerate(graph.node):
        if node.op_type == "Constant" or (node.input and all(name in elements or not name for name in node.input)):
            # Computed from constants only: as good as a constant of its first input's size.
            size = max((elements.get(name, 0) for name in node.input), default=0)
            elements.update(dict.fromkeys(node.output, size))
            continue
        name = node.name or f"{node.op_type}_{index}"
        inputs = tuple(producer[value] for value in node.input if value in producer)
        constant = max((elements[value] for value in node.input if value in elements), default=0)
        # Not `inputs`: a cache is an input of the graph and nothing in it produces it, but no weight either.
        computed = sum(bool(value) and value not in elements for value in node.input)
        nodes.append(ProofNode(name, node.op_type, _kind(node.op_type, computed), inputs, _weights(node, constant)))
        producer.update(dict.fromkeys(node.output, name))
    return nodes


def _kind(op: str, computed: int) -> str:
    if op == "Softmax":
        return "softmax"
    if op in _MATMULS:
        return "product" if computed >= 2 and op != "MatMulNBits" else "projection"
    if op == "Add":
        return "add"
    return "layout" if op in _LAYOUT | _QUANTISERS else "other"


def _weights(node: Any, constant: int) -> int:
    if node.op_type == "MatMulNBits":
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        return int(attributes["K"] * attributes["N"])
    return constant if node.op_type in _MATMULS else 0
