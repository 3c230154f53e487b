"""A stream's state as bytes: to move it to another process, or to go back to it later.

Layout: magic, length of the header (uint32, little endian), header (JSON: schema, identity, counters, arrays), the
arrays' bytes in that order, CRC-32 of all of it. Nothing in it is executed, and nothing of it is used before all of
it has been checked.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.untrusted_json import parse_json

MAGIC = b"RD-STREAM-STATE\n"
SCHEMA = 1
WORD = 4
MOST_HEADER_BYTES = 1 << 20
DTYPES = ("float32", "float16", "float64", "int64", "int32", "int8", "uint8", "bool")
HINT = "take another snapshot"


@dataclass
class Saved:
    """What a stream saves: whole numbers and arrays, by name. Reading checks; nothing is trusted."""

    counters: dict[str, int] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def counter(self, name: str, low: int, high: int | None = None) -> int:
        """The counter, refused outside [low, high]."""
        value = self.counters.get(name)
        if value is None or value < low or (high is not None and value > high):
            raise RdError(f"snapshot: {name} is {value}, outside {low} to {'∞' if high is None else high}", hint=HINT)
        return value

    def array(self, name: str, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
        """The array, refused where its type or shape differs or a value is not finite."""
        value = self.arrays.get(name)
        if value is None or value.dtype != np.dtype(dtype) or value.shape != shape:
            found = "missing" if value is None else f"{value.dtype} {value.shape}"
            raise RdError(f"snapshot: {name} is {found}, {np.dtype(dtype)} {shape} is needed", hint=HINT)
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise RdError(f"snapshot: {name} holds a NaN or an infinity", hint=HINT)
        return value


def pack(saved: Saved, identity: Mapping[str, Any]) -> bytes:
    """``saved`` as bytes, marked with what it belongs to."""
    arrays = {name: np.ascontiguousarray(array) for name, array in saved.arrays.items()}
    header = json.dumps(
        {
            "schema": SCHEMA,
            "identity": identity,
            "counters": saved.counters,
            "arrays": [[name, a.dtype.name, list(a.shape)] for name, a in arrays.items()],
        }
    ).encode()
    body = b"".join([MAGIC, _word(len(header)), header, *(a.tobytes() for a in arrays.values())])
    return body + _word(zlib.crc32(body))


def unpack(data: bytes, identity: Mapping[str, Any]) -> Saved:
    """What ``pack`` was given. Raises RdError for damaged bytes and for a snapshot of something else."""
    header, rest = _split(bytes(data))
    try:
        _check_identity(header, identity)
        counters = {str(name): int(value) for name, value in header["counters"].items()}
        return Saved(counters, _read_arrays(header["arrays"], rest))
    except (AttributeError, KeyError, IndexError, OverflowError, TypeError, ValueError) as error:
        raise RdError(f"snapshot: its header makes no sense ({error})", hint=HINT) from None


def _check_identity(header: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    if header["schema"] != SCHEMA:
        raise RdError(f"snapshot: schema {header['schema']!r}, this runtime reads {SCHEMA}", hint=HINT)
    for name, mine in identity.items():
        theirs = header["identity"].get(name)
        if theirs != mine:
            raise RdError(
                f"snapshot: taken with {name} {theirs!r}, this stream has {mine!r}",
                hint="restore it into a stream of the same bundle with the same settings",
            )


def _read_arrays(entries: Any, rest: memoryview) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for name, dtype, shape in entries:
        if dtype not in DTYPES or not all(type(d) is int and d >= 0 for d in shape):
            raise ValueError(f"array of type {dtype!r:.40} and shape {shape!r:.60}")
        size = math.prod(shape) * np.dtype(dtype).itemsize
        arrays[name] = np.frombuffer(rest[:size], dtype).reshape(shape)
        rest = rest[size:]
    if rest:
        raise ValueError(f"{len(rest)} bytes too many")
    return arrays


def _split(data: bytes) -> tuple[dict[str, Any], memoryview]:
    """Header and array bytes of a snapshot whose checksum is right."""
    if not data.startswith(MAGIC):
        raise RdError("snapshot: these bytes are not a snapshot of a stream")
    if len(data) < len(MAGIC) + 2 * WORD or zlib.crc32(data[:-WORD]) != int.from_bytes(data[-WORD:], "little"):
        raise RdError(f"snapshot: damaged or cut off (checksum of {len(data)} bytes differs)", hint=HINT)
    start = len(MAGIC) + WORD
    stop = start + int.from_bytes(data[len(MAGIC) : start], "little")
    header = parse_json(data[start:stop], where="snapshot: its header", most_bytes=MOST_HEADER_BYTES, hint=HINT)
    return header, memoryview(data)[stop:-WORD]


def _word(value: int) -> bytes:
    return value.to_bytes(WORD, "little")
