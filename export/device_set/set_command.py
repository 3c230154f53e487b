"""``rd-export set CHECKPOINT --device NAME --output DIR``: every bundle that fits a device, compared on one page.

One row per bundle: what it is, how far from torch, what it costs, and how fast it may be on the device.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reuse_distill.devices.device_profiles import DeviceProfile, find_profile
from reuse_distill.devices.estimate import Rates, estimate, host_rates, rates_of, work_of
from reuse_distill.export.checkpoint_source import Source, describe_source, read_source
from reuse_distill.export.device_set.set_plan import Planned, RequestedQuantisation, plan, requested_quantisation
from reuse_distill.export.export_command import EXIT_DEFERRED, export_from
from reuse_distill.export.export_options import PASSED, export_parser
from reuse_distill.report.set_page import set_page
from reuse_distill.runtime.bundle_format.bundle import DISK_ERRORS
from reuse_distill.runtime.bundle_format.manifest import Manifest
from reuse_distill.runtime.cli.progress import print_header
from reuse_distill.runtime.errors import EXIT_USAGE, RdError
from reuse_distill.runtime.untrusted_input import to_dict

COUNTED = ("built", "deferred", "refused", "left out")


@dataclass(frozen=True)
class BundleOutcome:
    """What became of one planned bundle; ``reason`` is why it is not built."""

    planned: Planned
    status: str
    reason: str = ""
    manifest: Manifest | None = None


def row(outcome: BundleOutcome, rates: Rates | None) -> dict[str, Any]:
    """For ``comparison.json``; None is unmeasured.

    Of a deferred bundle nothing is measured but what was ``prepared`` for its device: those figures stand apart.
    """
    planned, manifest = outcome.planned, outcome.manifest
    values: dict[str, Any] = {
        "name": planned.name,
        "target": planned.target,
        "precision": planned.precision,
        "mode": planned.mode,
        "status": outcome.status,
        "reason": outcome.reason,
    }
    if manifest is None:
        return values
    prepared, g = manifest.parity.get("prepared"), manifest.geometry
    return {
        **values,
        "artifact": manifest.artifact,
        "artifact_bytes": manifest.artifact_bytes,
        "recipe": manifest.quantisation.get("recipe"),
        "bound": manifest.parity.get("bound"),
        **compared(manifest.parity),
        "prepared": {"run": prepared["run"], **compared(prepared)} if prepared else None,
        "estimates": manifest.estimates,
        "latency_ms": None if manifest.kind == "offline" else {"worst": g.worst_latency_ms, "mean": g.mean_latency_ms},
        "compute": computing(manifest, rates),
        "readable_by": (manifest.device or {}).get("jetpacks"),
    }


def compared(parity: dict[str, Any]) -> dict[str, Any]:
    """How far from torch, in all, by slices and at worst."""
    return {
        "measured": parity.get("measured"),
        "measured_by": parity.get("by"),
        "slices": {one["slice"]: one["mean_cosine"] for one in parity.get("slices", [])},
        "worst": parity.get("worst"),
    }


def computing(manifest: Manifest, rates: Rates | None) -> dict[str, Any] | None:
    """The roofline's band for the device; None where its rates, or the MACs, are not known."""
    if rates is None or rates.macs_per_s is None:
        return None
    estimated = estimate(work_of(manifest), rates)
    if estimated.rtf_low is None:
        return None
    step = estimated.step_ms()
    return {
        "rtf": [estimated.rtf_low, estimated.rtf_high],
        "step_ms": list(step) if step else None,
        "bound_by": estimated.bound_by,
        "origin": rates.origin,
    }


def device_rates(profile: DeviceProfile, outcome: BundleOutcome, *, threads: int) -> Rates | None:
    """Of one core of the device; None where the profile does not tell them for this target."""
    if outcome.manifest is None:
        return None
    planned = outcome.planned
    if profile.family == "host":
        return host_rates(precision=planned.precision, threads=threads)
    return rates_of(profile, precision=planned.precision, target=planned.target, threads=threads)


