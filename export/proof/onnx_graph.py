"""Reads an ONNX file for the proof: plain, Q/DQ, and with ONNX Runtime's fused operators."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reuse_distill.export.proof.graph import ProofGraph, ProofNode

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
# What a layout operation does to axes is in these attributes and in the inputs after its first.
_AXES = ("perm", "axis", "axes", "split", "num_outputs", "starts", "ends", "shape")
_KEEP_AXES = _QUANTISERS | {"Identity", "Cast"}
SCALED = "FusedMatMul"  # its attribute alpha multiplies the product
_TURNED = ("transA", "transBatchA")  # ... and these turn its first operand
_MOST_NUMBERS = 16


@dataclass(frozen=True)
class OnnxOperation:
    """One node of an ONNX graph, in whatever file it is kept. Empty names are operands left out."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    integers: Mapping[str, int] = field(default_factory=dict)  # attributes
    lists: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # attributes of several integers
    scale: float = 1.0  # that an optimiser has fused into a product


def read_onnx(file: Path) -> ProofGraph:
    """The proof's view of an ONNX file; weights kept in a file beside it need not be there."""
    import onnx

    graph = onnx.load(str(file), load_external_data=False).graph
    elements = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    numbers = {t.name: small for t in graph.initializer if (small := _numbers(t)) is not None}
    constants = [(node, a.t) for node in graph.node if node.op_type == "Constant" for a in node.attribute]
    numbers |= {node.output[0]: small for node, t in constants if (small := _numbers(t)) is not None}
    return ProofGraph(file.name, tuple(proof_nodes(map(_operation, graph.node), elements, numbers)))


def _numbers(tensor: Any) -> tuple[int, ...] | None:
    """The few integers that a tensor holds; None for one of another kind or kept elsewhere."""
    from onnx import TensorProto, numpy_helper

    integers = tensor.data_type in (TensorProto.INT64, TensorProto.INT32)
    here = tensor.data_location != TensorProto.EXTERNAL
    if not integers or not here or math.prod(tensor.dims) > _MOST_NUMBERS:
        return None
    return tuple(int(value) for value in numpy_helper.to_array(tensor).reshape(-1))


def _operation(node: Any) -> OnnxOperation:
    integers = {attribute.name: attribute.i for attribute in node.attribute}
    scale = next((a.f for a in node.attribute if node.op_type == SCALED and a.name == "alpha"), 1.0)
    lists = {attribute.name: tuple(attribute.ints) for attribute in node.attribute if attribute.ints}
    return OnnxOperation(node.name, node.op_type, tuple(node.input), tuple(node.output), integers, lists, scale)


def proof_nodes(
    operations: Iterable[OnnxOperation], elements: dict[str, int], numbers: Mapping[str, tuple[int, ...]]
) -> list[ProofNode]:
    """``operations`` in execution order as the proof sees them.

    ``elements`` of every initialiser; ``numbers``: the values of those that hold a few integers.
    """
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
        table = elements.get(node.inputs[0], 0) if node.inputs else 0
        # Not `inputs`: a cache is an input of the graph and nothing in it produces it, but no weight either.
        operands = [node.inputs[i] for i in _OPERANDS.get(node.op, range(len(node.inputs))) if i < len(node.inputs)]
        computed = sum(bool(value) and value not in elements for value in operands)
        # A scaled product is no product of what it takes: a map may not be scaled on its way.
        kind = _kind(node.op, computed) if node.scale == 1 else "other"
        nodes.append(
            ProofNode(name, node.op, kind, inputs, _weights(node, constant, table), _moves(node, kind, numbers))
        )
        producer.update(dict.fromkeys(node.outputs, name))
    return nodes


def _kind(op: str, computed: int) -> str:
    if op == "Softmax":
        return "softmax"
    if op in _MATMULS:
        return "product" if computed >= 2 and op != "MatMulNBits" else "projection"
    if op in _ADDS:
        return "add"
    if op == "Gather":
        return "lookup"
    return "layout" if op in _LAYOUT | _QUANTISERS else "other"


def _moves(node: OnnxOperation, kind: str, numbers: Mapping[str, tuple[int, ...]]) -> str:
    """What the operation does to the axes of its first input; a computed number stands as its name."""
    if kind == "layout" and node.op not in _KEEP_AXES:
        settings = [*node.integers.items(), *node.lists.items()]
        attributes = sorted({name: value for name, value in settings if name in _AXES}.items())
        inputs = [str(list(numbers[name]) if name in numbers else name) for name in node.inputs[1:]]
        return " ".join([node.op, *(f"{name}={value}" for name, value in attributes), *inputs])
    turned = [name for name in _TURNED if kind == "product" and node.integers.get(name)]
    return " ".join([node.op, *turned]) if turned else ""


def _weights(node: OnnxOperation, constant: int, table: int) -> int:
    if node.op == "Gather":
        return table
    if node.op == "MatMulNBits":
        return node.integers["K"] * node.integers["N"]
    return constant if node.op in _MATMULS else 0
