"""Damaged self-test files: damaged as a whole, and archives whose members are damaged."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from reuse_distill.runtime.bundle_format.bundle import Bundle
from reuse_distill.runtime.bundle_format.manifest import Manifest
from reuse_distill.runtime.equivalence.selftest import read_expected
from reuse_distill.runtime.untrusted_input import from_dict

from .mutations import damage_bytes
from .stub_engine import MANIFEST

HEADERS = (
    "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999,), }",
    "{'descr': '<f4', 'fortran_order': True, 'shape': (-1, 3), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
    "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3,), }",
    "{'descr': '<U999999999', 'fortran_order': False, 'shape': (3,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1e9,), }",
    "[" * 2000,
    "((((",
    "'",
    "\\",
    "",
)


def test_self_tests(tmp_path: Path, fuzz) -> None:
    manifest = replace(from_dict(Manifest, MANIFEST, where="shipped"), feature_width=4)
    bundle, path = Bundle(tmp_path, manifest), tmp_path / "selftest.npz"
    arrays = {
        "wave": np.linspace(-1, 1, 2000, dtype=np.float32),
        "features": np.ones((1, 6, 4), np.float32),
        "tail_frames": np.arange(3),
        "tail_features": np.ones((3, 1, 2, 4), np.float32),
    }
    for head in manifest.heads:
        arrays[f"head {head.name}"] = np.zeros((6, head.columns), head.dtype)
        arrays[f"tail_head {head.name}"] = np.zeros((3, 2, head.columns), head.dtype)
    members = {}
    for name, array in arrays.items():
        memory = io.BytesIO()
        np.save(memory, array)
        members[f"{name}.npy"] = memory.getvalue()

    def archive(rng: np.random.Generator) -> bytes:
        memory = io.BytesIO()
        kinds = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
        with zipfile.ZipFile(memory, "w", kinds[rng.integers(4)]) as made:
            for name, data in members.items():
                kind = rng.integers(5)
                if kind == 0:
                    data = damage_bytes(data, rng)
                elif kind == 1:
                    text = HEADERS[rng.integers(len(HEADERS))].encode()
                    data = b"\x93NUMPY" + bytes([rng.integers(1, 4), 0]) + len(text).to_bytes(2, "little") + text + data
                made.writestr(name, data)
        return memory.getvalue()

    def case(rng: np.random.Generator) -> None:
        data = archive(rng)
        path.write_bytes(damage_bytes(data, rng) if rng.random() < 0.5 else data)
        expected = read_expected(bundle)
        assert json.dumps(expected.features.shape)

    outcomes = fuzz(case, cases=400)
    assert 0 < outcomes.refused < outcomes.cases
