"""The graph proof on LiteRT programs, and changed ones that it must refuse; and files that are damaged."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reuse_distill.export.proof import ProofGraph, prove
from reuse_distill.export.proof.litert_graph import nodes_of
from reuse_distill.export.quantise.quantisation_recipe import Recipe
from reuse_distill.export.targets.litert.tflite_int8 import kept_in_float, operation_blocks
from reuse_distill.export.targets.litert.tflite_program import TflOperation, TflProgram, TflTensor, read_tflite
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import StudentConfig, preset
from reuse_distill.student.config import conv_stack

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed (the extra litert)")
FRAMES = 5
CONFIG: StudentConfig = preset(
    "tiny",
    width=8,
    ffn_width=12,
    heads=2,
    layers=2,
    reuse_layers=(2,),
    conv_layers=conv_stack(4, 4, 6),
    position_groups=4,
    position_kernel=4,
    lookahead_frames=1,
    head_width=6,
)


@dataclasses.dataclass
class Built:
    """A program being written, operation by operation, as the converter writes a student."""

    tensors: list[TflTensor] = dataclasses.field(default_factory=list)
    operations: list[TflOperation] = dataclasses.field(default_factory=list)

    def tensor(self, *shape: int, numbers: tuple[int, ...] | None = None, constant: bool = False, **more: Any) -> int:
        constant = constant or numbers is not None
        self.tensors.append(TflTensor(f"t{len(self.tensors)};", shape, constant, numbers, **more))
        return len(self.tensors) - 1

    def add(self, kind: str, *inputs: int, shape: tuple[int, ...] = (1, FRAMES, 8), **settings: Any) -> int:
        result = self.tensor(*shape)
        self.operations.append(TflOperation(kind, inputs, (result,), tuple(settings.items())))
        return result

    def product(self, x: int, inner: int, outer: int) -> int:
        """A fully connected layer with a bias."""
        weight, bias = self.tensor(outer, inner, constant=True), self.tensor(outer, constant=True)
        return self.add("FULLY_CONNECTED", x, weight, bias, shape=(1, FRAMES, outer), FusedActivationFunction=0)

    def heads_of(self, x: int) -> int:
        shape, order = self.tensor(4, numbers=(1, FRAMES, 2, 4)), self.tensor(4, numbers=(0, 2, 1, 3))
        split = self.add("RESHAPE", x, shape, shape=(1, FRAMES, 2, 4))
        return self.add("TRANSPOSE", split, order, shape=(1, 2, FRAMES, 4))

    def norm(self, x: int) -> int:
        axis = self.tensor(1, numbers=(2,))
        spread = self.add("SQUARED_DIFFERENCE", x, self.add("MEAN", x, axis))
        return self.add("MUL", x, self.add("RSQRT", self.add("MEAN", spread, axis)), FusedActivationFunction=0)

    def layer(self, x: int, source: int | None) -> tuple[int, int]:
        if source is None:
            queries, keys = (self.heads_of(self.product(x, 8, 8)) for _ in range(2))
            scores = self.add("BATCH_MATMUL", queries, keys, shape=(1, 2, FRAMES, FRAMES), AdjX=False, AdjY=True)
            source = self.add("SOFTMAX", scores, shape=(1, 2, FRAMES, FRAMES), Beta=1.0)
        values = self.heads_of(self.product(x, 8, 8))
        context = self.add("BATCH_MATMUL", source, values, shape=(1, 2, FRAMES, 4), AdjX=False, AdjY=False)
        x = self.norm(self.add("ADD", x, self.product(context, 8, 8), FusedActivationFunction=0))
        inner = self.add("GELU", self.product(x, 8, 12), shape=(1, FRAMES, 12))
        return self.norm(self.add("ADD", x, self.product(inner, 12, 8), FusedActivationFunction=0)), source


def student() -> TflProgram:
    built = Built()
    x = built.tensor(1, 99, 1, 1)
    for channels, before in ((4, 1), (6, 4)):
        weight = built.tensor(channels, 3, 1, before, constant=True)
        x = built.add("CONV_2D", x, weight, shape=(1, FRAMES, 1, channels))
    x = built.product(built.norm(x), 6, 8)
    position = built.add("CONV_2D", x, built.tensor(8, 4, 1, 2, constant=True), shape=(1, FRAMES, 1, 8))
    x = built.norm(built.add("ADD", x, position, FusedActivationFunction=0))
    x, source = built.layer(x, None)
    first = x
    x, _ = built.layer(x, source)
    built.product(first, 8, 6)
    built.product(x, 8, 6)
    return TflProgram(tuple(built.tensors), tuple(built.operations), (0,), ())


def proven(program: TflProgram, config: StudentConfig = CONFIG) -> Any:
    return prove(ProofGraph("model.tflite", tuple(nodes_of(program))), config, exported=(1, 2), features="heads")


def products(program: TflProgram) -> list[int]:
    """Numbers of: the query-key product, the value product of each layer."""
    return [i for i, one in enumerate(program.operations) if one.kind == "BATCH_MATMUL"]


def before(program: TflProgram, at: int, *chain: TflOperation, scale: tuple[float, ...] = ()) -> TflProgram:
    """``chain`` on the way into the first operand of the operation ``at``; the results have ``scale``."""
    tensors, operations = list(program.tensors), list(program.operations)
    taken, rest = operations[at].inputs[0], operations[at].inputs[1:]
    added = []
    for one in chain:
        tensors.append(TflTensor(f"added{len(tensors)}", tensors[taken].shape, False, None, scale))
        added.append(dataclasses.replace(one, inputs=(taken, *one.inputs), outputs=(len(tensors) - 1,)))
        taken = len(tensors) - 1
    operations[at] = dataclasses.replace(operations[at], inputs=(taken, *rest))
    operations[at:at] = added
    return dataclasses.replace(program, tensors=tuple(tensors), operations=tuple(operations))


def constant(program: TflProgram, *numbers: int) -> tuple[TflProgram, int]:
    one = TflTensor("added constant", (len(numbers),), True, numbers)
    return dataclasses.replace(program, tensors=(*program.tensors, one)), len(program.tensors)


def test_one_softmax_for_two_layers() -> None:
    proof = proven(student())
    assert (proof.layers, proof.computed_maps, proof.softmaxes) == (2, 1, 1)
    assert [(row.layer, row.source_layer) for row in proof.reused] == [(2, 1)]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"reuse_layers": ()}, "projection weights lead to its value product|not the softmax"),
        ({"reuse_mode": "renormalised"}, "does not take the map|softmaxes found"),
        ({"ffn_width": 16}, "projection weights"),
        ({"head_width": 8}, "projection weights"),
    ],
)
def test_another_students_program_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(RdError, match=reason):
        proven(student(), dataclasses.replace(CONFIG, **changes))


def test_a_map_that_is_turned_multiplied_or_sharpened_is_refused() -> None:
    program = student()
    last = products(program)[-1]
    turned, order = constant(program, 0, 1, 3, 2)
    with pytest.raises(RdError, match=r"layer 2: TRANSPOSE \[0, 1, 3, 2\].* between the map and its value product"):
        proven(before(turned, last, TflOperation("TRANSPOSE", (order,), ())))
    scaled, factor = constant(program, 2)
    with pytest.raises(RdError, match="value products found"):
        proven(before(scaled, last, TflOperation("MUL", (factor,), (), (("FusedActivationFunction", 0),))))
    adjoint = list(program.operations)
    adjoint[last] = dataclasses.replace(adjoint[last], settings=(("AdjX", True), ("AdjY", False)))
    with pytest.raises(RdError, match="layer 2: BATCH_MATMUL AdjX"):
        proven(dataclasses.replace(program, operations=tuple(adjoint)))
    sharper = [
        dataclasses.replace(one, settings=(("Beta", 2.0),)) if one.kind == "SOFTMAX" else one
        for one in program.operations
    ]
    with pytest.raises(RdError, match="no softmax found"):
        proven(dataclasses.replace(program, operations=tuple(sharper)))


def test_a_map_computed_once_more_is_refused() -> None:
    program = student()
    softmax = next(i for i, one in enumerate(program.operations) if one.kind == "SOFTMAX")
    again = dataclasses.replace(program.operations[softmax], outputs=(len(program.tensors),))
    tensors = (*program.tensors, dataclasses.replace(program.tensors[-1], name="again"))
    operations = list(program.operations)
    last = products(program)[-1]
    operations[last] = dataclasses.replace(operations[last], inputs=(len(program.tensors), operations[last].inputs[1]))
    operations.insert(softmax + 1, again)
    with pytest.raises(RdError, match="layer 2: takes the map of SOFTMAX"):
        proven(dataclasses.replace(program, tensors=tensors, operations=tuple(operations)))


def test_a_quantised_map_may_be_rounded_and_not_scaled() -> None:
    program = student()
    last = products(program)[-1]
    rounding = before(program, last, TflOperation("QUANTIZE", (), ()), scale=(1 / 255,))
    rounding = before(rounding, products(rounding)[-1], TflOperation("DEQUANTIZE", (), ()))
    proven(rounding)
    # Integers that stand for twice as much behind an operation that only moves them.
    quantised = before(program, last, TflOperation("QUANTIZE", (), ()), scale=(1 / 255,))
    moved, shape = constant(quantised, 1, 2, FRAMES, FRAMES)
    scaled = before(moved, products(moved)[-1], TflOperation("RESHAPE", (shape,), ()), scale=(2 / 255,))
    with pytest.raises(RdError, match="value products found"):
        proven(scaled)


def test_more_than_a_product_is_none() -> None:
    """A fully connected layer with an activation in it."""
    program = student()
    operations = [
        dataclasses.replace(one, settings=(("FusedActivationFunction", 1),)) if one.kind == "FULLY_CONNECTED" else one
        for one in program.operations
    ]
    with pytest.raises(RdError, match="projection weights lead to its value product"):
        proven(dataclasses.replace(program, operations=tuple(operations)))


def test_blocks_and_what_stays_in_float() -> None:
    program = student()
    blocks = operation_blocks(program, 2)
    weights = [b for one, b in zip(program.operations, blocks, strict=True) if one.kind == "FULLY_CONNECTED"]
    assert weights[0] == "input"
    assert weights[1:5] == ["layer.1.attention"] * 4
    assert weights[5:7] == ["layer.1.ffn"] * 2
    assert weights[7:11] == ["layer.2.attention"] * 2 + ["layer.2.ffn"] * 2
    assert weights[-1] == "heads"
    convolutions = [i for i, one in enumerate(program.operations) if one.kind == "CONV_2D"]
    kept = kept_in_float(program, Recipe("int8", "int8-static"), 2)
    assert set(kept) == {convolutions[0], convolutions[2]}
    assert "waveform" in kept[convolutions[0]]
    assert "positional" in kept[convolutions[2]]
    more = kept_in_float(program, Recipe("int8", "int8-static", in_float=("front-end", "layer.2.ffn")), 2)
    assert len(more) == 5


def small_file(file: Path) -> None:
    """One fully connected layer, written by the schema's own classes."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model: Any = schema.ModelT()
    code, one, graph = schema.OperatorCodeT(), schema.OperatorT(), schema.SubGraphT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    one.inputs, one.outputs = [0, 1, -1], [2]
    one.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    one.builtinOptions = schema.FullyConnectedOptionsT()
    graph.tensors = []
    for name, shape, buffer in (("x", [1, 4], 0), ("weight", [3, 4], 1), ("y", [1, 3], 0)):
        made = schema.TensorT()
        made.name, made.shape, made.buffer = name.encode(), shape, buffer
        graph.tensors.append(made)
    weight = schema.BufferT()
    weight.data = list(range(48))
    graph.inputs, graph.outputs, graph.operators = [0], [2], [one]
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
    model.buffers, model.signatureDefs = [schema.BufferT(), weight], []
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    file.write_bytes(bytes(builder.Output()))


