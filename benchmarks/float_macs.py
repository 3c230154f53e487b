"""How much of an ONNX bundle is computed in float: multiply-accumulates of every product of its graph, by type.

    python -m benchmarks.float_macs BUNDLE [BUNDLE ...]

A product is in int8 where it is an integer operator (dynamic int8), or where all its inputs come from DequantizeLinear
(static int8). Convolutions whose weights alone are in int8 compute in float. Counted are MatMul, Gemm and Conv.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper, shape_inference

INTEGER = ("MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv")
FLOAT = ("MatMul", "Gemm", "Conv")
Shapes = dict[str, tuple[int, ...]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundles", nargs="+", type=Path)
    for bundle in parser.parse_args().bundles:
        print(json.dumps({"bundle": bundle.name, **float_share(onnx.load(bundle / "model.onnx"))}, indent=1))


def float_share(model: onnx.ModelProto) -> dict[str, Any]:
    """MACs of one call with one stream, those in float, their share, and the largest float products by name."""
    shapes = shapes_of(model)
    made_by = {name: node.op_type for node in model.graph.node for name in node.output}
    whole, floats = 0, {}
    for node in model.graph.node:
        if node.op_type not in (*INTEGER, *FLOAT):
            continue
        count = product_macs(node, shapes)
        whole += count
        quantised = all(made_by.get(name) == "DequantizeLinear" for name in node.input[:2])
        if node.op_type in FLOAT and not quantised:
            floats[node.name] = count
    largest = sorted(floats.items(), key=lambda item: -item[1])[:8]
    return {
        "macs": whole,
        "macs_in_float": sum(floats.values()),
        "share_in_float": round(sum(floats.values()) / whole, 4),
        "largest_in_float": {name: round(count / whole, 4) for name, count in largest},
    }


def shapes_of(model: onnx.ModelProto) -> Shapes:
    """Shapes of all tensors of the graph; dimensions without a number are 1 (one stream, one utterance)."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in (*fixed.graph.input, *fixed.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if not dimension.HasField("dim_value"):
                dimension.dim_value = 1
    del fixed.graph.value_info[:]
    graph = shape_inference.infer_shapes(fixed, data_prop=True).graph
    shapes: Shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes[value.name] = tuple(d.dim_value or 1 for d in value.type.tensor_type.shape.dim)
    for node in graph.node:
        if node.op_type == "Constant":
            shapes[node.output[0]] = numpy_helper.to_array(node.attribute[0].t).shape
    return shapes


def product_macs(node: onnx.NodeProto, shapes: Shapes) -> int:
    """One MAC for each product: numbers of the output times what each of them sums over."""
    first, second = shapes[node.input[0]], shapes[node.input[1]]
    if "Conv" in node.op_type:  # weights (out, in / groups, kernel ...)
        return math.prod(shapes[node.output[0]]) * math.prod(second[1:])
    if node.op_type == "Gemm":
        turned = any(a.name == "transA" and a.i for a in node.attribute)
        return math.prod(shapes[node.output[0]]) * first[0 if turned else 1]
    return math.prod(shapes[node.output[0]]) * first[-1]


if __name__ == "__main__":
    main()
