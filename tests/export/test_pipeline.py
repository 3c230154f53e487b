"""The pipeline: an export that fails in any step writes nothing, and what it tried is in the manifest."""

from __future__ import annotations

import dataclasses
import errno
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import reuse_distill.export.targets.onnx.onnx_target as onnx_target
import torch
from onnx import numpy_helper
from reuse_distill.export import pipeline
from reuse_distill.export.parity.reference import read_clips
from reuse_distill.export.targets import REGISTRY, find_target
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.audio.recordings import find_recordings
from reuse_distill.runtime.bundle_format.bundle import read_bundle
from reuse_distill.runtime.equivalence.parity import difference
from reuse_distill.student import Student, StudentConfig, save_checkpoint
from reuse_distill.student.config import conv_stack

from reuse_distill import export


@pytest.fixture
def existing(workshop, tmp_path: Path) -> Path:
    """A bundle that an export is asked to replace."""
    return shutil.copytree(workshop.bundle("shared", "offline"), tmp_path / "here" / "bundle")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def break_weights(monkeypatch, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Between conversion and measurement, the artifact's largest weight becomes ``change`` of itself."""
    finish = onnx_target.finish

    def broken(plain: Path, job: Any, candidate: str) -> Any:
        made = finish(plain, job, candidate)
        model = onnx.load(str(job.folder / made.artifact))
        tensor = max((t for t in model.graph.initializer if t.data_type == 1), key=lambda t: len(t.raw_data))
        tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name))
        onnx.save(model, str(job.folder / made.artifact))
        return made

    monkeypatch.setattr(onnx_target, "finish", broken)


@pytest.mark.parametrize("change", [lambda w: 1.01 * w, lambda w: np.full_like(w, np.nan)], ids=["off by 1 %", "NaN"])
def test_a_parity_failure_writes_no_bundle(change, workshop, run_export, existing: Path, monkeypatch) -> None:
    before = contents(existing.parent)
    break_weights(monkeypatch, change)
    for output in (existing.parent / "new", existing):
        run = run_export(workshop.checkpoint("shared"), "--layers", "all", "--output", output, "--overwrite")
        assert run.status == 2
        assert "parity failed: fp32 features differ by" in run.err
        assert "the bound is 0.0001" in run.err
    assert contents(existing.parent) == before


