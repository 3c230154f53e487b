"""One export from checkpoint to verified bundle: convert, quantise, prove, compare, write."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.capture import Capture, capture
from export.proof import prove, read_onnx
from export.quantise.calibration import CalibrationSet, feeds
from export.quantise.onnx_fp16 import cast_to_fp16
from export.quantise.onnx_static import quantise_static
from export.reference import reference_features, selftest_arrays, write_selftest
from export.report import bundle_report
from export.source import Source
from export.spec import ExportSpec, feature_width
from export.targets import onnx as onnx_target
from export.verify import check, measure, stated_bound, within
from export.window import calibrated, drift
from runtime.bundle import REPORT, SELFTEST, list_files, write_bundle, write_manifest
from runtime.manifest import Manifest, State
from student import Student
from student.cost import macs_per_second

ARTIFACT = "model.onnx"
_TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy", "reuse-distill")


@dataclass(frozen=True)
class Audio:
    """What calibrates and what checks: never the same recordings where there are enough."""

    calibration: CalibrationSet | None
    clips: list[np.ndarray]
    clips_are: str  # for the manifest: what the check was made with


def export_bundle(
    source: Source,
    spec: ExportSpec,
    output: Path,
    *,
    audio: Audio,
    min_cosine: float | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Manifest:
    """Write the bundle ``output``; nothing is left behind when a step fails.

    Raises RdError when the conversion fails, the graph proof does not hold, or parity is outside its bound.
    """
    full, constant = source.student, _with_calibrated_norm(source.student, spec, audio)
    if constant is not None and spec.window_norm == "calibrated":
        source = dataclasses.replace(source, student=constant)
    captured = capture(source.student, spec)
    with (
        write_bundle(output, overwrite=overwrite) as folder,
        tempfile.TemporaryDirectory(prefix="rd-export-") as scratch,
    ):
        say("converting")
        plain = Path(scratch) / ARTIFACT
        onnx_target.convert(captured, plain)
        wave = max(audio.clips, key=len)
        write_selftest(folder / SELFTEST, selftest_arrays(source.student, spec, wave))
        bound = stated_bound(spec.precision, reference_features(source.student, spec, wave), min_cosine)
        manifest = _verified(folder, plain, source, spec, captured, audio, bound, say)
        if spec.window is not None:
            say("measuring drift from the full utterance")
            other = full if spec.window_norm == "calibrated" else constant
            found = drift(full, source.student, other, spec.window, audio.clips, spec.features)
            manifest = dataclasses.replace(manifest, drift=found, approximate=True)
        maps = attention_maps(source, spec, wave)
        (folder / REPORT).write_text(bundle_report(manifest, maps=maps), encoding="utf-8")
        manifest = dataclasses.replace(manifest, files=list_files(folder))
        write_manifest(folder, manifest)
    return manifest


def _with_calibrated_norm(student: Student, spec: ExportSpec, audio: Audio) -> Student | None:
    """The student with constant norm statistics, where a window export has speech to calibrate them with."""
    if spec.mode != "window" or audio.calibration is None or student.config.conv_norm != "group":
        return None
    return calibrated(student, audio.calibration.clips)


def _verified(
    folder: Path,
    plain: Path,
    source: Source,
    spec: ExportSpec,
    captured: Capture,
    audio: Audio,
    bound: dict[str, float],
    say: Callable[[str], None],
) -> Manifest:
    """Quantise the artifact in ``folder`` where asked, prove it, compare it; the manifest with what was found.

    With ``front_end="auto"`` an int8 artifact whose parity is outside the bound is made once more with the front end
    in float, and the manifest says which parity led to that.
    """
    if spec.precision != "int8":
        done = _cast(plain, folder / ARTIFACT, spec, captured)
        manifest = _measured(folder, source, spec, captured, audio, bound, done, say)
        check(manifest.parity, precision=spec.precision)
        return manifest
    assert audio.calibration is not None  # noqa: S101  (the command line has seen to it)
    tried: list[dict[str, Any]] = []
    for front_end in ("int8", "float") if spec.front_end == "auto" else (spec.front_end,):
        say(f"quantising, front end in {front_end}, with {audio.calibration.seconds:.0f} s of calibration audio")
        done = quantise_static(
            plain,
            folder / ARTIFACT,
            feeds(captured, spec, audio.calibration),
            depth=max(spec.layers),
            front_end_in_float=front_end == "float",
        )
        done = {**done, "calibration": audio.calibration.describe(), "tried_before": list(tried)}
        manifest = _measured(folder, source, spec, captured, audio, bound, done, say)
        if within(manifest.parity):
            return manifest
        measured = manifest.parity["measured"]
        say(f"mean frame cosine {measured['mean_cosine']:.4f} is below {bound['mean_cosine']:g}")
        tried.append({"front_end": front_end, **measured})
    check(manifest.parity, precision=spec.precision)
    return manifest


def _cast(plain: Path, artifact: Path, spec: ExportSpec, captured: Capture) -> dict[str, Any]:
    if spec.precision == "fp32":
        shutil.copyfile(plain, artifact)
        return {}
    return cast_to_fp16(plain, artifact, captured)


def _measured(
    folder: Path,
    source: Source,
    spec: ExportSpec,
    captured: Capture,
    audio: Audio,
    bound: dict[str, float],
    quantisation: dict[str, Any],
    say: Callable[[str], None],
) -> Manifest:
    say("proving the graph")
    config = source.student.config
    proof = prove(read_onnx(folder / ARTIFACT), config, exported=spec.layers, features=spec.features)
    manifest = Manifest(
        kind=spec.mode,
        target=spec.target,
        precision=spec.precision,
        status="built",
        artifact=ARTIFACT,
        features=spec.features,
        layers=spec.layers,
        feature_width=feature_width(spec.features, config),
        inputs=captured.inputs,
        outputs=captured.outputs,
        states=states_of(captured, spec.precision),
        geometry=captured.geometry,
        files=list_files(folder),
        source=describe_source(source),
        tools=tool_versions(),
        graph_proof=proof,
        parity={"bound": bound},
        quantisation=quantisation,
    )
    write_manifest(folder, manifest)
    say("comparing with torch")
    parity = {**measure(folder, source.student, spec, captured, audio.clips), "bound": bound, "audio": audio.clips_are}
    return dataclasses.replace(manifest, parity=parity)


def states_of(captured: Capture, precision: str) -> tuple[State, ...]:
    """The states as the finished artifact has them: half precision in an fp16 artifact."""
    dtype = "float16" if precision == "fp16" else "float32"
    return tuple(dataclasses.replace(state, dtype=dtype) for state in captured.states)


def attention_maps(source: Source, spec: ExportSpec, wave: np.ndarray) -> dict[int, np.ndarray]:
    """Head-averaged map (F, F) that each layer takes, on up to 3 s of ``wave``."""
    with torch.no_grad():
        context = spec.context if spec.mode == "streaming" else None
        output = source.student(torch.from_numpy(wave[:48_000])[None], context=context, with_maps=True)
    return {number: m[0].mean(0).numpy() for number, m in enumerate(output.maps, start=1)}


def describe_source(source: Source) -> dict[str, Any]:
    """``source`` of the manifest."""
    config = source.student.config
    return {
        "name": source.name,
        "sha256": source.sha256,
        "parameters": sum(p.numel() for p in source.student.parameters()),
        "student": dataclasses.asdict(config),
        "macs_per_second": int(sum(macs_per_second(config, seconds=10).values())),
        "provenance": source.provenance,
    }


def tool_versions() -> dict[str, str]:
    """Versions of everything that took part."""
    found = {}
    for name in _TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
