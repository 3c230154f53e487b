"""Drift of mixed precisions on real recordings: every combination is written, loaded and run as a user would.

The plain graph is converted once and its activations' ranges are measured once; a combination costs writing the file
and running it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.export.capture.exported_layers import depth_of
from reuse_distill.export.parity.reference import reference_features
from reuse_distill.export.parity.task_parity import Rows, measure_heads, reference_heads
from reuse_distill.export.parity.verify import selftest_figures
from reuse_distill.export.proof.prove import head_weights
from reuse_distill.export.quantise.calibration import check_same
from reuse_distill.export.quantise.quantisation_recipe import Recipe, block_names
from reuse_distill.export.quantise.search import Limits, Point, SearchResult, block_macs, search
from reuse_distill.export.spec import ExportSpec, feature_width
from reuse_distill.export.targets import Job, of_layers
from reuse_distill.export.targets.onnx import onnx_target
from reuse_distill.export.targets.onnx.onnx_target import ARTIFACT, calibrated_ranges
from reuse_distill.export.targets.onnx.overflow import comparable
from reuse_distill.export.targets.onnx.qdq import Ranges
from reuse_distill.export.targets.onnx.static_int8 import quantise_static
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.bundle_format.bundle import SELFTEST, list_files, write_manifest
from reuse_distill.runtime.bundle_format.manifest import Manifest
from reuse_distill.runtime.equivalence.parity import difference
from reuse_distill.runtime.equivalence.selftest import AGREEMENT
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student
from reuse_distill.student.layer_shape import ATTENTION_PARTS

SEARCHED_TARGETS = ("onnx", "ort")


@dataclasses.dataclass(frozen=True)
class Trials:
    """What every trial of one export shares."""

    job: Job
    plain: Path
    ranges: Ranges
    recipe: Recipe
    clips: tuple[np.ndarray, ...]
    references: tuple[np.ndarray, ...]  # float32 features (N, F, W) of the clips
    own: np.ndarray | None = None  # the bundle's own recording (T,); None where no agreement is requested
    heads: tuple[Rows, ...] = ()  # what float32 gives of every head: of the clips, then of ``own``

    def measure(self, in_float: Sequence[str]) -> Point:
        """The combination with these blocks in float besides the recipe's own."""
        folder = self.job.scratch / "trial"
        folder.mkdir(exist_ok=True)
        recipe = self.recipe.also_in_float(in_float)
        file = folder / ARTIFACT
        quantise_static(self.plain, file, self.ranges, recipe, depth=self.job.depth)
        size = file.stat().st_size
        write_manifest(folder, _manifest(self.job, folder))
        encoder = Encoder.load(comparable(folder, self.job.scratch, recipe), provider="cpu")

        def run(wave: np.ndarray) -> np.ndarray:
            features = encoder.extract(wave)
            return of_layers(features, self.job.spec)

        rows = [difference(run(clip), reference) for clip, reference in zip(self.clips, self.references, strict=True)]
        frames = sum(row.frames for row in rows)
        drift = 1 - sum(row.mean_cosine * row.frames for row in rows) / frames
        chunk = self.job.captured.geometry.chunk_frames
        own = 1 - selftest_figures(self.job.folder / SELFTEST, run, chunk_frames=chunk)["mean_cosine"]
        agreement = self._agreement(encoder)
        agrees = "" if agreement is None else f", agreement of heads {agreement:.4f}"
        kept = f"{len(in_float)} blocks in float"
        self.job.say(f"drift {drift:.5f}, of the bundle's own recording {own:.5f}{agrees}, {kept}")
        return Point(tuple(in_float), drift, own, size, agreement)

    def _agreement(self, encoder: Encoder) -> float | None:
        """The least of any head that decides, on the clips and on the own recording; None where none is requested."""
        if self.own is None:
            return None
        outputs = [dict(encoder.frames(clip).heads) for clip in (*self.clips, self.own)]
        sides = [(outputs[:-1], self.heads[:-1]), (outputs[-1:], self.heads[-1:])]
        spec = self.job.spec
        measured = [measure_heads(spec.task_contracts, *side, spec.decoder_weights) for side in sides]
        values = (entry[AGREEMENT] for side in measured for entry in side.values() if AGREEMENT in entry)
        return min(values, default=1.0)


