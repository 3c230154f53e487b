"""Values of a package: packed integers, and the weight file."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reuse_distill.export.targets.coreml.mil_program import RECORD, SENTINEL, _blob, unpack
from reuse_distill.runtime.errors import RdError


@settings(max_examples=60, deadline=None)
@given(bits=st.sampled_from([1, 2, 3, 4, 6, 8]), count=st.integers(1, 40), seed=st.integers(0, 999))
def test_unpack_reverses_packing(bits: int, count: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 1 << bits, count)
    number = sum(int(v) << (bits * i) for i, v in enumerate(values))
    packed = np.frombuffer(number.to_bytes(-(-bits * count // 8), "little"), np.uint8)
    assert unpack(packed, bits, count).tolist() == values.tolist()


def test_unpack_reads_the_sign() -> None:
    assert unpack(np.array([0xF7, 0x08], np.uint8), -4, 4).tolist() == [7, -1, -8, 0]


def test_blob_follows_its_record(tmp_path) -> None:
    file = tmp_path / "weight.bin"
    file.write_bytes(b"\0" * 64 + RECORD.pack(SENTINEL, 2, 4, 128).ljust(64, b"\0") + b"abcdXX")
    assert _blob(file, 64) == b"abcd"
    with pytest.raises(RdError, match=r"weight\.bin: no value at byte 0"):
        _blob(file, 0)
