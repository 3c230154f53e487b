"""Residual sums of an int8 graph take the dequantised value that the products of their branch read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from reuse_distill.export.targets.tensorrt.symmetric_int8 import quantise_residuals


def _write(file: Path) -> None:
    """y = x + product(dequantised x) + b: the Q/DQ pair stands behind the sum in the file."""
    stored = [
        numpy_helper.from_array(np.eye(3, dtype=np.float32), "w"),
        numpy_helper.from_array(np.zeros(3, np.float32), "b"),
        numpy_helper.from_array(np.float32(0.1), "s"),
        numpy_helper.from_array(np.int8(0), "z"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["h", "s", "z"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["dq"], "dq"),
        helper.make_node("MatMul", ["dq", "w"], ["product"], "product"),
        helper.make_node("Relu", ["x"], ["h"], "h"),
        helper.make_node("Add", ["h", "product"], ["sum"], "residual"),
        helper.make_node("Add", ["sum", "b"], ["y"], "bias"),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in ("x", "y")]
    graph = helper.make_graph([nodes[3], *nodes[:3], *nodes[4:]], "g", ports[:1], ports[1:], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), str(file))


def test_a_residual_takes_the_dequantised_branch_and_a_bias_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    _write(file)
    assert quantise_residuals(file) == 1
    nodes = {node.name: list(node.input) for node in onnx.load(str(file)).graph.node}
    assert nodes["residual"] == ["dq", "product"] and nodes["bias"] == ["sum", "b"]
    assert quantise_residuals(file) == 0, "a second time there is nothing left to do"
