"""The graph proof on finished programs, delegates' payloads included, and broken exports that it must catch."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reuse_distill.export.capture.capture import capture
from reuse_distill.export.proof import prove
from reuse_distill.export.proof.executorch_graph import nodes_of, read_pte
from reuse_distill.export.spec import ExportSpec, Offline
from reuse_distill.export.targets.executorch.delegates import partitioners
from reuse_distill.export.targets.executorch.pte_convert import exported, lowered, save
from reuse_distill.export.targets.executorch.pte_program import (
    PORTABLE,
    XNNPACK,
    Constant,
    PteOperation,
    PteProgram,
    read_program,
)
from reuse_distill.export.targets.executorch.row_modules import friendly
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student, layer
from reuse_distill.student.attention import reuse_map


@pytest.mark.parametrize("mode", ["offline", "streaming"])
def test_one_softmax_for_two_layers(export_one: Callable[..., Any], mode: str) -> None:
    made = export_one(mode)
    proof = made.manifest.graph_proof
    assert (proof.layers, proof.computed_maps, proof.softmaxes) == (2, 1, 1)
    assert [(row.layer, row.source_layer) for row in proof.reused] == [(2, 1)]
    assert proof.checked_file == "model.pte"
    graph = read_pte(made.artifact)
    width, ffn, head = 32, 48, 24
    wanted = (4 + 2) * width**2 + 2 * (2 * width * ffn) + 2 * width * head
    assert sum(node.weight_elements for node in graph.nodes) == wanted


@pytest.mark.parametrize("mode", ["offline", "streaming"])
def test_delegates_take_all_but_the_norms(export_one: Callable[..., Any], mode: str) -> None:
    made = export_one(mode)
    program = read_program(made.artifact)
    portable = Counter(operation.kind for operation in program.operations if operation.place == PORTABLE)
    assert set(portable) == {"aten::native_layer_norm"}
    assert set(program.delegates) == {XNNPACK}
    said = made.manifest.device
    assert said["portable_operations"] == dict(portable)
    assert said["placement"]["portable"] == sum(portable.values())
    assert said["placement"]["xnnpack"] == len(program.operations) - sum(portable.values())
    assert said["delegate_calls"] == len(program.delegates)


MAP = "layer 2: takes the map of"
BROKEN: list[Any] = [
    pytest.param({"reuse_layers": ()}, False, f"{MAP} aten::_softmax@", id="map-recomputed"),
    pytest.param({"reuse_layers": ()}, True, f"{MAP} XNNSoftmax@", id="delegated", marks=pytest.mark.slow),
    pytest.param({"reuse_mode": "renormalised"}, True, f"{MAP} XNN", id="renormalised", marks=pytest.mark.slow),
    pytest.param({"ffn_width": 64}, False, "projection weights", id="other-weights", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("changes", "delegated", "message"), BROKEN)
def test_a_broken_export_is_caught(
    executorch: Any,
    tmp_path: Path,
    make_student: Callable[..., Student],
    make_spec: Callable[..., ExportSpec],
    changes: dict[str, Any],
    delegated: bool,
    message: str,
) -> None:
    """A query and key put back, a map computed again, other weights: each against what the student should be."""
    meant, broken = make_student("tiny", lookahead_frames=7), make_student("tiny", lookahead_frames=7, **changes)
    captured = dataclasses.replace(
        capture(broken, make_spec("offline")), dynamic_axes={}, example=(torch.zeros(1, 8_000),)
    )
    program = exported(friendly(captured), captured, Offline(1.0))
    file = tmp_path / "model.pte"
    save(lowered(program, partitioners("xnnpack", precision="fp32") if delegated else []), file)
    graph = read_pte(file)
    prove(graph, broken.config, exported=(1, 2), features="heads")
    with pytest.raises(RdError, match=f"graph proof failed on model.pte: .*{message}"):
        prove(graph, meant.config, exported=(1, 2), features="heads")


def test_a_query_put_back_into_a_reusing_layer_is_caught(
    export_one: Callable[..., Any], value_product, altered
) -> None:
    """A product with a weight of width² more in the finished program, in front of a reusing layer's value product."""
    made = export_one("streaming")
    program, at = value_product(made)
    target = program.operations[at]
    weight = next(name for name, constant in program.constants.items() if constant.elements == 32**2)
    query = PteOperation("query", "XNNFullyConnected", XNNPACK, (target.inputs[-1], weight), ("put back",))
    target = dataclasses.replace(target, inputs=(*target.inputs, "put back"))
    with pytest.raises(RdError, match=r"layer 2: \d+ projection weights lead to its value product, not \d+"):
        prove(altered(program, at, query, target), made.student.config, exported=(1, 2), features="heads")


