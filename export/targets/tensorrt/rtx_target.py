"""TensorRT for RTX: the strongly typed graph of ``--target tensorrt``, built here for the GPUs that are named.

The engine is finished without a GPU, its features are not measured without one: ``rd-export finish`` compares them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.export.proof import ProofGraph, prove, read_onnx
from reuse_distill.export.quantise.quantisation_recipe import Recipe
from reuse_distill.export.spec import ExportSpec
from reuse_distill.export.targets import Job, Made, Opened, Target, of_layers
from reuse_distill.export.targets.onnx.layer_probe import LayerProbe
from reuse_distill.export.targets.tensorrt.engine_request import HALF, profiles, write_bf16
from reuse_distill.export.targets.tensorrt.rtx_build import ALL, build, capabilities_of
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
from reuse_distill.runtime.engines.tensorrt.engine_finish import ENGINE
from reuse_distill.runtime.engines.tensorrt.rtx_backend import CAPABILITIES, VERSION, load_tensorrt_rtx


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

    def heads(self, bundle: Path, job: Job, wave: np.ndarray) -> dict[str, np.ndarray]:
        return dict(self.encoder(bundle, job).frames(wave).heads)

    def encoder(self, bundle: Path, job: Job) -> Encoder:
        """The prepared graph in ONNX Runtime."""
        return self._opened.of(bundle, lambda: Encoder.load(preview_bundle(bundle, job, TYPED), provider="cpu"))

    def layers(self, bundle: Path, job: Job) -> Callable[[np.ndarray], list[np.ndarray]] | None:
        return LayerProbe.of_onnx(job.scratch / PROBE, job.captured, job.depth).run
