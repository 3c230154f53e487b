"""MelHuBERT through ``rd-export``: proven, and with the hidden states that the study's own code computed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from reuse_distill.export.rd_export import main as rd_export
from reuse_distill.runtime import Encoder

BOUND = 1e-4


@pytest.fixture(scope="module")
def exported(golden_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """The plain checkpoint in ONNX, all layers."""
    golden, folder = golden_dir / "melhubert_tiny", tmp_path_factory.mktemp("melhubert")
    shutil.copy(golden / "melhubert_tiny_20ms.ckpt", folder / "m.ckpt")
    with np.load(golden / "expected_melhubert.npz", allow_pickle=False) as stored:
        np.save(folder / "mean-std.npy", np.stack([stored["mean"], stored["std"]]))
    assert rd_export([str(folder / "m.ckpt"), "--layers", "all", "--output", str(folder / "bundle")]) == 0
    return Encoder.load(folder / "bundle")


def test_proof_and_parity(exported: Encoder) -> None:
    proof = exported.manifest.graph_proof
    assert proof is not None and (proof.softmaxes, proof.computed_maps, proof.reused) == (3, 3, ())
    layers = exported.manifest.parity["layers"]
    assert [row["layer"] for row in layers] == [1, 2, 3] and max(row["max_abs"] for row in layers) < BOUND


def test_features_are_the_study_s(exported: Encoder, golden_dir: Path) -> None:
    wave = soundfile.read(golden_dir / "inputs/w0.wav", dtype="float32")[0]
    with np.load(golden_dir / "melhubert_tiny/expected_melhubert.npz", allow_pickle=False) as stored:
        expected = [value for name, value in sorted(stored.items()) if name.startswith("w0_hidden")]
    ours = exported.extract(wave)
    assert len(expected) >= 3
    for own, theirs in zip(ours, expected[-3:], strict=True):
        assert np.abs(own - theirs.squeeze()[: len(own)]).max() < BOUND
