"""8-bit products on processors that add pairs of them in 16 bits, whichever processor this one is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from reuse_distill.export.quantise.quantisation_recipe import Recipe
from reuse_distill.export.targets.onnx import onnx_target, overflow
from reuse_distill.export.targets.onnx.onnx_target import OnnxTarget
from reuse_distill.export.targets.onnx.overflow import compared_as_unsigned, products_overflow, shift_weights
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.bundle_format.bundle import read_bundle

WEIGHTS = np.random.default_rng(0).integers(-127, 128, (12, 6)).astype(np.int8)


def weights_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.fixture
def product() -> onnx.ModelProto:
    """An integer product and a dequantised weight with a scale per column, both without zero points."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMulInteger", ["a", "b"], ["whole"]),
            helper.make_node("DequantizeLinear", ["b2", "scale"], ["floats"], axis=1),
        ],
        "products",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, (4, 12))],
        [
            helper.make_tensor_value_info("whole", TensorProto.INT32, (4, 6)),
            helper.make_tensor_value_info("floats", TensorProto.FLOAT, (12, 6)),
        ],
        [
            numpy_helper.from_array(WEIGHTS, "b"),
            numpy_helper.from_array(WEIGHTS, "b2"),
            numpy_helper.from_array(np.linspace(0.1, 1, 6, dtype=np.float32), "scale"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_unsigned_weights_compute_the_same(product: onnx.ModelProto) -> None:
    """By ONNX's own reference, which never overflows."""
    a = np.random.default_rng(1).integers(0, 256, (4, 12)).astype(np.uint8)
    before = ReferenceEvaluator(product).run(None, {"a": a})
    assert shift_weights(product) == 4, "two weights and their two zero points"
    assert {value.dtype.name for name, value in weights_of(product).items() if name != "scale"} == {"uint8"}
    onnx.checker.check_model(product, full_check=True)
    for old, new in zip(before, ReferenceEvaluator(product).run(None, {"a": a}), strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(before[0], a.astype(np.int32) @ WEIGHTS.astype(np.int32))


def test_what_is_measured_is_one_of_the_two_that_there_are() -> None:
    """This processor computes the largest products, or it does not; no third answer and no error."""
    assert products_overflow() in (True, False)


@pytest.fixture(params=[True, False], ids=["overflows", "exact"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Either kind of processor, told to the exporter."""
    for module in (overflow, onnx_target):
        monkeypatch.setattr(module, "products_overflow", lambda: request.param)
    return bool(request.param)


def test_plain_int8_is_in_seven_bits_where_eight_overflow(processor: bool, spec_of: Any) -> None:
    target, plain = OnnxTarget(), spec_of("offline", "int8")
    assert target.adapt(plain).recipe.reduce_range is processor
    assert target.adapt(spec_of("offline", "int8-dynamic")).recipe.reduce_range is processor
    for other in (
        dataclasses.replace(plain, preset="arm64"),
        dataclasses.replace(plain, given=Recipe("int8", "int8-static")),
        spec_of("offline", "fp32"),
        spec_of("offline", "int8-weights"),
    ):
        assert target.adapt(other) == other, "as it was requested"


@pytest.mark.parametrize(
    ("recipe", "may"),
    [
        (Recipe("int8", "int8-static"), True),
        (Recipe("int8", "int8-dynamic"), True),
        (Recipe("int8", "int8-static", reduce_range=True), False),
        (Recipe("int8"), False),
        (Recipe(), False),
    ],
)
def test_which_recipes_are_compared_as_unsigned(processor: bool, recipe: Recipe, may: bool) -> None:
    assert compared_as_unsigned(recipe) is (processor and may)


def test_an_export_says_so_and_the_bundle_runs_here(workshop: Any) -> None:
    """On this processor, whichever it is: the recipe in the manifest is what was measured, and the self-test passes."""
    folder = workshop.bundle("shared", "offline", "int8")
    manifest, log = read_bundle(folder).manifest, workshop.runs[folder].err
    assert manifest.quantisation["recipe"]["reduce_range"] is products_overflow()
    assert ("in 7 bits" in manifest.quantisation["weights"]) is products_overflow()
    assert (overflow.NOTICE in log) is products_overflow()
    assert Encoder.load(folder).selftest().passed
    stored = weights_of(onnx.load(str(folder / "model.onnx")))
    largest = {
        name: int(np.abs(v.astype(np.int16)).max())
        for name, v in stored.items()
        if v.ndim > 1 and name.endswith("_quantized")
    }
    assert max(largest.values()) == (64 if products_overflow() else 127)


def test_what_is_made_for_other_processors_is_compared_as_they_compute(workshop: Any) -> None:
    """A preset keeps 8 bits; the artifact has int8 weights, and the manifest says how it was compared."""
    folder = workshop.bundle("shared", "offline", "int8", "--preset", "arm64")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["quantisation"]["recipe"]["reduce_range"] is False
    assert (manifest["parity"].get("by") == overflow.COMPARED_AS) is products_overflow()
    assert manifest["parity"]["measured"]["mean_cosine"] > 0.99, "what processors that do not overflow give"
    stored = weights_of(onnx.load(str(Path(folder) / "model.onnx"))).values()
    assert max(int(v.max()) for v in stored if v.dtype == np.int8) == 127
