"""export/targets/onnx/qdq.py: results that are taken as they are, and integers that somebody else takes are kept."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from reuse_distill.export.targets.onnx.qdq import release_outputs


def _graph(*, integers_used: bool) -> ir.Model:
    """head (MatMul) -> Q -> DQ -> Add; with ``integers_used`` the integers are an output too."""
    stored = [
        numpy_helper.from_array(np.ones((4, 3), np.float32), "w"),
        numpy_helper.from_array(np.zeros(3, np.float32), "b"),
        numpy_helper.from_array(np.float32(0.1), "s"),
        numpy_helper.from_array(np.uint8(0), "z"),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"], "head"),
        helper.make_node("QuantizeLinear", ["product", "s", "z"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["dq"], "dq"),
        helper.make_node("Add", ["dq", "b"], ["y"], "bias"),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])]
    if integers_used:
        nodes.append(helper.make_node("Identity", ["q"], ["raw"], "raw"))
        outputs.append(helper.make_tensor_value_info("raw", TensorProto.UINT8, [2, 3]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])
    graph = helper.make_graph(nodes, "g", [x], outputs, stored)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9))


@pytest.mark.parametrize("integers_used", [False, True])
def test_what_follows_takes_the_result_itself(integers_used: bool) -> None:
    model = _graph(integers_used=integers_used)
    assert release_outputs(model, ["head", "absent"]) == ["head"]
    written = ir.to_proto(model)
    onnx.checker.check_model(written, full_check=True)
    nodes = {node.name: node for node in written.graph.node}
    assert list(nodes["bias"].input) == ["product", "b"]
    assert "dq" not in nodes and ("q" in nodes) == integers_used


def test_a_result_without_qdq_is_none_of_them() -> None:
    model = _graph(integers_used=False)
    assert release_outputs(model, ["bias"]) == []
    assert [node.op_type for node in model.graph] == ["MatMul", "QuantizeLinear", "DequantizeLinear", "Add"]
