"""The checker: every rule fires on a graph that breaks it and on no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from reuse_distill.export.rd_export import main
from reuse_distill.export.targets.tensorrt.jetpack_rules import (
    JETPACKS,
    check_file,
    check_model,
    find_jetpack,
    of_device,
)
from reuse_distill.runtime.errors import RdError

NEW, OLD, OLDEST, STRICT = (JETPACKS[name] for name in ("6.2", "6.0", "5.1", "7.2.2"))


def model(nodes: list[Any], constants: dict[str, np.ndarray], *, opset: int = 17, free: bool = False) -> Any:
    """x [1, 8, 16] -> y."""
    shape = ["B" if free else 1, 8, 16]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def node(op: str, inputs: str, output: str = "y", **attributes: Any) -> Any:
    return helper.make_node(op, inputs.split(), [output], name=f"{op.lower()}_{output}", **attributes)


def rules(found: list[Any]) -> list[str]:
    return [finding.rule for finding in found]


W = np.ones((16, 16), np.float32)
SCALE, ZERO = np.array(0.1, np.float32), np.array(0, np.int8)


def quantised(zero: np.ndarray = ZERO, *, weight: bool = True, scale: np.ndarray = SCALE) -> Any:
    pair = [node("QuantizeLinear", "w s z8", "wq"), node("DequantizeLinear", "wq s z8", "wd")]
    nodes = [
        node("QuantizeLinear", "x sx z", "xq"),
        node("DequantizeLinear", "xq sx z", "xd"),
        *(pair if weight else []),
        node("MatMul", "xd wd" if weight else "xd w"),
    ]
    return model(nodes, {"w": W, "s": SCALE, "sx": scale, "z": zero, "z8": ZERO})


def test_a_good_graph_has_no_findings() -> None:
    for row in JETPACKS.values():
        assert check_model(model([node("MatMul", "x w")], {"w": W}), row, "fp32") == []
        expected = [] if row.weak else ["typing"]  # fp32 islands where fp16 is requested
        assert rules(check_model(quantised(), row, "int8")) == expected
        assert check_model(quantised(), row, "int8-fp32") == []


def test_opset_and_operators() -> None:
    gelu = model([node("Gelu", "x")], {}, opset=20)
    assert rules(check_model(gelu, OLD, "fp32")) == ["opset", "operator"]
    assert check_model(gelu, NEW, "fp32") == []
    norm = model([node("LayerNormalization", "x g")], {"g": W[0]})
    assert rules(check_model(norm, OLDEST, "fp32")) == ["operator"]
    assert check_model(norm, OLD, "fp32") == []
    fused = model([helper.make_node("FusedMatMul", ["x", "w"], ["y"], name="f", domain="com.microsoft")], {"w": W})
    assert "operator" in rules(check_model(fused, NEW, "fp32"))
    dynamic = model([helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"], name="d")], {})
    assert "operator" in rules(check_model(dynamic, STRICT, "fp32"))


def test_computed_axes() -> None:
    cut = model([node("Identity", "a", "b"), node("Unsqueeze", "x b")], {"a": np.array([0], np.int64)})
    assert check_model(cut, NEW, "fp32") == []
    shape = [node("Shape", "x", "s"), node("Unsqueeze", "x s")]
    assert "constant axes" in rules(check_model(model(shape, {}), NEW, "fp32"))


def test_symmetry() -> None:
    unsigned = quantised(np.array(0, np.uint8))
    assert set(rules(check_model(unsigned, NEW, "int8-fp32"))) == {"symmetry"}
    assert "uint8; int8 is needed" in str(check_model(unsigned, NEW, "int8-fp32")[0])
    shifted = check_model(quantised(np.array(3, np.int8)), NEW, "int8-fp32")
    assert "its zero point is 3; 0 is needed" in str(shifted[0])
    many = check_model(quantised(np.zeros(16, np.int8), scale=np.full(16, 0.1, np.float32)), NEW, "int8-fp32")
    assert "per tensor" in rules(many)


def test_placement() -> None:
    half = check_model(quantised(weight=False), NEW, "int8-fp32")
    assert rules(half) == ["Q/DQ"] and "only one operand of MatMul" in str(half[0])
    assert rules(check_model(model([node("MatMul", "x w")], {"w": W}), NEW, "int8-fp32")) == ["Q/DQ"]
    residual = quantised()
    residual.graph.node[-1].output[0] = "p"
    residual.graph.node.append(node("Add", "p x"))
    assert rules(check_model(residual, NEW, "int8-fp32")) == ["residual"]
    residual.graph.node[-1].input[1] = "xd"
    assert check_model(residual, NEW, "int8-fp32") == []


def test_typing() -> None:
    plain = model([node("MatMul", "x w")], {"w": W})
    silent = check_model(plain, STRICT, "fp16")
    assert rules(silent) == ["typing"] and "it would run in fp32" in str(silent[0])
    assert check_model(plain, NEW, "fp16") == []  # 10.x has the flag
    cast = [
        node("Cast", "x", "h", to=TensorProto.FLOAT16),
        node("MatMul", "h w", "p"),
        node("Cast", "p", to=1),
    ]
    half = model(cast, {"w": W.astype(np.float16)})
    assert check_model(half, STRICT, "fp16") == []
    assert rules(check_model(half, OLD, "fp16")) == ["typing"]
    mixed = model([node("Cast", "x", "h", to=TensorProto.FLOAT16), node("MatMul", "h w")], {"w": W})
    assert "types" in rules(check_model(mixed, STRICT, "fp16"))
    assert "bf16" in rules(check_model(plain, OLDEST, "bf16"))


def test_shapes() -> None:
    assert rules(check_model(model([node("MatMul", "x w")], {"w": W}, free=True), NEW, "fp32")) == ["shapes"]


def test_devices_and_names() -> None:
    assert [row.name for row in of_device("jetson-orin-nano")] == ["5.1", "6.0", "6.1", "6.2"]
    assert [row.name for row in of_device("jetson-agx-thor")] == ["thor", "7.2", "7.2.2"]
    assert [row.name for row in of_device("jetson-xavier-nx")] == ["5.1"]
    assert find_jetpack("7.2.2+").tensorrt == "11.4"
    with pytest.raises(RdError, match=r"JetPack '6\.25' is not in the table") as error:
        find_jetpack("6.25")
    assert "6.2" in str(error.value.hint)
    with pytest.raises(RdError, match="runs no TensorRT"):
        of_device("raspberry-pi-5")


@pytest.mark.parametrize(("precision", "bad"), [("fp16", {}), ("int8", {}), ("bf16", {"5.1", "6.0"})])
def test_every_jetpack_reads_what_we_prepare(prepared: Any, capsys: Any, precision: str, bad: set[str]) -> None:
    bundle = prepared.bundle("shared", "offline", precision)
    assert main(["check", str(bundle)]) == (1 if bad else 0)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("JetPack")]
    assert {line.split()[1] for line in lines if line.split()[-1] == "no"} == set(bad)
    assert len(lines) == len(JETPACKS)
    assert main(["check", str(bundle), "--jetpack", "6.2"]) == 0


def test_the_onnx_target_is_told_what_is_wrong_with_it(workshop: Any, capsys: Any) -> None:
    bundle = workshop.bundle("shared", "offline", "int8")
    assert main(["check", str(bundle), "--device", "jetson-orin-nano"]) == 1
    said = capsys.readouterr().out
    assert "symmetry: its zero point is uint8; int8 is needed" in said
    assert "opset: 20; TensorRT 8.5.2 reads up to 17" in said


def test_not_onnx(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "x.onnx").write_bytes(b"\xff\xfe not a model")
    with pytest.raises(RdError, match="cannot be read as ONNX"):
        check_file(tmp_path / "x.onnx", NEW, "fp32")
    assert main(["check", str(tmp_path / "y.onnx")]) == 2
    assert "neither an ONNX file nor a bundle" in capsys.readouterr().err
    onnx.save(model([node("MatMul", "x w")], {"w": W}), str(tmp_path / "good.onnx"))
    assert main(["check", str(tmp_path / "good.onnx"), "--jetpack", "thor", "--precision", "fp16"]) == 0
