"""``rd-export check FILE|BUNDLE``: which JetPacks will read it and run it at its precision, and why not."""

from __future__ import annotations

import argparse
from pathlib import Path

from reuse_distill.export.targets.tensorrt.build_check import build_check
from reuse_distill.export.targets.tensorrt.jetpack_rules import Finding, check_file
from reuse_distill.export.targets.tensorrt.jetpacks import JETPACKS, JetPack, find_jetpack, of_device
from reuse_distill.runtime.bundle import MANIFEST, read_bundle
from reuse_distill.runtime.command_line import bundle_or_shipped
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.tensorrt.build_request import REQUEST, read_request

MOST_SHOWN = 3


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
