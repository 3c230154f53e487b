"""The prepared graphs: proven, numerically equal to the student within the stated bounds, and of the right form."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from reuse_distill.export.parity.verify import within
from reuse_distill.export.proof import prove, read_onnx
from reuse_distill.export.targets import REGISTRY, find_target
from reuse_distill.export.targets.tensorrt.lowering import lower
from reuse_distill.runtime.bundle_format.bundle import read_bundle
from reuse_distill.runtime.engines.tensorrt.build_request import read_request
from reuse_distill.runtime.errors import RdError


def session(file: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def constants(model: Any) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.parametrize(
    ("name", "mode", "precision"),
    [
        ("shared", "offline", "fp32"),
        ("shared", "offline", "fp16"),
        ("shared", "offline", "int8"),
        ("shared", "offline", "bf16"),
        ("stream", "streaming", "fp32"),
        ("stream", "streaming", "fp16"),
        ("stream", "streaming", "int8"),
        pytest.param("stream", "streaming", "int8-fp32", marks=pytest.mark.slow),
    ],
)
def test_the_prepared_graph_keeps_the_bound(prepared: Any, name: str, mode: str, precision: str) -> None:
    manifest = read_bundle(prepared.bundle(name, mode, precision)).manifest
    assert manifest.status == "deferred"
    assert "measured" not in manifest.parity  # the engine has not been run: nothing is claimed of it
    compared = manifest.parity["prepared"]
    assert within(compared)
    assert compared["run"] == "typed.onnx by ONNX Runtime on the CPU"
    assert len(compared["layers"]) == 4
    assert compared["measured"]["mean_cosine"] > (0.99 if precision.startswith("int8") else 0.9995)
    assert manifest.graph_proof is not None
    assert (manifest.graph_proof.softmaxes, len(manifest.graph_proof.reused)) == (2, 2)


@pytest.mark.parametrize(
    ("name", "mode", "precision"),
    [
        ("shared", "offline", "fp32"),
        ("stream", "streaming", "fp32"),
        pytest.param("stream", "streaming", "int8-fp32", marks=pytest.mark.slow),
    ],
)
def test_the_old_form_computes_the_same(prepared: Any, name: str, mode: str, precision: str) -> None:
    bundle = prepared.bundle(name, mode, precision)
    new, old = session(bundle / "typed.onnx"), session(bundle / "plain.onnx")
    rng = np.random.default_rng(5)
    feeds = {}
    for port in new.get_inputs():
        shape = [d if isinstance(d, int) else 16_400 for d in port.shape]
        valid = port.name in ("fresh", "valid", "position_valid")
        feeds[port.name] = (np.ones(shape) if valid else 0.1 * rng.standard_normal(shape)).astype(np.float32)
    for a, b in zip(new.run(None, feeds), old.run(None, feeds), strict=True):
        if precision == "fp32":
            np.testing.assert_allclose(b, a, atol=2e-4)
        else:  # a value beside a rounding edge falls to the other side
            assert np.abs(a - b).mean() < 0.02 * np.abs(a).mean() + 1e-6


def test_the_old_form_is_what_old_parsers_read(prepared: Any) -> None:
    bundle = prepared.bundle("shared", "offline", "fp32")
    model = onnx.load(str(bundle / "plain.onnx"))
    ops = {node.op_type for node in model.graph.node}
    assert model.opset_import[0].version == 17
    assert not ops & {"Gelu", "LayerNormalization"}
    assert {"Erf", "ReduceMean", "Sqrt"} <= ops
    six = onnx.load(str(prepared.bundle("stream", "streaming", "fp32", "--jetpack", "6.0") / "plain.onnx"))
    ops = {node.op_type for node in six.graph.node}
    assert "LayerNormalization" in ops and "Gelu" not in ops


def test_jetpack_chooses_what_is_in_the_bundle(prepared: Any) -> None:
    both = prepared.bundle("stream", "streaming", "fp32")
    assert [v.onnx for v in read_request(both).variants] == ["typed.onnx", "plain.onnx"]
    old = prepared.bundle("stream", "streaming", "fp32", "--jetpack", "6.0")
    assert [v.onnx for v in read_request(old).variants] == ["plain.onnx"]
    assert not (old / "typed.onnx").exists()
    assert read_bundle(old).manifest.device["jetpacks"] == {"6.0": []}


def test_nothing_of_a_step_is_left_to_the_host(prepared: Any) -> None:
    manifest = read_bundle(prepared.bundle("stream", "streaming", "fp16")).manifest
    model = onnx.load(str(prepared.bundle("stream", "streaming", "fp16") / "typed.onnx"))
    sizes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*model.graph.input, *model.graph.output)
    }
    assert all(all(shape) for shape in sizes.values())
    assert {state.update for state in manifest.states} == {"replace"}
    for state in manifest.states:
        assert sizes[state.input] == sizes[state.output] == list(state.shape)
        assert state.dtype == "float16"


def test_int8_is_symmetric_and_where_it_belongs(prepared: Any) -> None:
    model = onnx.load(str(prepared.bundle("shared", "offline", "int8") / "typed.onnx"))
    values = constants(model)
    producer = {name: node for node in model.graph.node for name in node.output}
    dequantised = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    quantised = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert values[node.input[1]].dtype == np.float16  # strongly typed: scales as wide as the values
            assert values[node.input[1]].min() >= np.float16(6.1e-5)
            assert values[node.input[2]].dtype == np.int8 and not values[node.input[2]].any()
    convolutions = [n for n in model.graph.node if n.op_type == "Conv"]
    grouped = [n for n in convolutions if any(a.name == "group" and a.i > 1 for a in n.attribute)]
    assert not dequantised & {*convolutions[0].input, *grouped[0].input}
    weights = [
        n for n in model.graph.node if n.op_type == "MatMul" and producer[n.input[1]].op_type == "DequantizeLinear"
    ]
    assert len(weights) == 4 * 4 + 2 * 2 + 4  # v, out, fc1, fc2 in four layers; q, k in two; four heads
    for node in weights:
        source = quantised[producer[node.input[1]].input[0]]
        assert source in values  # a float weight with a Q/DQ pair
        assert values[producer[node.input[1]].input[1]].size == values[source].shape[-1]  # per output channel
    residuals = [n for n in model.graph.node if n.op_type == "Add" and dequantised & set(n.input)]
    assert len(residuals) == 8
    assert all(len(dequantised & set(n.input)) == 1 for n in residuals)


def test_bfloat16_is_in_the_products_only(prepared: Any) -> None:
    bundle = prepared.bundle("shared", "offline", "bf16")
    model = onnx.load(str(bundle / "typed.onnx"))
    producer = {name: node for node in model.graph.node for name in node.output}
    narrow = {o for n in model.graph.node if n.op_type == "Cast" for o in n.output if n.attribute[0].i == 16}
    products = [n for n in model.graph.node if n.op_type == "MatMul"]
    assert all(set(n.input) <= narrow for n in products)
    assert all(
        producer[i].op_type != "Cast"
        for n in model.graph.node
        if n.op_type == "Conv"
        for i in n.input[:1]
        if i in producer
    )
    assert [v.typing for v in read_request(bundle).variants] == ["strong"]


@pytest.mark.parametrize("file", ["typed.onnx", "plain.onnx"])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_broken_export_is_caught(prepared: Any, workshop: Any, tmp_path: Path, file: str, precision: str) -> None:
    """A query projection put back into a reusing layer, and a map computed again for it."""
    bundle, config = prepared.bundle("shared", "offline", precision), workshop.student("shared").config
    everything: dict[str, Any] = {"exported": (1, 2, 3, 4), "features": "heads"}
    prove(read_onnx(bundle / file), config, **everything)
    for breaking, text in (
        (_put_back_a_query, "projection weights"),
        (_compute_again, "takes the map of|softmaxes"),
    ):
        model = onnx.load(str(bundle / file))
        breaking(model)
        onnx.save(model, str(tmp_path / file))
        with pytest.raises(RdError, match=text):
            prove(read_onnx(tmp_path / file), config, **everything)


def _put_back_a_query(model: Any) -> None:
    """The values of layer 2 go through one more square product."""
    softmax = next(n for n in model.graph.node if n.op_type == "Softmax")
    value = [n for n in model.graph.node if n.op_type == "MatMul" and softmax.output[0] in n.input][1]
    kind = np.float16 if any(t.data_type == onnx.TensorProto.FLOAT16 for t in model.graph.initializer) else np.float32
    side = next(i for i, name in enumerate(value.input) if name != softmax.output[0])
    depth = 16
    model.graph.initializer.append(numpy_helper.from_array(np.eye(depth, dtype=kind), "put_back"))
    extra = onnx.helper.make_node("MatMul", [value.input[side], "put_back"], ["put_back_out"], name="put_back_matmul")
    model.graph.node.insert(list(model.graph.node).index(value), extra)
    value.input[side] = "put_back_out"


def _compute_again(model: Any) -> None:
    """Layer 2 takes a softmax of its own."""
    softmax = next(n for n in model.graph.node if n.op_type == "Softmax")
    value = [n for n in model.graph.node if n.op_type == "MatMul" and softmax.output[0] in n.input][1]
    again = onnx.helper.make_node("Softmax", list(softmax.input), ["again_out"], name="again", axis=-1)
    model.graph.node.insert(list(model.graph.node).index(value), again)
    value.input[list(value.input).index(softmax.output[0])] = "again_out"


def test_unknown_operators_are_not_lowered(prepared: Any, tmp_path: Path) -> None:
    model = onnx.load(str(prepared.bundle("shared", "offline", "fp32") / "typed.onnx"))
    model.graph.node.append(onnx.helper.make_node("Mish", ["wave"], ["mish"], name="mish"))
    onnx.save(model, str(tmp_path / "new.onnx"))
    with pytest.raises(RdError, match="Mish cannot be written in opset 17"):
        lower(tmp_path / "new.onnx", tmp_path / "old.onnx", layer_norms=True)


def test_the_command_line(prepared: Any, run_export: Callable[..., Any], workshop: Any, tmp_path: Path) -> None:
    bundle = prepared.bundle("stream", "streaming", "fp32")
    said = prepared.runs[bundle]
    assert said.status == 5
    assert "of typed.onnx by ONNX Runtime on the CPU; the engine is unmeasured" in said.out
    assert f"next: rd-export finish {bundle}" in said.err
    checkpoint = workshop.checkpoint("stream")
    refused = run_export(checkpoint, "--target", "tensorrt", "--jetpack", "6.3", "--output", tmp_path / "x")
    assert refused.status == 2 and "JetPack '6.3' is not in the table" in refused.err
    refused = run_export(
        checkpoint,
        "--target",
        "tensorrt",
        "--jetpack",
        "5.1",
        "--precision",
        "bf16",
        "--output",
        tmp_path / "x",
    )
    assert refused.status == 2 and "JetPack 5.1 cannot run bf16" in refused.err
    refused = run_export(checkpoint, "--target", "tensorrt", "--precision", "int4-weights", "--output", tmp_path / "x")
    assert refused.status == 2 and "int8-fp32" in refused.err


def test_the_request_is_plain_json(prepared: Any) -> None:
    data = json.loads((prepared.bundle("shared", "offline", "fp16") / "build.json").read_text())
    assert data["precision"] == "fp16"
    assert data["profiles"] == [{"input": "wave", "least": [1, 400], "best": [1, 64000], "most": [1, 480000]}]
    typed, plain = data["variants"]
    assert (typed["typing"], typed["flags"], plain["typing"], plain["flags"]) == (
        "strong",
        [],
        "weak",
        ["FP16"],
    )
    assert len(typed["softmaxes"]) == 2
    assert any("InstanceNorm" in name or "norm" in name for name in plain["in_float"])


def test_it_is_in_the_registry() -> None:
    assert "tensorrt" in REGISTRY
    assert find_target("tensorrt").precisions[0] == "fp32"
