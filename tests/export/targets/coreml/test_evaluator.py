"""The evaluator, operation by operation against torch, and the machine around them on programs built by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reuse_distill.export.targets.coreml.evaluator import Evaluator
from reuse_distill.export.targets.coreml.evaluator.registry import OPERATIONS
from reuse_distill.export.targets.coreml.mil_program import MilOperation, MilProgram, MilType
from reuse_distill.runtime.errors import RdError

RANDOM = np.random.default_rng(5)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def close(found: Any, wanted: torch.Tensor) -> None:
    np.testing.assert_allclose(found, wanted.numpy(), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("stride", "groups", "bias"), [(1, 1, False), (5, 1, True), (2, 2, True), (1, 4, False)])
def test_conv(stride: int, groups: int, bias: bool) -> None:
    x, weight, shift = normal(2, 8, 41), normal(12, 8 // groups, 5), normal(12)
    given: dict[str, Any] = {"bias": shift} if bias else {}
    found = OPERATIONS["conv"](
        {
            "x": x,
            "weight": weight,
            "strides": np.array([stride]),
            "groups": np.int32(groups),
            "pad_type": "valid",
            **given,
        }
    )
    kept = torch.from_numpy(shift) if bias else None
    close(found, F.conv1d(torch.from_numpy(x), torch.from_numpy(weight), kept, stride=stride, groups=groups))


def test_linear_and_matmul() -> None:
    x, weight, bias = normal(2, 5, 7), normal(3, 7), normal(3)
    close(
        OPERATIONS["linear"]({"x": x, "weight": weight, "bias": bias}),
        F.linear(*map(torch.from_numpy, (x, weight, bias))),
    )
    q, k = normal(1, 2, 5, 4), normal(1, 2, 6, 4)
    found = OPERATIONS["matmul"]({"x": q, "y": k, "transpose_x": np.bool_(False), "transpose_y": np.bool_(True)})
    close(found, torch.from_numpy(q) @ torch.from_numpy(k).transpose(-1, -2))


def test_norms() -> None:
    x, gain, shift = normal(2, 6, 9) * 3 + 1, normal(9), normal(9)
    found = OPERATIONS["layer_norm"](
        {"x": x, "axes": np.array([-1]), "gamma": gain, "beta": shift, "epsilon": np.float32(1e-5)}
    )
    close(found, F.layer_norm(torch.from_numpy(x), (9,), torch.from_numpy(gain), torch.from_numpy(shift), 1e-5))
    gain, shift = normal(6), normal(6)
    found = OPERATIONS["instance_norm"]({"x": x, "gamma": gain, "beta": shift, "epsilon": np.float32(1e-5)})
    close(
        found,
        F.instance_norm(torch.from_numpy(x), weight=torch.from_numpy(gain), bias=torch.from_numpy(shift)),
    )


def test_gelu_and_softmax() -> None:
    x = np.linspace(-9, 9, 4001, dtype=np.float32)
    np.testing.assert_allclose(OPERATIONS["gelu"]({"x": x, "mode": "EXACT"}), F.gelu(torch.from_numpy(x)), atol=1e-6)
    scores = normal(1, 2, 3, 5) * 40
    scores[..., -1] -= 1e4
    close(
        OPERATIONS["softmax"]({"x": scores, "axis": np.int32(-1)}),
        torch.softmax(torch.from_numpy(scores), -1),
    )
    with pytest.raises(NotImplementedError, match="TANH"):
        OPERATIONS["gelu"]({"x": x, "mode": "TANH_APPROXIMATION"})


def test_slice_by_index_masks() -> None:
    x = normal(2, 7, 3)
    masks = {"begin_mask": np.array([True, False, True]), "end_mask": np.array([True, False, True])}
    begin, end = np.array([0, 2, 0]), np.array([0, -1, 0])
    assert np.array_equal(OPERATIONS["slice_by_index"]({"x": x, "begin": begin, "end": end, **masks}), x[:, 2:-1])
    squeezed = {
        "begin": np.array([1, 0, 0]),
        "end": np.array([2, 7, 3]),
        "squeeze_mask": np.array([True, False, False]),
    }
    assert np.array_equal(OPERATIONS["slice_by_index"]({"x": x, **squeezed}), x[1])


def test_reshape_split_and_concat() -> None:
    x = normal(1, 6, 4)
    assert OPERATIONS["reshape"]({"x": x, "shape": np.array([0, -1, 2, 2])}).shape == (1, 6, 2, 2)
    parts = OPERATIONS["split"]({"x": x, "split_sizes": np.array([1, 5]), "axis": np.int32(1)})
    assert [p.shape[1] for p in parts] == [1, 5]
    assert np.array_equal(OPERATIONS["concat"]({"values": parts, "axis": np.int32(1)}), x)


def test_quantise_saturates_and_dequantise_undoes() -> None:
    x = np.array([-100.0, -0.26, 0.24, 0.26, 100.0], np.float32)
    found = OPERATIONS["quantize"]({"input": x, "scale": np.float32(0.5), "output_dtype": "int8"})
    assert found.tolist() == [-128, -1, 0, 1, 127]
    data = np.array([[2, 4], [6, 8]], np.int8)
    per_row = {
        "scale": np.array([0.5, 2.0], np.float32),
        "zero_point": np.array([0, 2], np.int8),
        "axis": np.int32(0),
    }
    assert OPERATIONS["dequantize"]({"input": data, **per_row}).tolist() == [[1, 2], [8, 12]]
    assert OPERATIONS["constexpr_affine_dequantize"]({"quantized_data": data, **per_row}).tolist() == [
        [1, 2],
        [8, 12],
    ]


def test_blocks_and_palettes() -> None:
    data = np.arange(8, dtype=np.int8).reshape(2, 4)
    scale = np.array([[1.0, 10.0], [2.0, 20.0]], np.float32)
    found = OPERATIONS["constexpr_blockwise_shift_scale"]({"data": data, "scale": scale})
    assert found.tolist() == [[0, 1, 20, 30], [8, 10, 120, 140]]
    table = np.array([-1.0, 0.0, 1.0, 5.0], np.float32)
    packed = np.array([0b11100100, 0b00000010], np.uint8)
    old = OPERATIONS["constexpr_lut_to_dense"]({"indices": packed, "lut": table, "shape": np.array([1, 5])})
    assert old.tolist() == [[-1, 0, 1, 5, 1]]
    new = OPERATIONS["constexpr_lut_to_dense"]({"indices": np.array([[3, 0]]), "lut": table.reshape(1, 1, 4, 1)})
    assert new.tolist() == [[5, -1]]


def program(*operations: MilOperation, dtype: str = "float32", states: dict[str, MilType] | None = None) -> MilProgram:
    constants = {"two": np.float32(2), "cached": np.ones(3, np.float32)}
    return MilProgram({"x": MilType(dtype, (-1, 3))}, states or {}, (operations[-1].outputs[0],), constants, operations)


def op(kind: str, name: str, dtype: str = "float32", **arguments: str) -> MilOperation:
    return MilOperation(kind, {k: (v,) for k, v in arguments.items()}, (name,), (MilType(dtype, (-1, 3)),))


def test_an_unknown_operation_is_named() -> None:
    with pytest.raises(RdError, match="does not know the MIL operation fold_time, sort_of"):
        Evaluator(program(op("sort_of", "a", x="x"), op("fold_time", "b", x="a")))


def test_an_unknown_variant_names_the_place() -> None:
    evaluator = Evaluator(program(op("conv", "wide", x="x", weight="cached")))
    with pytest.raises(RdError, match="wide: the evaluator does not know conv of rank 2"):
        evaluator.run({"x": np.zeros((1, 3), np.float32)})


def test_half_precision_rounds_after_every_operation() -> None:
    evaluator = Evaluator(
        program(
            op("mul", "a", "float16", x="x", y="two"),
            op("add", "b", "float16", x="a", y="x"),
            dtype="float16",
        )
    )
    x = np.full((1, 3), 0.1, np.float16)
    found = evaluator.run({"x": x})["b"]
    assert found.dtype == np.float16
    doubled = (x.astype(np.float32) * 2).astype(np.float16)
    assert np.array_equal(found, (doubled.astype(np.float32) + x.astype(np.float32)).astype(np.float16))
    with np.errstate(over="ignore"):
        assert np.isinf(evaluator.run({"x": np.full((1, 3), 4e4, np.float16)})["b"]).all()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "input x is missing"),
        (
            {"x": np.zeros((1, 4), np.float32)},
            r"input x is float32 \(1, 4\), the package takes float32 \(-1, 3\)",
        ),
        ({"x": np.zeros((1, 3))}, "input x is float64"),
    ],
)
def test_wrong_inputs_are_refused(inputs: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(RdError, match=message):
        Evaluator(program(op("add", "y", x="x", y="two"))).run(inputs)


def test_states_are_read_and_written_in_the_callers_dictionary() -> None:
    read = MilOperation("read_state", {"input": ("sum",)}, ("before",), (MilType("float16", (1, 3)),))
    write = MilOperation("write_state", {"input": ("sum",), "data": ("after",)}, (), ())
    added = op("add", "after", "float16", x="before", y="x")
    last = op("mul", "y", x="after", y="two")
    evaluator = Evaluator(program(read, added, write, last, states={"sum": MilType("float16", (1, 3))}))
    states = evaluator.new_states()
    ones = {"x": np.ones((1, 3), np.float32)}
    assert [float(evaluator.run(ones, states=states)["y"][0, 0]) for _ in range(3)] == [2, 4, 6]
    assert states["sum"].dtype == np.float16 and states["sum"].tolist() == [[3, 3, 3]]
    assert float(evaluator.run(ones, states=evaluator.new_states())["y"][0, 0]) == 2
    with pytest.raises(RdError, match="state sum was not given"):
        evaluator.run(ones)


def test_sizes() -> None:
    """What a length that is not known beforehand becomes: whole numbers, and tensors of that size."""
    x = normal(1, 9, 3)
    size = OPERATIONS["gather"]({"x": OPERATIONS["shape"]({"x": x}), "indices": np.int32(1), "axis": np.int32(0)})
    assert (size, size.dtype) == (9, np.int32)
    half = OPERATIONS["floor_div"]({"x": size, "y": np.int32(2)})
    assert (half, half.dtype) == (4, np.int32)
    joined = OPERATIONS["concat"]({"values": (np.int32(1), half), "axis": np.int32(0)})
    assert joined.tolist() == [1, 4]
    filled = OPERATIONS["fill_like"]({"ref_tensor": x, "value": np.float32(1)})
    assert (filled.shape, filled.dtype, float(filled.sum())) == (x.shape, np.float32, 27.0)
    filled = OPERATIONS["fill"]({"shape": joined, "value": np.float32(2)})
    assert (filled.shape, filled.dtype, float(filled.sum())) == ((1, 4), np.float32, 8.0)
    rows = OPERATIONS["gather"]({"x": x, "indices": np.array([2, 0], np.int32), "axis": np.int32(1)})
    np.testing.assert_array_equal(rows, x[:, [2, 0]])
    with pytest.raises(NotImplementedError, match="batch_dims"):
        OPERATIONS["gather"]({"x": x, "indices": np.int32(0), "batch_dims": np.int32(1)})
