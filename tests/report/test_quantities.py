from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reuse_distill.report.quantities import UNITS, parse_quantity, quantity
from reuse_distill.runtime.errors import RdError


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("40 ms", "time", 40.0), ("40ms", "time", 40.0), ("2 s", "time", 2000.0), ("250 µs", "time", 0.25),
        ("150 MB", "bytes", 150e6), ("150 MiB", "bytes", 150 * 2**20), ("0.5", "ratio", 0.5), (0.5, "ratio", 0.5),
        ("0.1 %", "share", 0.001), (0, "share", 0.0), ("85 C", "temperature", 85.0), ("1.5 J", "energy", 1.5),
        ("68 GB/s", "rate", 68e9), ("1e-1 s", "time", 100.0),
    ],
)  # fmt: skip
def test_quantities_are_read_in_base_units(text, dimension, value):
    assert parse_quantity(text, dimension, where="x") == pytest.approx(value)


@pytest.mark.parametrize("value", [40, 40.0, "40", " 40 "])
def test_a_time_without_unit_is_refused_with_the_way_to_write_it(value):
    with pytest.raises(RdError, match="no unit") as caught:
        parse_quantity(value, "time", where="budget.toml: p99")
    assert "budget.toml: p99" in caught.value.message
    assert "ms" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "value",
    ["", "ms", "40 parsec", "40 MB", "-3 ms", "nan ms", "inf ms", "1e999 ms", True, None, [40], "4 0 ms"],
)
def test_what_is_no_time_is_refused(value):
    with pytest.raises(RdError) as caught:
        parse_quantity(value, "time", where="p99")
    assert caught.value.hint


@given(st.floats(1e-6, 1e9, allow_nan=False))
def test_shown_times_read_back_within_the_digits_shown(value):
    assert parse_quantity(quantity(value, "time"), "time", where="x") == pytest.approx(value, rel=0.006)


def test_none_is_unmeasured_in_every_dimension():
    assert {quantity(None, dimension) for dimension in UNITS} == {"unmeasured"}
