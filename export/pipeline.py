"""One export from checkpoint to verified bundle: convert, quantise, prove, compare, write."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.export.capture.capture import capture
from reuse_distill.export.capture.sliding_window import calibrated, drift
from reuse_distill.export.checkpoint_source import Source, attention_maps, describe_source, tool_versions
from reuse_distill.export.estimates import estimates
from reuse_distill.export.parity.reference import (
    allowing_for_rounding,
    long_speech,
    reference_features,
    selftest_arrays,
    write_selftest,
)
from reuse_distill.export.parity.task_parity import head_bounds, reference_heads, selftest_heads
from reuse_distill.export.parity.verify import (
    check,
    decisive,
    features_within,
    measure,
    outside_in_words,
    stated_bound,
    within,
)
from reuse_distill.export.proof import prove
from reuse_distill.export.quantise.calibration import CalibrationSet
from reuse_distill.export.spec import CANDIDATES, ExportSpec, SlidingWindow, Streaming, feature_width
from reuse_distill.export.targets import Job, Target, check_possible, find_target, heads_in_float
from reuse_distill.export.targets.onnx.drift_trials import searched
from reuse_distill.export.targets.onnx.overflow import NOTICE as SEVEN_BITS
from reuse_distill.report.bundle_page import bundle_report
from reuse_distill.runtime.bundle_format.bundle import REPORT, SELFTEST, list_files, write_bundle, write_manifest
from reuse_distill.runtime.bundle_format.manifest import Manifest
from reuse_distill.runtime.equivalence.parity import difference
from reuse_distill.runtime.streaming.state_layout import describe_snapshot
from reuse_distill.student import Student


@dataclass(frozen=True)
class CheckAudio:
    """What calibrates and what checks: never the same recordings where there are enough."""

    calibration: CalibrationSet | None
    clips: list[np.ndarray]
    clips_are: str  # for the manifest: what the check was made with
    names: tuple[str, ...] = ()  # of the clips, where they come from files


@dataclass(frozen=True)
class Bounds:
    """What parity has to keep: of the features (of the first head, where there are none), and of every head."""

    features: dict[str, float]
    heads: dict[str, Any]

    @property
    def stated(self) -> dict[str, Any]:
        """``parity`` of the manifest before anything is measured."""
        return {"bound": self.features, **({"heads": self.heads} if self.heads else {})}


def as_of_features(bound: dict[str, float]) -> dict[str, float]:
    """A head's bound in the terms of features: an agreement is a mean cosine of decisions."""
    return {"mean_cosine" if name == "agreement" else name: limit for name, limit in bound.items()}


