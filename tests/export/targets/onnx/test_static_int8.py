"""What is int8, what is half and what stays in float, read off the finished files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper
from reuse_distill.export.targets.onnx.static_int8 import OPERATORS, excluded_nodes
from reuse_distill.export.targets.onnx.weight_packing import pack_weights
from reuse_distill.runtime.bundle_format.bundle import read_bundle

MODES = [("shared", "offline"), ("shared", "window"), ("stream", "streaming")]


def quantised(model: onnx.ModelProto) -> set[str]:
    """Nodes between a DequantizeLinear and a QuantizeLinear: what runs in int8."""
    made = {output: node.op_type for node in model.graph.node for output in node.output}
    users = {name: node.op_type for node in model.graph.node for name in node.input}
    fed = [n for n in model.graph.node if n.op_type in OPERATORS and made.get(n.input[0]) == "DequantizeLinear"]
    return {node.name for node in fed if users.get(node.output[0]) == "QuantizeLinear"}


@pytest.mark.parametrize(("name", "mode"), MODES)
def test_the_manifest_lists_exactly_what_stays_in_float(name: str, mode: str, workshop) -> None:
    bundle = read_bundle(workshop.bundle(name, mode, "int8"))
    model, listed = (
        onnx.load(str(bundle.artifact)),
        {row["node"] for row in bundle.manifest.quantisation["in_float"]},
    )
    candidates = {node.name for node in model.graph.node if node.op_type in OPERATORS}
    in_int8 = quantised(model) | set(bundle.manifest.quantisation["float_results"])
    assert listed & in_int8 == set()
    assert candidates - in_int8 == listed & candidates
    assert in_int8
    assert all(row["why"] for row in bundle.manifest.quantisation["in_float"])


@pytest.mark.parametrize(("name", "mode"), MODES)
def test_attention_and_the_microphone_stay_in_float(name: str, mode: str, workshop) -> None:
    bundle = read_bundle(workshop.bundle(name, mode, "int8"))
    model = onnx.load(str(bundle.artifact))
    in_int8, constants = quantised(model), {t.name for t in model.graph.initializer}
    made = {output: node.op_type for node in model.graph.node for output in node.output}
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    assert convs[0].name not in in_int8
    for node in model.graph.node:
        if node.op_type == "Softmax":
            assert made[node.input[0]] != "DequantizeLinear"
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        if node.op_type == "Conv" and groups > 1:
            assert node.name not in in_int8
    projections = [n for n in model.graph.node if n.op_type in ("MatMul", "Gemm") and n.name in in_int8]
    assert projections
    assert all(made.get(n.input[1]) == "DequantizeLinear" or n.input[1] in constants for n in projections)


@pytest.mark.parametrize(("name", "mode"), MODES)
def test_weights_are_stored_as_int8(name: str, mode: str, workshop) -> None:
    """Whatever is int8, and the positional convolution's kernel, takes one byte a weight."""
    model = onnx.load(str(workshop.bundle(name, mode, "int8") / "model.onnx"))
    by_type: dict[int, int] = {}
    for tensor in model.graph.initializer:
        by_type[tensor.data_type] = by_type.get(tensor.data_type, 0) + int(np.prod(tensor.dims))
    position = [t for t in model.graph.initializer if list(t.dims) == [32, 8, 128]]
    assert [t.data_type for t in position] == [TensorProto.INT8]
    assert by_type[TensorProto.INT8] > 4 * by_type[TensorProto.FLOAT]


@pytest.mark.parametrize(("name", "mode"), MODES)
def test_onnx_runtime_computes_one_float_convolution_more_in_int8(name, mode, workshop, tmp_path: Path) -> None:
    """The positional one, where Q/DQ stand on both sides, and no other: read off the graph that it runs."""
    bundle = read_bundle(workshop.bundle(name, mode, "int8"))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimised.onnx"), 3
    onnxruntime.InferenceSession(str(bundle.artifact), options, providers=["CPUExecutionProvider"])
    ran = list(onnx.load(str(tmp_path / "optimised.onnx")).graph.node)
    in_float = {row["node"]: row["why"] for row in bundle.manifest.quantisation["in_float"]}
    written = {node.name for node in onnx.load(str(bundle.artifact)).graph.node if node.op_type == "Conv"}
    position = next(n for n, why in in_float.items() if why.startswith("positional"))
    own = [node for node in ran if node.op_type == "QLinearConv" and position in node.name + "".join(node.input)]
    assert len(own) == (mode != "streaming")
    assert [node.op_type for node in ran].count("QLinearConv") == len(written - set(in_float)) + len(own)


def test_every_reason_is_found(workshop) -> None:
    reasons = set(excluded_nodes(onnx.load(str(workshop.bundle("stream", "streaming") / "model.onnx"))).values())
    assert {reason.split(":")[0] for reason in reasons} == {
        "waveform convolution",
        "positional convolution",
        "attention product",
        "attention mask",
        "sum of the cached and the new part of the attention product",
        "bias of a projection head",
    }


@pytest.mark.parametrize("mode", ["offline", pytest.param("window", marks=pytest.mark.slow)])
def test_what_no_norm_has_evened_out_is_not_added_in_int8(mode: str, workshop) -> None:
    """DistilHuBERT's sum with positions; after a norm of the front end's frames it is in int8."""
    sums = {}
    for name in ("distil", "shared"):
        model = onnx.load(str(workshop.bundle(name, mode, "int8") / "model.onnx"))
        norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
        norm = norms[0 if name == "distil" else 1]  # of the encoder's input
        made = {output: node for node in model.graph.node for output in node.output}
        before = made[norm.input[0]]
        sums[name] = (before.op_type, made[before.input[0]].op_type if before.op_type == "DequantizeLinear" else "")
    assert sums == {"distil": ("Add", ""), "shared": ("DequantizeLinear", "QuantizeLinear")}


def test_packed_convolution_is_within_half_a_step(workshop) -> None:
    source = workshop.bundle("shared", "offline") / "model.onnx"
    model = onnx.load(str(source))
    conv = next(n for n in model.graph.node if any(a.name == "group" and a.i > 1 for a in n.attribute))
    weight = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == conv.input[1])
    assert pack_weights(model, [conv.name]) == [f"{conv.name}: {weight.size} weights"]
    packed = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    name = conv.input[1]
    assert name not in packed
    step = packed[f"{name}_scale"]
    assert np.abs(packed[f"{name}_int8"] * step - weight).max() <= 0.5001 * step.max()
    assert (np.abs(packed[f"{name}_int8"] * step - weight) <= 0.5001 * step).all()


@pytest.mark.parametrize(("name", "mode"), MODES)
def test_fp16_files_are_half_but_for_sums_over_time_and_the_ends(name: str, mode: str, workshop) -> None:
    bundle = read_bundle(workshop.bundle(name, mode, "fp16"))
    model, done = onnx.load(str(bundle.artifact)), bundle.manifest.quantisation
    kinds = [t.data_type for t in model.graph.initializer if np.prod(t.dims) > 100]
    assert set(kinds) == {TensorProto.FLOAT16}
    ends = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
    for port in (*bundle.manifest.inputs, *bundle.manifest.outputs):
        assert ends[port.name] == TensorProto.FLOAT
    assert done["method"] == "cast"
    named = {node.name: node.op_type for node in model.graph.node}
    assert {named[row["node"]] for row in done["in_float"]} <= {"InstanceNormalization", "ReduceSum"}
    assert bool(done["in_float"]) == (name == "shared")
