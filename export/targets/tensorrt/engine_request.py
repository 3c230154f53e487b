"""What the device is asked to build, read off the prepared ONNX files, and precision written into their graphs.

Strongly typed networks run what the file says. fp16: everything in half but sums over all time; scales of Q/DQ too,
since quantised and plain values meet in one type. bf16: the matrix products only. Convolutions stay in float: their
ONNX type lists have bfloat16 from opset 22 on, which TensorRT before 10.13 does not read, and the waveform needs more
than 8 bits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.export.capture.capture import Capture
from reuse_distill.export.spec import ExportSpec, Offline
from reuse_distill.export.targets.onnx.cast_fp16 import IN_FLOAT, cast_to_fp16
from reuse_distill.export.targets.onnx.node_order import fold_casts, put_in_order
from reuse_distill.export.targets.tensorrt.jetpack_rules import Graph
from reuse_distill.export.targets.tensorrt.lowering import Builder, gelu, replace
from reuse_distill.runtime.engines.tensorrt.build_request import BuildRequest, Profile, Variant
from reuse_distill.runtime.geometry import RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ

WORKSPACE_BYTES = 1 << 30  # a module of 8 GB shares it with everything else
BEST_SECONDS = 4.0
WEAK_FLAGS = {
    "fp32": (),
    "fp16": ("FP16",),
    "bf16": ("BF16",),
    "int8": ("FP16", "INT8"),
    "int8-fp32": ("INT8",),
}
HALF = ("fp16", "int8")
LEAST_NORMAL_HALF = np.float16(6.1035e-5)


def build_request(capture: Capture, spec: ExportSpec, variants: tuple[Variant, ...]) -> BuildRequest:
    """The request for ``variants``, the preferred one first; the device looks for plain int8 either way."""
    return BuildRequest(spec.precision.split("-")[0], WORKSPACE_BYTES, profiles(capture, spec), variants)


def profiles(capture: Capture, spec: ExportSpec) -> tuple[Profile, ...]:
    """One for the samples of an offline graph; steps and windows are static."""
    if not isinstance(spec.mode, Offline):
        return ()
    most = max(int(spec.mode.max_seconds * SAMPLE_RATE_HZ), RECEPTIVE_FIELD_SAMPLES)
    best = min(int(BEST_SECONDS * SAMPLE_RATE_HZ), most)
    return (Profile("wave", (1, RECEPTIVE_FIELD_SAMPLES), (1, best), (1, most)),)


def describe(file: Path, typing: str, precision: str, *, norms: list[str]) -> Variant:
    """One prepared file; ``norms`` are the nodes that layer norms were written as."""
    import onnx

    graph = Graph(onnx.load(str(file)))
    names = [node.name for node in graph.graph.node]
    if len(set(names)) != len(names) or not all(names):
        raise ValueError(f"{file.name}: nodes without a name of their own cannot be found again in an engine")
    weak = typing == "weak"
    sums = [n.name for n in graph.of(*IN_FLOAT, "ReduceMean", "LayerNormalization")] if weak else []
    return Variant(
        onnx=file.name,
        typing=typing,
        opset=graph.opset,
        state_dtype="float16" if not weak and precision in HALF else "float32",
        flags=WEAK_FLAGS[precision] if weak else (),
        in_float=tuple(dict.fromkeys([*sums, *norms])) if weak and precision not in ("fp32", "int8-fp32") else (),
        weighted=tuple(node.name for node in graph.of("Conv", "MatMul", "Gemm") if _runs_at(graph, node, precision)),
        softmaxes=tuple(node.name for node in graph.of("Softmax")),
        known=tuple(sorted({*names, *graph.constants, *graph.producer, *(v.name for v in graph.graph.input)})),
    )


def _runs_at(graph: Graph, node: Any, precision: str) -> bool:
    """Whether a product with a weight must run at ``precision``: int8 where it is quantised, bf16 in MatMul only."""
    if not graph.is_constant(node.input[1]):
        return False
    if precision.startswith("int8"):
        return all(graph.dequantised(name) for name in node.input[:2])
    return precision != "bf16" or node.op_type == "MatMul"


def write_fp16(source: Path, target: Path, capture: Capture) -> dict[str, Any]:
    """Write the half-precision graph; returns what was done, for the manifest."""
    import onnx
    from onnx import numpy_helper

    done = cast_to_fp16(source, target, capture)
    model = onnx.load(str(target))
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    raised = 0
    for name in {n.input[1] for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")}:
        if name not in tensors or tensors[name].data_type != onnx.TensorProto.FLOAT16:
            continue
        # Below this a half loses bits and then becomes 0: a channel this small may as well have a coarser scale.
        scale = numpy_helper.to_array(tensors[name])
        raised += int((scale < LEAST_NORMAL_HALF).sum())
        tensors[name].CopyFrom(numpy_helper.from_array(np.maximum(scale, LEAST_NORMAL_HALF), name))
    del model.graph.value_info[:]  # types of before the cast, which some readers believe
    fold_casts(model)
    put_in_order(model)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(target))
    return {**done, "scales_raised": raised}


def write_bf16(source: Path, target: Path, *, emulated: bool = False) -> dict[str, Any]:
    """Write a graph whose matrix products take bfloat16; returns what was done, for the manifest.

    ``emulated``: the operands are rounded to bfloat16 and multiplied in float, which ONNX Runtime can run on a CPU.
    """
    import onnx

    model = onnx.load(str(source))
    replace(model, {"Gelu": gelu})  # Gelu of opset 20 has no bfloat16, and the decomposition is read by every parser
    made = replace(model, {"MatMul": lambda build: _product(build, emulated)})
    count = sum("_MatMul_" in name for name in made.get("MatMul", []))
    if not emulated:
        onnx.checker.check_model(model)
    onnx.save(model, str(target))
    return {
        "method": "cast",
        "weights": "float32 in the file, bfloat16 in the engine's products",
        "activations": f"bfloat16 into {count} matrix products, float32 elsewhere",
        "in_float": [{"node": "convolutions, norms, softmax, sums", "why": "bfloat16 keeps 8 bits"}],
    }


def _product(build: Builder, emulated: bool) -> None:
    from onnx import TensorProto

    operands = []
    for name in build.node.input:
        narrow = build.add("Cast", name, to=TensorProto.BFLOAT16)
        operands.append(build.add("Cast", narrow, to=TensorProto.FLOAT) if emulated else narrow)
    if emulated:
        build.add("MatMul", *operands, output=build.node.output[0])
        return
    product = build.add("MatMul", *operands)
    build.add("Cast", product, to=TensorProto.FLOAT, output=build.node.output[0])
