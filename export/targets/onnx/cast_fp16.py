"""Half precision for ONNX: weights, activations and states in fp16, samples and features in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reuse_distill.export.capture.capture import Capture
from reuse_distill.export.targets.onnx.node_order import fold_casts, put_in_order

# Sums of squares over thousands of samples overflow fp16.
IN_FLOAT = ("InstanceNormalization", "ReduceSum")


def cast_to_fp16(source: Path, target: Path, capture: Capture) -> dict[str, Any]:
    """Write the fp16 artifact ``target`` from the fp32 ``source``; returns what was done, for the manifest."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(str(source))
    in_float = [port.name for port in (*capture.inputs, *capture.outputs)]
    model = convert_float_to_float16(
        model, keep_io_types=in_float, op_block_list=list(IN_FLOAT), disable_shape_infer=False
    )
    del model.graph.value_info[:]  # types of before the cast, which some readers believe
    fold_casts(model)
    put_in_order(model)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(target))
    blocked = [node.name for node in model.graph.node if node.op_type in IN_FLOAT]
    return {
        "method": "cast",
        "weights": "float16",
        "activations": "float16",
        "in_float": [{"node": name, "why": "sums over all time overflow half precision"} for name in blocked],
    }
