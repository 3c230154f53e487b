"""Reads a finished ``.tflite`` for the proof: in float, with weights of half precision, and quantised."""

from __future__ import annotations

from pathlib import Path

from reuse_distill.export.proof.graph import ProofGraph, ProofNode
from reuse_distill.export.targets.litert.tflite_program import TflOperation, TflProgram, TflTensor, read_tflite

_KEEP_AXES = {"QUANTIZE", "DEQUANTIZE", "CAST"}
_LAYOUT = _KEEP_AXES | {
    "RESHAPE",
    "TRANSPOSE",
    "SLICE",
    "STRIDED_SLICE",
    "SPLIT",
    "SPLIT_V",
    "SQUEEZE",
    "EXPAND_DIMS",
    "BROADCAST_TO",
}
_PRODUCTS = ("FULLY_CONNECTED", "BATCH_MATMUL")
_OPERANDS = 2  # of a product; the third input of a fully connected layer is its bias
_JOINTS = {"MUL": "mul", "DIV": "div", "CONCATENATION": "concat"}


def read_litert(file: Path) -> ProofGraph:
    """The proof's view of a ``.tflite``. Raises RdError where it cannot be read."""
    return ProofGraph(file.name, tuple(nodes_of(read_tflite(file))))


def nodes_of(program: TflProgram) -> list[ProofNode]:
    """The operations of a program as the proof asks for them; what is made of constants alone is a constant."""
    constants = {i: tensor.elements for i, tensor in enumerate(program.tensors) if tensor.constant}
    producer: dict[int, str] = {}
    nodes: list[ProofNode] = []
    for number, operation in enumerate(program.operations):
        given = [i for i in operation.inputs if i >= 0]
        if given and all(i in constants for i in given):
            constants.update(dict.fromkeys(operation.outputs, max(constants[i] for i in given)))
            continue
        operands = given[:_OPERANDS] if operation.kind in _PRODUCTS else given
        weights = [constants[i] for i in operands if i in constants]
        kind = _kind(operation, program.tensors, computed=len(operands) - len(weights))
        name = f"{operation.kind}#{number}"
        nodes.append(
            ProofNode(
                name,
                _JOINTS.get(operation.kind, operation.kind),
                kind,
                tuple(producer[i] for i in given if i in producer),
                max(weights, default=0) if kind == "projection" else 0,
                _moves(operation, kind, program.tensors),
            )
        )
        producer.update(dict.fromkeys(operation.outputs, name))
    return nodes


def _kind(operation: TflOperation, tensors: tuple[TflTensor, ...], *, computed: int) -> str:
    settings = dict(operation.settings)
    if settings.get("FusedActivationFunction"):  # more than a sum or a product
        return "other"
    if operation.kind == "SOFTMAX":
        return "softmax" if settings.get("Beta") == 1.0 else "other"
    if operation.kind in _PRODUCTS:
        return "product" if computed >= _OPERANDS else "projection"
    if operation.kind == "ADD":
        return "add"
    if operation.kind in _LAYOUT and _keeps_values(operation, tensors):
        return "layout"
    return "other"


def _keeps_values(operation: TflOperation, tensors: tuple[TflTensor, ...]) -> bool:
    """Whether integers stand for the same numbers behind an operation that moves them as before it."""
    if operation.kind in _KEEP_AXES:
        return operation.kind != "CAST" or not any(tensors[i].scale for i in (operation.inputs[0], *operation.outputs))
    # The first input of a split is the axis.
    source = tensors[operation.inputs[1] if operation.kind == "SPLIT" else operation.inputs[0]]
    return all(
        (tensors[i].scale, tensors[i].zero_point) == (source.scale, source.zero_point) for i in operation.outputs
    )


def _moves(operation: TflOperation, kind: str, tensors: tuple[TflTensor, ...]) -> str:
    """What the operation does to the axes of its first input."""
    if kind == "product":
        turned = [name for name, value in operation.settings if name.startswith("Adj") and value]
        return " ".join([operation.kind, *turned]) if turned else ""
    if kind != "layout" or operation.kind in _KEEP_AXES:
        return ""
    details = [f"{name}={value}" for name, value in operation.settings if value]
    details += [
        str(list(tensors[i].numbers or ())) for i in operation.inputs if i >= 0 and tensors[i].numbers is not None
    ]
    shape = list(tensors[operation.outputs[0]].shape)
    return " ".join([operation.kind, *details, f"to {shape}"])
