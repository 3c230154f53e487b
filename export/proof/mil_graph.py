"""Reads a saved ``.mlpackage`` for the proof: plain, with compressed weights, and with quantised activations."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from reuse_distill.export.proof.graph import ProofGraph, ProofNode
from reuse_distill.export.targets.coreml.mil_program import MilProgram, operands, read_program, settings

_LAYOUT = {"transpose", "reshape", "expand_dims", "squeeze", "slice_by_index", "split", "cast", "identity"}
_QUANTISERS = {"quantize", "dequantize"}
KEEP_AXES = _QUANTISERS | {"cast", "identity"}


def read_mil(package: Path) -> ProofGraph:
    """The proof's view of the package, read off the file."""
    return ProofGraph(package.name, tuple(nodes_of(read_program(package))))


def nodes_of(program: MilProgram) -> list[ProofNode]:
    """The program's operations as the proof asks for them."""
    elements = {name: value.size for name, value in program.constants.items() if isinstance(value, np.ndarray)}
    constant = set(program.constants)
    producer: dict[str, str] = {}
    nodes: list[ProofNode] = []
    for operation in program.operations:
        arguments = [name for names in operation.arguments.values() for name in names]
        if arguments and constant.issuperset(arguments):  # a weight unpacked: as good as a constant of its shape
            constant.update(operation.outputs)
            pairs = zip(operation.outputs, operation.types, strict=True)
            elements.update({name: math.prod(kind.shape) for name, kind in pairs})
            continue
        names = operands(operation)
        kind = mil_kind(operation.kind, sum(name not in constant for name in names))
        weights = max((elements.get(name, 0) for name in names if name in constant), default=0)
        inputs = tuple(producer[name] for name in names if name in producer)
        weights = weights if kind == "projection" else 0
        moves = ""
        if kind == "layout" and operation.kind not in KEEP_AXES:
            moves = f"{operation.kind} {settings(operation, program.constants)}".rstrip()
        nodes.append(ProofNode(operation.name, operation.kind, kind, inputs, weights, moves))
        producer.update(dict.fromkeys(operation.outputs, operation.name))
    return nodes


def mil_kind(name: str, computed: int) -> str:
    """What the proof calls the operation ``name``; ``computed``: how many of its operands are."""
    if name == "softmax":
        return "softmax"
    if name in ("matmul", "linear"):
        return "product" if computed >= 2 else "projection"
    if name == "add":
        return "add"
    return "layout" if name in _LAYOUT | _QUANTISERS else "other"
