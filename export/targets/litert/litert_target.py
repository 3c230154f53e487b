"""LiteRT: a ``.tflite`` from the torch program, on XNNPACK's CPU kernels here, on phones by LiteRT itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.export.capture.capture import Capture
from reuse_distill.export.proof import ProofGraph
from reuse_distill.export.proof.litert_graph import read_litert
from reuse_distill.export.quantise.calibration import check_same, feeds
from reuse_distill.export.quantise.quantisation_recipe import FRONT_END, Recipe, recipe_json
from reuse_distill.export.spec import ExportSpec, Offline, Streaming
from reuse_distill.export.targets import Job, Made, Opened, Target, of_layers
from reuse_distill.export.targets.litert.tflite_convert import convert, load_converter, of_fixed_length
from reuse_distill.export.targets.litert.tflite_int8 import PRODUCT, kept_in_float, measured_ranges, quantise, weighted
from reuse_distill.export.targets.litert.tflite_program import TflProgram, read_tflite
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.engines.litert_backend import DEFAULT_SIGNATURE, LENGTH, SIGNATURE, WAVE
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import SAMPLE_RATE_HZ

ARTIFACT = "model.tflite"
PACKAGES = ("torch", "litert-torch", "litert-converter", "ai-edge-litert")
LONGEST = "longest_samples"  # of manifest.device


class LitertTarget(Target):
    """LiteRT, made and run anywhere that its wheels exist for."""

    precisions = ("fp32", "fp16", "int8", "int8-dynamic")

    def __init__(self) -> None:
        self._opened = Opened[Encoder]()

    def adapt(self, spec: ExportSpec) -> ExportSpec:
        """A step has a fixed number of streams, 1 unless requested: the shapes of a file are fixed."""
        load_converter()  # before anything is computed
        if not isinstance(spec.mode, Streaming) or spec.mode.batch is not None:
            return spec
        return dataclasses.replace(spec, mode=dataclasses.replace(spec.mode, batch=1))

    def shaped(self, captured: Capture, spec: ExportSpec) -> Capture:
        """Whole utterances with the length of the file, and the number of samples as an input."""
        return of_fixed_length(captured, spec.mode) if isinstance(spec.mode, Offline) else captured

    def longest_samples(self, spec: ExportSpec) -> int | None:
        """What the file has room for, of whole utterances."""
        return int(spec.mode.max_seconds * SAMPLE_RATE_HZ) if isinstance(spec.mode, Offline) else None

    def recipe_values(self, recipe: Recipe) -> dict[str, Any]:
        """LiteRT's int8: activations are asymmetric, any block may be in float."""
        return {"in_float": None, "symmetric_activations": (None, False)} if recipe.quantises else {}

    def make(self, job: Job, candidate: str) -> Made:
        plain = job.scratch / ARTIFACT
        if not plain.exists():
            convert(job.captured, plain)
        artifact, done = job.folder / ARTIFACT, dict[str, Any]()
        packages: tuple[str, ...] = PACKAGES
        if job.spec.precision == "fp32":
            artifact.write_bytes(plain.read_bytes())
        else:
            done, packages = _quantised(job, plain, artifact, candidate), (*PACKAGES, "ai-edge-quantizer")
        return Made(ARTIFACT, job.captured.states, done, device=_device(job), packages=packages)

    def read_graph(self, artifact: Path) -> ProofGraph:
        return read_litert(artifact)

    def run(self, bundle: Path, job: Job, wave: np.ndarray) -> np.ndarray:
        return of_layers(self.encoder(bundle, job).extract(wave), job.spec)

    def encoder(self, bundle: Path, job: Job) -> Encoder:
        return self._opened.of(bundle, lambda: Encoder.load(bundle))


def _device(job: Job) -> dict[str, Any]:
    """What a client has to know besides the tensors: the signature that it calls, the longest utterance."""
    facts: dict[str, Any] = {SIGNATURE: DEFAULT_SIGNATURE}
    if isinstance(job.spec.mode, Offline):
        facts[LONGEST] = int(job.captured.example[0].shape[-1])
    return facts


def _quantised(job: Job, plain: Path, artifact: Path, candidate: str) -> dict[str, Any]:
    """Write the artifact with smaller weights; what the manifest says about it."""
    program, precision = read_tflite(plain), job.spec.precision
    every = [number for number, one in enumerate(program.operations) if weighted(one, program)]
    if precision == "fp16":
        quantise(plain, artifact, program, every, precision)
        return {"method": "cast", "weights": "float16", "activations": "float32 on a CPU"}
    recipe = job.spec.recipe_of(candidate)
    if precision == "int8-dynamic":
        recipe = recipe.also_in_float([FRONT_END])
    kept = kept_in_float(program, recipe, job.depth)
    chosen = [number for number in every if number not in kept]
    if precision == "int8-dynamic":
        chosen = [number for number in chosen if program.operations[number].kind == PRODUCT]
    if not chosen:
        raise RdError(
            "LiteRT's quantiser has nothing left", hint="leave fewer blocks in float (in_float of the recipe)"
        )
    details = _described(program, chosen, kept, dynamic=precision == "int8-dynamic")
    if precision == "int8-dynamic":
        quantise(plain, artifact, program, chosen, precision)
        return {**details, "recipe": recipe_json(recipe)}
    if job.calibration is None:
        raise RdError("int8 needs speech to calibrate with", hint="add --calibration AUDIO (a folder, 20 s or more)")
    check_same(recipe, job.calibration)
    front_end = "float" if recipe.keeps_in_float(FRONT_END) else "int8"
    job.say(f"quantising, front end in {front_end}, with {job.calibration.seconds:.0f} s of calibration audio")
    ranges = measured_ranges(plain, program, chosen, _rows(job))
    quantise(plain, artifact, program, chosen, precision, ranges)
    recipe = dataclasses.replace(recipe, calibration=job.calibration.note())
    return {
        **details,
        "front_end": front_end,
        "calibration": job.calibration.describe(),
        "recipe": recipe_json(recipe),
    }


def _described(program: TflProgram, chosen: list[int], kept: dict[int, str], *, dynamic: bool) -> dict[str, Any]:
    def name(number: int) -> str:
        return program.tensors[program.operations[number].outputs[0]].name

    return {
        "method": "dynamic, by the kernel" if dynamic else "static, min-max, ai-edge-quantizer",
        "format": "LiteRT",
        "activations": "int8 per row, measured by the kernel" if dynamic else "int8 per tensor, asymmetric",
        "weights": "int8 per output channel, symmetric",
        "operations": len(chosen),
        "in_float": [{"node": name(number), "why": why} for number, why in kept.items()],
    }


def _rows(job: Job) -> Iterator[Mapping[str, np.ndarray]]:
    """The calibration audio as inputs of the file; a whole utterance fills its length by being repeated."""
    assert job.calibration is not None  # noqa: S101  (the caller has seen to it)
    for row in feeds(job.captured, job.spec, job.calibration):
        if not isinstance(job.spec.mode, Offline):
            yield row
            continue
        longest = int(job.captured.example[0].shape[-1])
        yield {
            WAVE: np.resize(row[WAVE][0], longest)[None],
            LENGTH: np.full((1, 1), longest, np.float32),
        }
