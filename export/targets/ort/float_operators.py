"""Casts around operators that ONNX Runtime has no half-precision CPU kernel for.

Without them its optimiser takes these apart into elementary operations when it writes an ``.ort`` file: that is slower,
and no softmax is left to prove.
"""

from __future__ import annotations

from pathlib import Path

TAKEN_APART = ("Softmax", "Gelu")


def keep_whole(file: Path) -> list[str]:
    """Compute every softmax and GELU of a half-precision ONNX file in float32; returns the names of their nodes."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(str(file))
    nodes, kept = [], []
    for node in model.graph.node:
        if node.op_type not in TAKEN_APART or _computes_in_float(model, node):
            nodes.append(node)
            continue
        source, result = node.input[0], node.output[0]
        node.input[0], node.output[0] = f"{result}_in_float", f"{result}_of_float"
        nodes += [
            helper.make_node("Cast", [source], [node.input[0]], f"{node.name}_to_float", to=TensorProto.FLOAT),
            node,
            helper.make_node("Cast", [node.output[0]], [result], f"{node.name}_to_half", to=TensorProto.FLOAT16),
        ]
        kept.append(node.name)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, str(file))
    return kept


def _computes_in_float(model: object, node: object) -> bool:
    """Whether a converter has put the node between casts already."""
    producers = {name: other for other in model.graph.node for name in other.output}  # type: ignore[attr-defined]
    before = producers.get(node.input[0])  # type: ignore[attr-defined]
    if before is None or before.op_type != "Cast":
        return False
    return any(attribute.name == "to" and attribute.i == 1 for attribute in before.attribute)
