"""``rd-export check FILE|BUNDLE``: which JetPacks will read it and run it at its precision, and why not.

``--build``: what NVIDIA's own parser and builder say of the graphs of a bundle, without a GPU.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from reuse_distill.export.targets.tensorrt.jetpack_rules import (
    JETPACKS,
    Finding,
    JetPack,
    check_file,
    find_jetpack,
    of_device,
)
from reuse_distill.export.targets.tensorrt.rtx_target import CHECKED, build, capabilities_of
from reuse_distill.runtime.bundle_format.bundle import MANIFEST, read_bundle
from reuse_distill.runtime.cli.command_line import bundle_or_shipped
from reuse_distill.runtime.engines.tensorrt.build_request import REQUEST, Profile, read_request
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ

MOST_SHOWN = 3
BEST_SECONDS, LONGEST_SECONDS = 10, 30  # of an ONNX file that comes without a request
TYPED = "typed.onnx"


def check_command(args: argparse.Namespace) -> int:
    """Print one line per JetPack and up to three reasons."""
    path = bundle_or_shipped(args.path)
    if args.build:
        return build_check(path, args.gpu, args.precision)
    if args.gpu:
        raise RdError(f"--gpu {args.gpu} is for --build")
    if args.jetpack:
        rows = [find_jetpack(args.jetpack)]
    else:
        rows = of_device(args.device) if args.device else list(JETPACKS.values())
    bad = 0
    for row in rows:
        file, precision, reasons = _checked(path, row, args.precision)
        bad += bool(reasons)
        verdict = "no" if reasons else f"yes, {row.typing}ly typed"
        print(f"JetPack {row.name:<6} TensorRT {row.tensorrt:<6} {precision:<9} {file:<12} {verdict}")
        for reason in reasons[:MOST_SHOWN]:
            print(f"    {reason}")
        if len(reasons) > MOST_SHOWN:
            print(f"    and {len(reasons) - MOST_SHOWN} more")
    return 1 if bad else 0


def _checked(path: Path, row: JetPack, precision: str | None) -> tuple[str, str, list[Finding]]:
    """The file that would be built there, its precision, and what speaks against it."""
    if (path / MANIFEST).is_file():
        manifest = read_bundle(path).manifest
        if precision not in (None, manifest.precision):
            raise RdError(f"{path} is {manifest.precision}, not {precision}", hint="leave --precision out")
        if not (path / REQUEST).is_file():
            return (
                manifest.artifact,
                manifest.precision,
                check_file(_onnx(path / manifest.artifact), row, manifest.precision),
            )
        for variant in read_request(path).variants:
            if variant.typing == row.typing:
                return (
                    variant.onnx,
                    manifest.precision,
                    check_file(path / variant.onnx, row, manifest.precision),
                )
        reason = Finding("typing", "", f"the bundle has no file for {row.typing} typing: export without --jetpack")
        return "-", manifest.precision, [reason]
    return path.name, precision or "fp32", check_file(_onnx(path), row, precision or "fp32")


def _onnx(path: Path) -> Path:
    if path.suffix != ".onnx" or not path.is_file():
        raise RdError(f"{path}: neither an ONNX file nor a bundle with one")
    return path


def build_check(path: Path, gpu: str | None, precision: str | None) -> int:
    """Build for every compute capability by itself and print one line each; 1 where one does not build."""
    file, precision, profiles = _graph(path, precision)
    failed = 0
    for capability in CHECKED if gpu is None else capabilities_of(gpu):
        head = f"TensorRT for RTX, compute capability {capability:<4} {precision:<9} {file.name:<12}"
        try:
            built = build(file, profiles, (capability,), precision=precision)
        except RdError as error:
            if error.hint is not None:  # the package is missing: nothing was said of the graph
                raise
            failed += 1
            print(f"{head} no: {error.message}")
            continue
        size = f"{len(built.engine) / 1e6:.1f} MB"
        seconds = f"parsed in {built.parse_seconds:.1f} s, built in {built.build_seconds:.1f} s"
        print(f"{head} yes, {built.layers} layers, {size}, {seconds}, {len(built.warnings)} warnings")
        for warning in built.warnings[:3]:
            print(f"    {warning}")
    return 1 if failed else 0


def _graph(path: Path, precision: str | None) -> tuple[Path, str, tuple[Profile, ...]]:
    """(the strongly typed file, its precision, the ranges of its free axes). Raises RdError where there is none."""
    if not (path / MANIFEST).is_file():
        if path.suffix != ".onnx" or not path.is_file():
            raise RdError(f"{path}: neither an ONNX file nor a bundle with one")
        return path, precision or "fp32", _profiles(path)
    manifest = read_bundle(path).manifest
    if precision not in (None, manifest.precision):
        raise RdError(f"{path} is {manifest.precision}, not {precision}", hint="leave --precision out")
    if (path / REQUEST).is_file():
        request = read_request(path)
        variant = next((one for one in request.variants if one.typing == "strong"), None)
        if variant is None:
            raise RdError(f"{path}: has no strongly typed graph", hint="export it without --jetpack")
        return path / variant.onnx, manifest.precision, request.profiles
    file = path / (TYPED if (path / TYPED).is_file() else manifest.artifact)
    if file.suffix != ".onnx":
        raise RdError(f"{path}: {manifest.artifact} is not an ONNX file", hint="export with --target tensorrt")
    return file, manifest.precision, _profiles(file)


def _profiles(file: Path) -> tuple[Profile, ...]:
    """For samples of any length; other free axes are left to the builder to refuse."""
    import onnx

    inputs = {value.name: value.type.tensor_type.shape.dim for value in onnx.load(str(file)).graph.input}
    if "wave" not in inputs or inputs["wave"][1].dim_value:
        return ()
    best, most = BEST_SECONDS * SAMPLE_RATE_HZ, LONGEST_SECONDS * SAMPLE_RATE_HZ
    return (Profile("wave", (1, RECEPTIVE_FIELD_SAMPLES), (1, best), (1, most)),)
