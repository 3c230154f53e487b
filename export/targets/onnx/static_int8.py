"""Static int8 for ONNX: Q/DQ around convolutions, weight products, sums and GELU; attention stays in float.

Which operators, and why the others are left out, was measured (docs/quantisation.md): quantising the softmax costs a
fifth of the time by itself, the waveform convolution and the positional convolution lose the most fidelity.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reuse_distill.export.quantise.blocks import kept_by_recipe, log_mel_nodes, node_blocks
from reuse_distill.export.quantise.quantisation_recipe import FRONT_END, Recipe
from reuse_distill.export.targets.onnx.qdq import Ranges, Style, release_outputs, write_qdq
from reuse_distill.export.targets.onnx.weight_packing import pack_weights

OPERATORS = ("Conv", "MatMul", "Gemm", "Add", "Gelu")


def excluded_nodes(model: Any) -> dict[str, str]:
    """Node name -> why it stays in float, for every node of ``OPERATORS`` that does."""
    constants = {tensor.name for tensor in model.graph.initializer}
    consumers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    producers = {name: node for node in model.graph.node for name in node.output}
    outputs = {value.name for value in model.graph.output}
    first_norm = next((node for node in model.graph.node if node.op_type == "LayerNormalization"), None)
    excluded: dict[str, str] = {}
    mel = log_mel_nodes(model)
    first_conv = not mel
    for node in model.graph.node:
        if node.name in mel:
            if node.op_type in OPERATORS:
                excluded[node.name] = "log-mel: the power of a bin spans ten decades"
        elif node.op_type == "Conv":
            groups = next((a.i for a in node.attribute if a.name == "group"), 1)
            if first_conv:
                excluded[node.name] = "waveform convolution: its input has the full dynamic range of the microphone"
            elif groups > 1:
                excluded[node.name] = "positional convolution: in float, weights int8 (engines may fuse both)"
            first_conv = False
        elif node.op_type in ("MatMul", "Gemm") and not constants & set(node.input):
            excluded[node.name] = "attention product: both operands are computed"
        elif node.op_type == "Add":
            why = _sum_in_float(node, constants, consumers, producers, outputs)
            if why is None and first_norm is not None and node.output[0] == first_norm.input[0]:
                why = "sum of the front end's result and positions: no norm has made quiet and loud frames alike yet"
            if why:
                excluded[node.name] = why
    return excluded


def _sum_in_float(
    node: Any, constants: set[str], consumers: dict[str, list[Any]], producers: dict[str, Any], outputs: set[str]
) -> str | None:
    users = [user for name in node.output for user in consumers.get(name, [])]
    if any(user.op_type == "Softmax" for user in users):
        return "attention mask: the sum reaches -1e4"
    sources = [producers[name] for name in node.input if name in producers]
    if len(sources) == 2 and all(s.op_type == "MatMul" and not constants & set(s.input) for s in sources):
        return "sum of the cached and the new part of the attention product"
    if _reaches_output(node, consumers, outputs):
        return "bias of a projection head: its result is the feature itself"
    return None


def _reaches_output(node: Any, consumers: dict[str, list[Any]], outputs: set[str]) -> bool:
    """Whether ``node`` feeds a graph output through layout operations alone."""
    for name in node.output:
        if name in outputs:
            return True
        users = consumers.get(name, [])
        if users and all(
            u.op_type in ("Unsqueeze", "Concat", "Reshape", "Slice") and _reaches_output(u, consumers, outputs)
            for u in users
        ):
            return True
    return False


def quantise_static(source: Path, target: Path, ranges: Ranges, recipe: Recipe, *, depth: int) -> dict[str, Any]:
    """Write the int8 artifact ``target`` from the fp32 ``source``; returns what was done, for the manifest.

    ``ranges``: of the activations (``qdq``). ``depth``: number of layers in the graph. Raises
    RdError with the quantiser's own message when it fails.
    """
    import onnx
    import onnx_ir as ir

    model = onnx.load(str(source))
    excluded = {**kept_by_recipe(model, recipe, depth, OPERATORS), **excluded_nodes(model)}
    write_qdq(source, target, ranges, recipe, operators=OPERATORS, in_float=excluded, style=Style())
    blocks = node_blocks(model, depth)
    heads = [n.name for n in model.graph.node if n.op_type in ("MatMul", "Gemm") and blocks[n.name] == "heads"]
    quantised = ir.load(target)
    released = release_outputs(quantised, heads)
    written = ir.to_proto(quantised)
    packed = pack_weights(written, _packable(model, excluded, recipe))
    onnx.save(written, str(target))
    return {
        "method": f"static, {method_name(recipe)}",
        "format": "QDQ",
        "activations": "uint8 per tensor" + (", symmetric" if recipe.symmetric_activations else ""),
        "weights": weights_name(recipe),
        "operators": list(OPERATORS),
        "front_end": "float" if recipe.keeps_in_float(FRONT_END) else "int8",
        "in_float": [{"node": name, "why": why} for name, why in excluded.items()],
        "float_results": released,
        "weights_only": packed,
    }


def method_name(recipe: Recipe) -> str:
    """How ranges were found, in words."""
    names = {"minmax": "min-max", "percentile": f"percentile {recipe.percentile:g}", "entropy": "entropy"}
    return names[recipe.method]


def weights_name(recipe: Recipe) -> str:
    """How weights are stored, in words."""
    per = "per output channel" if recipe.per_channel else "per tensor"
    return f"int8 {per}, symmetric" + (", in 7 bits" if recipe.reduce_range else "")


def _packable(model: Any, excluded: dict[str, str], recipe: Recipe) -> list[str]:
    """Convolutions that compute in float and whose kernels are stored small: neither the first, the log-mel's, nor one
    that is spelt out."""
    position = recipe.keeps_in_float("position")
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv"
        and node.name in excluded
        and not excluded[node.name].startswith(("waveform", "log-mel"))
        and not (position and excluded[node.name].startswith("positional"))
    ]