def test_a_failing_proof_writes_no_bundle(workshop, run_export, existing: Path, monkeypatch) -> None:
    read = onnx_target.read_onnx

    def without_last_node(file: Path) -> Any:
        graph = read(file)
        return type(graph)(graph.file, graph.nodes[: len(graph.nodes) // 2])

    before = contents(existing.parent)
    monkeypatch.setattr(onnx_target, "read_onnx", without_last_node)
    run = run_export(workshop.checkpoint("shared"), "--layers", "all", "--output", existing, "--overwrite")
    assert run.status == 2
    assert "graph proof failed on model.onnx" in run.err
    assert contents(existing.parent) == before


def test_a_failing_conversion_says_what_the_converter_said(workshop, run_export, tmp_path: Path, monkeypatch) -> None:
    import torch

    def refuse(*_: Any, **__: Any) -> None:
        try:
            raise ValueError("operator foo::bar has no translation\nmore advice")
        except ValueError as error:
            raise RuntimeError("pages of advice") from error

    monkeypatch.setattr(torch.onnx, "export", refuse)
    run = run_export(workshop.checkpoint("shared"), "--layers", "1,2", "--output", tmp_path / "bundle")
    assert run.status == 2
    assert "torch.onnx could not convert the student: operator foo::bar has no translation" in run.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["write_selftest", "write_manifest", "bundle_report", "attention_maps", "prove"])
def test_an_interruption_at_any_step_leaves_nothing(step, workshop, run_export, existing, monkeypatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    before = contents(existing.parent)
    monkeypatch.setattr(pipeline, step, interrupted)
    run = run_export(workshop.checkpoint("shared"), "--layers", "all", "--output", existing, "--overwrite")
    assert run.status == 130
    assert contents(existing.parent) == before


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_no_space_left(precision, workshop, run_export, existing: Path, monkeypatch) -> None:
    """The disk fills up while the artifact is written."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = contents(existing.parent)
    monkeypatch.setattr("shutil.copyfile" if precision == "fp32" else "onnx.save", full)
    words = ["--calibration", workshop.speech] if precision == "int8" else []
    words += ["--layers", "all", "--precision", precision, "--output", existing, "--overwrite"]
    run = run_export(workshop.checkpoint("shared"), *words)
    assert run.status == 2
    assert "could not be written (No space left on device)" in run.err
    assert "hint: free some disk space" in run.err
    assert contents(existing.parent) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 kB: half of a small bundle."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no permission to mount a small file system here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path, workshop, run_export) -> None:
    assert sum(len(data) for data in contents(workshop.bundle("shared", "offline")).values()) > 200_000
    run = run_export(workshop.checkpoint("shared"), "--layers", "all", "--output", small_disk / "bundle")
    assert run.status == 2
    assert f"{small_disk / 'bundle'}: could not be written (No space left on device)" in run.err
    assert list(small_disk.iterdir()) == []


# --- the front end of int8 --------------------------------------------------------------------------------------------


def test_auto_front_end_falls_back_and_says_what_was_tried(workshop) -> None:
    folder = workshop.bundle("shared", "offline", "int8")
    manifest, run = read_bundle(folder).manifest, workshop.runs[folder]
    done = manifest.quantisation
    assert done["front_end"] == "float"
    (tried,) = done["tried_before"]
    assert tried["candidate"] == "int8"
    assert tried["mean_cosine"] < 0.99 <= manifest.parity["measured"]["mean_cosine"]
    assert f"parity outside the bound: mean frame cosine {tried['mean_cosine']:.4f}" in run.err
    assert "trying again, front-end in float" in run.err
    why = {row["why"].split(":")[0] for row in done["in_float"]}
    assert {"front end", "waveform convolution", "positional convolution", "attention product"} <= why


def test_a_front_end_that_was_asked_for_is_not_replaced(workshop, run_export, tmp_path: Path) -> None:
    words = [
        "--layers",
        "all",
        "--precision",
        "int8",
        "--calibration",
        workshop.speech,
        "--front-end",
        "int8",
    ]
    run = run_export(workshop.checkpoint("shared"), *words, "--output", tmp_path / "bundle")
    assert run.status == 2
    assert "parity failed: int8 features have mean frame cosine 0." in run.err
    assert "the bound is 0.99" in run.err
    assert "hint: calibrate on more and more varied speech (--calibration), as loud as that of users, or" in run.err
    run = run_export(workshop.checkpoint("shared"), *words, "--min-cosine", "0.5", "--output", tmp_path / "bundle")
    assert run.status == 0, run.err
    manifest = read_bundle(tmp_path / "bundle").manifest
    assert manifest.parity["bound"] == {"mean_cosine": 0.5}
    assert manifest.quantisation["front_end"] == "int8"
    assert "tried_before" not in manifest.quantisation


@pytest.fixture
def uneven(configs: dict[str, StudentConfig], randomised: Callable[..., Student], tmp_path: Path) -> Path:
    """A checkpoint whose projection into the encoder sees one channel 200 times as large as the others.

    It takes that channel as much smaller, so the student is none the worse; one int8 scale for all channels is.
    """
    student = randomised(dataclasses.replace(configs["shared"], conv_layers=conv_stack(8, 16, 16)))
    student.layer_norm.weight[0].mul_(200)
    student.layer_norm.bias[0].mul_(200)
    student.post_extract_proj.weight[:, 0].div_(200)
    return save_checkpoint(tmp_path / "uneven", student, provenance={}, training={})


def test_the_projection_into_the_encoder_goes_to_float_where_the_front_end_is_not_enough(
    uneven: Path, workshop, run_export, tmp_path: Path
) -> None:
    words = ["--precision", "int8", "--calibration", workshop.speech]
    run = run_export(uneven, *words, "--output", tmp_path / "bundle")
    assert run.status == 0, run.err
    assert run.err.index("again, front-end in float") < run.err.index("again, front-end and input in float")
    done = read_bundle(tmp_path / "bundle").manifest.quantisation
    assert [row["candidate"] for row in done["tried_before"]] == ["int8", "float"]
    assert done["recipe"]["in_float"] == ["front-end", "input"]
    assert "candidate float" in (tmp_path / "bundle" / "report.html").read_text()
    run = run_export(uneven, *words, "--front-end", "float", "--output", tmp_path / "float")
    assert (run.status, "again" in run.err) == (2, False), "what was requested is not replaced"


@pytest.mark.parametrize("name", REGISTRY)
def test_candidates_of_every_target(name: str, spec_of, configs) -> None:
    """Only a student that projects the front end's result into the encoder can keep that in float."""
    target, spec = find_target(name), spec_of("offline", "int8")
    assert target.candidates(spec, configs["shared"]) == ("int8", "float")
    assert target.candidates(spec, configs["distil"]) == ("int8", "float", "float-input")


def test_a_frame_norm_student_keeps_its_front_end_in_int8(workshop) -> None:
    """With weights in 8 bits, on any processor."""
    done = read_bundle(workshop.bundle("stream", "streaming", "int8", "--preset", "avx512_vnni")).manifest.quantisation
    assert done["front_end"] == "int8"
    assert "tried_before" not in done


# --- which recordings check -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["shared", "stream"])
def test_int8_keeps_its_bound_on_recordings_that_did_not_calibrate(name, workshop, demo_speech, request) -> None:
    """The other half of the demo's recordings, and real speech where it is beside the checkout."""
    mode = "offline" if name == "shared" else "streaming"
    encoder = Encoder.load(workshop.bundle(name, mode, "int8"))
    bound = encoder.manifest.parity["bound"]["mean_cosine"]
    assert bound == 0.99
    others = find_recordings(demo_speech)[1::2]
    assert not {str(r.path) for r in others} & set(workshop.speech.read_text().replace(",", "\n").splitlines())
    sets = [others]
    if (shared := request.getfixturevalue("shared_speech")) is not None:
        sets.append(find_recordings(shared / "libri_transcribed" / "manifest.csv")[::15])
    exact = Encoder.load(workshop.bundle(name, mode, "fp32"))
    for recordings in sets:
        found = [difference(encoder.extract(clip), exact.extract(clip)) for clip in read_clips(recordings)]
        mean = sum(d.mean_cosine * d.frames for d in found) / sum(d.frames for d in found)
        assert mean >= bound, f"{mean} on {recordings[0].path.parent}"


@pytest.mark.parametrize(("precision", "options"), [("fp32", ()), ("int8", ()), ("int8", ("--target", "ort"))])
def test_a_bundle_holds_no_path_of_the_machine_that_made_it(precision: str, options, workshop) -> None:
    """The converter notes the source line of every operation, with the place of that file."""
    paths = [str(Path(module.__file__).parent).encode() for module in (export, torch)]
    for file in workshop.bundle("stream", "streaming", precision, *options).rglob("*"):
        assert [path for path in paths if file.is_file() and path in file.read_bytes()] == [], file


def test_the_manifest_says_what_parity_was_measured_with(workshop, run_export, demo_speech, tmp_path: Path) -> None:
    def audio(bundle: Path) -> str:
        return str(read_bundle(bundle).manifest.parity["audio"])

    assert audio(workshop.bundle("shared", "offline")) == "seeded speech-like signals"
    assert audio(workshop.bundle("shared", "offline", "int8")) == "recordings held out of calibration"
    words = ("--layers", "all", "--check", demo_speech / "gus-2.flac", "--output", tmp_path / "bundle")
    assert run_export(workshop.checkpoint("shared"), *words).status == 0
    assert audio(tmp_path / "bundle") == "recordings of gus-2.flac"
    assert len(read_bundle(tmp_path / "bundle").manifest.parity["clips"]) == 1
