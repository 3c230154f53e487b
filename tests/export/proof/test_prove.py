"""The graph proof: it holds on every kind of file that is shipped, and on none that computes something else."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import reuse_distill.export.targets.onnx.onnx_target as onnx_target
import torch
from onnx import helper, numpy_helper
from reuse_distill.export.capture.capture import capture
from reuse_distill.export.proof import prove, read_onnx
from reuse_distill.export.proof.onnx_graph import _LAYOUT, _QUANTISERS, OnnxOperation, proof_nodes
from reuse_distill.runtime.bundle_format.bundle import read_bundle
from reuse_distill.runtime.errors import RdError
from reuse_distill.student.attention import Attention
from reuse_distill.student.layer import TransformerLayer
from reuse_distill.student.layer_shape import LayerShape

EVERY = [
    *(("shared", mode, p) for mode in ("offline", "window") for p in ("fp32", "fp16", "int8")),
    *(("stream", "streaming", p) for p in ("fp32", "fp16", "int8")),
    *(("renormalised", "offline", p) for p in ("fp32", "int8")),
    *(("stream-renormalised", "streaming", p) for p in ("fp32", "fp16")),
]
ALL_LAYERS: dict[str, Any] = {"exported": (1, 2, 3, 4), "features": "heads"}


@pytest.mark.parametrize(("name", "mode", "precision"), EVERY)
def test_holds_on_the_finished_file(name: str, mode: str, precision: str, workshop) -> None:
    bundle = read_bundle(workshop.bundle(name, mode, precision))
    config = workshop.student(name).config
    proof = prove(read_onnx(bundle.artifact), config, **ALL_LAYERS)
    assert proof == bundle.manifest.graph_proof
    assert (proof.layers, proof.computed_maps) == (4, 2)
    assert [(r.layer, r.source_layer) for r in proof.reused] == [(2, 1), (4, 3)]
    assert {op for reused in proof.reused for op in reused.path} <= _LAYOUT | _QUANTISERS
    ops = [node.op_type for node in onnx.load(str(bundle.artifact)).graph.node]
    assert ops.count("Softmax") == proof.softmaxes == (2 if config.reuse_mode == "shared" else 4)
    assert ("QuantizeLinear" in ops) == (precision == "int8")


@pytest.mark.parametrize(
    ("layers", "computed", "reused"), [pytest.param("1", 1, [], marks=pytest.mark.slow), ("3,1", 2, [2])]
)
def test_layers_above_the_last_exported_one_are_not_in_a_step(layers, computed, reused, workshop) -> None:
    manifest = read_bundle(workshop.bundle("stream", "streaming", "fp32", "--layers", layers, "--batch", "1")).manifest
    assert manifest.graph_proof is not None
    assert manifest.graph_proof.computed_maps == computed
    assert [r.layer for r in manifest.graph_proof.reused] == reused
    depth = max(map(int, layers.split(",")))
    assert sum(s.role == "values" for s in manifest.states) == depth
    assert sum(s.role == "keys" for s in manifest.states) == computed


class Editor:
    """An ONNX graph taken apart: softmaxes and value products in execution order."""

    def __init__(self, file: Path) -> None:
        self.model = onnx.load(str(file))
        self.nodes = self.model.graph.node
        self.maps = [node for node in self.nodes if node.op_type == "Softmax"]

    def users(self, name: str) -> list[Any]:
        return [node for node in self.nodes if name in node.input]

    def products(self, softmax: Any) -> list[Any]:
        """Matrix products that take the output of ``softmax`` directly."""
        return [node for node in self.users(softmax.output[0]) if node.op_type == "MatMul"]

    def add_before(self, node: Any, op: str, inputs: list[str], **attributes: Any) -> str:
        new = helper.make_node(op, inputs, [f"new_{op}_{len(self.nodes)}"], name=f"new_{len(self.nodes)}", **attributes)
        self.nodes.insert(list(self.nodes).index(node), new)
        return new.output[0]

    def rewire(self, node: Any, old: str, new: str) -> None:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new

    def remove(self, node: Any) -> None:
        for user in self.users(node.output[0]):
            self.rewire(user, node.output[0], node.input[0])
        self.nodes.remove(node)


def recompute(e: Editor) -> None:
    user = e.products(e.maps[0])[1]
    e.rewire(user, e.maps[0].output[0], e.add_before(user, "Softmax", [e.maps[0].input[0]], axis=-1))


def softmax_of_the_map(e: Editor) -> None:
    user = e.products(e.maps[0])[1]
    e.rewire(user, e.maps[0].output[0], e.add_before(user, "Softmax", [e.maps[0].output[0]], axis=-1))


def older_map(e: Editor) -> None:
    e.rewire(e.products(e.maps[1])[1], e.maps[1].output[0], e.maps[0].output[0])


def scale_the_map(e: Editor) -> None:
    e.model.graph.initializer.append(numpy_helper.from_array(torch.tensor(0.5).numpy(), "half"))
    user = e.products(e.maps[0])[1]
    e.rewire(user, e.maps[0].output[0], e.add_before(user, "Mul", [e.maps[0].output[0], "half"]))


def remove_a_softmax(e: Editor) -> None:
    e.remove(e.maps[1])


def more_reuse_than_claimed(e: Editor) -> None:
    for user in e.products(e.maps[1]):
        e.rewire(user, e.maps[1].output[0], e.maps[0].output[0])


def a_projection_more(e: Editor) -> None:
    weight = next(t for t in e.model.graph.initializer if list(t.dims) == [32, 32])
    head = next(node for node in reversed(e.nodes) if node.op_type == "MatMul")
    e.rewire(head, head.input[0], e.add_before(head, "MatMul", [head.input[0], weight.name]))


def _sliced(e: Editor, user: Any, taken: str, **numbers: int) -> None:
    """``user`` takes a slice of ``taken``: one number for each of the operator's inputs."""
    for name, value in numbers.items():
        e.model.graph.initializer.append(numpy_helper.from_array(np.array([value]), f"new_{name}"))
    e.rewire(user, taken, e.add_before(user, "Slice", [taken, *(f"new_{name}" for name in numbers)]))


