"""Damaged manifests: read, compared with the graph, and streamed with where they are taken."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from reuse_distill.runtime.bundle_format.bundle import read_bundle

from .mutations import damage_bytes, damage_value
from .stub_engine import encoder_of, real_ports, small_folder

WAVE = np.zeros(8000, np.float32)


def test_manifests(tmp_path: Path, fuzz) -> None:
    engine, base = real_ports(), small_folder(tmp_path)
    text = json.dumps(base).encode()

    def case(rng: np.random.Generator) -> None:
        data = damage_bytes(text, rng) if rng.random() < 0.2 else json.dumps(damage_value(base, rng)).encode()
        (tmp_path / "manifest.json").write_bytes(data)
        encoder = encoder_of(read_bundle(tmp_path), engine)
        repr(encoder)
        stream = encoder.stream()
        stream.push(WAVE)
        stream.finish()

    outcomes = fuzz(case, cases=400)
    assert 0 < outcomes.refused < outcomes.cases
