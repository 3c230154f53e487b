"""``rd-export CHECKPOINT --all --device NAME --output DIR``: every bundle that fits a device, compared on one page."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from reuse_distill.devices.profile import Profile, find_profile
from reuse_distill.export.checkpoint_source import Source, read_source
from reuse_distill.export.describe import describe_source
from reuse_distill.export.device_set.page import set_page
from reuse_distill.export.device_set.set_comparison import Outcome, comparison, device_rates, row
from reuse_distill.export.device_set.set_plan import Planned, plan
from reuse_distill.export.device_set.set_quantisation import Asked, read_asked
from reuse_distill.export.export_command import EXIT_DEFERRED, export_from
from reuse_distill.export.export_command import parser as export_parser
from reuse_distill.runtime.bundle import DISK_ERRORS
from reuse_distill.runtime.errors import EXIT_USAGE, RdError
from reuse_distill.runtime.manifest import Manifest

INDEX, COMPARISON = "index.html", "comparison.json"
# Options of one export that the set passes on as they are.
PASSED = ("config", "layers", "features", "calibration", "check", "chunk", "left", "jetpack", "max-seconds")

Export = Callable[[argparse.Namespace], Manifest]


def parser() -> argparse.ArgumentParser:
    """The command line of a set."""
    p = argparse.ArgumentParser(
        prog="rd-export --all",
        description="Make every bundle that fits a device and compare them: index.html and comparison.json.",
        epilog="Exit status: 0 all written and proven, 5 some are deferred to the device, 2 one or more refused (the "
        "others are kept).",
    )
    p.add_argument("checkpoint", type=Path)
    p.add_argument("--all", action="store_true", required=True)
    p.add_argument("--device", required=True, metavar="NAME", help="a device profile (rd-latency devices)")
    p.add_argument("--targets", default="", metavar="A,B", help="these of the device's targets (default: the suited)")
    p.add_argument("--modes", default="", metavar="A,B", help="default: streaming, or window where that cannot be")
    p.add_argument("--threads", type=int, default=1, metavar="N", help="cores that the estimate counts with (1)")
    for name in PASSED:
        p.add_argument(f"--{name}", help="as for one export")
    p.add_argument("--preset", metavar="NAME", help="as for one export, of the bundles in int8")
    p.add_argument("--recipe", type=Path, metavar="JSON", help="as for one export, of the bundles of its precision")
    p.add_argument("--accept-narrow-calibration", action="store_true", help="as for one export")
    p.add_argument("--overwrite", action="store_true", help="replace bundles and page of an earlier set")
    p.add_argument("--output", type=Path, required=True, metavar="DIR")
    return p


def main(argv: Sequence[str], *, export: Export = export_from) -> int:
    """Make the set; see ``parser`` for the exit status."""
    args = parser().parse_args(argv)
    profile = find_profile(args.device)
    source = read_source(args.checkpoint, Path(args.config) if args.config else None)
    planned = plan(profile, source.student.config, targets=_words(args.targets), modes=_words(args.modes))
    asked = read_asked(args.preset, args.recipe, planned)
    if args.output.exists() and not args.overwrite:
        raise RdError(f"{args.output}: exists already", hint="choose another --output, or give --overwrite")
    outcomes = [_made(one, args, asked, export) for one in planned]
    write_comparison(args.output, profile, source, outcomes, threads=args.threads)
    for outcome in outcomes:
        print(f"{outcome.planned.name}: {outcome.status}{': ' if outcome.reason else ''}{outcome.reason}")
    print(f"{args.output / INDEX}")
    return exit_status(outcomes)


def exit_status(outcomes: Sequence[Outcome]) -> int:
    """2 where one was refused or none was made, 5 where one is deferred, else 0."""
    statuses = {outcome.status for outcome in outcomes}
    if "refused" in statuses or not statuses & {"built", "deferred"}:
        return EXIT_USAGE
    return EXIT_DEFERRED if "deferred" in statuses else 0


def write_comparison(
    folder: Path, profile: Profile, source: Source, outcomes: Sequence[Outcome], *, threads: int
) -> None:
    """``comparison.json`` and ``index.html``. Raises RdError where the disk is full."""
    rows = [row(outcome, device_rates(profile, outcome, threads=threads)) for outcome in outcomes]
    found = comparison(profile, describe_source(source), rows)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
        (folder / COMPARISON).write_text(text + "\n", encoding="utf-8")
        (folder / INDEX).write_text(set_page(found), encoding="utf-8")
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise RdError(
            f"{folder}: the comparison could not be written ({error.strerror})", hint="free some disk space"
        ) from error


def _made(planned: Planned, args: argparse.Namespace, asked: Asked, export: Export) -> Outcome:
    """Make one bundle; whatever goes wrong in it is its own, the others are made all the same."""
    if planned.left_out:
        return Outcome(planned, "left out", planned.left_out)
    print(f"== {planned.name} ==", file=sys.stderr, flush=True)
    try:
        manifest = export(export_parser().parse_args(_command(planned, args, asked)))
    except RdError as error:
        print(f"error: {error}", file=sys.stderr)
        return Outcome(planned, "refused", str(error).replace("\n\nhint: ", "; "))
    except Exception as error:  # a vendor's tool that fails in its own way
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        return Outcome(planned, "refused", f"{type(error).__name__}: {error}")
    why = str((manifest.device or {}).get("deferred", "")) if manifest.status == "deferred" else ""
    return Outcome(planned, manifest.status, why, manifest)


def _command(planned: Planned, args: argparse.Namespace, asked: Asked) -> list[str]:
    """The words of this one export."""
    words = [str(args.checkpoint), "--target", planned.target, "--mode", planned.mode]
    words += [*asked.words(planned), "--output", str(args.output / planned.name)]
    for name in PASSED:
        value = getattr(args, name.replace("-", "_"))
        if value is not None and (planned.mode != "offline" or name not in ("chunk", "left")):
            words += [f"--{name}", str(value)]
    words += ["--accept-narrow-calibration"] if args.accept_narrow_calibration else []
    return words + (["--overwrite"] if args.overwrite else [])


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())