def test_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    small_file(tmp_path / "model.tflite")
    program = read_tflite(tmp_path / "model.tflite")
    assert program.inputs == (0,)
    assert program.outputs == (2,)
    assert [tensor.constant for tensor in program.tensors] == [False, True, False]
    assert program.operations == (TflOperation("FULLY_CONNECTED", (0, 1, -1), (2,), (("FusedActivationFunction", 0),)),)
    start, length = program.buffers[1]
    assert (tmp_path / "model.tflite").read_bytes()[start : start + length] == bytes(range(48))
    (node,) = nodes_of(program)
    assert (node.kind, node.weight_elements) == ("projection", 12)


def test_damaged_files_are_refused_or_read_and_nothing_else(tmp_path: Path) -> None:
    small_file(tmp_path / "model.tflite")
    data = (tmp_path / "model.tflite").read_bytes()
    file = tmp_path / "damaged.tflite"
    generator = random.Random(0)
    refused = 0
    for trial in range(300):
        changed = bytearray(data[: len(data) - trial] if trial < 100 else data)
        for _ in range(3 if trial >= 100 else 0):
            changed[generator.randrange(8, len(changed))] = generator.randrange(256)
        file.write_bytes(changed)
        try:
            nodes_of(read_tflite(file))
        except RdError:
            refused += 1
    assert refused > 20


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.tflite"
    file.write_bytes(b"no model at all")
    with pytest.raises(RdError, match=r"does not begin as a \.tflite does"):
        read_tflite(file)


def test_the_converter_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, make_student: Callable[..., Any]
) -> None:
    import sys

    from reuse_distill.export.spec import ExportSpec, Offline
    from reuse_distill.export.targets import find_target

    monkeypatch.setitem(sys.modules, "litert_torch", None)  # type: ignore[arg-type]
    with pytest.raises(RdError, match="litert_torch is not installed") as caught:
        find_target("litert").adapt(ExportSpec("litert", Offline(1.0), "fp32", (1,), "heads"))
    assert "litert-export" in str(caught.value.hint)
