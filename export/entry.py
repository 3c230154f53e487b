"""``rd-export``: finishing and checking need no torch and are told apart before it is imported."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from reuse_distill.runtime.errors import cli


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command; see ``export.cli`` for exports and exit statuses."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["check"]:
        return check(words[1:])
    if "--finish" in words:
        return finish(words)
    if "--all" in words:
        return device_set(words)
    return export(words)


@cli
def export(argv: Sequence[str] | None = None) -> int:
    """One export. Importing what it needs takes seconds, in which Ctrl-C is answered too."""
    from reuse_distill.export.export_command import main as run

    return run(argv)


@cli
def finish(argv: Sequence[str] | None = None) -> int:
    """``rd-export --finish BUNDLE``: build the engine here; exit status 0 when it is built, proven and compared."""
    p = argparse.ArgumentParser(prog="rd-export", description="Finish a deferred bundle on its device.")
    p.add_argument("--finish", type=Path, required=True, metavar="BUNDLE")
    path: Path = p.parse_args(argv).finish
    from reuse_distill.export.report import bundle_report
    from reuse_distill.runtime.trt.finish import finish as build

    done = build(path, report=bundle_report, say=lambda what: print(f"{what} …", file=sys.stderr, flush=True))
    device, measured = done.device or {}, done.parity["measured"]
    precision = device["precision"]
    print(f"{path}: built by TensorRT {device['tensorrt']} for {device['gpu']} ({device['compute_capability']})")
    told = f"{precision['as_asked']} of {precision['told']} weighted layers that can be told at {precision['asked']}"
    print(f"  engine  {device['engine_layers']} layers; {told}, {precision['not_told']} cannot be told")
    print(f"  parity  max abs {measured['max_abs']:.2e}, mean frame cosine {measured['mean_cosine']:.5f} (self-test)")
    return 0


@cli
def device_set(argv: Sequence[str] | None = None) -> int:
    """``rd-export --all --device NAME``: see ``export.device_set.cli``."""
    from reuse_distill.export.device_set.set_command import main as run

    return run(list(sys.argv[1:] if argv is None else argv))


@cli
def check(argv: Sequence[str] | None = None) -> int:
    """``rd-export check``: exit status 0 where nothing speaks against it, 1 where something does."""
    from reuse_distill.export.targets.tensorrt.check_command import main as run

    return run(argv)
