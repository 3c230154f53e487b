"""Presets: optimum's values by optimum's names, in the files as in the table, refused where a target differs."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto
from reuse_distill.export.quantise.options import PRESETS, check_preset, preset_recipe
from reuse_distill.export.quantise.quantisation_recipe import Recipe, recipe_json
from reuse_distill.export.targets import check_possible, find_target
from reuse_distill.runtime.bundle_format.bundle import read_bundle
from reuse_distill.runtime.errors import RdError

UNSIGNED = ("arm64", "avx512_vnni")


@pytest.mark.parametrize("name", PRESETS)
def test_the_table_is_optimums(name: str) -> None:
    reason = "optimum-onnx is not installed"
    configuration = pytest.importorskip("optimum.onnxruntime.configuration", reason=reason)
    types = {"uint8": "QUInt8", "int8": "QInt8"}
    mine, make = PRESETS[name], getattr(configuration.AutoQuantizationConfig, name)
    ways = [make(is_static=True), make(is_static=False)] if mine.dynamic else [make()]
    for theirs in ways:
        found = (theirs.activations_symmetric, theirs.per_channel, theirs.reduce_range)
        assert found == (mine.symmetric_activations, mine.per_channel, mine.reduce_range)
        assert theirs.activations_dtype.name == types[mine.activations]
        assert (theirs.weights_dtype.name, theirs.weights_symmetric) == ("QInt8", True)
    assert [theirs.is_static for theirs in ways] == ([True, False] if mine.dynamic else [True])


def test_a_preset_and_a_precision_make_a_recipe() -> None:
    found = preset_recipe("arm64", "int8")
    assert found == Recipe("int8", "int8-static", symmetric_activations=False, preset="arm64")
    assert preset_recipe("avx512_vnni", "int8-dynamic").activations == "int8-dynamic"
    trt = preset_recipe("tensorrt", "int8-fp32")
    assert (trt.symmetric_activations, trt.floats, trt.preset) == (True, "fp32", "tensorrt")


@pytest.mark.parametrize(
    ("name", "precision", "message"),
    [
        ("arm64", "fp16", "--preset arm64 is for products in int8, --precision fp16"),
        ("arm64", "int8-weights", "--precision int8-weights computes them in float"),
        ("tensorrt", "int8-dynamic", "--preset tensorrt is static"),
        ("avx512", "int8", "--preset avx512 is unknown"),
    ],
)
def test_what_contradicts_is_refused(name: str, precision: str, message: str) -> None:
    with pytest.raises(RdError, match=message):
        preset_recipe(name, precision)


def test_a_recipe_that_names_a_preset_has_its_values() -> None:
    check_preset(Recipe("int8", "int8-static"))
    check_preset(preset_recipe("tensorrt", "int8"))
    wrong = Recipe("int8", "int8-static", symmetric_activations=False, reduce_range=True, preset="arm64")
    with pytest.raises(RdError, match="preset arm64 has reduce_range false, the recipe says true"):
        check_preset(wrong)
    with pytest.raises(RdError, match="--preset arm46 is unknown"):
        check_preset(Recipe("int8", "int8-static", preset="arm46"))


@pytest.mark.parametrize(
    ("target", "taken"),
    [("onnx", UNSIGNED), ("ort", UNSIGNED), ("tensorrt", ("tensorrt",)), ("coreml", ()), ("executorch", ())],
)
def test_a_target_takes_the_presets_of_its_activations(target: str, taken: tuple[str, ...], spec_of) -> None:
    for name in PRESETS:
        spec = spec_of("offline", "int8", target=target, preset=name)
        if name in taken:
            check_possible(find_target(target), spec)
        else:
            with pytest.raises(RdError, match=f"recipe: {target} cannot honour"):
                check_possible(find_target(target), spec)


def types_of(file: Path) -> tuple[set[int], set[int], set[int]]:
    """(types of the zero points of activations, of stored weights, number of axes of weight scales)."""
    model = onnx.load(str(file))
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    activations, weights, axes = set(), set(), set()
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in stored:
            activations.add(stored[node.input[2]].data_type)
        if node.op_type == "DynamicQuantizeLinear":
            activations.add(TensorProto.UINT8)
        if node.op_type in ("DequantizeLinear", "QuantizeLinear") and node.input[0] in stored:
            tensor, scale = stored[node.input[0]], stored[node.input[1]]
            if tensor.data_type != TensorProto.INT32 and len(tensor.dims) > 1:
                weights.add(stored[node.input[2]].data_type)
                axes.add(len([size for size in scale.dims if size > 1]))
        if node.op_type == "MatMulInteger":
            weights.add(stored[node.input[1]].data_type)
    return activations, weights, axes


@pytest.mark.parametrize(
    ("preset", "target", "kind"),
    [
        ("arm64", "onnx", TensorProto.UINT8),
        ("avx512_vnni", "onnx", TensorProto.UINT8),
        ("tensorrt", "tensorrt", TensorProto.INT8),
    ],
)
def test_the_file_has_the_types_of_the_preset(preset, target, kind, workshop, run_export, tmp_path: Path) -> None:
    words = [workshop.checkpoint("shared"), "--layers", "all", "--calibration", workshop.speech]
    run = run_export(
        *words, "--output", tmp_path / "bundle", "--preset", preset, "--target", target, "--front-end", "float"
    )
    assert run.status in (0, 5), run.err  # 5: the device has to build the engine
    bundle = read_bundle(tmp_path / "bundle")
    assert bundle.manifest.precision == "int8"
    assert bundle.manifest.quantisation["recipe"]["preset"] == preset
    assert bundle.manifest.quantisation["front_end"] == "float"
    assert types_of(bundle.artifact) == ({kind}, {TensorProto.INT8}, {1})
    zeros = zero_points(bundle.artifact)
    assert (zeros == {0}) == PRESETS[preset].symmetric_activations, "symmetric: every zero point of an input is 0"


def zero_points(file: Path) -> set[int]:
    model = onnx.load(str(file))
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    wanted = [n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] not in stored]
    return {int(stored[node.input[2]]) for node in wanted}


def test_the_command_line_takes_a_preset(workshop, run_export, tmp_path: Path) -> None:
    output, recipe = tmp_path / "bundle", tmp_path / "r.json"
    words = [workshop.checkpoint("shared"), "--layers", "all", "--calibration", workshop.speech, "--output", output]
    dynamic = run_export(*words, "--preset", "arm64", "--precision", "int8-dynamic")
    assert dynamic.status == 0, dynamic.err
    manifest = read_bundle(output).manifest
    assert (manifest.precision, manifest.quantisation["recipe"]["preset"]) == ("int8-dynamic", "arm64")
    assert types_of(output / manifest.artifact)[:2] == ({TensorProto.UINT8}, {TensorProto.INT8})
    recipe.write_text(json.dumps(recipe_json(preset_recipe("arm64", "int8")) | {"per_channel": False}))
    for extra, message in (
        (["--preset", "arm64", "--precision", "fp32"], "--preset arm64 is for products in int8"),
        (["--preset", "tensorrt"], 'onnx cannot honour preset "tensorrt"'),
        (["--preset", "arm64", "--recipe", recipe], "--preset and --recipe both say"),
        (["--recipe", recipe], "preset arm64 has per_channel true, the recipe says false"),
    ):
        run = run_export(*words[:-1], tmp_path / "other", *extra)
        assert (run.status, message in run.err) == (2, True), run.err
        assert not (tmp_path / "other").exists()
