"""``rd-export check FILE|BUNDLE``: which JetPacks will read it and run it at its precision, and why not."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from reuse_distill.export.targets.tensorrt.jetpack_rules import Finding, check_file
from reuse_distill.export.targets.tensorrt.jetpacks import JETPACKS, JetPack, find_jetpack, of_device
from reuse_distill.runtime.bundle import MANIFEST, read_bundle
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.trt.request import REQUEST, read_request

MOST_SHOWN = 3


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="rd-export check",
        description="Say without a GPU whether TensorRT will read a graph and run it at the precision asked for. "
        "Exit status: 0 nothing speaks against it, 1 something does, 2 usage.",
    )
    p.add_argument("path", type=Path, help="an ONNX file, or a bundle")
    where = p.add_mutually_exclusive_group()
    where.add_argument("--jetpack", metavar="V", help=f"one of {', '.join(JETPACKS)} (default: all)")
    where.add_argument("--device", metavar="PROFILE", help="the JetPacks of a device, such as jetson-orin-nano")
    p.add_argument("--precision", metavar="P", help="of an ONNX file: fp32 (default), fp16, bf16, int8, int8-fp32")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Print one line per JetPack and up to three reasons."""
    args = parser().parse_args(argv)
    if args.jetpack:
        rows = [find_jetpack(args.jetpack)]
    else:
        rows = of_device(args.device) if args.device else list(JETPACKS.values())
    bad = 0
    for row in rows:
        file, precision, reasons = _checked(args.path, row, args.precision)
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
