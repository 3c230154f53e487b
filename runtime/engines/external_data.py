"""Whether an ONNX file makes the engine open other files: external weights, and contexts of compiled engines.

ONNX Runtime up to 1.23 opens whatever path such a file names, later versions whatever lies beside it. Neither has been
hashed, so a bundle may not do it at all, unless the manifest lists the file. The file is walked as protobuf messages,
without the package ``onnx``, and only where the words that such references need occur in it.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Iterator
from pathlib import Path

from reuse_distill.runtime.errors import RdError

# Field numbers of onnx.proto3 that lead from a model to its tensors and nodes: message -> field -> message.
_NODE = {5: "attribute"}
MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": _NODE,
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
OP_TYPE, DATA_LOCATION = 4, 14  # of a node, of a tensor
KEY, VALUE = 1, 2  # of an entry
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
MOST_DEPTH = 32
MARKS = (b"location", b"EPContext", b"ep_cache_context")


def check_self_contained(path: Path, listed: Collection[str]) -> None:
    """Raise RdError where the ONNX file makes the engine open a file that is not in ``listed``, or is damaged.

    ``listed`` are names of files beside it that have been verified.
    """
    if path.stat().st_size == 0:
        raise RdError(f"{path}: is empty")
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if all(data.find(mark) < 0 for mark in MARKS):
            return
        try:
            for what, name in _references(data, 0, len(data), "model", 0):
                if what == "EPContext":
                    raise RdError(f"{path}: holds an engine's context ({name}), which may open other files")
                if name not in listed:
                    raise RdError(
                        f"{path}: takes weights from {name!r}, which the manifest does not list",
                        hint="export the bundle again: all weights belong into the file",
                    )
        except (IndexError, ValueError) as error:
            raise RdError(f"{path}: is not an ONNX file ({error})", hint="export the bundle again") from None


def _references(data: mmap.mmap, at: int, end: int, message: str, depth: int) -> Iterator[tuple[str, str]]:
    """("location", file) for every external tensor, ("EPContext", operator) for every such node, below ``message``."""
    if depth > MOST_DEPTH:
        raise ValueError("nested too deeply")
    locations: list[bytes] = []
    external = False
    for field, kind, first, last in _fields(data, at, end):
        below = MESSAGES[message].get(field) if kind == LENGTH else None
        if message == "tensor" and field == DATA_LOCATION and kind == VARINT:
            external = external or first != 0
        elif below == "entry":
            entry = {f: data[a:b] for f, k, a, b in _fields(data, first, last) if k == LENGTH}
            external = True
            if entry.get(KEY) == b"location":
                locations.append(entry.get(VALUE, b""))
        elif below is not None:
            yield from _references(data, first, last, below, depth + 1)
        elif message == "node" and field == OP_TYPE and kind == LENGTH:
            operator = data[first:last]
            if operator == b"EPContext":
                yield "EPContext", operator.decode()
    if external:
        for location in locations or [b""]:
            yield "location", location.decode("utf-8", "replace")


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(field, wire type, first, last) of a message; ``first`` is the value itself of a varint."""
    while at < end:
        tag, at = _varint(data, at, end)
        field, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, at = _varint(data, at, end)
            yield field, kind, value, 0
        elif kind == LENGTH:
            size, at = _varint(data, at, end)
            if size > end - at:
                raise ValueError("a field reaches beyond its message")
            yield field, kind, at, at + size
            at += size
        elif kind in (FIXED64, FIXED32):
            at += 8 if kind == FIXED64 else 4
        else:  # groups, which no exporter writes
            raise ValueError(f"wire type {kind}")
    if at != end:
        raise ValueError("a field reaches beyond its message")


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value & (2**64 - 1), at
    raise ValueError("a number without an end")
