"""export/targets/onnx/free_chunk.py: two graphs of fixed chunk sizes become one of any size, or are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from reuse_distill.export.targets.onnx.free_chunk import SIZES, free_chunk
from reuse_distill.runtime.errors import RdError

HEADS, DEPTH = 5, 2  # as many heads as one of the sizes has frames: a 5 that is not the chunk


def graph(chunk: int, *, weight: float = 0.5, op: str = "Tanh") -> Any:
    """samples [B, 320 C + 80], fresh [B, C] -> heads [B, H, C, D] of every 320th sample, the last 320 C samples."""
    nodes = [
        helper.make_node("Slice", ["samples", "zero", "end", "one"], ["cut"], "cut"),
        helper.make_node("Reshape", ["cut", "rows"], ["framed"], "framed"),  # [B, C, 320]
        helper.make_node("Slice", ["framed", "zero", "width", "two"], ["first"], "first"),
        helper.make_node("Mul", ["first", "weight"], ["weighed"], "weighed"),
        helper.make_node(op, ["weighed"], ["bent"], "bent"),
        helper.make_node("Reshape", ["bent", "split"], ["view"], "view"),
        helper.make_node("Transpose", ["view"], ["heads"], "turned", perm=[0, 2, 1, 3]),
        helper.make_node("Slice", ["samples", "hop", "far", "one"], ["tail"], "tail"),
        helper.make_node("Identity", ["fresh"], ["valid"], "valid"),
    ]
    numbers = {
        "zero": [0],
        "one": [1],
        "two": [2],
        "end": [320 * chunk],
        "hop": [320 * chunk],
        "far": [1 << 62],
        "width": [HEADS * DEPTH],
        "rows": [-1, chunk, 320],
        "split": [-1, chunk, HEADS, DEPTH],
    }
    constants = [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in numbers.items()]
    constants.append(numpy_helper.from_array(np.float32([weight]), "weight"))
    ports = {
        "samples": ["B", 320 * chunk + 80],
        "fresh": ["B", chunk],
        "heads": ["B", HEADS, chunk, DEPTH],
        "tail": ["B", 80],
        "valid": ["B", chunk],
    }
    infos = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in ports.items()}
    made = helper.make_graph(nodes, "step", [infos["samples"], infos["fresh"]], list(infos.values())[2:], constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def run(model: Any, samples: np.ndarray, chunk: int) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {"samples": samples, "fresh": np.ones((len(samples), chunk), np.float32)}
    return list(session.run(None, feeds))


@pytest.mark.parametrize("chunk", [1, 2, 5, 7, 16])
def test_any_size_gives_what_a_graph_of_that_size_gives(chunk: int) -> None:
    free = free_chunk(*map(graph, SIZES))
    onnx.checker.check_model(free)
    samples = np.random.default_rng(chunk).normal(size=(3, 320 * chunk + 80)).astype(np.float32)
    for found, expected in zip(run(free, samples, chunk), run(graph(chunk), samples, chunk), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_what_depends_on_the_size_is_named_and_the_rest_stays() -> None:
    free = free_chunk(*map(graph, SIZES)).graph
    axes = {port.name: [d.dim_param or d.dim_value for d in port.type.tensor_type.shape.dim] for port in free.input}
    assert axes == {"samples": ["B", "320*C + 80"], "fresh": ["B", "C"]}
    heads = next(port for port in free.output if port.name == "heads").type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in heads] == ["B", HEADS, "C", DEPTH]
    names = {initializer.name for initializer in free.initializer}
    assert {"weight", "width", "far"} <= names and not {"end", "rows", "split", "hop"} & names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": 0.25}, "a constant of node weighed"),
        ({"op": "Sigmoid"}, r"node bent \(Tanh\) and bent \(Sigmoid\)"),
    ],
)
def test_other_differences_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RdError, match=message):
        free_chunk(graph(SIZES[0]), graph(SIZES[1], **change))


def test_a_constant_of_another_shape_and_a_node_too_many_are_refused() -> None:
    other = graph(SIZES[1])
    other.graph.node.append(helper.make_node("Identity", ["heads"], ["again"], "again"))
    with pytest.raises(RdError, match="9 and 10 nodes"):
        free_chunk(graph(SIZES[0]), other)
    other = graph(SIZES[1])
    split = next(i for i in other.graph.initializer if i.name == "split")
    split.CopyFrom(numpy_helper.from_array(np.array([-1, 7, HEADS, DEPTH, 1], np.int64), "split"))
    with pytest.raises(RdError, match="another shape or type"):
        free_chunk(graph(SIZES[0]), other)
