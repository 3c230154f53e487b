"""Snapshots with a right checksum and a header that nobody wrote."""

from __future__ import annotations

import json
import zlib

import pytest
from reuse_distill.runtime.errors import RdError

MAGIC = b"RD-STREAM-STATE\n"


def packed(header: bytes, rest: bytes = b"") -> bytes:
    body = MAGIC + len(header).to_bytes(4, "little") + header + rest
    return body + zlib.crc32(body).to_bytes(4, "little")


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 100_000,
        b"[]",
        b"{}",
        b"null",
        b'{"schema": 1e999}',
        b'{"schema": 1, "identity": [], "counters": {}, "arrays": []}',
        b'{"schema": 1, "schema": 1}',
    ],
    ids=lambda header: header[:20].decode(),
)
def test_headers_made_by_hand_are_refused(header: bytes, encoder) -> None:
    with pytest.raises(RdError, match="snapshot"):
        encoder.stream().restore(packed(header))


@pytest.mark.parametrize("shape", [[-1], [2**40, 2**40], ["3"], [1.5], 7, [[1]]])
def test_arrays_of_shapes_that_are_none_are_refused(shape, encoder) -> None:
    stream = encoder.stream()
    saved = stream.snapshot()
    start = len(MAGIC) + 4
    stop = start + int.from_bytes(saved[len(MAGIC) : start], "little")
    header = json.loads(saved[start:stop])
    header["arrays"][0][2] = shape
    with pytest.raises(RdError, match="snapshot"):
        stream.restore(packed(json.dumps(header).encode(), saved[stop:-4]))


@pytest.fixture(scope="module")
def encoder():
    from reuse_distill.runtime import load

    return load()
