"""What the engine inspector tells, in the documented layouts: precisions, ONNX names, and engines that do not tell."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from reuse_distill.export.proof import ProofGraph, ProofNode, prove
from reuse_distill.export.proof.engine_graph import read_engine
from reuse_distill.runtime.engines.tensorrt.build_request import BuildRequest, Variant
from reuse_distill.runtime.engines.tensorrt.engine_inspector import (
    check_names,
    check_precision,
    precision_of,
    read_layers,
)
from reuse_distill.runtime.errors import RdError
from reuse_distill.student.layer_shape import LayerShape

FILES = Path(__file__).parent / "inspector"
VARIANT = Variant(
    "typed.onnx", "strong", 20, "float16", (), (), ("matmul_1",), ("softmax_1",), ("matmul_1", "softmax_1")
)


def request(precision: str) -> BuildRequest:
    return BuildRequest(precision, 1, (), (VARIANT,))


def read(name: str) -> Any:
    return read_layers((FILES / f"detailed_{name}.json").read_text())


def test_reads_the_layout_of_8() -> None:
    conv, foreign = read("8.5")
    assert conv.onnx == ("conv_0", "erf_0") and not conv.attributed
    assert conv.precisions == {"int8"} and conv.weights == "int8" and conv.kind == "CaskConvolution"
    assert foreign.onnx == ("matmul_1", "softmax_1")  # only the ends of what it fuses
    assert [t.precision for t in foreign.outputs] == ["fp16"]


def test_reads_the_layout_of_10() -> None:
    cast, product = read("10")
    assert cast.onnx == ("cast_0", "mul_0") and cast.attributed
    assert product.onnx == ("matmul_1",)  # what stands behind a bar is not the name
    assert product.precisions == {"fp16", "fp32"}


def test_reads_the_layout_of_11() -> None:
    (product,) = read("11")
    assert product.precisions == {"bf16"}
    assert [t.precision for t in product.outputs] == ["fp32"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Half", "fp16"),
        ("Row major linear FP16 format", "fp16"),
        ("BFloat16", "bf16"),
        ("Channel major FP32 format where channel % 4 == 0", "fp32"),
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("Int32", "int"),
        ("Bool", "int"),
        ("FP8", "fp8"),
        ("N/A due to dynamic shapes", "unknown"),
    ],
)
def test_names_of_precisions(text: str, name: str) -> None:
    assert precision_of(text) == name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("not json", "is not JSON"),
        ("{}", "lists no layers"),
        ('{"Layers": []}', "lists no layers"),
        ('{"Layers": ["conv_0", "conv_1"]}', "only the names of 2 of 2 layers"),
    ],
)
def test_an_engine_that_does_not_tell(text: str, said: str) -> None:
    with pytest.raises(RdError, match=said):
        read_layers(text)


def test_precision_is_accepted_or_refused() -> None:
    assert check_precision(read("10"), request("fp16"), VARIANT)["as_asked"] == 1
    assert check_precision(read("11"), request("bf16"), VARIANT)["layers"] == {"bf16": 1}
    with pytest.raises(RdError, match=r"does not run at int8: 1 of 1 .* matmul_1 \(fp16\)"):
        check_precision(read("10"), request("int8"), VARIANT)
    with pytest.raises(RdError, match=r"does not run at fp32: .* matmul_1 \(bf16\)"):
        check_precision(read("11"), request("fp32"), VARIANT)
    silent = dataclasses.replace(VARIANT, weighted=("matmul_7",))
    with pytest.raises(RdError, match="name none of the 1 nodes that should run at fp16"):
        check_precision(read("10"), request("fp16"), silent)


def test_a_weakly_typed_builder_may_keep_some_layers_in_float() -> None:
    weak = dataclasses.replace(VARIANT, typing="weak", flags=("FP16",), weighted=("a", "b", "c"))

    def engine(*kinds: str) -> Any:
        layers = [
            {
                "Name": "k",
                "Metadata": f"[ONNX Layer: {name}]",
                "Inputs": [{"Name": name, "Format/Datatype": kind}],
            }
            for name, kind in zip("abc", kinds, strict=True)
        ]
        return read_layers(json.dumps({"Layers": layers}))

    assert check_precision(engine("Half", "Half", "Float"), request("fp16"), weak)["as_asked"] == 2
    with pytest.raises(RdError, match="2 of 3"):
        check_precision(engine("Half", "Float", "Float"), request("fp16"), weak)


def test_names_that_were_not_exported() -> None:
    known = dataclasses.replace(VARIANT, known=("cast_0", "mul_0", "matmul_1", "softmax_1"))
    assert check_names(read("10"), known) == {"softmaxes": 1, "named": 0, "in_several_layers": []}
    with pytest.raises(RdError, match=r"runs 2 nodes that typed\.onnx does not have, such as cast_0"):
        check_names(read("10"), VARIANT)


# A student of two layers, the second of which takes the first one's map, as the proof sees it.
def two_layers() -> ProofGraph:
    rows = [
        ("norm", "other", (), 0),
        ("q", "projection", ("norm",), 4),
        ("k", "projection", ("norm",), 4),
        ("v", "projection", ("norm",), 4),
        ("scores", "product", ("q", "k"), 0),
        ("map", "softmax", ("scores",), 0),
        ("y1", "product", ("map", "v"), 0),
        ("o1", "projection", ("y1",), 4),
        ("f1", "projection", ("o1",), 6),
        ("g1", "projection", ("f1",), 6),
        ("v2", "projection", ("g1",), 4),
        ("layout", "layout", ("map",), 0),
        ("y2", "product", ("layout", "v2"), 0),
        ("o2", "projection", ("y2",), 4),
        ("f2", "projection", ("o2",), 6),
        ("g2", "projection", ("f2",), 6),
    ]
    return ProofGraph("typed.onnx", tuple(ProofNode(n, n, kind, ins, size) for n, kind, ins, size in rows))


class TwoLayers:
    """What the proof asks of a student's configuration."""

    width, ffn_width, head_width, reuse_mode, conv_layers = 2, 3, None, "shared", ((2, 1, 1),)
    relative_buckets, relative_distance, projects_input, heads, time_reduction = 0, 0, False, 1, 1

    def reuses(self, layer: int) -> bool:
        return layer == 2

    def map_source(self, layer: int) -> int:
        return 1

    def shape_of(self, layer: int) -> LayerShape:
        return LayerShape(2, 1, 2, 3, computes=layer == 1)


