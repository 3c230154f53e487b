"""Explicit int8 as TensorRT wants it: signed, symmetric, weights per output channel, activations per tensor.

What is quantised and why (NVIDIA's documentation, "Working with Quantized Types", Q/DQ layer placement):
- inputs and weights of convolutions and weight products; not the outputs, so that GELU stays in their kernel;
- the residual branch of every Add: without it the sum of an int8 product runs in a kernel of its own;
- zero points are 0 and weights keep a Q/DQ pair on float values, which every version from 8.5 on takes;
- biases stay in float: DequantizeLinear of int32 is not read.
The waveform convolution and the positional convolution stay in float as in the other int8 exports.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reuse_distill.export.quantise.blocks import kept_by_recipe
from reuse_distill.export.quantise.quantisation_recipe import FRONT_END, Recipe
from reuse_distill.export.targets.onnx.qdq import Ranges, Style, write_qdq
from reuse_distill.export.targets.onnx.static_int8 import excluded_nodes, method_name, weights_name

OPERATORS = ("Conv", "MatMul", "Gemm")


STYLE = Style(
    signed=True,
    options={
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "AddQDQPairToWeight": True,
        "QuantizeBias": False,
        "OpTypesToExcludeOutputQuantization": list(OPERATORS),
    },
)


def quantise_symmetric(source: Path, target: Path, ranges: Ranges, recipe: Recipe, *, depth: int) -> dict[str, Any]:
    """Write the Q/DQ graph ``target`` from the fp32 ``source``; returns what was done, for the manifest.

    Raises RdError with the quantiser's own message when it fails.
    """
    import onnx

    model = onnx.load(str(source))
    excluded = {n: why for n, why in excluded_nodes(model).items() if _kind(model, n) in OPERATORS}
    excluded = {**kept_by_recipe(model, recipe, depth, OPERATORS), **excluded}
    write_qdq(source, target, ranges, recipe, operators=OPERATORS, in_float=excluded, style=STYLE)
    residuals = quantise_residuals(target)
    return {
        "method": f"static, {method_name(recipe)}",
        "format": "QDQ",
        "activations": "int8 per tensor, symmetric",
        "weights": weights_name(recipe),
        "operators": list(OPERATORS),
        "residual_sums": residuals,
        "front_end": "float" if recipe.keeps_in_float(FRONT_END) else "int8",
        "in_float": [{"node": name, "why": why} for name, why in excluded.items()],
    }


def quantise_residuals(file: Path) -> int:
    """Let every residual Add take the dequantised value that the products of its branch take; returns how many do.

    The branch of a residual is the value that a quantised product reads anyway, so no new scale is needed.
    """
    import onnx
    import onnx_ir as ir

    model, count = ir.load(file), 0
    for node in model.graph:
        if node.op_type != "Add" or any(one is not None and one.is_initializer() for one in node.inputs):
            continue
        branches = [(i, value) for i, one in enumerate(node.inputs) for value in _dequantised(one)[-1:]]
        if len(branches) == 1:
            node.replace_input_with(*branches[0])
            count += 1
    model.graph.sort()
    written = ir.to_proto(model)
    onnx.checker.check_model(written)
    onnx.save(written, str(file))
    return count


def _dequantised(value: Any) -> list[Any]:
    """What ``value`` is after Q/DQ, once for each pair that takes it."""
    quantised = [node.outputs[0] for node in value.consumers() if node.op_type == "QuantizeLinear"]
    users = [user for one in quantised for user in one.consumers()]
    return [user.outputs[0] for user in users if user.op_type == "DequantizeLinear"]


def _kind(model: Any, name: str) -> str:
    return next((str(node.op_type) for node in model.graph.node if node.name == name), "")