def export_bundle(
    source: Source,
    spec: ExportSpec,
    output: Path,
    *,
    audio: CheckAudio,
    min_cosine: float | None = None,
    min_agreement: float | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Manifest:
    """Write the bundle ``output``; nothing is left behind when a step fails.

    Raises RdError when the conversion fails, the graph proof does not hold, or parity is outside its bound.
    """
    full, constant = source.student, _with_calibrated_norm(source.student, spec, audio)
    with_constants = isinstance(spec.mode, SlidingWindow) and spec.mode.norm == "calibrated"
    if constant is not None and with_constants:
        source = dataclasses.replace(source, student=constant)
    target = find_target(spec.target)
    check_possible(target, spec)
    spec = target.adapt(heads_in_float(target, spec))
    captured = target.shaped(capture(source.student, spec), spec)
    audio = _cut(audio, target.longest_samples(spec))
    with (
        write_bundle(output, overwrite=overwrite) as folder,
        tempfile.TemporaryDirectory(prefix="rd-export-") as scratch,
    ):
        job = Job(captured, spec, audio.calibration, folder, Path(scratch), say)
        if spec.seven_bits:
            say(SEVEN_BITS)
        wave = max(audio.clips, key=len)
        heads = reference_heads(source.student, spec, wave)
        arrays = {**selftest_arrays(source.student, spec, wave), **selftest_heads(source.student, spec, wave)}
        write_selftest(folder / SELFTEST, arrays)
        for task in spec.tasks:
            if task.xvector is not None:
                np.savez(folder / task.contract.weights, allow_pickle=False, **task.xvector.arrays())
        head_bound = head_bounds(spec, heads, min_agreement)
        if spec.shown_layers:
            reference = reference_features(source.student, spec, wave)
            difference(reference, reference)  # raises before the conversion where it is all but zero
            bound = stated_bound(spec.precision, reference, min_cosine)
        else:
            bound = as_of_features(head_bound[spec.task_contracts[0].name]["bound"])
        bounds = Bounds(bound, head_bound)
        job, search = _searched(job, source.student, audio, bound, min_agreement)
        manifest = _best(target, job, source, audio, bounds)
        manifest = dataclasses.replace(manifest, quantisation={**manifest.quantisation, **search})
        if isinstance(spec.mode, SlidingWindow):
            say("measuring drift from the full utterance")
            other = full if with_constants else constant
            clips, extended = long_speech(audio.clips)
            measured = drift(full, source.student, other, spec.mode.context, clips, spec.features)
            measured["audio"] = audio.clips_are + (", joined by seeded speech-like signals" if extended else ", joined")
            manifest = dataclasses.replace(manifest, drift=measured, approximate=True)
        maps = attention_maps(source, spec, wave)
        (folder / REPORT).write_text(bundle_report(manifest, maps=maps), encoding="utf-8")
        manifest = dataclasses.replace(manifest, files=list_files(folder))
        write_manifest(folder, manifest)
    return manifest


def _cut(audio: CheckAudio, longest: int | None) -> CheckAudio:
    """The clips that check, none longer than the artifact takes."""
    if longest is None or all(len(clip) <= longest for clip in audio.clips):
        return audio
    return dataclasses.replace(audio, clips=[clip[:longest] for clip in audio.clips])


def _searched(
    job: Job, student: Student, audio: CheckAudio, bound: dict[str, float], min_agreement: float | None
) -> tuple[Job, dict[str, Any]]:
    """The job with the recipe that a drift limit leads to, and what to say about it; the job as it is without one."""
    if job.spec.max_drift is None:
        return job, {}
    recipe, search = searched(job, student, audio.clips, job.spec.max_drift, bound, min_agreement)
    return dataclasses.replace(job, spec=dataclasses.replace(job.spec, given=recipe)), {"search": search}


def _with_calibrated_norm(student: Student, spec: ExportSpec, audio: CheckAudio) -> Student | None:
    """The student with constant norm statistics, where a window export has speech to calibrate them with."""
    if not isinstance(spec.mode, SlidingWindow) or audio.calibration is None or student.config.conv_norm != "group":
        return None
    return calibrated(student, audio.calibration.clips)


def _best(target: Target, job: Job, source: Source, audio: CheckAudio, bounds: Bounds) -> Manifest:
    """The first candidate within the parity bound; the manifest lists the ones that were tried before it.

    Raises RdError when none is.
    """
    tried: list[dict[str, Any]] = []
    for candidate in target.candidates(job.spec, source.student.config):
        kept = " and ".join(CANDIDATES.get(candidate, ()))
        job.say("converting" if not tried else f"trying again, {kept} in float")
        manifest = _measured(target, job, candidate, source, audio, bounds)
        parity = manifest.parity.get("prepared", manifest.parity)  # of what can run here
        if "measured" not in parity or within(parity):
            break
        where, measured = decisive(parity)
        job.say(f"parity outside the bound: {outside_in_words(parity)}")
        tried.append({"candidate": candidate, "on": where, **measured})
    if "measured" in parity:
        check(parity, precision=job.spec.precision)
    return dataclasses.replace(
        manifest, quantisation={**manifest.quantisation, "tried_before": tried} if tried else manifest.quantisation
    )


def _measured(target: Target, job: Job, candidate: str, source: Source, audio: CheckAudio, bounds: Bounds) -> Manifest:
    """Make the artifact, prove its graph, compare its numbers."""
    made = target.make(job, candidate)
    job.say("proving the graph")
    spec, config = job.spec, source.student.config
    graph = target.read_graph(job.folder / made.artifact)
    manifest = Manifest(
        kind=spec.mode.name,
        target=spec.target,
        precision=spec.precision,
        status=made.status,
        artifact=made.artifact,
        features=spec.features if spec.shown_layers else "none",
        layers=spec.shown_layers,
        feature_width=feature_width(spec.features, config) if spec.shown_layers else 0,
        heads=spec.task_contracts,
        inputs=job.captured.inputs,
        outputs=job.captured.outputs,
        states=made.states,
        geometry=job.captured.geometry,
        chunk_choices=spec.mode.chunks if isinstance(spec.mode, Streaming) else (),
        input=job.captured.contract,
        files=list_files(job.folder),
        source=describe_source(source),
        tools=tool_versions(made.packages),
        graph_proof=prove(graph, config, exported=spec.layers, features=spec.features, tasks=spec.tasks),
        parity=bounds.stated,
        quantisation=made.quantisation,
        device=made.device,
    )
    manifest = dataclasses.replace(manifest, snapshot=describe_snapshot(manifest))
    unpacked = job.float_weight_bytes if spec.precision in target.unpacked else None
    cost = estimates(config, spec, made.states, artifact_bytes=manifest.artifact_bytes, weight_bytes=unpacked)
    # What plans without hardware read: the MACs of this artifact, not of the student in general.
    described = {**manifest.source, "macs_per_second": cost["macs_per_second"]}
    manifest = dataclasses.replace(manifest, estimates=cost, source=described)
    write_manifest(job.folder, manifest)
    if made.status == "deferred" and not made.prepared:
        return manifest
    job.say("comparing with torch")
    measured = measure(target, job, source.student, audio.clips, audio.names)
    heads = {name: {**entry, **bounds.heads[name]} for name, entry in measured.pop("heads", {}).items()}
    parity = {
        **measured,
        **({"heads": heads} if heads else {}),
        "bound": bounds.features,
        "audio": audio.clips_are,
        "ran_on": target.placement(job),
    }
    if spec.shown_layers and spec.precision == "fp32" and not features_within(parity):
        parity = allowing_for_rounding(parity, source.student, spec, audio.clips)
    if made.prepared:  # the artifact itself is unmeasured
        parity = {**bounds.stated, "prepared": {**parity, "run": made.prepared}}
    return dataclasses.replace(manifest, parity=parity)
