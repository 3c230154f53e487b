"""Nodes in the order in which they can run, as ONNX asks for and not every tool leaves them."""

from __future__ import annotations

from typing import Any


def put_in_order(model: Any) -> None:
    """Sort the nodes of ``model`` in place so that every value is made before it is used; stable otherwise."""
    graph = model.graph
    waiting = list(graph.node)
    made = {""} | {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
    done: list[Any] = []
    while waiting:
        ready = []
        left = []
        for node in waiting:
            if all(name in made for name in node.input):
                ready.append(node)
                made.update(node.output)
            else:
                left.append(node)
        if not ready:
            raise ValueError(f"{len(left)} nodes take values that nothing makes, such as {left[0].name}")
        done += ready
        waiting = left
    del graph.node[:]
    graph.node.extend(done)


def fold_casts(model: Any) -> int:
    """Replace casts of constants by cast constants, in place; returns how many there were."""
    import onnx
    from onnx import numpy_helper

    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    kept, folded = [], 0
    for node in list(graph.node):
        if node.op_type != "Cast" or node.input[0] not in tensors:
            kept.append(node)
            continue
        kind = onnx.helper.tensor_dtype_to_np_dtype(next(a.i for a in node.attribute if a.name == "to"))
        value = numpy_helper.to_array(tensors[node.input[0]]).astype(kind)
        graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
        folded += 1
    del graph.node[:]
    graph.node.extend(kept)
    used = {name for node in kept for name in node.input}
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)
    return folded