def heads_in_another_order(e: Editor) -> None:
    user, taken = e.products(e.maps[0])[1], e.maps[0].output[0]
    _sliced(e, user, taken, starts=-1, ends=-(2**31), axes=1, steps=-1)


def one_head_for_all(e: Editor) -> None:
    user, taken = e.products(e.maps[0])[1], e.maps[0].output[0]
    _sliced(e, user, taken, starts=0, ends=1, axes=1, steps=1)


def a_map_turned(e: Editor) -> None:
    user, taken = e.products(e.maps[0])[1], e.maps[0].output[0]
    e.rewire(user, taken, e.add_before(user, "Transpose", [taken], perm=[0, 1, 3, 2]))


def heads_gathered(e: Editor) -> None:
    e.model.graph.initializer.append(numpy_helper.from_array(np.array([1, 0]), "order"))
    user, taken = e.products(e.maps[0])[1], e.maps[0].output[0]
    e.rewire(user, taken, e.add_before(user, "Gather", [taken, "order"], axis=1))


BETWEEN = "between the map and its value product, nothing in layer 1"
BROKEN: list[tuple[Callable[[Editor], None], str]] = [
    (recompute, r"layer 2: takes the map of new_\d+, not the one of layer 1"),
    (softmax_of_the_map, r"layer 2: takes the map of new_\d+, not the one of layer 1"),
    (older_map, r"layer 4: takes the map of \S+, not the one of layer 3"),
    (scale_the_map, "3 value products found, the student has 4 layers"),
    (remove_a_softmax, "2 value products found, the student has 4 layers"),
    (more_reuse_than_claimed, r"layer 3: 5120 projection weights lead to its value product, not 7168"),
    (a_projection_more, r"projection weights in all, \d+ expected"),
    (heads_in_another_order, rf"layer 2: Slice \[-1\] \S+ \[1\] \[-1\] {BETWEEN}"),
    (one_head_for_all, rf"layer 2: Slice \[0\] \[1\] \[1\] \[1\] {BETWEEN}"),
    (a_map_turned, rf"layer 2: Transpose perm=\(0, 1, 3, 2\) {BETWEEN}"),
    (heads_gathered, "3 value products found, the student has 4 layers"),
]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(("change", "message"), BROKEN, ids=[change.__name__ for change, _ in BROKEN])
def test_a_changed_file_is_refused(change, message, precision, workshop, tmp_path: Path) -> None:
    editor = Editor(workshop.bundle("shared", "offline", precision) / "model.onnx")
    change(editor)
    file = tmp_path / "changed.onnx"
    onnx.save(editor.model, str(file))
    with pytest.raises(RdError, match=f"graph proof failed on changed.onnx: .*{message}"):
        prove(read_onnx(file), workshop.student("shared").config, **ALL_LAYERS)


