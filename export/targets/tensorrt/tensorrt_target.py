"""TensorRT: graphs prepared for explicit precision, and the engine where this machine has a GPU.

Without one the bundle is ``deferred``: ``rd-export --finish BUNDLE`` builds the engine on the device.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.export.proof import ProofGraph, prove, read_onnx
from reuse_distill.export.proof.engine_graph import read_engine
from reuse_distill.export.quantise.options import with_activations
from reuse_distill.export.quantise.quantisation_recipe import FRONT_END, Recipe
from reuse_distill.export.quantise.quantisation_recipe import PLAIN as FIELDS
from reuse_distill.export.spec import ExportSpec, Streaming
from reuse_distill.export.targets import Job, Made, Opened, Target, of_layers
from reuse_distill.export.targets.onnx import onnx_target as onnx
from reuse_distill.export.targets.onnx.layer_probe import LayerProbe
from reuse_distill.export.targets.tensorrt.engine_request import build_request, describe, write_bf16, write_fp16
from reuse_distill.export.targets.tensorrt.jetpack_rules import JETPACKS, JetPack, check_file, find_jetpack
from reuse_distill.export.targets.tensorrt.lowering import lower, numbers_as_biases
from reuse_distill.export.targets.tensorrt.symmetric_int8 import quantise_symmetric
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.bundle_format.bundle import list_files, read_bundle, write_manifest
from reuse_distill.runtime.bundle_format.manifest import retyped
from reuse_distill.runtime.engines.tensorrt.build_request import (
    BuildRequest,
    Variant,
    choose_variant,
    read_request,
    write_request,
)
from reuse_distill.runtime.engines.tensorrt.cuda_runtime import Cuda
from reuse_distill.runtime.engines.tensorrt.engine_finish import ENGINE, INSPECTOR, build_into
from reuse_distill.runtime.engines.tensorrt.tensorrt_features import detect, load_tensorrt
from reuse_distill.runtime.errors import RdError

TYPED, PLAIN = "typed.onnx", "plain.onnx"
PROBE = "probe.onnx"  # in the scratch folder: the numbers of the prepared graph with its layer norms in one piece
PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime")


class TensorrtTarget(Target):
    """An engine for one GPU and one TensorRT version, or all that the device needs to build it."""

    precisions = ("fp32", "fp16", "bf16", "int8", "int8-fp32")

    def __init__(self) -> None:
        self._opened = Opened[Encoder]()

    def adapt(self, spec: ExportSpec) -> ExportSpec:
        """Static steps that return whole states: a CUDA graph has fixed addresses, so buffers are swapped."""
        if not isinstance(spec.mode, Streaming):
            return spec
        static = dataclasses.replace(spec.mode, states="whole", batch=spec.mode.batch or 1)
        return dataclasses.replace(spec, mode=static)

    def recipe_values(self, recipe: Recipe) -> dict[str, Any]:
        """Everything but what its reader of Q/DQ does not take: activations that are not symmetric."""
        if not recipe.calibrates:
            return {}
        signed = {"symmetric_activations": (None, True), "preset": with_activations("int8")}
        return {**dict.fromkeys(FIELDS), **signed}

    def make(self, job: Job, candidate: str) -> Made:
        values, done = values_of(plain_graph(job), job, candidate)
        variants, typed = self._variants(values, job)
        request = build_request(job.captured, job.spec, variants)
        write_request(job.folder, request)
        done = {**done, **typed}
        device: dict[str, Any] = {"jetpacks": readable(job.folder, request, job.spec)}
        missing = _missing()
        if missing is not None:
            job.say(f"no engine is built here: {missing.message}")
            states = retyped(job.captured.states, variants[0].state_dtype)
            run = f"{variants[0].onnx} by ONNX Runtime on the CPU"
            device["deferred"] = missing.message
            return Made(variants[0].onnx, states, done, "deferred", device, PACKAGES, run)
        return self._built(job, request, variants, done, device)

    def read_graph(self, artifact: Path) -> ProofGraph:
        if artifact.suffix == ".onnx":
            return read_onnx(artifact)
        built_from = choose_variant(read_request(artifact.parent), detect(load_tensorrt())).onnx
        return read_engine((artifact.parent / INSPECTOR).read_text(), read_onnx(artifact.parent / built_from))

    def run(self, bundle: Path, job: Job, wave: np.ndarray) -> np.ndarray:
        """By the engine where there is one, else by ONNX Runtime from the prepared graph."""
        return of_layers(self.encoder(bundle, job).extract(wave), job.spec)

    def encoder(self, bundle: Path, job: Job) -> Encoder:
        """The engine where there is one, else the prepared graph in ONNX Runtime."""
        return self._opened.of(bundle, lambda: self._loaded(bundle, job))

    def _loaded(self, bundle: Path, job: Job) -> Encoder:
        preview = bundle if (bundle / ENGINE).exists() else preview_bundle(bundle, job)
        return Encoder.load(preview, provider="tensorrt" if preview is bundle else "cpu")

    def layers(self, bundle: Path, job: Job) -> Callable[[np.ndarray], list[np.ndarray]] | None:
        if (bundle / ENGINE).exists():
            return None
        return LayerProbe.of_onnx(job.scratch / PROBE, job.captured, job.depth).run

    def _variants(self, values: Path, job: Job) -> tuple[tuple[Variant, ...], dict[str, Any]]:
        """The prepared files that the JetPacks in question need, each proven; the strongly typed one first."""
        spec, rows = job.spec, _jetpacks(job.spec)
        variants: list[Variant] = []
        done: dict[str, Any] = {}
        if any(row.strong for row in rows):
            done = write_typed(values, job.folder / TYPED, job)
            variants.append(describe(job.folder / TYPED, "strong", spec.precision, norms=[]))
        if any(not row.strong for row in rows) and spec.precision != "bf16":
            split = any(not row.strong and "LayerNormalization" in row.lacks for row in rows)
            norms = lower(values, job.folder / PLAIN, layer_norms=split)
            variants.append(describe(job.folder / PLAIN, "weak", spec.precision, norms=norms))
        if not variants:
            raise RdError(
                f"JetPack {spec.jetpack} cannot run {spec.precision}",
                hint="bf16 needs TensorRT 9 or later: choose fp16, or a later JetPack",
            )
        config = job.captured.module.student.config
        for variant in variants:
            graph = read_onnx(job.folder / variant.onnx)
            prove(graph, config, exported=spec.layers, features=spec.features, tasks=spec.tasks)
        first = job.folder / variants[0].onnx
        shutil.copyfile(values if variants[0].typing == "weak" else first, job.scratch / PROBE)
        if spec.precision == "bf16":
            write_bf16(values, job.scratch / PROBE, emulated=True)
        return tuple(variants), done

    def _built(
        self,
        job: Job,
        request: BuildRequest,
        variants: tuple[Variant, ...],
        done: dict[str, Any],
        device: dict[str, Any],
    ) -> Made:
        """Build here; what the device tells becomes part of the manifest."""
        variant, details = build_into(job.folder, request, load_tensorrt(), Cuda.open(), say=job.say)
        if variant.onnx != variants[0].onnx:
            job.say(f"this TensorRT builds from {variant.onnx}")
        states = retyped(job.captured.states, variant.state_dtype)
        return Made(ENGINE, states, done, "built", {**device, **details}, (*PACKAGES, "tensorrt"))


def plain_graph(job: Job) -> Path:
    """The fp32 graph in the form that NVIDIA's builders take, made once for all candidates."""
    plain = job.scratch / "model.onnx"
    if not plain.exists():
        onnx.convert(job.captured, plain)
        numbers_as_biases(plain)
    return plain


