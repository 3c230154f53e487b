"""Completes a deferred bundle on the device that will run it: build, inspect, compare, and only then replace it."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reuse_distill.runtime.bundle_format.bundle import (
    CERTIFICATE,
    MANIFEST,
    REPORT,
    Bundle,
    list_files,
    read_bundle,
    write_bundle,
    write_manifest,
)
from reuse_distill.runtime.bundle_format.manifest import Manifest, retyped
from reuse_distill.runtime.engines.tensorrt.build_request import BuildRequest, Variant, choose_variant, read_request
from reuse_distill.runtime.engines.tensorrt.cuda_runtime import Cuda
from reuse_distill.runtime.engines.tensorrt.engine_build import Built, build_engine
from reuse_distill.runtime.engines.tensorrt.engine_inspector import check_names, check_precision, read_layers
from reuse_distill.runtime.engines.tensorrt.tensorrt_features import detect, identify, load_tensorrt
from reuse_distill.runtime.errors import RdError

ENGINE, INSPECTOR, TIMING_CACHE = "model.engine", "inspector.json", "timing.cache"


def finish(
    path: Path,
    *,
    report: Callable[[Manifest], str] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Manifest:
    """Build the engine of the bundle ``path`` and put the finished bundle in its place; the old one stays on failure.

    A bundle that is finished already is built again: after an update of TensorRT, or on another device. Raises RdError
    where TensorRT or a GPU is missing, the build fails, or the engine is not what was requested.
    """
    bundle = read_bundle(path)
    if bundle.manifest.target == "tensorrt-rtx":
        return _measured(bundle, report=report, say=say)
    if bundle.manifest.target != "tensorrt":
        raise RdError(f"{path}: target {bundle.manifest.target}: only tensorrt bundles are finished on the device")
    request = read_request(path)
    trt, cuda = load_tensorrt(), Cuda.open()
    with write_bundle(path, overwrite=True) as folder:
        _copy(bundle, folder)
        cache = (path / TIMING_CACHE, bundle.manifest.device)
        variant, device = build_into(folder, request, trt, cuda, cache=cache, say=say)
        manifest = dataclasses.replace(
            bundle.manifest,
            status="built",
            artifact=ENGINE,
            states=retyped(bundle.manifest.states, variant.state_dtype),
            device=device,
            tools={**bundle.manifest.tools, "tensorrt": device["tensorrt"]},
            files=list_files(folder),
        )
        write_manifest(folder, manifest)  # the self-test loads the folder as a bundle
        say("comparing with the features of the source")
        manifest = dataclasses.replace(manifest, parity=measured_parity(folder, manifest))
        if report is not None:
            (folder / REPORT).write_text(report(manifest), encoding="utf-8")
        manifest = dataclasses.replace(manifest, files=list_files(folder))
        write_manifest(folder, manifest)
    return manifest


def _measured(bundle: Bundle, *, report: Callable[[Manifest], str] | None, say: Callable[[str], None]) -> Manifest:
    """The bundle of a finished engine with the parity that this machine's GPU gives; nothing is built."""
    with write_bundle(bundle.path, overwrite=True) as folder:
        for name in bundle.manifest.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path / name, folder / name)
        write_manifest(folder, bundle.manifest)  # the self-test loads the folder as a bundle
        say("comparing with the features of the source")
        cuda = Cuda.open()
        measured_on = {"gpu": cuda.device_name(), "compute_capability": cuda.compute_capability()}
        manifest = dataclasses.replace(
            bundle.manifest,
            parity=measured_parity(folder, bundle.manifest),
            device={**(bundle.manifest.device or {}), "measured_on": measured_on},
        )
        if report is not None:
            (folder / REPORT).write_text(report(manifest), encoding="utf-8")
        manifest = dataclasses.replace(manifest, files=list_files(folder))
        write_manifest(folder, manifest)
    return manifest


def build_into(
    folder: Path,
    request: BuildRequest,
    trt: Any,
    cuda: Cuda,
    *,
    cache: tuple[Path, dict[str, Any] | None] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Variant, dict[str, Any]]:
    """Build into ``folder``, which holds the ONNX files; returns what was built and ``device`` of the manifest.

    ``cache``: a file of kernel timings and what it was measured on; it is used only where that is this device.
    """
    features = detect(trt)
    variant = choose_variant(request, features)
    identity = identify(features, cuda)
    built = build_engine(trt, features, request, variant, folder, timing_cache=_timings(cache, identity), say=say)
    device = {**identity, **judge(built, request, variant)}
    for name, data in (
        (ENGINE, built.engine),
        (INSPECTOR, built.inspector.encode()),
        (TIMING_CACHE, built.timing_cache),
    ):
        (folder / name).write_bytes(data)
    return variant, device


def _timings(cache: tuple[Path, dict[str, Any] | None] | None, identity: dict[str, Any]) -> bytes:
    if cache is None or not cache[0].is_file():
        return b""
    measured_on = {key: (cache[1] or {}).get(key) for key in identity}
    return cache[0].read_bytes() if measured_on == identity else b""


def judge(built: Built, request: BuildRequest, variant: Variant) -> dict[str, Any]:
    """The inspector's word on the engine, for the manifest; raises RdError where it is not what was requested."""
    layers = read_layers(built.inspector)
    return {
        "onnx": variant.onnx,
        "typing": variant.typing,
        "engine_layers": len(layers),
        "precision": check_precision(layers, request, variant),
        "graph": check_names(layers, variant),
    }


def measured_parity(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """``parity`` with what the self-test measures on this device; raises RdError outside the stated bound."""
    from reuse_distill.runtime.encoder import Encoder

    selftest = Encoder.load(folder, provider=manifest.target).selftest()
    if not selftest.passed:
        raise RdError(
            f"the engine's features are not those of the source: {selftest}",
            hint="the bundle is left as it was; try --precision fp32 to tell rounding from a wrong engine",
        )
    kept = {key: value for key, value in manifest.parity.items() if key in ("bound", "reference", "prepared")}
    figures = ("max_abs", "mean_cosine", "min_cosine")
    return {
        **kept,
        "measured": {name: getattr(selftest.difference, name) for name in figures},
        "audio": "the recording of the self-test, on the device",
    }


def _copy(bundle: Bundle, folder: Path) -> None:
    """Every file of the bundle but those that building makes anew."""
    made = {MANIFEST, CERTIFICATE, ENGINE, INSPECTOR, TIMING_CACHE}
    for name in bundle.manifest.files:
        if name not in made:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path / name, folder / name)
