"""Reads a finished ``.pte`` for the proof: portable kernels and the delegates' own graphs as one."""

from __future__ import annotations

from pathlib import Path

from reuse_distill.export.proof.graph import ProofGraph, ProofNode
from reuse_distill.export.proof.mil_graph import KEEP_AXES as MIL_KEEP_AXES
from reuse_distill.export.proof.mil_graph import mil_kind
from reuse_distill.export.targets.executorch.pte_program import COREML, PteOperation, PteProgram, read_program

_SOFTMAX = {"XNNSoftmax", "aten::_softmax", "aten::_safe_softmax"}
_MATMULS = {"XNNFullyConnected", "XNNBatchMatrixMultiply", "aten::bmm", "aten::mm", "aten::addmm", "aten::linear"}
_ADDS = {"XNNAdd", "aten::add"}
_KEEP_AXES = {
    "XNNConvert",  # quantises, dequantises or casts
    "XNNCopy",
    "quantized_decomposed::quantize_per_tensor",
    "quantized_decomposed::dequantize_per_tensor",
    "dim_order_ops::_to_dim_order_copy",
    "dim_order_ops::_clone_dim_order",
    "aten::clone",
}
_LAYOUT = _KEEP_AXES | {
    "XNNStaticTranspose",
    "XNNStaticReshape",
    "XNNStaticSlice",
    *(f"aten::{op}_copy" for op in ("view", "permute", "expand", "slice", "select", "squeeze", "unsqueeze", "split")),
    "aten::transpose_copy",
    "executorch_prim::et_view",
}
_JOINTS = {"XNNMultiply": "mul", "XNNDiv": "div", **{f"XNNConcatenate{n}": "cat" for n in range(2, 6)}}


def read_pte(file: Path) -> ProofGraph:
    """The proof's view of the program, read off the file."""
    return ProofGraph(file.name, tuple(nodes_of(read_program(file))))


def nodes_of(program: PteProgram) -> list[ProofNode]:
    """The program's operations as the proof asks for them."""
    elements = {name: constant.elements for name, constant in program.constants.items()}
    producer: dict[str, str] = {}
    nodes: list[ProofNode] = []
    for operation in program.operations:
        weights = [elements[name] for name in operation.inputs if name in elements]
        if operation.inputs and len(weights) == len(operation.inputs):  # as good as a constant: a weight transposed
            elements.update(dict.fromkeys(operation.outputs, max(weights)))
            continue
        kind = _kind(operation, computed=len(operation.inputs) - len(weights))
        nodes.append(
            ProofNode(
                operation.name,
                _JOINTS.get(operation.kind, operation.kind.removeprefix("aten::")),
                kind,
                tuple(producer[name] for name in operation.inputs if name in producer),
                max(weights, default=0) if kind == "projection" else 0,
                _moves(operation, kind),
            )
        )
        producer.update(dict.fromkeys(operation.outputs, operation.name))
    return nodes


def _moves(operation: PteOperation, kind: str) -> str:
    """What the operation does to the axes of its first input."""
    keeps = MIL_KEEP_AXES if operation.place == COREML else _KEEP_AXES
    if kind == "layout" and operation.kind not in keeps:
        return f"{operation.kind} {operation.settings}".rstrip()
    return ""


def _kind(operation: PteOperation, *, computed: int) -> str:
    if operation.place == COREML:
        return mil_kind(operation.kind, computed)
    if operation.kind in _SOFTMAX:
        return "softmax"
    if operation.kind in _MATMULS:
        return "product" if computed >= 2 else "projection"
    if operation.kind in _ADDS:
        return "add"
    return "layout" if operation.kind in _LAYOUT else "other"
