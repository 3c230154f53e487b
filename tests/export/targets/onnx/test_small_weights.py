"""Dynamic int8 and small weights: what the files hold, that they keep their bound, and that the proof still bites."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import reuse_distill.export.targets.onnx.onnx_target as onnx_target
from onnx import TensorProto, helper, numpy_helper
from reuse_distill.export.capture.capture import capture
from reuse_distill.export.proof import prove, read_onnx
from reuse_distill.export.quantise.blocks import node_blocks
from reuse_distill.export.quantise.quantisation_recipe import SHORT, Recipe
from reuse_distill.export.targets.onnx.overflow import products_overflow
from reuse_distill.export.targets.onnx.small_weights import quantise_small
from reuse_distill.export.targets.onnx.weight_packing import to_int8
from reuse_distill.runtime.equivalence.parity import difference
from reuse_distill.runtime.errors import RdError

WAYS = ("int8-dynamic", "int8-weights", "int4-weights")
ALL_LAYERS: dict[str, Any] = {"exported": (1, 2, 3, 4), "features": "heads"}


@pytest.fixture(scope="module")
def plain(workshop, spec_of, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The fp32 graphs of both modes."""
    folder = tmp_path_factory.mktemp("plain")
    for name, mode in (("shared", "offline"), ("stream", "streaming")):
        onnx_target.convert(capture(workshop.student(name), spec_of(mode)), folder / f"{mode}.onnx")
    return {mode: folder / f"{mode}.onnx" for mode in ("offline", "streaming")}


def features(file: Path, wave: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return session.run(["features"], {"wave": wave[None]})[0][0]


@pytest.mark.parametrize("way", WAYS)
def test_small_files_stay_close(way: str, plain, noise, tmp_path: Path) -> None:
    """As the ONNX target makes them: products in int8 with weights in 7 bits where 8 overflow on this processor."""
    recipe = dataclasses.replace(SHORT[way], reduce_range=way == "int8-dynamic" and products_overflow())
    told = quantise_small(plain["offline"], tmp_path / "small.onnx", recipe, depth=4)
    wave = noise(16_000)
    found = difference(features(tmp_path / "small.onnx", wave), features(plain["offline"], wave))
    floor = {"int8-dynamic": 0.99, "int8-weights": 0.9995, "int4-weights": 0.95}[way]
    assert floor < found.mean_cosine < 1 - 1e-8, "close, and not the float file"
    assert told["quantised_products"] == 2 * 6 + 2 * 4 + 4
    model = onnx.load(str(tmp_path / "small.onnx"))
    big = [t for t in model.graph.initializer if math.prod(t.dims) >= 512 and t.data_type == TensorProto.FLOAT]
    assert big == [], "every large weight is stored small"
    blocks = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    levels = {attribute.i for node in blocks for attribute in node.attribute if attribute.name == "accuracy_level"}
    assert levels == ({4} if way == "int4-weights" else set()), "products in int8, not in float"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "mode"), [("shared", "offline"), ("stream", "streaming")])
def test_the_proof_holds_on_small_files(way: str, name: str, mode: str, plain, workshop, tmp_path: Path) -> None:
    file = tmp_path / "small.onnx"
    quantise_small(plain[mode], file, SHORT[way], depth=4)
    proof = prove(read_onnx(file), workshop.student(name).config, **ALL_LAYERS)
    assert [(one.layer, one.source_layer) for one in proof.reused] == [(2, 1), (4, 3)]


@pytest.mark.parametrize("way", WAYS)
def test_a_query_put_back_is_found_in_small_files(way: str, plain, workshop, tmp_path: Path) -> None:
    """The first query projection of the file once more, on the input of layer 2, added to its values' input."""
    quantise_small(plain["offline"], tmp_path / "small.onnx", SHORT[way], depth=4)
    model = onnx.load(str(tmp_path / "small.onnx"))
    blocks = node_blocks(onnx.load(str(plain["offline"])), 4)
    maps = [node for node in model.graph.node if node.op_type == "Softmax"]
    users = [n for n in model.graph.node if maps[0].output[0] in n.input]
    value = users[-1]
    weight = numpy_helper.from_array(np.eye(32, dtype=np.float32) * 0.5, "put_back")
    model.graph.initializer.append(weight)
    head = next(i for i, n in enumerate(model.graph.node) if n is value or n.name == value.name)
    norm = next(n for n in model.graph.node if n.op_type == "LayerNormalization" and blocks[n.name] == "layer.1.ffn")
    extra = [
        helper.make_node("MatMul", [norm.output[0], "put_back"], ["query"], "put_back_query"),
        helper.make_node("ReduceMean", ["query"], ["query_mean"], "put_back_mean", keepdims=1),
        helper.make_node("Cast", ["query_mean"], ["query_cast"], "put_back_cast", to=1),
        helper.make_node("ReduceMean", ["query_cast"], ["query_scalar"], "put_back_all", keepdims=0),
        helper.make_node("Add", [value.input[1], "query_scalar"], ["new_values"], "put_back_add"),
    ]
    for offset, node in enumerate(extra):
        model.graph.node.insert(head + offset, node)
    value.input[1] = "new_values"
    onnx.save(model, str(tmp_path / "broken.onnx"))
    with pytest.raises(RdError, match=r"layer 2: \d+ projection weights lead to its value product"):
        prove(read_onnx(tmp_path / "broken.onnx"), workshop.student("shared").config, **ALL_LAYERS)


def test_blocks_in_float_keep_their_weights(plain, tmp_path: Path) -> None:
    source = onnx.load(str(plain["offline"]))
    blocks = node_blocks(source, 4)
    recipe = Recipe("int8", "int8-dynamic", in_float=("layer.2.ffn", "heads"))
    told = quantise_small(plain["offline"], tmp_path / "small.onnx", recipe, depth=4)
    kept = [n.name for n in onnx.load(str(tmp_path / "small.onnx")).graph.node if n.op_type == "MatMul"]
    wanted = [n.name for n in source.graph.node if n.op_type == "MatMul" and blocks[n.name] in ("layer.2.ffn", "heads")]
    assert len(wanted) == 6 and set(wanted) <= set(kept)
    assert set(wanted) <= {row["node"] for row in told["in_float"]}
    assert told["quantised_products"] == 24 - 6


def test_int8_weights_are_within_half_a_step_per_channel() -> None:
    weight = np.random.default_rng(0).normal(size=(20, 7)).astype(np.float32) * np.arange(7, dtype=np.float32)
    rounded, scale = to_int8(weight, output_axis=1)
    assert scale.shape == (1, 7) and rounded.dtype == np.int8
    assert (np.abs(rounded * scale - weight) <= 0.5001 * scale).all()
    assert not rounded[:, 0].any() and scale[0, 0] == 1, "a channel of zeros stays one"
