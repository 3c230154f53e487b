"""The graph proof on finished IRs, and changed IRs that it must refuse."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from reuse_distill.export.proof import ProofGraph, prove
from reuse_distill.export.proof.openvino_graph import IrOperation, operations, proof_nodes, read_ir
from reuse_distill.runtime.engines.openvino.openvino_backend import read_model
from reuse_distill.runtime.errors import RdError


@pytest.fixture
def ir(openvino: Any, export_one: Callable[..., Any]) -> Callable[..., list[IrOperation]]:
    return lambda mode, precision="fp32": operations(read_model(openvino.Core(), export_one(mode, precision).artifact))


def proven(found: list[IrOperation], made: Any) -> Any:
    graph = ProofGraph("model.xml", tuple(proof_nodes(found)))
    return prove(graph, made.student.config, exported=(1, 2), features="heads")


@pytest.mark.parametrize(
    ("mode", "precision"),
    [("offline", "fp32"), ("window", "fp32"), ("streaming", "fp32"), ("offline", "fp16"), ("streaming", "int8")],
)
def test_one_softmax_for_two_layers(export_one: Callable[..., Any], mode: str, precision: str) -> None:
    made = export_one(mode, precision)
    proof = made.manifest.graph_proof
    assert (proof.layers, proof.computed_maps, proof.softmaxes) == (2, 1, 1)
    assert [(row.layer, row.source_layer) for row in proof.reused] == [(2, 1)]
    assert proof.checked_file == "model.xml"
    width, ffn, head = 32, 48, 24
    expected = (4 + 2) * width**2 + 2 * (2 * width * ffn) + 2 * width * head
    assert sum(node.weight_elements for node in read_ir(made.artifact).nodes) == expected


@pytest.mark.parametrize("mode", ["offline", "streaming"])
def test_another_students_ir_is_refused(export_one: Callable[..., Any], ir: Any, mode: str) -> None:
    made = export_one(mode)
    proven(ir(mode), made)
    for changes, reason in (
        ({"reuse_layers": ()}, "projection weights lead to its value product|not the softmax"),
        ({"reuse_mode": "renormalised"}, "does not take the map|softmaxes found"),
        ({"ffn_width": 64}, "projection weights"),
    ):
        config = dataclasses.replace(made.student.config, **changes)
        graph = ProofGraph("model.xml", tuple(proof_nodes(ir(mode))))
        with pytest.raises(RdError, match=reason):
            prove(graph, config, exported=(1, 2), features="heads")


def inserted(found: list[IrOperation], before: str, *new: IrOperation) -> list[IrOperation]:
    """``new`` on the way into the first operand of the operation ``before``."""
    at = next(i for i, one in enumerate(found) if one.name == before)
    first, *rest = found[at].inputs
    chain = [dataclasses.replace(one, inputs=(first, *one.inputs)) for one in new[:1]]
    altered = dataclasses.replace(found[at], inputs=((new[0].name, 0), *rest))
    return [*found[:at], *chain, altered, *found[at + 1 :]]


def quantiser(out: float) -> tuple[IrOperation, list[IrOperation]]:
    """A FakeQuantize of 0..1 that gives 0..``out``, and its constants."""
    limits = {"q0": 0.0, "q1": 1.0, "q2": 0.0, "q3": out}
    constants = [IrOperation(name, "Constant", (), (), 1, (value,)) for name, value in limits.items()]
    return IrOperation("q", "FakeQuantize", tuple((name, 0) for name in limits), (("levels", 256),)), constants


def test_a_quantiser_on_the_map_may_round_and_not_scale(export_one: Callable[..., Any], ir: Any) -> None:
    made = export_one("offline")
    product = made.manifest.graph_proof.reused[0].value_product
    rounding, constants = quantiser(1.0)
    proven(constants + inserted(ir("offline"), product, rounding), made)
    scaling, constants = quantiser(0.5)
    with pytest.raises(RdError, match="graph proof failed"):
        proven(constants + inserted(ir("offline"), product, scaling), made)


def test_a_map_that_is_turned_or_multiplied_on_its_way_is_refused(export_one: Callable[..., Any], ir: Any) -> None:
    made = export_one("offline")
    product = made.manifest.graph_proof.reused[0].value_product
    order = IrOperation("order", "Constant", (), (), 4, (0.0, 1.0, 3.0, 2.0), integer=True)
    turn = IrOperation("turn", "Transpose", (("order", 0),))
    with pytest.raises(RdError, match=r"layer 2: .*Transpose \[0, 1, 3, 2\].* between the map and its value product"):
        proven([order, *inserted(ir("offline"), product, turn)], made)
    factor = IrOperation("factor", "Constant", (), (), 1, (0.5,))
    with pytest.raises(RdError, match="value products found"):
        proven([factor, *inserted(ir("offline"), product, IrOperation("times", "Multiply", (("factor", 0),)))], made)
    turned = [
        dataclasses.replace(one, attributes=(("transpose_a", True), ("transpose_b", False)))
        if one.name == product
        else one
        for one in ir("offline")
    ]
    with pytest.raises(RdError, match="transpose_a"):
        proven(turned, made)


def joined(scale: tuple[IrOperation, ...]) -> list[str]:
    """What the proof sees between the scores and the map of attention in one operation."""
    audio = IrOperation("audio", "Parameter", ())
    sums = [IrOperation(name, "Multiply", (("audio", 0), ("audio", 0))) for name in "qkv"]
    mask = IrOperation("mask", "Constant", (), elements=1, numbers=(0.0,))
    operands = (*(("q", 0), ("k", 0), ("v", 0), ("mask", 0)), *((one.name, 0) for one in scale[-1:]))
    attention = IrOperation("attention", "ScaledDotProductAttention", operands, (("causal", False),))
    graph = ProofGraph("model.xml", tuple(proof_nodes([audio, *sums, mask, *scale, attention])))
    return [graph.by_name[f"attention/{part}"].op for part in ("scores", "scaled", "masked", "map")]


def test_joined_attention_is_scaled_by_one_fixed_number() -> None:
    def number(*values: float) -> IrOperation:
        return IrOperation("scale", "Constant", (), elements=len(values), numbers=values)

    assert joined(()) == joined((number(0.125),)) == ["MatMul", "mul", "Add", "Softmax"]
    half = IrOperation("half", "Constant", (), elements=1, numbers=(0.125,))
    assert joined((half, IrOperation("scale", "Convert", (("half", 0),)))) == joined(())
    computed = IrOperation("scale", "ReduceMean", (("audio", 0),))
    for scale in (number(0.0), number(-0.125), number(float("nan")), number(0.1, 0.2), computed):
        assert joined((scale,)) == ["MatMul", "Scale", "Add", "Softmax"]
