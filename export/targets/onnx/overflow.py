"""8-bit products on processors that add pairs of them in 16 bits.

x86 processors with AVX2 or AVX512 and without VNNI multiply unsigned by signed bytes and add two products in 16 bits
(``vpmaddubsw``): 2 * 255 * 127 does not fit, and the sum stops at 32767. Weights in 7 bits cannot get there. Unsigned
weights take another instruction, slower and exact: so a file for other processors is still compared here as they
compute it.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.export.quantise.quantisation_recipe import Recipe
from reuse_distill.runtime.bundle_format.bundle import list_files, read_bundle, write_manifest

NOTICE = (
    "products of 8 bits overflow on this processor (x86 without VNNI): weights are kept in 7 bits; "
    "--preset arm64 or avx512_vnni keeps 8 for such processors"
)
COMPARED_AS = (
    "ONNX Runtime with the int8 weights shifted to uint8: exact as on processors with VNNI or Arm's dot product; "
    "on this one, which has neither, the file itself overflows in some products"
)
# Operator -> where a weight and its zero point stand among its inputs.
WEIGHT_INPUTS = {"DequantizeLinear": (0, 2), "MatMulInteger": (1, 3)}
SHIFT = 128


@functools.cache
def products_overflow() -> bool:
    """Whether ONNX Runtime's products of uint8 by int8 overflow on this processor: the largest ones are computed."""
    import onnxruntime
    from onnx import TensorProto, helper

    depth = 64
    shapes = {"a": (TensorProto.UINT8, (16, depth)), "b": (TensorProto.INT8, (depth, 16))}
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["product"])],
        "largest_products",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in shapes.items()],
        [helper.make_tensor_value_info("product", TensorProto.INT32, (16, 16))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    a, b = np.full((16, depth), 255, np.uint8), np.full((depth, 16), 127, np.int8)
    return bool((np.asarray(session.run(None, {"a": a, "b": b})[0]) != 255 * 127 * depth).any())


def compared_as_unsigned(recipe: Recipe) -> bool:
    """Whether an artifact of ``recipe``, for other processors, would overflow on this one."""
    return recipe.activations != "float" and not recipe.reduce_range and products_overflow()


def comparable(bundle: Path, scratch: Path, recipe: Recipe) -> Path:
    """``bundle``, or where its ONNX file would overflow here, a copy that computes the same with uint8 weights.

    The copy lies below ``scratch`` and is made once per artifact.
    """
    import onnx

    manifest = read_bundle(bundle).manifest
    if not manifest.artifact.endswith(".onnx") or not compared_as_unsigned(recipe):
        return bundle
    twin = scratch / f"unsigned-{manifest.files[manifest.artifact].sha256[:16]}"
    if not twin.exists():
        shutil.copytree(bundle, twin)
        model = onnx.load(str(bundle / manifest.artifact))
        shift_weights(model)
        onnx.save(model, str(twin / manifest.artifact))
        write_manifest(twin, dataclasses.replace(manifest, files=list_files(twin)))
    return twin


def shift_weights(model: Any) -> int:
    """Make every int8 weight of a product uint8, its zero point 128 higher, in place; returns how many there were."""
    from onnx import numpy_helper

    graph = model.graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    shifted: dict[str, np.ndarray] = {}
    for node in graph.node:
        if node.op_type not in WEIGHT_INPUTS:
            continue
        weight, zero = WEIGHT_INPUTS[node.op_type]
        name = node.input[weight]
        if name not in tensors or tensors[name].dtype != np.int8:
            continue
        while len(node.input) <= zero:
            node.input.append("")
        offsets = node.input[zero]
        if not offsets:
            offsets = f"{name}_zero_shifted"
            scales = tensors[node.input[1]] if node.op_type == "DequantizeLinear" else np.zeros(())
            tensors[offsets] = np.zeros(scales.shape, np.int8)
            node.input[zero] = offsets
        shifted[name] = (tensors[name].astype(np.int16) + SHIFT).astype(np.uint8)
        shifted[offsets] = (tensors[offsets].astype(np.int16) + SHIFT).astype(np.uint8)
    kept = [tensor for tensor in graph.initializer if tensor.name not in shifted]
    del graph.initializer[:]
    graph.initializer.extend([*kept, *(numpy_helper.from_array(value, name) for name, value in shifted.items())])
    return len(shifted)
