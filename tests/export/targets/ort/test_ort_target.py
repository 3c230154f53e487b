"""rd-export --target ort: the file of mobile builds runs in the runtime, and its graph is proven on itself."""

from __future__ import annotations

import copy
import dataclasses
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import reuse_distill.export.targets.onnx.onnx_target as onnx_target
import torch
from onnx import TensorProto, helper, numpy_helper
from reuse_distill.export.capture.capture import capture
from reuse_distill.export.proof import prove
from reuse_distill.export.proof.ort_graph import read_flatbuffer, read_ort
from reuse_distill.export.targets.ort.ort_target import ARTIFACT, FOLDED, OPERATORS, convert, keep_whole, unpacked
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.bundle_format.bundle import read_bundle
from reuse_distill.runtime.errors import RdError
from reuse_distill.student.attention import Attention
from reuse_distill.student.layer_shape import LayerShape

MATRIX = [
    *(("shared", "offline", p) for p in ("fp32", "fp16", "int8")),
    *(("stream", "streaming", p) for p in ("fp32", "fp16", "int8")),
    ("shared", "window", "int8"),
    ("renormalised", "offline", "fp16"),
]
OPSETS = [helper.make_opsetid("", 20)]
ALL_LAYERS: dict[str, Any] = {"exported": (1, 2, 3, 4), "features": "heads"}


@pytest.mark.parametrize(("name", "mode", "precision"), MATRIX)
def test_every_mode_and_precision(name: str, mode: str, precision: str, workshop) -> None:
    bundle = read_bundle(workshop.bundle(name, mode, precision, "--target", "ort"))
    manifest, config = bundle.manifest, workshop.student(name).config
    assert (manifest.target, manifest.artifact, manifest.status) == ("ort", ARTIFACT, "built")
    assert set(manifest.files) == {ARTIFACT, OPERATORS, "report.html", "selftest.npz"}
    proof = prove(read_ort(bundle.artifact), config, **ALL_LAYERS)
    assert proof == manifest.graph_proof
    assert proof.checked_file == ARTIFACT
    assert proof.softmaxes == (2 if config.reuse_mode == "shared" else 4)
    assert [(r.layer, r.source_layer) for r in proof.reused] == [(2, 1), (4, 3)]
    assert [row["layer"] for row in manifest.parity["layers"]] == [1, 2, 3, 4]
    assert "from the .ort file" in manifest.parity["by"]
    encoder = Encoder.load(bundle.path)
    assert encoder.selftest().passed
    assert encoder.backend.placement is None, "ONNX Runtime does not tell it of .ort files"


def test_a_stream_of_the_ort_file_is_that_of_the_onnx_file(workshop, noise) -> None:
    plain, mobile = (
        Encoder.load(workshop.bundle("stream", "streaming", "fp32", *words)) for words in ((), ("--target", "ort"))
    )
    wave = noise(20_000)
    with mobile.stream() as stream:
        parts = [frames for start in range(0, 20_000, 777) for frames in stream.push(wave[start : start + 777])]
        found = mobile.join([*parts, *stream.finish()])
    assert np.abs(found - plain.extract(wave)).max() < 1e-4


def test_the_operators_are_those_of_the_file(workshop) -> None:
    """Every operator of the file is listed with its types, and nothing of this machine is in the list."""
    folder = workshop.bundle("shared", "offline", "int8", "--target", "ort")
    text = (folder / OPERATORS).read_text()
    listed = {re.split("[{]", word)[0] for line in text.splitlines()[1:] for word in _operators(line)}
    graph = read_flatbuffer(folder / ARTIFACT)
    assert listed == {graph.Nodes(i).OpType().decode() for i in range(graph.NodesLength())}
    assert {"QLinearMatMul", "Softmax"} <= listed
    assert "ai.onnx;13;" in text and '{"inputs": {"0": ["float"]}}' in text
    assert "/tmp" not in text
    assert str(folder.parent) not in text
    assert (folder / OPERATORS).name == read_bundle(folder).manifest.device["required_operators"]


def _operators(line: str) -> list[str]:
    """``domain;opset;A{json},B,C{json}`` -> A{json}, B, C{json}."""
    return re.findall(r"\w+(?:\{.*?\}\})?", line.split(";", 2)[2])


def test_half_precision_weights_stay_half(workshop) -> None:
    """Of the initialisers alone: in a graph of this size the nodes take as much space as the weights."""
    folders = {p: workshop.bundle("shared", "offline", p, "--target", "ort") for p in ("fp32", "fp16")}
    assert weight_bytes(folders["fp16"]) < 0.55 * weight_bytes(folders["fp32"])
    told = read_bundle(folders["fp16"]).manifest.quantisation
    assert sum("no half-precision kernel" in entry["why"] for entry in told["in_float"]) >= 2


