"""Reads an ``.ort`` file for the proof: the graph as ONNX Runtime's optimiser left it, off the flatbuffer itself."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from reuse_distill.export.proof.graph import ProofGraph
from reuse_distill.export.proof.onnx_graph import SCALED, OnnxOperation, proof_nodes
from reuse_distill.runtime.errors import RdError

_INT64 = 7  # ONNX's number of the type


def read_ort(file: Path) -> ProofGraph:
    """The proof's view of an ``.ort`` file. Raises RdError for a file that is none."""
    graph = read_flatbuffer(file)
    weights = [graph.Initializers(i) for i in range(graph.InitializersLength())]
    elements = {
        _text(tensor.Name()): math.prod(tensor.Dims(i) for i in range(tensor.DimsLength())) for tensor in weights
    }
    numbers = {_text(t.Name()): _numbers(t) for t in weights if t.DataType() == _INT64 and t.RawDataLength() <= 128}
    operations = _unique([_operation(graph.Nodes(i)) for i in range(graph.NodesLength())])
    return ProofGraph(file.name, tuple(proof_nodes(_in_order(operations), elements, numbers)))


def _numbers(tensor: Any) -> tuple[int, ...]:
    return tuple(map(int, tensor.RawDataAsNumpy().view("<i8"))) if tensor.RawDataLength() else ()


def read_flatbuffer(file: Path) -> Any:
    """The main graph in the classes that come with ONNX Runtime."""
    # The package puts its flatbuffer classes on the path when it is imported.
    import onnxruntime.tools.ort_format_model  # noqa: F401
    from ort_flatbuffers_py.fbs.InferenceSession import InferenceSession

    data = bytearray(file.read_bytes())
    if not InferenceSession.InferenceSessionBufferHasIdentifier(data, 0):
        raise RdError(f"{file}: not a file in the .ort format", hint="export the bundle again")
    return InferenceSession.GetRootAsInferenceSession(data, 0).Model().Graph()


def initialiser_names(file: Path) -> set[str]:
    """Names of the weights and other constants in the file."""
    graph = read_flatbuffer(file)
    return {_text(graph.Initializers(i).Name()) for i in range(graph.InitializersLength())}


def _operation(node: Any) -> OnnxOperation:
    attributes = {_text(a.Name()): a for a in (node.Attributes(i) for i in range(node.AttributesLength()))}
    op = _text(node.OpType())
    return OnnxOperation(
        _text(node.Name()),
        op,
        tuple(_text(node.Inputs(i)) for i in range(node.InputsLength())),
        tuple(_text(node.Outputs(i)) for i in range(node.OutputsLength())),
        {name: attribute.I() for name, attribute in attributes.items()},
        {n: tuple(a.Ints(i) for i in range(a.IntsLength())) for n, a in attributes.items() if a.IntsLength()},
        attributes["alpha"].F() if op == SCALED and "alpha" in attributes else 1.0,
    )


def _unique(operations: Sequence[OnnxOperation]) -> list[OnnxOperation]:
    """Fused nodes may share a name, or have none: each gets its own."""
    times = Counter(operation.name for operation in operations)
    return [
        operation
        if operation.name and times[operation.name] == 1
        else replace(operation, name=f"{operation.name or operation.op}#{index}")
        for index, operation in enumerate(operations)
    ]


def _in_order(operations: Sequence[OnnxOperation]) -> list[OnnxOperation]:
    """Producers first: the file keeps nodes in the order in which they were made, fused ones last."""
    producer = {name: i for i, operation in enumerate(operations) for name in operation.outputs if name}
    needs = [{producer[name] for name in operation.inputs if name in producer} for operation in operations]
    users: dict[int, list[int]] = {}
    for index, sources in enumerate(needs):
        for source in sources:
            users.setdefault(source, []).append(index)
    waiting = [len(sources) for sources in needs]
    ready = [index for index, count in enumerate(waiting) if not count]
    ordered = []
    while ready:
        index = heapq.heappop(ready)
        ordered.append(operations[index])
        for user in users.get(index, ()):
            waiting[user] -= 1
            if not waiting[user]:
                heapq.heappush(ready, user)
    return ordered


def _text(value: bytes | None) -> str:
    return (value or b"").decode()