def comparison(profile: DeviceProfile, source: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """``comparison.json``."""
    counts = {status: sum(one["status"] == status for one in rows) for status in COUNTED}
    return {
        "schema": 1,
        "device": profile.name,
        "title": profile.title,
        "profile": to_dict(profile),
        "source": source,
        "counts": counts,
        "bundles": rows,
    }


INDEX, COMPARISON = "index.html", "comparison.json"
Export = Callable[[argparse.Namespace], Manifest]


def make_set(args: argparse.Namespace, *, export: Export = export_from) -> int:
    """Make the set; the exit status is that of ``rd-export set``'s help."""
    profile = find_profile(args.device)
    source = read_source(args.checkpoint, Path(args.config) if args.config else None)
    planned = plan(profile, source.student.config, targets=_words(args.targets), modes=_words(args.modes))
    requested = requested_quantisation(args.preset, args.recipe, planned)
    if args.output.exists() and not args.overwrite:
        raise RdError(f"{args.output}: exists already", hint="choose another --output, or give --overwrite")
    made = [one for one in planned if not one.left_out]
    print_header(
        "rd-export set",
        [
            ("student", source.name),
            ("device", profile.title),
            ("bundles", f"{len(made)}: {', '.join(one.name for one in made)}"),
            ("left out", ", ".join(one.name for one in planned if one.left_out)),
            ("output", args.output),
        ],
    )
    outcomes = [_made(one, args, requested, export) for one in planned]
    write_comparison(args.output, profile, source, outcomes, threads=args.threads)
    for outcome in outcomes:
        print(f"{outcome.planned.name}: {outcome.status}{': ' if outcome.reason else ''}{outcome.reason}")
    print(f"{args.output / INDEX}")
    return exit_status(outcomes)


def exit_status(outcomes: Sequence[BundleOutcome]) -> int:
    """2 where one was refused or none was made, 5 where one is deferred, else 0."""
    statuses = {outcome.status for outcome in outcomes}
    if "refused" in statuses or not statuses & {"built", "deferred"}:
        return EXIT_USAGE
    return EXIT_DEFERRED if "deferred" in statuses else 0


def write_comparison(
    folder: Path, profile: DeviceProfile, source: Source, outcomes: Sequence[BundleOutcome], *, threads: int
) -> None:
    """``comparison.json`` and ``index.html``. Raises RdError where the disk is full."""
    rows = [row(outcome, device_rates(profile, outcome, threads=threads)) for outcome in outcomes]
    table = comparison(profile, describe_source(source), rows)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(table, indent=1, ensure_ascii=False, allow_nan=False)
        (folder / COMPARISON).write_text(text + "\n", encoding="utf-8")
        (folder / INDEX).write_text(set_page(table), encoding="utf-8")
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise RdError(
            f"{folder}: the comparison could not be written ({error.strerror})", hint="free some disk space"
        ) from error


def _made(
    planned: Planned, args: argparse.Namespace, requested: RequestedQuantisation, export: Export
) -> BundleOutcome:
    """Make one bundle; whatever goes wrong in it is its own, the others are made all the same."""
    if planned.left_out:
        return BundleOutcome(planned, "left out", planned.left_out)
    print(f"== {planned.name} ==", file=sys.stderr, flush=True)
    try:
        manifest = export(export_parser().parse_args(_command(planned, args, requested)))
    except RdError as error:
        print(f"error: {error}", file=sys.stderr)
        return BundleOutcome(planned, "refused", str(error).replace("\n\nhint: ", "; "))
    except Exception as error:  # a vendor's tool that fails in its own way
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        return BundleOutcome(planned, "refused", f"{type(error).__name__}: {error}")
    why = str((manifest.device or {}).get("deferred", "")) if manifest.status == "deferred" else ""
    return BundleOutcome(planned, manifest.status, why, manifest)


def _command(planned: Planned, args: argparse.Namespace, requested: RequestedQuantisation) -> list[str]:
    """The words of this one export."""
    words = [str(args.checkpoint), "--target", planned.target, "--mode", planned.mode]
    words += [*requested.words(planned), "--output", str(args.output / planned.name)]
    for name in PASSED:
        value = getattr(args, name.replace("-", "_"))
        if value is not None and (planned.mode != "offline" or name not in ("chunk", "left")):
            words += [f"--{name}", str(value)]
    words += ["--accept-narrow-calibration"] if args.accept_narrow_calibration else []
    return words + (["--overwrite"] if args.overwrite else [])


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())
