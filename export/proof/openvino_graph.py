"""Reads an OpenVINO IR for the proof: plain, with float16 weights, and quantised by NNCF.

Where a map has no second user the converter writes attention as one operation, ScaledDotProductAttention; the proof
sees it as the products and the softmax that it stands for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.export.proof.graph import ProofGraph, ProofNode

_MATMUL = "MatMul"
_QUANTISER = "FakeQuantize"
_ATTENTION = "ScaledDotProductAttention"
_LEAST_OPERANDS = 3  # queries, keys, values; then a mask and a scale
_KEEP_AXES = {_QUANTISER, "Convert"}
_LAYOUT = _KEEP_AXES | {
    "Transpose",
    "Reshape",
    "Slice",
    "StridedSlice",
    "Split",
    "VariadicSplit",
    "Squeeze",
    "Unsqueeze",
    "Broadcast",
}
_ENDS = {"Result", "Assign"}  # what leaves the graph: as an output, or into a state
_JOINTS = {"Multiply": "mul", "Divide": "div", "Concat": "concat"}
_LEAST_LEVELS = 255  # of 8 bits; a quantiser with fewer does more than round
_MOST_NUMBERS = 16


@dataclass(frozen=True)
class IrOperation:
    """One operation of an IR; ``inputs`` are (operation, number of its output)."""

    name: str
    kind: str
    inputs: tuple[tuple[str, int], ...]
    attributes: tuple[tuple[str, Any], ...] = ()
    elements: int = 0  # of a constant
    numbers: tuple[float, ...] | None = None  # the value of a constant that holds a few
    integer: bool = False  # whether these are integers


def read_ir(file: Path) -> ProofGraph:
    """The proof's view of an ``.xml`` and its ``.bin``. Raises RdError where they cannot be read."""
    from reuse_distill.runtime.engines.openvino.openvino_backend import read_model
    from reuse_distill.runtime.engines.openvino.openvino_device import load_openvino

    model = read_model(load_openvino().Core(), file)
    return ProofGraph(file.name, tuple(proof_nodes(operations(model))))


def operations(model: Any) -> list[IrOperation]:
    """The operations of an OpenVINO model in execution order."""
    return [_operation(node) for node in model.get_ordered_ops()]


def _operation(node: Any) -> IrOperation:
    kind, name = node.get_type_name(), node.get_friendly_name()
    inputs = tuple(
        (s.get_node().get_friendly_name(), s.get_index()) for s in (i.get_source_output() for i in node.inputs())
    )
    if kind != "Constant":
        attributes = {key: value for key, value in node.get_attributes().items() if isinstance(value, (bool, int, str))}
        return IrOperation(name, kind, inputs, tuple(sorted(attributes.items())))
    sizes = tuple(int(size) for size in node.get_output_shape(0))
    numbers, integer = None, False
    if math.prod(sizes) <= _MOST_NUMBERS:
        values = np.asarray(node.get_data()).reshape(-1)
        integer = bool(np.issubdtype(values.dtype, np.integer))
        numbers = tuple(float(value) for value in values)
    return IrOperation(name, kind, inputs, (), math.prod(sizes), numbers, integer)


def proof_nodes(operations: Iterable[IrOperation]) -> list[ProofNode]:
    """``operations`` in execution order as the proof sees them; what is computed from constants alone is a constant."""
    constants: dict[str, IrOperation] = {}
    nodes: list[ProofNode] = []
    for one in operations:
        above = [constants[name] for name, _ in one.inputs if name in constants]
        if one.kind == "Constant":
            constants[one.name] = one
            continue
        if one.inputs and len(above) == len(one.inputs):
            elements = max(constant.elements for constant in above)
            numbers = above[0].numbers if one.kind == "Convert" else None  # half precision, as the file stores it
            constants[one.name] = IrOperation(one.name, one.kind, (), (), elements, numbers)
            continue
        if one.kind in _ENDS:
            continue
        if one.kind == _ATTENTION and len(one.inputs) >= _LEAST_OPERANDS and not dict(one.attributes).get("causal"):
            nodes += _attention(one, constants)
            continue
        kind = _kind(one, computed=len(one.inputs) - len(above), constants=constants)
        computed = tuple(name for name, _ in one.inputs if name not in constants)
        weights = max((constant.elements for constant in above), default=0) if kind == "projection" else 0
        op = _JOINTS.get(one.kind, one.kind)
        nodes.append(ProofNode(one.name, op, kind, computed, weights, _moves(one, kind, constants)))
    return nodes


def _attention(one: IrOperation, constants: dict[str, IrOperation]) -> list[ProofNode]:
    """softmax(scale q k^T + mask) v in operations of their own, of which the last has the name of the whole.

    A scale that is not one fixed positive number is more than a scale; which number it is parity shows, as it does
    where attention is written out.
    """
    queries, keys, values, *rest = (name for name, _ in one.inputs)
    scores, scaled, masked, attention_map = (f"{one.name}/{part}" for part in ("scores", "scaled", "masked", "map"))
    mask = tuple(name for name in rest[:1] if name not in constants)
    numbers = [constants[name].numbers if name in constants else None for name in rest[1:2]]
    fixed = all(value is not None and len(value) == 1 and 0 < value[0] < math.inf for value in numbers)
    computed = tuple(name for name in rest[1:2] if name not in constants)
    return [
        ProofNode(scores, _MATMUL, "product", (queries, keys), moves=f"{_MATMUL} transpose_b"),
        ProofNode(scaled, "mul" if fixed else "Scale", "other", (scores, *computed)),
        ProofNode(masked, "Add", "add", (scaled, *mask)),
        ProofNode(attention_map, "Softmax", "softmax", (masked,)),
        ProofNode(one.name, _MATMUL, "product", (attention_map, values)),
    ]


def _kind(one: IrOperation, *, computed: int, constants: dict[str, IrOperation]) -> str:
    if one.kind == "Softmax":
        return "softmax"
    if one.kind == _MATMUL:
        return "product" if computed >= 2 else "projection"
    if one.kind == "Add":
        return "add"
    if one.kind == _QUANTISER:
        return "layout" if _rounds_only(one, constants) else "other"
    return "layout" if one.kind in _LAYOUT else "other"


def _rounds_only(one: IrOperation, constants: dict[str, IrOperation]) -> bool:
    """Whether a FakeQuantize gives back the range that it takes, in 8 bits: another range would scale the values."""
    ranges = [constants.get(name) for name, _ in one.inputs[1:]]
    values = [constant.numbers if constant is not None else None for constant in ranges]
    levels = dict(one.attributes).get("levels", 0)
    return bool(len(values) == 4 and None not in values and values[:2] == values[2:] and levels >= _LEAST_LEVELS)


def _moves(one: IrOperation, kind: str, constants: dict[str, IrOperation]) -> str:
    """What the operation does to the axes of its first input; a computed number stands as its name."""
    if kind == "layout" and one.kind not in _KEEP_AXES:
        parts = [f"{name}={value}" for name, value in one.attributes]
        if one.kind in ("Split", "VariadicSplit"):
            parts.append(f"of {len(one.inputs)}")
        for name, _ in one.inputs[1:]:
            constant = constants.get(name)
            known = constant is not None and constant.integer and constant.numbers is not None
            parts.append(str([int(n) for n in constant.numbers]) if known and constant and constant.numbers else name)
        return " ".join([one.kind, *parts])
    if kind == "product":
        turned = [name for name, value in one.attributes if name.startswith("transpose_") and value]
        return " ".join([one.kind, *turned]) if turned else ""
    return ""