def values_of(plain: Path, job: Job, candidate: str) -> tuple[Path, dict[str, Any]]:
    """The fp32 file, with Q/DQ where int8 is requested, and what was done for the manifest."""
    if not job.spec.precision.startswith("int8"):
        return plain, {}
    recipe = job.spec.recipe_of(candidate)
    ranges = onnx.calibrated_ranges(plain, job, recipe)
    job.say(f"quantising, front end in {'float' if recipe.keeps_in_float(FRONT_END) else 'int8'}")
    quantised = job.scratch / f"quantised_{candidate}.onnx"
    done = quantise_symmetric(plain, quantised, ranges, recipe, depth=job.depth)
    return quantised, {**done, **onnx.calibrated_with(job, recipe)}


def write_typed(source: Path, target: Path, job: Job) -> dict[str, Any]:
    """Write the graph whose types are the engine's; returns what was done, for the manifest."""
    precision = job.spec.precision
    if precision in ("fp16", "int8"):
        done = write_fp16(source, target, job.captured)
        return {"islands": done} if precision == "int8" else done
    if precision == "bf16":
        return write_bf16(source, target)
    shutil.copyfile(source, target)
    return {}


def readable(folder: Path, request: BuildRequest, spec: ExportSpec) -> dict[str, list[str]]:
    """JetPack -> reasons why it will not build this bundle; none is as far as is known without a GPU."""
    versions = {}
    for row in _jetpacks(spec):
        variant = next((v for v in request.variants if v.typing == row.typing), None)
        if variant is None:
            what = "has no bfloat16" if spec.precision == "bf16" else f"has no {row.typing} typing"
            versions[row.name] = [f"TensorRT {row.tensorrt} {what}"]
            continue
        versions[row.name] = [str(f) for f in check_file(folder / variant.onnx, row, spec.precision)]
    return versions


def _jetpacks(spec: ExportSpec) -> list[JetPack]:
    return list(JETPACKS.values()) if spec.jetpack is None else [find_jetpack(spec.jetpack)]


def _missing() -> RdError | None:
    """Why no engine can be built here, or None."""
    try:
        load_tensorrt()
        Cuda.open()
    except RdError as error:
        return error
    return None


def preview_bundle(bundle: Path, job: Job, prepared: str | None = None) -> Path:
    """The graph ``prepared`` (None: the bundle's artifact) as an ONNX bundle in the scratch folder."""
    manifest = read_bundle(bundle).manifest
    folder = job.scratch / "preview"
    folder.mkdir(exist_ok=True)
    source = job.scratch / PROBE if job.spec.precision == "bf16" else bundle / (prepared or manifest.artifact)
    shutil.copyfile(source, folder / "model.onnx")
    dtype = "float32" if job.spec.precision == "bf16" else (manifest.states[0].dtype if manifest.states else "float32")
    preview = dataclasses.replace(
        manifest,
        target="onnx",
        status="built",
        artifact="model.onnx",
        states=retyped(manifest.states, dtype),
        device=None,
        files=list_files(folder),
    )
    write_manifest(folder, preview)
    return folder
