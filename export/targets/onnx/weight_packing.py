"""Weights stored as int8 and computed in float."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def pack_weights(model: Any, nodes: list[str]) -> list[str]:
    """Store the weights of the named convolutions and products as int8 per output channel, in place.

    ``Cast`` and ``Mul`` unpack them and are folded when the artifact is loaded: small on disk, float when run. Returns
    what was packed, for the manifest.
    """
    from onnx import numpy_helper

    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    packed, done, chosen = [], set[str](), set(nodes)
    for node in [n for n in graph.node if n.name in chosen]:
        name = node.input[1]
        weight = numpy_helper.to_array(tensors[name])
        packed.append(f"{node.name}: {math.prod(weight.shape)} weights")
        if name in done:
            continue
        done.add(name)
        rounded, scale = to_int8(weight, output_axis=0 if node.op_type == "Conv" else weight.ndim - 1)
        graph.initializer.remove(tensors[name])
        graph.initializer.append(numpy_helper.from_array(rounded, f"{name}_int8"))
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
        for made in reversed(_unpacking(name)):
            graph.node.insert(0, made)
    return packed


def packed(model: Any) -> dict[str, int]:
    """Name -> number of weights, of every tensor that ``pack_weights`` has stored in a model."""
    made = {name for node in model.graph.node if node.name.endswith("_unpack") for name in node.output}
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer}
    return {name: sizes[f"{name}_int8"] for name in made if f"{name}_int8" in sizes}


def to_int8(weight: np.ndarray, *, output_axis: int) -> tuple[np.ndarray, np.ndarray]:
    """(int8 weights, float32 scales to multiply them with, broadcastable), symmetric per output channel."""
    others = tuple(axis for axis in range(weight.ndim) if axis != output_axis)
    scale = np.abs(weight).max(axis=others, keepdims=True) / 127
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    return np.clip(np.rint(weight / scale), -127, 127).astype(np.int8), scale


def _unpacking(name: str) -> list[Any]:
    from onnx import TensorProto, helper

    cast = helper.make_node("Cast", [f"{name}_int8"], [f"{name}_cast"], name=f"{name}_cast", to=TensorProto.FLOAT)
    return [cast, helper.make_node("Mul", [f"{name}_cast", f"{name}_scale"], [name], name=f"{name}_unpack")]