def searched(
    job: Job,
    student: Student,
    clips: Sequence[np.ndarray],
    limit: float,
    bound: Mapping[str, float],
    min_agreement: float | None = None,
) -> tuple[Recipe, dict[str, Any]]:
    """(the cheapest recipe within ``limit`` that keeps the bundle's ``bound``, what the manifest tells of the search).

    ``min_agreement``: the share of frames in which every head has to decide as in float32. Raises RdError where that
    cannot be met, and for targets whose combinations cannot be run here.
    """
    spec = job.spec
    limits = dataclasses.replace(_limits(spec, limit, bound), agreement=min_agreement)
    plain = job.scratch / ARTIFACT
    if not plain.exists():
        onnx_target.convert(job.captured, plain)
    assert job.calibration is not None  # noqa: S101  (the command line has seen to it)
    check_same(spec.recipe, job.calibration)
    ranges = calibrated_ranges(plain, job, spec.recipe)
    references = tuple(reference_features(student, spec, clip) for clip in clips)
    trials = Trials(job, plain, ranges, spec.recipe, tuple(clips), references)
    if min_agreement is not None:
        with np.load(job.folder / SELFTEST, allow_pickle=False) as arrays:
            own: np.ndarray = arrays["wave"]
        heads = tuple(reference_heads(student, spec, clip) for clip in (*clips, own))
        trials = dataclasses.replace(trials, own=own, heads=heads)
    macs = {name: count for name, count in block_macs_of(student, spec).items() if not spec.recipe.keeps_in_float(name)}
    result = search(macs, trials.measure, limits)
    return spec.recipe.also_in_float(result.chosen.in_float), search_details(result, macs)


def search_details(result: SearchResult, macs: dict[str, float]) -> dict[str, Any]:
    """The search as the manifest keeps it."""
    whole = sum(macs.values())

    def row(point: Point) -> dict[str, Any]:
        kept = sum(macs[name] for name in point.in_float)
        return {
            "in_float": list(point.in_float),
            "drift": point.drift,
            "own_drift": point.own_drift,
            "macs_in_int8": round(1 - kept / whole, 4),
            "size_bytes": point.size_bytes,
            **({} if point.agreement is None else {"agreement": point.agreement}),
        }

    return {
        "limit": result.limits.drift,
        "own_limit": result.limits.own_drift,
        **({} if result.limits.agreement is None else {"agreement_limit": result.limits.agreement}),
        "drift": "1 - mean frame cosine to torch float32, on the recordings that check",
        "own_drift": "the same, the worst of the bundle's own recording and its cut ends",
        "cost": "multiply-accumulates that leave int8; of all that could be in it",
        "all_in_float": result.floor.drift,
        "blocks": [
            {"block": name, "drift_alone": point.drift, "macs_share": round(macs[name] / whole, 4)}
            for name, point in result.alone.items()
        ],
        "frontier": [row(point) for point in result.frontier],
        "chosen": row(result.chosen),
    }


def _limits(spec: ExportSpec, limit: float, bound: Mapping[str, float]) -> Limits:
    """What a combination has to keep; raises RdError where nothing can be searched, or the bound allows less."""
    if spec.target not in SEARCHED_TARGETS or not spec.recipe.calibrates:
        raise RdError(
            f"--max-drift searches static int8 for {' or '.join(SEARCHED_TARGETS)}, "
            f"this export is {spec.precision} for {spec.target}",
            hint="search with --target onnx, then give the recipe in its manifest (quantisation.recipe) by --recipe",
        )
    least = bound["mean_cosine"]
    if 1 - limit < least:
        raise RdError(
            f"--max-drift {limit:g} allows a mean frame cosine of {1 - limit:g}, the bundle's bound is {least:g}",
            hint=f"lower --max-drift to {1 - least:g}, or --min-cosine to {1 - limit:g}",
        )
    return Limits(limit, 1 - least)


def block_macs_of(student: Student, spec: ExportSpec) -> dict[str, float]:
    """MACs per second of each block of the export; what stacks the frames of a filter bank is no block."""
    config = student.config
    macs = block_macs(
        config.conv_layers,
        mel_bins=0 if config.front_end == "conv" else config.mel_bands,
        width=config.width,
        layer_weights=[
            (shape.weights(*ATTENTION_PARTS), shape.weights("fc1", "fc2"))
            for shape in config.layer_shapes[: depth_of(config, spec.layers, spec.features)]
        ],
        head_weights=head_weights(config),
        heads=len(spec.layers) if spec.features == "heads" else 0,
        step_frames=config.time_reduction,
    )
    known = block_names(config)
    return {name: count for name, count in macs.items() if name in known}


def _manifest(job: Job, folder: Path) -> Manifest:
    """Enough for the runtime to run the trial."""
    spec, captured = job.spec, job.captured
    return Manifest(
        kind=spec.mode.name,
        target="onnx",
        precision=spec.precision,
        status="built",
        artifact=ARTIFACT,
        features=spec.features,
        layers=spec.shown_layers,
        heads=spec.task_contracts,
        feature_width=feature_width(spec.features, captured.module.student.config),
        inputs=captured.inputs,
        outputs=captured.outputs,
        states=captured.states,
        input=job.captured.contract,
        geometry=captured.geometry,
        files=list_files(folder),
        source={},
        tools={},
    )