@pytest.mark.parametrize("part", [0, 1])
def test_a_step_whose_heads_are_in_another_order_is_refused(part: int, workshop, tmp_path: Path) -> None:
    """Behind one of the two slices of the map that layer 2 takes, for the cached and for the new values."""
    editor = Editor(workshop.bundle("stream", "streaming") / "model.onnx")
    taken = editor.users(editor.maps[0].output[0])[part].output[0]
    user = editor.users(taken)[1]
    assert user.op_type == "MatMul"
    _sliced(editor, user, taken, starts=-1, ends=-(2**31), axes=1, steps=-1)
    onnx.save(editor.model, str(tmp_path / "changed.onnx"))
    with pytest.raises(
        RdError, match=r"layer 2: .*Slice \[-1\] \S+ \[1\] \[-1\].* between the map and its value product"
    ):
        prove(read_onnx(tmp_path / "changed.onnx"), workshop.student("stream").config, **ALL_LAYERS)


def test_heads_turned_before_the_second_softmax_are_refused(workshop, tmp_path: Path) -> None:
    editor = Editor(workshop.bundle("renormalised", "offline") / "model.onnx")
    _sliced(editor, editor.maps[1], editor.maps[0].output[0], starts=-1, ends=-(2**31), axes=1, steps=-1)
    onnx.save(editor.model, str(tmp_path / "changed.onnx"))
    with pytest.raises(RdError, match=r"layer 2: Slice \[-1\] .* between the map of layer 1 and its softmax"):
        prove(read_onnx(tmp_path / "changed.onnx"), workshop.student("renormalised").config, **ALL_LAYERS)


def test_a_fused_product_that_turns_its_map_is_told() -> None:
    """ONNX Runtime folds a transposition of the last two axes into the product."""
    softmax = OnnxOperation("map", "Softmax", ("x",), ("m",))
    for name, said in (("transA", "FusedMatMul transA"), ("transB", "")):
        product = OnnxOperation("values", "FusedMatMul", ("m", "v"), ("y",), {name: 1})
        assert proof_nodes([softmax, product], {}, {})[1].moves == said


def test_a_missing_second_softmax_is_refused(workshop, tmp_path: Path) -> None:
    """renormalised: the reusing layer must take the softmax of the map, and of the right one."""
    for change, message in (
        (lambda e: e.remove(e.maps[1]), "layer 2: its softmax does not take the map of layer 1"),
        (
            lambda e: e.rewire(e.maps[3], e.maps[2].output[0], e.maps[0].output[0]),
            "layer 4: its softmax does not take the map of layer 3",
        ),
    ):
        editor = Editor(workshop.bundle("renormalised", "offline") / "model.onnx")
        change(editor)
        onnx.save(editor.model, str(tmp_path / "changed.onnx"))
        with pytest.raises(RdError, match=message):
            prove(read_onnx(tmp_path / "changed.onnx"), workshop.student("renormalised").config, **ALL_LAYERS)


def test_a_step_whose_cached_part_takes_another_map_is_refused(workshop, tmp_path: Path) -> None:
    editor = Editor(workshop.bundle("stream", "streaming") / "model.onnx")
    config, ours, other = (
        workshop.student("stream").config,
        editor.maps[1].output[0],
        editor.maps[0].output[0],
    )
    for part in [user for user in editor.users(ours) if user.op_type == "Slice"]:  # of the cached values, of the new
        editor.rewire(part, ours, other)
        onnx.save(editor.model, str(tmp_path / "changed.onnx"))
        with pytest.raises(RdError, match="are added, but take different maps"):
            prove(read_onnx(tmp_path / "changed.onnx"), config, **ALL_LAYERS)
        editor.rewire(part, other, ours)


