"""Core ML: an ``.mlpackage`` for iPhone, iPad and Mac."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.export.proof import ProofGraph
from reuse_distill.export.proof.mil_graph import read_mil
from reuse_distill.export.quantise.calibration import check_same, feeds
from reuse_distill.export.quantise.quantisation_recipe import FRONT_END, Recipe, recipe_json
from reuse_distill.export.spec import ExportSpec, Offline, Streaming
from reuse_distill.export.targets import Job, Made, Opened, Target
from reuse_distill.export.targets.coreml.compress import (
    LEAST_WEIGHTS,
    Activations,
    Weights,
    compressed,
    measure_ranges,
    quantisable,
)
from reuse_distill.export.targets.coreml.coreml_modules import held_states
from reuse_distill.export.targets.coreml.coreml_sessions import (
    CoreMLSession,
    EvaluatorSession,
    PredictionSession,
    can_predict,
    outputs_of,
    utterance,
)
from reuse_distill.export.targets.coreml.evaluator import Evaluator
from reuse_distill.export.targets.coreml.mil_program import MilProgram, read_program
from reuse_distill.export.targets.coreml.package_convert import IN_FLOAT, LONGEST_SECONDS, convert, describe, save
from reuse_distill.export.targets.vendor_packages import coremltools
from reuse_distill.runtime.bundle_format.manifest import State, retyped
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import frames_for
from reuse_distill.student import StudentConfig

ARTIFACT = "model.mlpackage"
PACKAGES = ("torch", "coremltools")
BITS = {"int8": 8, "int8-weights": 8, "palette-6": 6, "palette-4": 4}
EVALUATED = "the NumPy evaluator of MIL operations; predictions on a Mac not run"


class CoremlTarget(Target):
    """Core ML, made anywhere and predicted on Apple's devices."""

    precisions = ("fp32", "fp16", *BITS)

    def __init__(self) -> None:
        self._evaluator = Opened[Evaluator]()

    def adapt(self, spec: ExportSpec) -> ExportSpec:
        """A step has a fixed number of streams, 1 unless requested: the neural engine wants fixed shapes."""
        if not isinstance(spec.mode, Streaming) or spec.mode.batch is not None:
            return spec
        return dataclasses.replace(spec, mode=dataclasses.replace(spec.mode, batch=1))

    def recipe_values(self, recipe: Recipe) -> dict[str, Any]:
        """Blocks whose products take float inputs, where products take int8 at all; symmetric it always is."""
        return {"in_float": None, "symmetric_activations": (None, True)} if recipe.calibrates else {}

    def make(self, job: Job, candidate: str) -> Made:
        spec, held = job.spec, engine_held(job.spec)
        plain = job.scratch / ARTIFACT
        if not plain.exists():
            model = convert(job.captured, half=spec.precision != "fp32", held=held, system=system(spec))
            describe(model, job.captured, spec)
            save(model, plain)
        model = coremltools().models.MLModel(str(plain), skip_model_load=True)
        quantisation: dict[str, Any] = {}
        if spec.precision in BITS:
            activations, ranges = _activations(job, plain, candidate)
            model = compressed(model, Weights(BITS[spec.precision]), activations)
            quantisation = {**_stored(spec.precision), **ranges}
        save(model, job.folder / ARTIFACT)
        return Made(
            ARTIFACT,
            _states(job),
            {**_computed(spec), **quantisation},
            device=_device(spec),
            packages=PACKAGES,
        )

    def read_graph(self, artifact: Path) -> ProofGraph:
        return read_mil(artifact)

    def run(self, bundle: Path, job: Job, wave: np.ndarray) -> np.ndarray:
        session = self.open(bundle / ARTIFACT)
        if not job.spec.shown_layers:
            return np.zeros((0, frames_for(len(wave)), 0), np.float32)
        return utterance(session, job.captured, _states(job), wave, ["features"])[0]

    def outputs(self, bundle: Path, job: Job, wave: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return outputs_of(self.open(bundle / ARTIFACT), job, _states(job), wave)

    def open(self, package: Path) -> CoreMLSession:
        """Core ML itself on a Mac, the evaluator elsewhere."""
        return PredictionSession(package) if can_predict() else EvaluatorSession(self._evaluated(package))

    def _evaluated(self, package: Path) -> Evaluator:
        return self._evaluator.of(package, lambda: Evaluator.load(package))

    def measured_by(self, job: Job) -> str:
        """What the parity of a manifest was measured with."""
        return "predictions of Core ML on this Mac" if can_predict() else EVALUATED

    def layers(self, bundle: Path, job: Job) -> Callable[[np.ndarray], list[np.ndarray]] | None:
        """By the evaluator, also on a Mac: Core ML gives no value from inside a package."""
        evaluator = self._evaluated(bundle / ARTIFACT)
        names = layer_outputs(evaluator.program, job.captured.student.config)
        if not names:
            return None
        states = _states(job)
        return lambda wave: utterance(EvaluatorSession(evaluator), job.captured, states, wave, names)


def layer_outputs(program: MilProgram, config: StudentConfig) -> list[str]:
    """The output of every layer: the second of its two norms, and the layers' are the last of the program.

    Where layers norm first it is what the next layer's first norm takes, of the last one what the encoder's norm gives;
    nothing where the artifact ends before that norm.
    """
    norms = program.of_kind("layer_norm")
    if not config.norm_first:
        return [operation.outputs[0] for operation in norms[len(norms) - 2 * config.layers :][1::2]]
    if not config.final_norm:
        return []
    *inner, last = norms[len(norms) - 2 * config.layers - 1 :]
    return [*(operation.arguments["x"][0] for operation in inner[2::2]), last.outputs[0]]


def engine_held(spec: ExportSpec) -> bool:
    """Whether Core ML keeps the states; raises RdError where it cannot."""
    held = isinstance(spec.mode, Streaming) and spec.mode.states == "engine"
    if held and spec.precision == "fp32":
        raise RdError(
            "--states engine is not possible with --precision fp32: Core ML keeps its states in half precision",
            hint="use --precision fp16, or --states tensors",
        )
    return held


def system(spec: ExportSpec) -> str:
    """The oldest system that runs such a package."""
    if engine_held(spec):
        return "iOS18"
    return "iOS17" if spec.precision == "int8" else "iOS16"


def _states(job: Job) -> tuple[State, ...]:
    """The manifest's states: of half precision but for fp32, and named alike in and out where Core ML keeps them."""
    if engine_held(job.spec):
        return held_states(job.captured.states)
    kind = "float32" if job.spec.precision == "fp32" else "float16"
    return retyped(job.captured.states, kind)


def _activations(job: Job, plain: Path, candidate: str) -> tuple[Activations | None, dict[str, Any]]:
    """What goes to int8 besides the weights, and what the manifest says about it."""
    if job.spec.precision != "int8":
        return None, {}
    if job.calibration is None:
        raise RdError("int8 needs speech to calibrate with", hint="add --calibration AUDIO (a folder, 20 s or more)")
    recipe = job.spec.recipe_of(candidate)
    check_same(recipe, job.calibration)
    front_end = "float" if recipe.keeps_in_float(FRONT_END) else "int8"
    job.say(f"quantising, front end in {front_end}, with {job.calibration.seconds:.0f} s of calibration audio")
    inputs = quantisable(read_program(plain), recipe, depth=job.depth)
    ranges = measure_ranges(plain, inputs.values(), feeds(job.captured, job.spec, job.calibration))
    details = {
        "activations": "int8 per tensor, symmetric, before weight products and convolutions",
        "method": "static, min-max, ranges measured by the evaluator",
        "front_end": front_end,
        "quantised_inputs": len(inputs),
        "calibration": job.calibration.describe(),
        "recipe": recipe_json(dataclasses.replace(recipe, calibration=job.calibration.note())),
    }
    return Activations(inputs, ranges), details


def _stored(precision: str) -> dict[str, Any]:
    bits = BITS[precision]
    stored = "int8 per output channel, symmetric" if bits == 8 else f"palette of {1 << bits} values per tensor"
    return {"weights": stored, "weights_in_float": f"tensors of fewer than {LEAST_WEIGHTS} values"}


def _computed(spec: ExportSpec) -> dict[str, Any]:
    if spec.precision == "fp32":
        return {}
    why = "sums over all time overflow half precision"
    details: dict[str, Any] = {"method": "cast", "weights": "float16", "activations": "float16"}
    return {**details, "in_float": [{"node": kind, "why": why} for kind in IN_FLOAT]}


def _device(spec: ExportSpec) -> dict[str, Any]:
    """What the client has to know besides the tensors."""
    details: dict[str, Any] = {"minimum_system": system(spec)}
    if isinstance(spec.mode, Streaming):
        details["states"] = spec.mode.states
    if isinstance(spec.mode, Offline):
        details["longest_seconds"] = LONGEST_SECONDS
    return details
