"""What a log-mel adds before its logarithm is the bias of its filters: NVIDIA's builder fails on the sum."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from reuse_distill.export.targets.tensorrt.lowering import numbers_as_biases


def write(file: Path, number: np.ndarray, *, biased: bool = False, twice: bool = False) -> None:
    weights = np.random.default_rng(0).standard_normal((3, 2, 1)).astype(np.float32)
    stored = [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(number, "n")]
    stored += [numpy_helper.from_array(np.ones(3, np.float32), "b")] if biased else []
    nodes = [
        helper.make_node("Conv", ["x", "w", *(["b"] if biased else [])], ["c"], name="conv"),
        helper.make_node("Add", ["n", "c"] if number.ndim else ["c", "n"], ["s"], name="sum"),
        helper.make_node("Mul", ["s", "c" if twice else "s"], ["y"], name="square"),
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, 5]) for n, c in (("x", 2), ("y", 3))]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(file))


def run(file: Path) -> np.ndarray:
    x = np.random.default_rng(1).standard_normal((1, 2, 5)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def test_a_number_becomes_the_bias(tmp_path: Path) -> None:
    for number in (np.float32(1.0), np.array([2.0], np.float32)):
        file = tmp_path / "m.onnx"
        write(file, np.asarray(number))
        before = run(file)
        assert numbers_as_biases(file) == 1
        assert [node.op_type for node in onnx.load(str(file)).graph.node] == ["Conv", "Mul"]
        np.testing.assert_allclose(run(file), before, rtol=1e-6)
        assert numbers_as_biases(file) == 0


def test_others_are_left_alone(tmp_path: Path) -> None:
    """A bias is there already, somebody else takes the convolution, or it is more than one number."""
    file, one = tmp_path / "m.onnx", np.asarray(np.float32(1.0))
    for number, kinds in ((one, {"biased": True}), (one, {"twice": True}), (np.ones((3, 1), np.float32), {})):
        write(file, number, **kinds)
        before = file.read_bytes()
        assert numbers_as_biases(file) == 0 and file.read_bytes() == before
