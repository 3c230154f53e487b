"""Whole exports of small students to ExecuTorch, run by its own runtime."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reuse_distill.devices.measuring.speech import speech_like
from reuse_distill.export.capture.capture import capture
from reuse_distill.export.checkpoint_source import Source
from reuse_distill.export.pipeline import CheckAudio, export_bundle
from reuse_distill.export.spec import WindowContext
from reuse_distill.export.targets.executorch.delegates import load
from reuse_distill.export.targets.executorch.pte_program import read_program
from reuse_distill.export.targets.executorch.row_modules import friendly
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.bundle_format.bundle import list_files, write_manifest
from reuse_distill.runtime.equivalence.certify import certify
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import samples_for

FP32 = 1e-4
FLOOR = 0.1  # rms of the features: garbage does not equal garbage


def test_offline_equals_torch_at_every_length(export_one: Callable[..., Any]) -> None:
    made = export_one("offline")
    encoder = Encoder.load(made.folder)
    for samples in (400, 719, 720, 1000, samples_for(9) + 5, 16_000, 64_000):
        wave = speech_like(samples, seed=samples)
        with torch.no_grad():
            wanted = torch.cat(made.student(torch.from_numpy(wave)[None]).projections).numpy()
        found = encoder.extract(wave)
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= FP32
        assert np.sqrt(np.square(wanted).mean()) > FLOOR
    assert encoder.selftest().passed


def test_streaming_passes_the_certificate(export_one: Callable[..., Any]) -> None:
    made = export_one("streaming")
    encoder = Encoder.load(made.folder)
    found = certify(encoder)
    assert found.passed, [check for check in found.checks if not check.passed]
    assert max(check.max_abs for check in found.checks if check.max_abs is not None) <= FP32
    assert found.provider == "xnnpack"
    assert found.placement == made.manifest.device["placement"]
    assert {"executorch", "torch"} <= set(found.versions)


def test_a_longer_utterance_than_the_program_has_room_for_is_refused(export_one: Callable[..., Any]) -> None:
    encoder = Encoder.load(export_one("offline").folder)
    with pytest.raises(RdError, match=r"4\.0 s at once: model\.pte was exported for up to 4\.0 s"):
        encoder.extract(speech_like(64_001, seed=1))


def test_the_manifest_tells_the_order_of_unnamed_tensors(export_one: Callable[..., Any]) -> None:
    manifest = export_one("streaming").manifest
    assert manifest.device["input_order"] == ["samples", "fresh", *(s.input for s in manifest.states)]
    assert manifest.device["output_order"] == ["features", *(s.output for s in manifest.states)]
    assert manifest.inputs[0].shape[0] == 1


def test_a_flipped_byte_is_found_before_anything_is_loaded(export_one: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(export_one("streaming").folder, folder)
    data = bytearray((folder / "model.pte").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.pte").write_bytes(data)
    with pytest.raises(RdError, match=r"model\.pte: sha256 .*, the manifest says"):
        Encoder.load(folder)


def test_no_program_but_a_right_hash_is_refused_by_executorch(export_one: Callable[..., Any], tmp_path: Path) -> None:
    made = export_one("streaming")
    folder = tmp_path / "bundle"
    shutil.copytree(made.folder, folder)
    (folder / "model.pte").write_bytes(b"no program" * 100)
    write_manifest(folder, dataclasses.replace(made.manifest, files=list_files(folder)))
    with pytest.raises(RdError, match=r"model\.pte: ExecuTorch .* cannot load it"):
        _ = Encoder.load(folder).backend


def test_nothing_is_imported_until_a_program_is_opened(export_one: Callable[..., Any]) -> None:
    code = (
        "import sys; from reuse_distill.runtime import Encoder; encoder = Encoder.load(sys.argv[1]); "
        "print('torch' in sys.modules); encoder.backend; print('torch' in sys.modules)"
    )
    words = [sys.executable, "-c", code, str(export_one("streaming").folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "int4"}, "--precision int4 is not possible for executorch"),
        ({"mode": "streaming", "batch": 4}, "--batch 4 is not possible for executorch"),
        ({"delegate": "qualcomm"}, "--delegate qualcomm is not possible yet: it needs Qualcomm's AI Engine Direct SDK"),
        ({"delegate": "xnpack"}, "--delegate 'xnpack' is unknown"),
    ],
)
def test_what_cannot_be_is_refused_first(
    executorch: Any,
    tmp_path: Path,
    make_student: Callable[..., Any],
    make_spec: Callable[..., Any],
    clips: list[np.ndarray],
    changes: dict[str, Any],
    message: str,
) -> None:
    mode = changes.pop("mode", "offline")
    student = make_student("tiny-stream")
    spec = make_spec(mode, **changes)
    with pytest.raises(RdError, match=message):
        export_bundle(Source(student, "small", "", {}), spec, tmp_path / "out", audio=CheckAudio(None, clips, ""))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("features", ["heads", "hidden"])
@pytest.mark.parametrize("mode", ["offline", "window"])
@pytest.mark.parametrize("name", ["tiny-fit", "tiny-distil"])
def test_rows_of_other_families_are_the_same_function(
    name: str, mode: str, features: str, make_student: Callable[..., Any], make_spec: Any
) -> None:
    student = make_student(name, reuse_layers=(), lookahead_frames=7)
    layers = student.config.targets if features == "heads" else (2, 1)
    window = {"context": WindowContext(6, 4, 6)} if mode == "window" else {}
    spec = make_spec(mode, features=features, layers=layers, **window)
    captured = capture(student, spec)
    frames, generator = 16, torch.Generator().manual_seed(0)
    waves = [0.1 * torch.randn(1, samples_for(n), generator=generator) for n in (frames, 1, 2, 11)]
    valid = (torch.arange(frames)[None] < 11).float()
    given = [(wave,) for wave in waves] if mode == "offline" else [(waves[0], valid), (waves[0], torch.ones(1, frames))]
    for inputs in given:
        torch.testing.assert_close(friendly(captured)(*inputs), captured.module(*inputs), atol=1e-5, rtol=1e-5)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "executorch", None)
    monkeypatch.delitem(sys.modules, "executorch.exir", raising=False)
    with pytest.raises(RdError, match=r"executorch.* is not installed") as caught:
        load("executorch.exir")
    assert "executorch]" in str(caught.value.hint)


@pytest.mark.slow
def test_a_window_keeps_its_bound(export_one: Callable[..., Any]) -> None:
    made = export_one("window")
    assert made.manifest.parity["measured"]["max_abs"] <= FP32
    assert Encoder.load(made.folder).selftest().passed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "precision"),
    [("offline", "int8"), ("streaming", "int8"), ("window", "int8"), ("streaming", "int8-dynamic")],
)
def test_int8_keeps_its_bound_and_is_in_int8(export_one: Callable[..., Any], mode: str, precision: str) -> None:
    made = export_one(mode, precision)
    assert made.manifest.parity["bound"] == {"mean_cosine": 0.99}
    assert made.manifest.parity["measured"]["mean_cosine"] >= 0.99
    program = read_program(made.artifact)
    assert {"qint8", "qcint8"} & {constant.kind for constant in program.constants.values()}
    assert Encoder.load(made.folder).selftest().passed