def weight_bytes(folder: Path) -> int:
    graph = read_flatbuffer(folder / ARTIFACT)
    return sum(graph.Initializers(i).RawDataLength() for i in range(graph.InitializersLength()))


@pytest.mark.parametrize(("name", "mode"), [("shared", "offline"), ("stream", "streaming")])
@pytest.mark.parametrize(
    ("precision", "operators", "stored"),
    [
        ("int8-dynamic", {"MatMulIntegerToFloat", "DynamicQuantizeMatMul"}, TensorProto.INT8),
        ("int8-weights", {"MatMul", "FusedMatMul"}, TensorProto.INT8),
        ("int4-weights", {"MatMulNBits"}, TensorProto.UINT8),
    ],
)
def test_small_weights_stay_small(name, mode, precision, operators, stored, workshop) -> None:
    """Those of products and the kernels of convolutions: the file holds no large float but the first kernel."""
    options = ("--target", "ort", "--min-cosine", "0.9")  # weights of these students are far from trained ones
    bundle = read_bundle(workshop.bundle(name, mode, precision, *options))
    graph = read_ort(bundle.artifact)
    assert prove(graph, workshop.student(name).config, **ALL_LAYERS) == bundle.manifest.graph_proof
    assert operators & {node.op for node in graph.nodes}
    flat = read_flatbuffer(bundle.artifact)
    tensors = [flat.Initializers(i) for i in range(flat.InitializersLength())]
    large = [t for t in tensors if t.DimsLength() in (2, 3) and t.RawDataLength() >= 1024]
    assert stored in {t.DataType() for t in large}
    assert [t.Name() for t in large if t.DataType() == TensorProto.FLOAT] == []
    assert bundle.manifest.quantisation["weights_only"]
    onnx_file = workshop.bundle(name, mode, precision, *options[2:]) / "model.onnx"
    weights = sum(len(one.raw_data) for one in onnx.load(onnx_file).graph.initializer)
    assert 0.9 * weights < sum(t.RawDataLength() for t in tensors) < 1.1 * weights, "as small as in the ONNX file"
    assert bundle.artifact.stat().st_size < 1.6 * onnx_file.stat().st_size, "the rest is structure"
    assert Encoder.load(bundle.path).selftest().passed


def test_weights_that_are_float_either_way_are_refused(workshop, run_export, tmp_path: Path, monkeypatch) -> None:
    """As ONNX Runtime makes them by itself. 1.23 keeps them only where it folds nothing."""
    source = workshop.bundle("shared", "offline", "int8-weights", "--min-cosine", "0.9") / "model.onnx"
    counts = []
    for folded in FOLDED:
        convert(source, tmp_path, tmp_path / "scratch", level="all", folded=folded)
        counts.append(len(unpacked(source, tmp_path / ARTIFACT)))
    assert counts[0] > 10 and counts[2] == 0
    assert counts[1] == 0 or version("onnxruntime").startswith("1.23.")
    monkeypatch.setattr("reuse_distill.export.targets.ort.ort_target.FOLDED", ("all",))
    words = (workshop.checkpoint("shared"), "--layers", "all", "--target", "ort", "--precision", "int8-weights")
    run = run_export(*words, "--output", tmp_path / "bundle")
    assert (run.status, "ONNX Runtime has unpacked" in run.err) == (2, True), run.err
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("name", "mode"), [("shared", "offline"), pytest.param("stream", "streaming", marks=pytest.mark.slow)]
)
def test_kernels_in_float_are_stored_small(name, mode, workshop) -> None:
    """Static int8: convolutions that compute in float take one byte a weight, in the .ort file as in the ONNX file."""
    folder = workshop.bundle(name, mode, "int8", "--front-end", "float", "--target", "ort")
    flat = read_flatbuffer(folder / ARTIFACT)
    tensors = [flat.Initializers(i) for i in range(flat.InitializersLength())]
    large = [t for t in tensors if t.DimsLength() == 3 and t.RawDataLength() >= 1024]
    assert {t.DataType() for t in large} == {TensorProto.INT8}


def half_model(file: Path, *, wrapped: bool) -> None:
    kinds = TensorProto.FLOAT16
    nodes = [helper.make_node("Softmax", ["x"], ["y"], "map")]
    if wrapped:
        nodes = [
            helper.make_node("Cast", ["x"], ["a"], "up", to=TensorProto.FLOAT),
            helper.make_node("Softmax", ["a"], ["b"], "map"),
            helper.make_node("Cast", ["b"], ["y"], "down", to=TensorProto.FLOAT16),
        ]
    ports = [helper.make_tensor_value_info(name, kinds, [2, 3]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:])
    onnx.save(helper.make_model(graph, opset_imports=OPSETS, ir_version=9), str(file))


