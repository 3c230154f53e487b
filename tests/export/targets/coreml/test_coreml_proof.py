"""The graph proof on saved packages, and broken exports that it must catch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reuse_distill.export.capture.capture import capture
from reuse_distill.export.proof import ProofGraph, prove
from reuse_distill.export.proof.mil_graph import nodes_of, read_mil
from reuse_distill.export.spec import ExportSpec
from reuse_distill.export.targets.coreml.mil_program import MilOperation, read_program
from reuse_distill.export.targets.coreml.package_convert import convert, save
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student


@pytest.mark.parametrize(
    ("mode", "precision", "states"),
    [("offline", "fp32", "tensors"), ("window", "fp16", "tensors"), ("streaming", "fp16", "engine")],
)
def test_one_softmax_for_two_layers(export_one: Callable[..., Any], mode: str, precision: str, states: str) -> None:
    proof = export_one(mode, precision, states=states).manifest.graph_proof
    assert (proof.layers, proof.computed_maps, proof.softmaxes) == (2, 1, 1)
    assert [(row.layer, row.source_layer) for row in proof.reused] == [(2, 1)]
    assert proof.checked_file == "model.mlpackage"


def test_every_weight_is_found_through_its_compression(export_one: Callable[..., Any]) -> None:
    graph = read_mil(export_one("window", "fp16").artifact)
    width, ffn, head = 32, 48, 24
    layers = 4 * width**2 + 2 * width**2 + 2 * (2 * width * ffn)
    assert sum(node.weight_elements for node in graph.nodes) == layers + 2 * width * head


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reuse_layers": ()}, "layer 2: takes the map of softmax_1"),
        pytest.param({"reuse_mode": "renormalised"}, "layer 2: takes the map of softmax_1", marks=pytest.mark.slow),
        ({"ffn_width": 64}, "projection weights lead to its value product"),
    ],
)
def test_a_broken_export_is_caught(
    coremltools: Any,
    tmp_path: Path,
    make_student: Callable[..., Student],
    make_spec: Callable[..., ExportSpec],
    changes: dict[str, Any],
    message: str,
) -> None:
    """A query and key put back, a map computed again, other weights: each against what the student should be."""
    meant, broken = (
        make_student("tiny", lookahead_frames=7),
        make_student("tiny", lookahead_frames=7, **changes),
    )
    captured = dataclasses.replace(capture(broken, make_spec("offline", "fp32")), dynamic_axes={})
    save(convert(captured, half=False, held=False, system="iOS16"), tmp_path / "model.mlpackage")
    graph = read_mil(tmp_path / "model.mlpackage")
    prove(graph, broken.config, exported=(1, 2), features="heads")
    with pytest.raises(RdError, match=f"graph proof failed on model.mlpackage: .*{message}"):
        prove(graph, meant.config, exported=(1, 2), features="heads")


def test_heads_in_another_order_are_caught(export_one: Callable[..., Any]) -> None:
    """A slice of the map with its heads from last to first, in front of the reusing layer's value product."""
    made = export_one("offline", "fp32")
    program, name = read_program(made.artifact), made.manifest.graph_proof.reused[0].value_product
    at = next(i for i, operation in enumerate(program.operations) if operation.name == name)
    product, numbers = program.operations[at], {"begin": np.array([0, -1]), "stride": np.array([1, -1])}
    arguments = {"x": product.arguments["x"], **{word: (f"new {word}",) for word in numbers}}
    turned = MilOperation("slice_by_index", arguments, ("turned",), product.types)
    product = dataclasses.replace(product, arguments={**product.arguments, "x": ("turned",)})
    constants = program.constants | {f"new {word}": value for word, value in numbers.items()}
    operations = (*program.operations[:at], turned, product, *program.operations[at + 1 :])
    program = dataclasses.replace(program, constants=constants, operations=operations)
    with pytest.raises(RdError, match=r"layer 2: slice_by_index begin=\[0, -1\] stride=\[1, -1\] between the map and"):
        prove(ProofGraph("x", tuple(nodes_of(program))), made.student.config, exported=(1, 2), features="heads")
