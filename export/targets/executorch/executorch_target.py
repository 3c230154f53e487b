"""ExecuTorch: a ``.pte`` for phones and boards, on XNNPACK's CPU kernels or an accelerator's delegate."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.export.proof import ProofGraph
from reuse_distill.export.proof.executorch_graph import read_pte
from reuse_distill.export.quantise.calibration import check_same, feeds
from reuse_distill.export.quantise.quantisation_recipe import FRONT_END, Recipe, recipe_json
from reuse_distill.export.spec import ExportSpec, Offline, Streaming
from reuse_distill.export.targets import Job, Made, Opened, Target, of_layers
from reuse_distill.export.targets.coreml.coreml_modules import friendly as friendly_to_coreml
from reuse_distill.export.targets.coreml.coreml_sessions import outputs_of, utterance
from reuse_distill.export.targets.coreml.coreml_target import layer_outputs
from reuse_distill.export.targets.executorch.delegates import COREML_SYSTEM, UNITS, check_delegate, partitioners
from reuse_distill.export.targets.executorch.evaluated import PackageSession, check_lengths, check_sums, whole_package
from reuse_distill.export.targets.executorch.pte_convert import (
    exported,
    exported_from_one_frame,
    kept_in_float,
    lowered,
    one_frame_is_not_special,
    quantised,
    save,
    weighted,
)
from reuse_distill.export.targets.executorch.pte_program import PORTABLE, PteProgram, read_program
from reuse_distill.export.targets.executorch.row_modules import friendly
from reuse_distill.export.targets.vendor_packages import whole_sizes
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.engines.executorch_backend import DELEGATE, LONGEST, PLACEMENT
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ
from torch import nn

ARTIFACT = "model.pte"
PACKAGES = ("torch", "executorch", "torchao")
EVALUATED = "the NumPy evaluator of MIL operations, on the Core ML package in the program; no Apple device ran it"


class ExecutorchTarget(Target):
    """ExecuTorch, made and run anywhere that its wheels exist for."""

    precisions = ("fp32", "fp16", "int8", "int8-dynamic")

    def __init__(self) -> None:
        self._opened, self._package = Opened[Encoder](), Opened[PackageSession]()

    def adapt(self, spec: ExportSpec) -> ExportSpec:
        """One stream: a program's shapes are planned when it is written, and a step is one chunk of one stream.

        Raises RdError for a delegate that is not available, before anything is converted.
        """
        check_delegate(spec.delegate, precision=spec.precision)
        if not isinstance(spec.mode, Streaming):
            return spec
        if spec.mode.batch not in (None, 1):
            raise RdError(
                f"--batch {spec.mode.batch} is not possible for executorch: its programs step one stream",
                hint="leave --batch out; the runtime steps several streams one after the other",
            )
        return dataclasses.replace(spec, mode=dataclasses.replace(spec.mode, batch=1))

    def recipe_values(self, recipe: Recipe) -> dict[str, Any]:
        """XNNPACK's int8: activations are asymmetric, any block but its own may be in float."""
        return {"in_float": None, "symmetric_activations": (None, False)} if recipe.quantises else {}

    def make(self, job: Job, candidate: str) -> Made:
        spec = job.spec
        if spec.delegate == "coreml":
            return _made_for_coreml(job)
        module = friendly(job.captured)
        program = exported(job.captured.whole(module), job.captured, spec.mode)
        details: dict[str, Any] = {}
        if spec.precision != "fp32":
            converted, details = _quantised(job, module, program, candidate)
            program = exported(converted, job.captured, spec.mode)
        job.say(f"lowering to {spec.delegate}")
        artifact = job.folder / ARTIFACT
        save(lowered(program, partitioners(spec.delegate, precision=spec.precision)), artifact)
        return Made(
            ARTIFACT, job.captured.states, details, device=_device(job, read_program(artifact)), packages=PACKAGES
        )

    def read_graph(self, artifact: Path) -> ProofGraph:
        return read_pte(artifact)

    def run(self, bundle: Path, job: Job, wave: np.ndarray) -> np.ndarray:
        """By the runtime, or by the evaluator where only an Apple device could run it."""
        if job.spec.delegate == "coreml" and job.spec.shown_layers:
            session = self._session(bundle, job)
            return utterance(session, job.captured, job.captured.states, wave, ["features"])[0]
        return of_layers(self.encoder(bundle, job).extract(wave), job.spec)

    def outputs(self, bundle: Path, job: Job, wave: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        if job.spec.delegate != "coreml":
            return super().outputs(bundle, job, wave)
        return outputs_of(self._session(bundle, job), job, job.captured.states, wave)

    def encoder(self, bundle: Path, job: Job) -> Encoder:
        return self._opened.of(bundle, lambda: Encoder.load(bundle))

    def _session(self, bundle: Path, job: Job) -> PackageSession:
        return self._package.of(bundle, lambda: PackageSession(bundle / ARTIFACT, job.captured))

    def measured_by(self, job: Job) -> str | None:
        """What the parity of a manifest was measured with; None: the runtime."""
        return EVALUATED if job.spec.delegate == "coreml" else None

    def layers(self, bundle: Path, job: Job) -> Callable[[np.ndarray], list[np.ndarray]] | None:
        """By the evaluator for Core ML's delegate; None for XNNPACK's, which gives no value from inside."""
        if job.spec.delegate != "coreml":
            return None
        session = self._session(bundle, job)
        names = layer_outputs(session.evaluator.program, job.captured.student.config)
        if not names:
            return None
        return lambda wave: utterance(session, job.captured, job.captured.states, wave, names)


def _made_for_coreml(job: Job) -> Made:
    """The program that is one Core ML package, from the same module as ``--target coreml``."""
    spec, artifact = job.spec, job.folder / ARTIFACT
    module = job.captured.whole(friendly_to_coreml(job.captured))
    with one_frame_is_not_special(), whole_sizes():
        program = exported_from_one_frame(module, job.captured, spec.mode)
        job.say(f"lowering to {spec.delegate}")
        save(lowered(program, partitioners(spec.delegate, precision=spec.precision)), artifact)
    package, details = whole_package(artifact)[0], dict[str, Any]()
    if isinstance(spec.mode, Offline):
        check_lengths(package, RECEPTIVE_FIELD_SAMPLES, int(spec.mode.max_seconds * SAMPLE_RATE_HZ))
    if spec.precision == "fp16":
        check_sums(package)
        details = {"method": "cast", "weights": "float16", "activations": "float16"}
    device = {**_device(job, read_program(artifact)), "minimum_system": COREML_SYSTEM}
    return Made(ARTIFACT, job.captured.states, details, device=device, packages=(*PACKAGES, "coremltools"))


def _quantised(job: Job, module: nn.Module, program: Any, candidate: str) -> tuple[nn.Module, dict[str, Any]]:
    """The program in int8, and what the manifest says about it."""
    dynamic, blocks = job.spec.precision == "int8-dynamic", weighted(module)
    if job.calibration is None and not dynamic:
        raise RdError("int8 needs speech to calibrate with", hint="add --calibration AUDIO (a folder, 20 s or more)")
    recipe = job.spec.recipe_of(candidate)
    if job.calibration is not None:
        check_same(recipe, job.calibration)
    computed = recipe.also_in_float([FRONT_END]) if dynamic else recipe  # no dynamic convolution there
    kept = kept_in_float(blocks.values(), computed.keeps_in_float)
    modules = frozenset(name for name, block in blocks.items() if block not in kept)
    rows = iter(()) if job.calibration is None else feeds(job.captured, job.spec, job.calibration)
    front_end = "float" if computed.keeps_in_float(FRONT_END) else "int8"
    if not dynamic and job.calibration is not None:
        job.say(f"quantising, front end in {front_end}, with {job.calibration.seconds:.0f} s of calibration audio")
    converted = quantised(program, job.captured, rows, modules=modules, dynamic=dynamic)
    details: dict[str, Any] = {
        "method": "dynamic, per row" if dynamic else "static, min-max",
        "format": "PT2E, XNNPACK",
        "activations": "int8 per row, measured by the kernel" if dynamic else "int8 per tensor, asymmetric",
        "weights": "int8 per output channel, symmetric",
        "operators": ["linear"] if dynamic else ["linear", "conv2d"],
        "in_float": [{"node": block, "why": why} for block, why in kept.items()],
    }
    if not dynamic and job.calibration is not None:
        details |= {"front_end": front_end, "calibration": job.calibration.describe()}
        recipe = dataclasses.replace(recipe, calibration=job.calibration.note())
    return converted, {**details, "recipe": recipe_json(recipe)}


def _device(job: Job, program: PteProgram) -> dict[str, Any]:
    """What a client has to know besides the tensors: their order, who runs what, the longest input."""
    units = Counter(UNITS.get(operation.place, operation.place) for operation in program.operations)
    portable = Counter(operation.kind for operation in program.operations if operation.place == PORTABLE)
    details: dict[str, Any] = {
        DELEGATE: job.spec.delegate,
        PLACEMENT: dict(units),
        "delegate_calls": len(program.delegates),
        "portable_operations": dict(portable),
        "input_order": job.captured.input_names,
        "output_order": job.captured.output_names,
    }
    if isinstance(job.spec.mode, Offline):
        details[LONGEST] = _longest(program, job.spec.mode.max_seconds)
    return details


def _longest(program: PteProgram, max_seconds: float) -> int:
    """Samples that the finished program has room for; raises RdError where that is less than was requested."""
    longest, requested = program.inputs[0][-1], int(max_seconds * SAMPLE_RATE_HZ)
    if longest < requested:
        raise RdError(
            f"the program takes up to {longest / SAMPLE_RATE_HZ:.2f} s, {max_seconds:g} s were requested",
            hint="report this with the versions in constraints.txt",
        )
    return longest
