"""Multiply-accumulates of a graph by type: hand-made products, and the shipped bundle against its own estimate."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from reuse_distill.runtime.bundle_format.bundle import SHIPPED, read_bundle

from benchmarks.float_macs import float_share


def test_products_are_counted_by_type() -> None:
    weights = {
        "w": np.zeros((8, 4), np.float32), "q": np.zeros((8, 4), np.int8), "k": np.zeros((6, 2, 3), np.float32),
        "s": np.float32(1.0),
    }  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="float"),  # 5 x 8 x 4
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
        helper.make_node("MatMulInteger", ["xq", "q"], ["b"]),  # 5 x 8 x 4
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["q", "s"], ["wd"]),
        helper.make_node("MatMul", ["xd", "wd"], ["c"], name="static"),  # 5 x 8 x 4
        helper.make_node("Conv", ["y", "k"], ["d"], name="conv", group=2),  # 6 x 8 outputs of 2 x 3 products
    ]
    shapes = {"x": ["N", 5, 8], "y": [1, 4, 10]}
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in
         (("a", TensorProto.FLOAT), ("b", TensorProto.INT32), ("c", TensorProto.FLOAT), ("d", TensorProto.FLOAT))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )  # fmt: skip
    found = float_share(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))
    assert found["macs"] == 3 * 160 + 288 and found["macs_in_float"] == 160 + 288
    assert list(found["largest_in_float"]) == ["conv", "float"]


def test_the_shipped_bundle_is_counted_as_its_manifest_estimates() -> None:
    """But for its heads, which the estimate leaves out: two per cent."""
    found = float_share(onnx.load(SHIPPED / "model.onnx"))
    manifest = read_bundle(SHIPPED).manifest
    assert manifest.estimates is not None
    step_s = manifest.geometry.chunk_frames * 0.02
    assert found["macs"] / step_s == pytest.approx(manifest.estimates["macs_per_second"], rel=0.02)
    assert 0.1 < found["share_in_float"] < 0.25
