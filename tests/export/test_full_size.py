"""The full-size shapes with random weights: proof, parity on real speech, the equivalence gate. Minutes."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reuse_distill.export.proof import prove, read_onnx
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.audio.audio_files import read_audio
from reuse_distill.runtime.bundle_format.bundle import read_bundle
from reuse_distill.runtime.equivalence.certify import HEADER, certify
from reuse_distill.runtime.equivalence.parity import difference
from reuse_distill.runtime.geometry import samples_for
from reuse_distill.student import Student, preset, save_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def real_speech(shared_speech: Path | None, demo_speech: Path, tmp_path_factory) -> tuple[Path, Path]:
    """(manifest that calibrates, manifest of three recordings of other speakers and lengths)."""
    folder = shared_speech / "libri_transcribed" if shared_speech else demo_speech
    with (folder / "manifest.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    base, out = (folder.parent if shared_speech else folder), tmp_path_factory.mktemp("speech")
    speakers = list(dict.fromkeys(row["speaker"] for row in rows))
    check = [next(row for row in rows if row["speaker"] == speaker) for speaker in speakers[-3:]]
    calibrate = [row for row in rows if row["speaker"] in speakers[:-3]][::2]
    for name, chosen in (("check", check), ("calibrate", calibrate)):
        lines = ["file,speaker", *(f"{base / row['file']},{row['speaker']}" for row in chosen)]
        (out / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return out / "calibrate.csv", out / "check.csv"


def full_size(name: str, folder: Path) -> Path:
    torch.manual_seed(1)
    student = Student(preset(name)).eval()
    return save_checkpoint(folder / name, student, provenance={"weights": "random, seed 1"}, training={})


def show(*values: Any) -> None:
    print(*values, sep="\n", flush=True)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_armhubert_960h(precision: str, real_speech, run_export, tmp_path: Path) -> None:
    """6 computed maps for 12 layers in the finished file; fp32 within 1e-4 on three lengths of real speech."""
    calibrate, check = real_speech
    words = ["--calibration", calibrate] if precision == "int8" else []
    output = tmp_path / "bundle"
    run = run_export(
        full_size("armhubert-960h", tmp_path),
        "--precision",
        precision,
        *words,
        "--check",
        check,
        "--output",
        output,
    )
    show(run.err, run.out)
    assert run.status == 0, run.err
    manifest = read_bundle(output).manifest
    proof = prove(read_onnx(output / "model.onnx"), preset("armhubert-960h"), exported=(12,), features="heads")
    assert proof == manifest.graph_proof
    assert (proof.layers, proof.computed_maps, proof.softmaxes, len(proof.reused)) == (12, 6, 6, 6)
    clips = manifest.parity["clips"]
    show(clips, manifest.quantisation.get("front_end"), manifest.quantisation.get("tried_before"))
    assert len({clip["samples"] for clip in clips}) == 3
    if precision == "fp32":
        assert all(clip["max_abs"] <= 1e-4 for clip in clips)
    else:
        assert manifest.parity["measured"]["mean_cosine"] >= 0.99
        assert manifest.files["model.onnx"].size_bytes <= 24e6
    assert Encoder.load(output).selftest().passed


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_arm_stream(precision: str, real_speech, run_export, tmp_path: Path) -> None:
    """The gate of the full-size streaming student: every check of the certificate, and every tail on real speech."""
    calibrate, check = real_speech
    words = ["--calibration", calibrate] if precision == "int8" else []
    output, checkpoint = tmp_path / "bundle", full_size("arm-stream", tmp_path)
    run = run_export(
        checkpoint,
        "--mode",
        "streaming",
        "--precision",
        precision,
        *words,
        "--check",
        check,
        "--output",
        output,
    )
    show(run.err, run.out)
    assert run.status == 0, run.err
    encoder = Encoder.load(output)
    proof = encoder.manifest.graph_proof
    assert proof is not None
    assert (proof.layers, proof.computed_maps, proof.softmaxes) == (12, 6, 6)
    certificate = certify(encoder)
    show(HEADER, *certificate.checks)
    assert certificate.passed
    wave = read_audio(check.read_text().splitlines()[1].split(",")[0]).samples
    torch.manual_seed(1)
    student, worst = Student(preset("arm-stream")).eval(), []
    for tail in range(8):
        cut = wave[: samples_for(60 + tail) + 40 * tail]
        with torch.no_grad():
            wanted = student(torch.from_numpy(cut)[None], context=student.config.context).projections[-1][0].numpy()
        worst.append(difference(encoder.extract(cut), wanted))
    show("tails", *worst)
    bound = encoder.manifest.parity["bound"]
    assert all(one.within(bound) for one in worst)
    assert np.mean([one.mean_cosine for one in worst]) > 0.99
