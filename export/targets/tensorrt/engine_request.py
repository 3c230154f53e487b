"""What the device is asked to build, read off the prepared ONNX files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reuse_distill.export.capture.capture import Capture
from reuse_distill.export.spec import ExportSpec, Offline
from reuse_distill.export.targets.onnx.cast_fp16 import IN_FLOAT
from reuse_distill.export.targets.tensorrt.jetpack_rules import Graph
from reuse_distill.runtime.geometry import RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ
from reuse_distill.runtime.tensorrt.build_request import BuildRequest, Profile, Variant

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
