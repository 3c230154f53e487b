"""Damaged snapshots of streams, most of them with a right checksum; those that are taken are streamed on with."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
from reuse_distill.runtime.bundle_format.bundle import read_bundle
from reuse_distill.runtime.errors import RdError

from .mutations import damage_bytes, damage_value
from .stub_engine import encoder_of, real_ports, small_folder

MAGIC = b"RD-STREAM-STATE\n"
WAVE = np.zeros(3000, np.float32)


def test_snapshots(tmp_path: Path, fuzz) -> None:
    manifest = small_folder(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    encoder = encoder_of(read_bundle(tmp_path), real_ports())
    parts = []
    for rate_hz in (16_000, 8_000):
        stream = encoder.stream(rate_hz)
        stream.push(np.linspace(-1, 1, 9000, dtype=np.float32))
        saved = stream.snapshot()
        start = len(MAGIC) + 4
        stop = start + int.from_bytes(saved[len(MAGIC) : start], "little")
        parts.append((rate_hz, json.loads(saved[start:stop]), saved[stop:-4]))

    def case(rng: np.random.Generator) -> None:
        rate_hz, header, rest = parts[rng.integers(2)]
        text = json.dumps(damage_value(header, rng)).encode()
        if rng.random() < 0.3:
            text = damage_bytes(text, rng)
        body = MAGIC + len(text).to_bytes(4, "little") + text
        body += damage_bytes(rest, rng) if rng.random() < 0.3 else rest
        data = body + zlib.crc32(body).to_bytes(4, "little")
        if rng.random() < 0.1:
            data = damage_bytes(data, rng)
        stream = encoder.stream(rate_hz)
        before = stream.snapshot()
        try:
            stream.restore(data)
        except RdError:
            assert stream.snapshot() == before, "a snapshot that is refused changes nothing"
            raise
        stream.reset() if rng.random() < 0.1 else None
        if not stream._ended:
            stream.push(WAVE)
        stream.finish()

    outcomes = fuzz(case, cases=200)
    assert 0 < outcomes.refused < outcomes.cases
