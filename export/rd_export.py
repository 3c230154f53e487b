"""rd-export: its entry point. Words are read, and help is given, before torch is imported; some commands need none."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from reuse_distill.export.export_options import export_command, export_parsers
from reuse_distill.runtime.errors import RdError, cli, install_hint


@cli
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command; the exit statuses are those of each command's help."""
    command, words = export_command(sys.argv[1:] if argv is None else argv)
    args = export_parsers()[command].parse_args(words)
    return {"": _export, "set": _set, "finish": _finish, "check": _check}[command](args)


def _export(args: argparse.Namespace) -> int:
    _need_torch()
    from reuse_distill.export.export_command import export_command_line

    return export_command_line(args)


def _set(args: argparse.Namespace) -> int:
    _need_torch()
    from reuse_distill.export.device_set.set_command import make_set

    return make_set(args)


def _finish(args: argparse.Namespace) -> int:
    """Exit status 0 when the engine is built, proven and compared."""
    path: Path = args.bundle
    from reuse_distill.report.bundle_page import bundle_report
    from reuse_distill.runtime.engines.tensorrt.engine_finish import finish as build

    done = build(path, report=bundle_report, say=lambda what: print(f"{what} …", file=sys.stderr, flush=True))
    device, measured = done.device or {}, done.parity["measured"]
    if done.target == "tensorrt-rtx":
        gpu = device["measured_on"]["gpu"]
        print(f"{path}: built by TensorRT for RTX {device['tensorrt_rtx']}, compared on {gpu}")
    else:
        precision = device["precision"]
        print(f"{path}: built by TensorRT {device['tensorrt']} for {device['gpu']} ({device['compute_capability']})")
        text = f"{precision['as_asked']} of {precision['told']} known weighted layers at {precision['asked']}"
        print(f"  engine  {device['engine_layers']} layers; {text}, {precision['not_told']} cannot be determined")
    print(f"  parity  max abs {measured['max_abs']:.2e}, mean frame cosine {measured['mean_cosine']:.5f} (self-test)")
    return 0


def _check(args: argparse.Namespace) -> int:
    """Exit status 0 where nothing was found against it, 1 where something was."""
    from reuse_distill.export.targets.tensorrt.check_command import check_command

    return check_command(args)


def _need_torch() -> None:
    """Raise RdError where torch is missing; other packages are named by the target that needs them."""
    try:
        import torch  # noqa: F401
    except ImportError:
        raise RdError("torch is not installed, and an export needs it", hint=install_hint("export")) from None


if __name__ == "__main__":
    sys.exit(main(None))