def inspector(kernels: list[tuple[str, str, str]]) -> str:
    """Kernels as (inputs, outputs, ONNX nodes), each a list of words."""
    layers = [
        {
            "Name": f"kernel_{i}",
            "LayerType": "kgen",
            "Inputs": [{"Name": name, "Format/Datatype": "Half"} for name in inputs.split()],
            "Outputs": [{"Name": name, "Format/Datatype": "Half"} for name in outputs.split()],
            "Metadata": "\x1f".join(f"[ONNX Layer: {name}]" for name in nodes.split()),
        }
        for i, (inputs, outputs, nodes) in enumerate(kernels)
    ]
    return json.dumps({"Layers": layers, "Bindings": []})


GOOD = [
    ("wave", "qkv", "norm q k v"),
    ("qkv", "s", "scores"),
    ("s", "part", "map"),
    ("s part", "m", "map"),  # one softmax in two kernels that feed each other
    ("m qkv", "h", "y1 o1 f1 g1"),
    ("h", "v2t", "v2"),
    ("m v2t", "features", "y2 o2 f2 g2"),
]


def proven(kernels: list[tuple[str, str, str]]) -> Any:
    return prove(read_engine(inspector(kernels), two_layers()), TwoLayers(), exported=(1, 2), features="hidden")  # type: ignore[arg-type]


def test_the_proof_holds_on_the_engine() -> None:
    proof = proven(GOOD)
    assert (proof.computed_maps, proof.softmaxes, proof.checked_file) == (1, 1, "the engine")
    assert proof.reused[0].path == ("layout",)  # folded into a kernel: a wire


def test_a_map_that_the_engine_computes_again() -> None:
    again = [*GOOD[:-1], ("qkv", "m2", "scores map"), ("m2 v2t", "features", "y2 o2 f2 g2")]
    with pytest.raises(RdError, match="graph proof failed on the engine"):
        proven(again)


def test_a_value_product_that_the_map_does_not_reach() -> None:
    cut = [*GOOD[:-1], ("other v2t", "features", "y2 o2 f2 g2")]
    cut[5] = ("wave", "v2t", "v2")
    with pytest.raises(RdError, match="graph proof failed on the engine: 1 value products found"):
        proven(cut)


def test_an_engine_that_hides_its_softmax() -> None:
    hidden = [kernel for kernel in GOOD if kernel[2] != "map"]
    with pytest.raises(RdError, match="names 1 softmaxes and products in none of its layers, such as map"):
        proven(hidden)
