"""runtime/untrusted_input.py: dataclasses from JSON that nobody vouches for."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.untrusted_input import from_dict, to_dict


@dataclass(frozen=True)
class Inner:
    sizes: tuple[int, ...]
    name: str | None = None


@dataclass(frozen=True)
class Outer:
    ratio: float
    inner: Inner
    more: dict[str, Inner] = field(default_factory=dict)
    shape: tuple[int | str, ...] = ()


GOOD = {"ratio": 1, "inner": {"sizes": [1, 2]}, "more": {"a": {"sizes": [], "name": "x"}}, "shape": ["B", 3]}


def test_there_and_back():
    record = from_dict(Outer, GOOD, where="test")
    assert record == Outer(1.0, Inner((1, 2)), {"a": Inner((), "x")}, ("B", 3))
    assert type(record.ratio) is float
    assert from_dict(Outer, to_dict(record), where="test") == record


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"ratio": "1"}, r"test: ratio: expected float, found str \('1'\)"),
        ({"ratio": True}, r"test: ratio: expected float, found bool"),
        ({"inner": {"sizes": [1, 2.5]}}, r"test: inner: sizes\[1\]: expected int, found float \(2\.5\)"),
        ({"inner": {"sizes": [1], "nam": "x"}}, r"test: inner: unknown key 'nam'\n\nhint: did you mean 'name'"),
        ({"inner": {}}, r"test: inner: missing key 'sizes'"),
        ({"inner": None}, r"test: inner: expected an object with keys, found NoneType"),
        ({"more": {"a": {"sizes": 1}}}, r"test: more\.a: sizes: expected list, found int"),
        ({"shape": [None]}, r"test: shape\[0\]: expected int, found NoneType"),
    ],
)
def test_what_does_not_fit_is_named(change, text):
    with pytest.raises(RdError, match=text):
        from_dict(Outer, {**GOOD, **change}, where="test")
