"""The widest GELU in parts: the same numbers to the bit, and nothing done where there is nothing to split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from reuse_distill.export.targets.onnx.split_gelu import PARTS, split_widest_gelu

CHANNELS = 8


def _graph(file: Path, *, quantised: bool) -> Path:
    rng = np.random.default_rng(0)
    scales = [numpy_helper.from_array(np.float32(s), n) for s, n in ((0.03, "s_in"), (0.02, "s_out"))]
    zero = [numpy_helper.from_array(np.uint8(z), n) for z, n in ((120, "z_in"), (9, "z_out"))]
    weight = numpy_helper.from_array(rng.standard_normal((CHANNELS, 1, 3)).astype(np.float32), "w")
    nodes = [
        helper.make_node("Gelu", ["x"], ["first"], "gelu_first"),
        helper.make_node("Conv", ["first", "w"], ["conv"], "conv"),
    ]
    if quantised:
        nodes += [
            helper.make_node("QuantizeLinear", ["conv", "s_in", "z_in"], ["q"], "q"),
            helper.make_node("DequantizeLinear", ["q", "s_in", "z_in"], ["dq"], "dq"),
            helper.make_node("Gelu", ["dq"], ["active"], "gelu_wide"),
            helper.make_node("QuantizeLinear", ["active", "s_out", "z_out"], ["aq"], "aq"),
            helper.make_node("DequantizeLinear", ["aq", "s_out", "z_out"], ["y"], "adq"),
        ]
    else:
        nodes.append(helper.make_node("Gelu", ["conv"], ["y"], "gelu_wide"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, "T"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, CHANNELS, None])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], [weight, *scales, *zero]), opset_imports=[helper.make_opsetid("", 20)]
    )
    model.ir_version = 10
    onnx.save(model, file)
    return file


def _run(file: Path, wave: np.ndarray) -> np.ndarray:
    session: Any = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": wave})[0]


def test_the_split_graph_gives_the_same_bits(tmp_path: Path) -> None:
    file = _graph(tmp_path / "m.onnx", quantised=True)
    wave = np.random.default_rng(1).standard_normal((1, 1, 500)).astype(np.float32)
    before = _run(file, wave)
    assert split_widest_gelu(file) == "gelu_wide"
    assert np.array_equal(_run(file, wave), before)
    kinds = [node.op_type for node in onnx.load(file).graph.node]
    assert kinds.count("Gelu") == 1 + PARTS and kinds.count("Split") == kinds.count("Concat") == 1


def test_a_gelu_in_float_is_left_alone(tmp_path: Path) -> None:
    file = _graph(tmp_path / "m.onnx", quantised=False)
    before = file.read_bytes()
    assert split_widest_gelu(file) is None
    assert file.read_bytes() == before
