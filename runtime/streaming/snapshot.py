"""A stream's state as bytes: to move it to another process, or to go back to it later.

Layout: magic, length of the header (uint32, little endian), header (JSON: schema, identity, taken_by, counters,
arrays), the arrays' bytes in that order as one zlib stream (little endian, C order), CRC-32 of all of it. ``identity``
is what has to agree with the stream that takes it: the student, its context and the sample rate, not the artifact, so
that a stream may move between engines (docs/streaming.md). Schema 1, which is still read, named the artifact and was
not compressed. Nothing in it is executed, and nothing of it is used before all of it has been checked.
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
from reuse_distill.runtime.untrusted_input import parse_json

MAGIC = b"RD-STREAM-STATE\n"
SCHEMA = 2
OLD_SCHEMA = 1  # bound to one artifact, arrays not compressed
CACHE_AXES = 3  # of one stream: heads, slots, width
QUICK = 1  # zlib's level: caches of quantised students shrink to a third, floats hardly at any level
# Zeros shrink a thousandfold: what a small snapshot may unpack to all the same, in bytes and as a multiple of its size.
LEAST_UNPACKED_BYTES, MOST_TIMES = 1 << 26, 64
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
            actual = "missing" if value is None else f"{value.dtype} {value.shape}"
            raise RdError(f"snapshot: {name} is {actual}, {np.dtype(dtype)} {shape} is needed", hint=HINT)
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise RdError(f"snapshot: {name} holds a NaN or an infinity", hint=HINT)
        return value


def pack(
    saved: Saved, identity: Mapping[str, Any], *, taken_by: Mapping[str, Any] | None = None, compact: bool = False
) -> bytes:
    """``saved`` as bytes, marked with what it belongs to; ``taken_by`` is for readers only.

    ``compact``: caches (H, L, D) of float32 are stored in float16; the header's ``halved`` names them. Raises RdError
    for a number that is too large for that.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in saved.arrays.items()}
    halved = [name for name, a in arrays.items() if compact and a.ndim == CACHE_AXES and a.dtype == np.float32]
    for name in halved:
        if np.abs(arrays[name]).max(initial=0) > np.finfo(np.float16).max:
            raise RdError(f"snapshot: {name} holds numbers too large for float16", hint="take one without compact")
        arrays[name] = arrays[name].astype(np.float16)
    header = json.dumps(
        {
            "schema": SCHEMA,
            "identity": identity,
            "taken_by": dict(taken_by or {}),
            "counters": saved.counters,
            "halved": halved,
            "arrays": [[name, a.dtype.name, list(a.shape)] for name, a in arrays.items()],
        }
    ).encode()
    little_endian = (a.astype(a.dtype.newbyteorder("<"), copy=False) for a in arrays.values())
    packed = zlib.compress(b"".join(a.tobytes() for a in little_endian), QUICK)
    body = b"".join([MAGIC, _word(len(header)), header, packed])
    return body + _word(zlib.crc32(body))


def unpack(data: bytes, identity: Mapping[str, Any], old_identity: Mapping[str, Any] | None = None) -> Saved:
    """What ``pack`` was given. Raises RdError for damaged bytes and for a snapshot of something else.

    ``old_identity``: what a snapshot of schema 1 has to agree with; None: such a snapshot is refused.
    """
    header, rest = _split(bytes(data))
    try:
        schema = header["schema"]
        if schema not in (SCHEMA, OLD_SCHEMA) or (schema == OLD_SCHEMA and old_identity is None):
            raise RdError(f"snapshot: schema {schema!r}, this runtime reads {SCHEMA}", hint=HINT)
        _check_identity(header, old_identity if schema == OLD_SCHEMA and old_identity is not None else identity)
        counters = {str(name): int(value) for name, value in header["counters"].items()}
        sizes = _sizes(header["arrays"])
        if schema == OLD_SCHEMA:
            return _of_old_schema(Saved(counters, _read_arrays(sizes, rest)), header["identity"])
        arrays = _read_arrays(sizes, _unpacked(rest, sizes, len(data)))
        widened = {name: arrays[name].astype(np.float32) for name in header.get("halved", [])}
        return Saved(counters, arrays | widened)
    except (AttributeError, KeyError, IndexError, OverflowError, TypeError, ValueError, zlib.error) as error:
        raise RdError(f"snapshot: its header makes no sense ({error})", hint=HINT) from None


def _check_identity(header: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    for name, mine in identity.items():
        theirs = header["identity"].get(name)
        if theirs != mine:
            raise RdError(
                f"snapshot: taken with {name} {theirs!r:.80}, this stream has {mine!r:.80}",
                hint="restore it into a stream of the same student with the same settings",
            )


def _of_old_schema(saved: Saved, identity: Mapping[str, Any]) -> Saved:
    """A snapshot of schema 1 as one of today: steps had one size, and their number told the place."""
    if "step" in saved.counters:
        step, chunk = saved.counters.pop("step"), int(identity["chunk_frames"])
        saved.counters |= {"steps": step, "place": step * chunk, "chunk": chunk}
    return saved


def _sizes(entries: Any) -> list[tuple[str, np.dtype[Any], tuple[int, ...], int]]:
    """(name, type, shape, bytes) of every array."""
    sizes = []
    for name, dtype, shape in entries:
        if dtype not in DTYPES or not all(type(d) is int and d >= 0 for d in shape):
            raise ValueError(f"array of type {dtype!r:.40} and shape {shape!r:.60}")
        kind = np.dtype(dtype).newbyteorder("<")
        sizes.append((str(name), kind, tuple(shape), math.prod(shape) * kind.itemsize))
    return sizes


def _unpacked(
    packed: memoryview, sizes: list[tuple[str, np.dtype[Any], tuple[int, ...], int]], given: int
) -> memoryview:
    """The arrays' bytes; never more than their shapes say, nor than a snapshot of ``given`` bytes may hold."""
    total = sum(size for *_, size in sizes)
    if total > max(LEAST_UNPACKED_BYTES, MOST_TIMES * given):
        raise ValueError(f"{total} bytes of arrays in {given}")
    reader = zlib.decompressobj()
    data = reader.decompress(packed, total + 1)
    if len(data) != total or not reader.eof or reader.unused_data:
        raise ValueError(f"{total} bytes of arrays expected, {len(data)} or more found")
    return memoryview(data)


def _read_arrays(
    sizes: list[tuple[str, np.dtype[Any], tuple[int, ...], int]], rest: memoryview
) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for name, dtype, shape, size in sizes:
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
