"""The one reader of JSON and the one of ``.npz`` files that somebody else wrote: bounded before anything is allocated.

JSON is bounded in size, depth, number of values, and in its numbers; of an ``.npz`` every header is checked before its
array is made. Frozen dataclasses are made of such JSON: every key known, every type checked, nothing executed.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import zipfile
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from reuse_distill.runtime.errors import RdError, nearest

if TYPE_CHECKING:
    import numpy as np

MOST_BYTES = 16 << 20
MOST_DEPTH = 64
MOST_VALUES = 1_000_000  # each takes some 60 bytes in Python
MOST_DIGITS = 18  # of a whole number: what an int64 holds
MOST_ARRAY_BYTES = 128 << 20  # of all arrays together
MOST_MEMBERS = 64
MOST_AXES = 8
KINDS = "fiub"  # floats, integers, booleans: nothing with objects or text in it
ENCRYPTED = 1


def read_json_file(path: Path, *, most_bytes: int = MOST_BYTES, hint: str | None = None) -> Any:
    """The JSON in a file. Raises RdError where it cannot be read, is too large, or is not what ``parse_json`` takes."""
    try:
        size_bytes = path.stat().st_size
        if size_bytes > most_bytes:
            raise RdError(f"{path}: {size_bytes} bytes, at most {most_bytes} are read", hint=hint)
        with path.open("rb") as stream:
            data = stream.read(most_bytes + 1)  # it may have grown, or be no file
    except (OSError, ValueError) as error:
        raise RdError(f"{path}: cannot be read: {error}", hint=hint) from None
    return parse_json(data, where=str(path), most_bytes=most_bytes, hint=hint)


def parse_json(data: bytes, *, where: str, most_bytes: int = MOST_BYTES, hint: str | None = None) -> Any:
    """``data`` as JSON values.

    Raises RdError for more than ``most_bytes``, text that is not UTF-8 or not JSON, nesting deeper than 64, more than a
    million values, a key that stands twice, whole numbers of more than 18 digits, numbers that are not finite, and
    halves of surrogate pairs; ``where`` names the file in the message.
    """
    if len(data) > most_bytes:
        raise RdError(f"{where}: {len(data)} bytes, at most {most_bytes} are read", hint=hint)
    if sum(data.count(mark) for mark in (b",", b"[", b"{")) > MOST_VALUES:
        raise RdError(f"{where}: more than {MOST_VALUES} values", hint=hint)
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_int=_whole,
            parse_float=_real,
            parse_constant=_constant,
        )
        _check_depth(value)
    except RecursionError:
        raise RdError(f"{where}: not valid JSON (nested too deeply)", hint=hint) from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are some
        raise RdError(f"{where}: not valid JSON ({error})", hint=hint) from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice[:60]!r} stands twice in one object")
    return values


def _whole(text: str) -> int:
    if len(text.lstrip("-")) > MOST_DIGITS:
        raise ValueError(f"a whole number of {len(text)} digits, at most {MOST_DIGITS} are read")
    return int(text)


def _real(text: str) -> float:
    value = float(text)
    if value - value != 0:
        raise ValueError(f"number {text[:40]} is not finite")
    return value


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _check_depth(value: Any) -> None:
    """Raise ValueError for values nested deeper than ``MOST_DEPTH``, and for text that is no Unicode."""
    level = [value]
    for _ in range(MOST_DEPTH):
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                below += one.keys()
                below += one.values()
            elif isinstance(one, list):
                below += one
            elif isinstance(one, str) and not one.isascii():
                one.encode("utf-8")  # UnicodeEncodeError, a ValueError, for half of a surrogate pair
        if not below:
            return
        level = below
    raise ValueError(f"nested deeper than {MOST_DEPTH}")


def read_npz(path: Path, *, most_bytes: int = MOST_ARRAY_BYTES) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file by name.

    Raises RdError for a file that is none, members that are encrypted, doubled or no arrays of numbers, values that
    are not finite, and more than ``most_bytes`` in all.
    """
    hint = "export the bundle again"
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > MOST_MEMBERS or len({member.filename for member in members}) != len(members):
                raise RdError(f"{path}: {len(members)} members, at most {MOST_MEMBERS} of different names are read")
            arrays, left = {}, most_bytes
            for member in members:
                name = member.filename.removesuffix(".npy")
                if name == member.filename:
                    continue
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # what NumPy writes
                    raise RdError(f"{path}: array {name!r} is compressed by method {member.compress_type}", hint=hint)
                if member.flag_bits & ENCRYPTED:
                    raise RdError(f"{path}: array {name!r} is encrypted", hint=hint)
                with archive.open(member) as stream:
                    arrays[name] = _read_array(stream, left, where=f"{path}: array {name!r}")
                left -= arrays[name].nbytes
            return arrays
    except (OSError, ValueError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise RdError(f"{path}: cannot be read: {error}", hint=hint) from None


def _read_array(stream: IO[bytes], most_bytes: int, *, where: str) -> np.ndarray:
    import numpy as np  # here only: command lines that read JSON answer at once

    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise RdError(f"{where}: version {version} of the format, 1.0 and 2.0 are read")
    try:
        shape, by_columns, dtype = readers[version](stream)
    except Exception as error:  # the header is a Python literal, and its tokenizer and parser have errors of their own
        raise RdError(f"{where}: its header makes no sense ({type(error).__name__})") from None
    if dtype.kind not in KINDS or dtype.hasobject or len(shape) > MOST_AXES or any(d < 0 for d in shape):
        raise RdError(f"{where} is {dtype} of shape {shape}: numbers in at most {MOST_AXES} axes are read")
    size_bytes = math.prod(shape) * dtype.itemsize
    if size_bytes > most_bytes:
        raise RdError(f"{where}: {size_bytes} bytes, {most_bytes} more at most are read")
    data = stream.read(size_bytes + 1)
    if len(data) != size_bytes:
        raise RdError(f"{where}: holds {len(data)} bytes or more, its header says {size_bytes}")
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if by_columns else "C")
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise RdError(f"{where} holds a NaN or an infinity")
    return array


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
