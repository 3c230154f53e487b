"""One export from checkpoint to verified bundle: convert, quantise, prove, compare, write."""

from __future__ import annotations

import dataclasses
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
from export.quantise.onnx_static import quantise_static
from export.reference import reference_features, selftest_arrays, write_selftest
from export.report import bundle_report
from export.source import Source
from export.spec import ExportSpec, feature_width
from export.targets import onnx as onnx_target
from export.verify import check, measure, stated_bound
from runtime.bundle import REPORT, SELFTEST, list_files, write_bundle, write_manifest
from runtime.manifest import Manifest
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
    student = source.student
    captured = capture(student, spec)
    with write_bundle(output, overwrite=overwrite) as folder:
        say("converting")
        artifact = folder / ARTIFACT
        quantisation = _make_artifact(artifact, captured, spec, audio, say)
        say("proving the graph")
        proof = prove(read_onnx(artifact), student.config, exported=spec.layers, features=spec.features)
        wave = max(audio.clips, key=len)
        write_selftest(folder / SELFTEST, selftest_arrays(student, spec, wave))
        reference = reference_features(student, spec, wave)
        manifest = Manifest(
            kind=spec.mode,
            target=spec.target,
            precision=spec.precision,
            status="built",
            artifact=ARTIFACT,
            features=spec.features,
            layers=spec.layers,
            feature_width=feature_width(spec.features, student.config),
            inputs=captured.inputs,
            outputs=captured.outputs,
            states=captured.states,
            geometry=captured.geometry,
            files=list_files(folder),
            source=describe_source(source),
            tools=tool_versions(),
            graph_proof=proof,
            parity={"bound": stated_bound(spec.precision, reference, min_cosine)},
            quantisation=quantisation,
        )
        write_manifest(folder, manifest)
        say("comparing with torch")
        parity = {**measure(folder, student, spec, captured, audio.clips), **manifest.parity, "audio": audio.clips_are}
        check(parity, precision=spec.precision)
        manifest = dataclasses.replace(manifest, parity=parity)
        (folder / REPORT).write_text(bundle_report(manifest, maps=attention_maps(source, spec, wave)), encoding="utf-8")
        manifest = dataclasses.replace(manifest, files=list_files(folder))
        write_manifest(folder, manifest)
    return manifest


def _make_artifact(
    artifact: Path, captured: Capture, spec: ExportSpec, audio: Audio, say: Callable[[str], None]
) -> dict[str, Any]:
    """Write the artifact; what was quantised how, for the manifest."""
    if spec.precision == "fp32":
        onnx_target.convert(captured, artifact)
        return {}
    assert audio.calibration is not None  # noqa: S101  (the command line has seen to it)
    plain = artifact.with_name("plain.onnx")
    onnx_target.convert(captured, plain)
    say(f"quantising with {audio.calibration.seconds:.0f} s of calibration audio")
    done = quantise_static(plain, artifact, feeds(captured, spec, audio.calibration))
    plain.unlink()
    return {**done, "calibration": audio.calibration.describe()}


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
