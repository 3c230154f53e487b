"""Which products of an IR count as int8, how many multiply-accumulates each has, and the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reuse_distill.runtime.engines.openvino.openvino_device import load_openvino
from reuse_distill.runtime.errors import RdError

accuracy_control = pytest.importorskip("benchmarks.accuracy_control")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """One convolution in float, one product in int8 and one with a quantised weight alone; T samples, 10 per frame."""
    try:
        openvino = load_openvino()
    except RdError as error:
        pytest.skip(str(error))
    from openvino import opset13 as ops

    def limit(value: float) -> Any:
        return ops.constant(np.float32(value))

    def quantiser(value: Any) -> Any:
        return ops.fake_quantize(value, limit(-1), limit(1), limit(-1), limit(1), 255)

    def weights(name: str, *shape: int) -> Any:
        return ops.constant(np.ones(shape, np.float32), name=name)

    wave = ops.parameter([1, -1], np.float32, name="wave")
    wave.output(0).set_names({"wave"})
    rows = ops.unsqueeze(wave, ops.constant(np.int64(1)))
    frames = ops.convolution(rows, weights("kernel", 4, 1, 10), [10], [0], [0], [1], name="front")
    turned = ops.transpose(frames, ops.constant(np.array([0, 2, 1])))
    int8 = ops.matmul(quantiser(turned), quantiser(weights("a", 4, 6)), False, False, name="in int8")
    half = ops.matmul(int8, quantiser(weights("b", 8, 6)), False, True, name="weights alone")
    half.output(0).set_names({"features"})
    openvino.save_model(openvino.Model([half], [wave]), str(tmp_path / "model.xml"), compress_to_fp16=False)
    return tmp_path / "model.xml"


def test_products_and_their_macs(file: Path) -> None:
    frames = 16_000 // 10
    assert accuracy_control.products(file, seconds=1) == {
        "front": (frames * 4 * 10, False),
        "in int8": (frames * 4 * 6, True),
        "weights alone": (frames * 6 * 8, False),
    }


def test_the_table_has_a_search_where_there_was_one() -> None:
    ratio = {"median": 1.5, "p10": 1.4, "p90": 1.6}
    row = {
        "cosine": 0.99125,
        "macs_in_float": 0.25,
        "products_back_in_float": ["a", "b"],
        "times_as_fast_as_float32": ratio,
    }
    lines = accuracy_control.table({"float32": row, "searched": row}, {"searched": {"search_s": 61.4}})
    assert lines[2].startswith("| float32 | - | 2 | 25 % | 0.9912 |")
    assert lines[3] == "| searched | 61 | 2 | 25 % | 0.9912 | 1.50 (1.40 to 1.60) |"