def test_a_map_computed_again_is_caught(export_one, value_product, altered) -> None:
    """A softmax more in the finished program, between the map and a reusing layer's value product."""
    made = export_one("streaming")
    program, at = value_product(made)
    target = program.operations[at]
    again = PteOperation("again", "XNNSoftmax", XNNPACK, (target.inputs[0],), ("map again",))
    target = dataclasses.replace(target, inputs=("map again", *target.inputs[1:]))
    with pytest.raises(RdError, match=r"take different maps|layer 2: takes the map of again"):
        prove(altered(program, at, again, target), made.student.config, exported=(1, 2), features="heads")


TURNED = [
    ("XNNStaticSlice", XNNPACK, "offsets=[1, 0, 0] sizes=[1, 4, 10]"),  # one head for all
    ("XNNStaticTranspose", XNNPACK, "perm=[1, 0, 2]"),
    ("aten::permute_copy", PORTABLE, "[1, 0, 2]"),
]


@pytest.mark.parametrize(("kind", "place", "told"), TURNED)
def test_heads_in_another_order_are_caught(
    kind: str, place: str, told: str, export_one, value_product, altered
) -> None:
    """An operation that moves heads in the finished program, between the map and a reusing layer's value product."""
    made = export_one("streaming")
    program, at = value_product(made)
    target = program.operations[at]
    turned = PteOperation("turned", kind, place, (target.inputs[0],), ("map turned",), told)
    changed = dataclasses.replace(target, inputs=("map turned", *target.inputs[1:]))
    with pytest.raises(
        RdError, match=f"layer 2: .*{re.escape(f'{kind} {told}')}.* between the map and its value product"
    ):
        prove(altered(program, at, turned, changed), made.student.config, exported=(1, 2), features="heads")
    alike = dataclasses.replace(turned, kind="XNNConvert" if place == XNNPACK else "aten::clone")
    prove(altered(program, at, alike, changed), made.student.config, exported=(1, 2), features="heads")


@pytest.mark.parametrize("delegated", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_map_transposed_in_the_reusing_layer_is_caught(
    executorch: Any, make_student, make_spec, delegated: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As the program was converted, on portable kernels and in a delegate."""
    monkeypatch.setattr(layer, "reuse_map", lambda *args, **more: reuse_map(*args, **more).transpose(-1, -2))
    meant = make_student("tiny", lookahead_frames=7)
    captured = dataclasses.replace(
        capture(meant, make_spec("offline")), dynamic_axes={}, example=(torch.zeros(1, 8_000),)
    )
    program = exported(friendly(captured), captured, Offline(1.0))
    save(lowered(program, partitioners("xnnpack", precision="fp32") if delegated else []), tmp_path / "model.pte")
    kind = r"XNNStaticTranspose perm=\[0, 2, 1\]" if delegated else r"aten::permute_copy \[0, 2, 1\]"
    with pytest.raises(RdError, match=f"layer 2: .*{kind}.* between the map and its value product"):
        prove(read_pte(tmp_path / "model.pte"), meant.config, exported=(1, 2), features="heads")


def test_an_operation_on_constants_alone_is_a_constant() -> None:
    operations = (
        PteOperation("turned", "aten::permute_copy", PORTABLE, ("w",), ("t",)),
        PteOperation("product", "aten::mm", PORTABLE, ("x", "t"), ("y",)),
    )
    program = PteProgram(operations, {"w": Constant(12, "float")}, (), ())
    (node,) = nodes_of(program)
    assert (node.kind, node.weight_elements) == ("projection", 12)


def test_a_payload_of_another_delegate_is_not_called_proven(export_one: Callable[..., Any], tmp_path: Path) -> None:
    data = export_one("streaming").artifact.read_bytes()
    file = tmp_path / "model.pte"
    file.write_bytes(data.replace(b"XnnpackBackend", b"UnheardBackend"))
    with pytest.raises(RdError, match="payload of delegate UnheardBackend cannot be read"):
        read_program(file)


def test_a_damaged_program_is_refused_with_the_readers_own_words(tmp_path: Path, executorch: Any) -> None:
    file = tmp_path / "model.pte"
    file.write_bytes(b"no program")
    with pytest.raises(RdError, match=r"model\.pte: ExecuTorch cannot read it: ."):
        read_program(file)
