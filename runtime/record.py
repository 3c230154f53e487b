"""Frozen dataclasses from untrusted JSON: every key known, every type checked, nothing executed."""

from __future__ import annotations

import dataclasses
import types
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from reuse_distill.runtime.errors import RdError, nearest

T = TypeVar("T")


def to_dict(record: Any) -> dict[str, Any]:
    """The record as plain JSON values, tuples as lists."""
    return dataclasses.asdict(record)


def from_dict(kind: type[T], data: Any, *, where: str) -> T:
    """Build the dataclass ``kind`` from ``data``.

    Raises RdError for a value that is not an object, an unknown key (with the nearest known name), a missing
    key or a value of another type; ``where`` names the file or section in the message.
    """
    if not isinstance(data, dict):
        raise RdError(f"{where}: expected an object with keys, found {type(data).__name__}")
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            raise RdError(f"{where}: unknown key {key!r}", hint=nearest(str(key), list(fields)))
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _value(hints[name], data[name], where=f"{where}: {name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise RdError(f"{where}: missing key {name!r}")
    return kind(**values)


def _value(hint: Any, value: Any, *, where: str) -> Any:
    """Check ``value`` against the type hint, converting lists to tuples and objects to dataclasses."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _one_of(args, value, where=where)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where=where)  # type: ignore[arg-type]
    if origin is tuple:
        return tuple(_value(args[0], item, where=f"{where}[{i}]") for i, item in enumerate(_expect(list, value, where)))
    if origin is dict:
        return {str(k): _value(args[1], v, where=f"{where}.{k}") for k, v in _expect(dict, value, where).items()}
    if hint is float and type(value) is int:
        return float(value)
    return _expect(hint, value, where)


def _one_of(options: tuple[Any, ...], value: Any, *, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    errors = []
    for option in options:
        if option is type(None):
            continue
        try:
            return _value(option, value, where=where)
        except RdError as error:
            errors.append(error)
    raise errors[0]


def _expect(kind: type, value: Any, where: str) -> Any:
    ok = type(value) in (list, tuple) if kind is list else type(value) is kind
    if not ok:
        raise RdError(f"{where}: expected {kind.__name__}, found {type(value).__name__} ({value!r:.60})")
    return value