def test_islands_are_made_once(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    half_model(file, wrapped=False)
    assert keep_whole(file) == ["map"]
    onnx.checker.check_model(onnx.load(str(file)), full_check=True)
    assert [node.op_type for node in onnx.load(str(file)).graph.node] == ["Cast", "Softmax", "Cast"]
    assert keep_whole(file) == []
    half_model(file, wrapped=True)
    assert keep_whole(file) == []


# --- broken exports ---------------------------------------------------------------------------------------------------


def converted(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, str(folder / "changed.onnx"))
    convert(folder / "changed.onnx", folder, folder / "scratch", level="all")
    return folder / ARTIFACT


def scale_the_map(model: onnx.ModelProto) -> None:
    """Computes on the map on its way from layer 1 to layer 2."""
    nodes = model.graph.node
    first = next(node for node in nodes if node.op_type == "Softmax").output[0]
    user = [node for node in nodes if first in node.input][1]
    model.graph.initializer.append(numpy_helper.from_array(np.array([[[[0.5]]]], np.float32), "half"))
    nodes.insert(list(nodes).index(user), helper.make_node("Mul", [first, "half"], ["scaled"], "scale"))
    user.input[list(user.input).index(first)] = "scaled"


def older_map(model: onnx.ModelProto) -> None:
    """Layer 4 takes the map of layer 1."""
    nodes = model.graph.node
    maps = [node.output[0] for node in nodes if node.op_type == "Softmax"]
    user = [node for node in nodes if maps[1] in node.input][1]
    user.input[list(user.input).index(maps[1])] = maps[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (older_map, r"layer 4: takes the map of \S+, not the one of layer 3"),
        (scale_the_map, "3 value products found, the student has 4 layers"),
    ],
)
def test_a_changed_graph_is_refused_after_conversion(change, message, workshop, tmp_path: Path) -> None:
    model = onnx.load(str(workshop.bundle("shared", "offline") / "model.onnx"))
    change(model)
    file = converted(model, tmp_path)
    with pytest.raises(RdError, match=rf"graph proof failed on {ARTIFACT}: .*({message})"):
        prove(read_ort(file), workshop.student("shared").config, **ALL_LAYERS)


def test_a_query_projection_put_back_is_refused(workshop, spec_of, tmp_path: Path) -> None:
    student = copy.deepcopy(workshop.student("shared"))
    old = student.encoder.layers[1].self_attn
    torch.manual_seed(0)  # as in tests/export/proof: converted once
    new = Attention(LayerShape(32, 16, 2, 48, computes=True), reuse_mode="shared", dropout=0.0)
    new.load_state_dict({**new.state_dict(), **old.state_dict()})
    student.encoder.layers[1].self_attn = new
    onnx_target.convert(capture(student, spec_of("window")), tmp_path / "other.onnx")
    file = converted(onnx.load(str(tmp_path / "other.onnx")), tmp_path)
    with pytest.raises(RdError, match=r"layer 2: takes the map of \S+, not the one of layer 1"):
        prove(read_ort(file), student.config, **ALL_LAYERS)


def test_the_wrong_student_is_refused(workshop) -> None:
    graph = read_ort(workshop.bundle("stream", "streaming", "int8", "--target", "ort") / ARTIFACT)
    config = workshop.student("stream").config
    with pytest.raises(RdError, match="projection weights lead to its value product"):
        prove(graph, dataclasses.replace(config, reuse_layers=()), **ALL_LAYERS)


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_the_converters_own_words_are_kept(tmp_path: Path) -> None:
    node = helper.make_node("NoSuchOperator", ["x"], ["y"])
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    model = helper.make_model(helper.make_graph([node], "g", ports[:1], ports[1:]), ir_version=9, opset_imports=OPSETS)
    onnx.save(model, str(tmp_path / "model.onnx"))
    with pytest.raises(RdError, match=r"converter could not make an \.ort file: .*NoSuchOperator") as caught:
        convert(tmp_path / "model.onnx", tmp_path, tmp_path / "scratch", level="all")
    assert "--target onnx needs no conversion" in str(caught.value.hint)


def test_another_file_is_not_read_as_one(tmp_path: Path) -> None:
    (tmp_path / "model.ort").write_bytes(bytes(100))
    with pytest.raises(RdError, match=r"not a file in the \.ort format"):
        read_ort(tmp_path / "model.ort")
