"""TensorRT for RTX: the strongly typed graph of ``--target tensorrt``, built here for the GPUs that are named.

NVIDIA's own parser and builder make the engine without a GPU; its features are not measured without one:
``rd-export finish`` compares them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.export.proof import ProofGraph, prove, read_onnx
from reuse_distill.export.quantise.quantisation_recipe import Recipe
from reuse_distill.export.spec import ExportSpec
from reuse_distill.export.targets import Job, Made, Opened, Target, of_layers
from reuse_distill.export.targets.onnx.layer_probe import LayerProbe
from reuse_distill.export.targets.tensorrt.engine_request import HALF, profiles, write_bf16
from reuse_distill.export.targets.tensorrt.tensorrt_target import (
    PACKAGES,
    PROBE,
    TYPED,
    TensorrtTarget,
    plain_graph,
    preview_bundle,
    values_of,
    write_typed,
)
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.bundle_format.manifest import retyped
from reuse_distill.runtime.engines.tensorrt.build_request import Profile
from reuse_distill.runtime.engines.tensorrt.engine_finish import ENGINE
from reuse_distill.runtime.engines.tensorrt.tensorrt_backend import CAPABILITIES, VERSION, load_tensorrt_rtx
from reuse_distill.runtime.errors import RdError, nearest

ALL = "all"
# Names of GPUs -> compute capability. TensorRT for RTX has none for Orin (8.7) and Hopper (9.0).
GPUS = {"rtx20": "7.5", "a100": "8.0", "rtx30": "8.6", "rtx40": "8.9", "rtx50": "12.0", "gb10": "12.1"}
CHECKED = ("8.0", "8.6", "8.9", "12.0")  # what ``rd-export check --build`` builds for
_AS_INT8 = "UINT8 zero_point"  # in the parser's warning that it takes another type than the file has
_LINES = 3  # of the builder's reasons in one message


@dataclass(frozen=True)
class RtxBuild:
    """A finished engine and what the builder said of it."""

    engine: bytes
    version: str
    layers: int  # of the parsed network
    capabilities: tuple[str, ...]
    parse_seconds: float
    build_seconds: float
    warnings: tuple[str, ...]


def capabilities_of(names: str) -> tuple[str, ...]:
    """``rtx40``, ``rtx40,rtx50`` or ``all`` as compute capabilities; raises RdError with the nearest name."""
    if names == ALL:
        return tuple(GPUS.values())
    capabilities = []
    for name in names.split(","):
        if name not in GPUS:
            raise RdError(f"--gpu {name!r} is not known", hint=nearest(name, [ALL, *GPUS]))
        capabilities.append(GPUS[name])
    return tuple(dict.fromkeys(capabilities))


def build(
    file: Path, profiles: Sequence[Profile], capabilities: Sequence[str], *, precision: str, trt: Any = None
) -> RtxBuild:
    """Build ``file``, whose types are the engine's (strongly typed), for every one of ``capabilities``.

    Raises RdError with the parser's or the builder's own messages.
    """
    trt = load_tensorrt_rtx() if trt is None else trt
    logger, messages = _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    started = time.perf_counter()
    if not parser.parse(file.read_bytes()):
        reasons = [str(parser.get_error(i)) for i in range(parser.num_errors)] or messages["error"]
        raise RdError(f"{file.name}: TensorRT for RTX {trt.__version__} cannot parse it: {_reasons(reasons)}")
    changed = [warning for warning in messages["warning"] if _AS_INT8 in warning]
    if changed:  # values above 127 would be cut off, and the engine would be built all the same
        raise RdError(f"{file.name}: TensorRT for RTX {trt.__version__} reads uint8 as int8: {_reasons(changed)}")
    parsed = time.perf_counter()
    config = _config(trt, builder, profiles, capabilities, precision)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RdError(f"{file.name}: TensorRT for RTX {trt.__version__} cannot build it: {_reasons(messages['error'])}")
    return RtxBuild(
        bytes(plan),
        str(trt.__version__),
        int(network.num_layers),
        tuple(capabilities),
        parsed - started,
        time.perf_counter() - parsed,
        tuple(messages["warning"]),
    )


def _config(trt: Any, builder: Any, profiles: Sequence[Profile], capabilities: Sequence[str], precision: str) -> Any:
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        name = f"SM{capability.replace('.', '')}"
        if not hasattr(trt.ComputeCapability, name):
            raise RdError(f"TensorRT for RTX {trt.__version__} has no compute capability {capability}")
        config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
    if precision == "fp32":  # TF32 rounds to 10 bits: 1e-4 would not hold
        config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if profiles:  # a static graph has none
        profile = builder.create_optimization_profile()
        for shape in profiles:
            profile.set_shape(shape.input, shape.least, shape.best, shape.most)
        config.add_optimization_profile(profile)
    return config


def _reasons(reasons: Sequence[str]) -> str:
    return (
        "; ".join(reason.strip().splitlines()[0] for reason in reasons[:_LINES] if reason.strip()) or "no reason given"
    )


def _logger(trt: Any) -> tuple[Any, dict[str, list[str]]]:
    """A logger that keeps errors and warnings, and the lists that it keeps them in."""
    kept: dict[str, list[str]] = {"error": [], "warning": []}
    kinds = {
        trt.ILogger.INTERNAL_ERROR: "error",
        trt.ILogger.ERROR: "error",
        trt.ILogger.WARNING: "warning",
    }

    class RtxLogger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in kinds:
                kept[kinds[severity]].append(message)

    return RtxLogger(), kept


class TensorrtRtxTarget(Target):
    """An engine for one version of TensorRT for RTX and some of its GPUs."""

    precisions = ("fp32", "fp16", "bf16", "int8", "int8-fp32")

    def __init__(self) -> None:
        self._prepared, self._opened = TensorrtTarget(), Opened[Encoder]()

    def adapt(self, spec: ExportSpec) -> ExportSpec:
        """As for TensorRT; raises RdError for a GPU that is not known, before anything is converted."""
        capabilities_of(spec.gpu or ALL)
        return self._prepared.adapt(spec)

    def recipe_values(self, recipe: Recipe) -> dict[str, Any]:
        """What TensorRT's own target can."""
        return self._prepared.recipe_values(recipe)

    def make(self, job: Job, candidate: str) -> Made:
        load_tensorrt_rtx()  # before the conversion takes its time
        spec = job.spec
        values, done = values_of(plain_graph(job), job, candidate)
        typed = job.folder / TYPED
        done = {**done, **write_typed(values, typed, job)}
        config = job.captured.module.student.config
        prove(read_onnx(typed), config, exported=spec.layers, features=spec.features, tasks=spec.tasks)
        shutil.copyfile(typed, job.scratch / PROBE)
        if spec.precision == "bf16":
            write_bf16(values, job.scratch / PROBE, emulated=True)
        capabilities = capabilities_of(spec.gpu or ALL)
        job.say(f"building the engine for compute capability {', '.join(capabilities)}")
        built = build(typed, profiles(job.captured, spec), capabilities, precision=spec.precision)
        (job.folder / ENGINE).write_bytes(built.engine)
        device = {
            VERSION: built.version,
            CAPABILITIES: list(built.capabilities),
            "network_layers": built.layers,
            "onnx": TYPED,
            "warnings": len(built.warnings),
        }
        states = retyped(job.captured.states, "float16" if spec.precision in HALF else "float32")
        run = f"{TYPED} by ONNX Runtime on the CPU"
        return Made(ENGINE, states, done, "built", device, (*PACKAGES, "tensorrt-rtx-cu12-libs"), run)

    def read_graph(self, artifact: Path) -> ProofGraph:
        """Of the graph that the engine was built from: the engine itself cannot be opened without a GPU."""
        return read_onnx(artifact.parent / TYPED)

    def run(self, bundle: Path, job: Job, wave: np.ndarray) -> np.ndarray:
        """By ONNX Runtime from the prepared graph."""
        return of_layers(self.encoder(bundle, job).extract(wave), job.spec)

    def encoder(self, bundle: Path, job: Job) -> Encoder:
        """The prepared graph in ONNX Runtime."""
        return self._opened.of(bundle, lambda: Encoder.load(preview_bundle(bundle, job, TYPED), provider="cpu"))

    def layers(self, bundle: Path, job: Job) -> Callable[[np.ndarray], list[np.ndarray]] | None:
        return LayerProbe.of_onnx(job.scratch / PROBE, job.captured, job.depth).run
