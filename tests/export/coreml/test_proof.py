"""The graph proof on saved packages, and broken exports that it must catch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export.capture import capture
from export.coreml.convert import convert, save
from export.proof import prove
from export.proof.mil_graph import read_mil
from export.spec import ExportSpec
from runtime.errors import RdError
from student import Student


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
        ({"reuse_mode": "renormalised"}, "layer 2: takes the map of softmax_1"),
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