def test_the_wrong_reuse_mode_or_depth_is_refused(workshop) -> None:
    graph, config = (
        read_onnx(workshop.bundle("shared", "offline") / "model.onnx"),
        workshop.student("shared").config,
    )
    with pytest.raises(RdError, match="layer 2: its softmax does not take the map of layer 1"):
        prove(graph, dataclasses.replace(config, reuse_mode="renormalised"), **ALL_LAYERS)
    with pytest.raises(RdError, match="4 value products found, the student has 3 layers up to here"):
        prove(graph, config, exported=(3,), features="heads")
    with pytest.raises(RdError, match=r"layer 3: takes the map of \S+, not the one of layer 1"):
        prove(graph, dataclasses.replace(config, reuse_layers=(2, 3, 4)), **ALL_LAYERS)
    with pytest.raises(RdError, match="layer 2: 5120 projection weights lead to its value product, not 7168"):
        prove(graph, dataclasses.replace(config, reuse_layers=()), **ALL_LAYERS)


class HandsOnTheOldMap(TransformerLayer):
    """Computes its own map and hands on the one that it got."""

    def forward(self, x: torch.Tensor, source: Any, bias: Any, positions: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return super().forward(x, source, bias, positions)[0], source


def own_map(layers: Any) -> None:
    """Query and key projections put back into layer 2."""
    old = layers[1].self_attn
    torch.manual_seed(0)
    new = Attention(LayerShape(32, 16, 2, 48, computes=True), reuse_mode="shared", dropout=0.0)
    new.load_state_dict({**new.state_dict(), **old.state_dict()})
    layers[1].self_attn = new


def old_map(layers: Any) -> None:
    layers[2].__class__ = HandsOnTheOldMap


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (own_map, r"layer 2: takes the map of \S+, not the one of layer 1"),
        (old_map, r"layer 4: takes the map of \S+, not the one of layer 3"),
    ],
)
def test_a_student_that_does_something_else_is_refused(
    change, message, workshop, spec_of, convert_once, tmp_path: Path
) -> None:
    student = copy.deepcopy(workshop.student("shared"))
    change(student.encoder.layers)
    # The store of converted graphs knows weights and shapes, not what a class of this file computes.
    convert = convert_once if change is old_map else onnx_target.convert
    convert(capture(student, spec_of("window")), tmp_path / "other.onnx")
    with pytest.raises(RdError, match=message) as caught:
        prove(read_onnx(tmp_path / "other.onnx"), student.config, **ALL_LAYERS)
    assert "does not compute what the student does" in str(caught.value.hint)


@pytest.mark.parametrize("level", ["BASIC", "EXTENDED", "ALL"])
@pytest.mark.parametrize(
    ("name", "mode", "precision"),
    [
        ("shared", "offline", "fp32"),
        ("shared", "offline", "int8"),
        ("stream", "streaming", "fp32"),
        ("stream", "streaming", "int8"),
        ("stream-renormalised", "streaming", "fp32"),
        ("shared", "offline", "fp16"),
    ],
)
def test_what_onnx_runtime_makes_of_the_file(name, mode, precision, level, workshop, tmp_path: Path) -> None:
    """Optimised and fused by ONNX Runtime it still proves; fp16 loses its softmaxes there and is refused for that."""
    optimised = tmp_path / "optimised.onnx"
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath, options.log_severity_level = str(optimised), 3
    file = workshop.bundle(name, mode, precision) / "model.onnx"
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    config = workshop.student(name).config
    if precision == "fp16":
        with pytest.raises(RdError, match="no softmax found; one that an optimiser took apart"):
            prove(read_onnx(optimised), config, **ALL_LAYERS)
        return
    proof = prove(read_onnx(optimised), config, **ALL_LAYERS)
    assert [(r.layer, r.source_layer) for r in proof.reused] == [(2, 1), (4, 3)]
