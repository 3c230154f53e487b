"""``rd-latency rehearse``: probe both sides, measure them in turns, judge, write the page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from reuse_distill.devices.judging.baselines import write_text
from reuse_distill.devices.judging.judge import Effect
from reuse_distill.devices.measuring.measurement import Measurement, Request
from reuse_distill.devices.rehearsal.differences import (
    KernelDifference,
    OutputDifference,
    kernel_difference,
    output_differences,
)
from reuse_distill.devices.rehearsal.probe import probe_from
from reuse_distill.devices.rehearsal.rehearse_options import MAX_PAIRS, MIN_PAIRS
from reuse_distill.devices.rehearsal.sides import Side, environment_folder, open_side
from reuse_distill.devices.rehearsal.upgrade_verdict import (
    BROKEN,
    EXIT,
    NOTED,
    UNMEASURED,
    Aspect,
    judge_cost,
    judge_probes,
    worst,
)
from reuse_distill.devices.transports.fleet import Access, read_fleet
from reuse_distill.devices.transports.ssh import SshSettings
from reuse_distill.devices.transports.transport import NotMeasured, Unreachable
from reuse_distill.report.plain_text import log_text
from reuse_distill.report.quantities import parse_quantity
from reuse_distill.runtime.bundle_format.bundle import read_bundle
from reuse_distill.runtime.cli.command_line import bundle_or_shipped
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import HOP_MS

EXIT_UNREACHABLE = 3
LONGEST_CHUNK_S = 1.0
Report = Callable[[str, str], None]


@dataclass(frozen=True)
class Rehearsal:
    """Everything that one rehearsal found."""

    bundle: str
    what: str  # kind, target, precision, sha256
    from_side: str
    to_side: str
    verdict: str
    aspects: tuple[Aspect, ...]
    outputs: tuple[OutputDifference, ...] = ()
    kernels: KernelDifference | None = None
    latency: Effect | None = None
    before: tuple[Measurement, ...] = ()
    after: tuple[Measurement, ...] = ()

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is not safe."""
        return tuple(f"{one.verdict}: {one.name}: {one.reason}" for one in self.aspects if one.verdict == self.verdict)


def rehearse_command(given: argparse.Namespace) -> int:
    """Rehearse, print the verdict, write the reports."""
    from reuse_distill.devices.rehearsal.rehearsal_page import rehearsal_json, rehearsal_page, rehearsal_text

    bundle = bundle_or_shipped(given.bundle)
    detect, tolerance = (
        parse_quantity(text, "share", where=f"--{name}")
        for name, text in (("detect", given.detect), ("tolerance", given.tolerance))
    )
    if not MIN_PAIRS <= given.runs <= MAX_PAIRS:
        raise RdError(f"--runs {given.runs}: expected {MIN_PAIRS} to {MAX_PAIRS} pairs")
    if not 0 < detect <= 1 or not 0 <= tolerance <= 1:
        raise RdError(f"--detect {given.detect}, --tolerance {given.tolerance}: expected up to 100%")
    for path in (given.report, given.json):
        if path is not None and path.is_dir():
            raise RdError(f"{path}: is a folder, a file is to be written there")
    request = Request(
        mode="paced" if given.paced else "back-to-back",
        seconds=given.seconds,
        threads=given.threads,
        provider=given.provider,
    )
    sides = _open_sides(given)
    try:
        result = rehearse(bundle, *sides, request, pairs=given.runs, detect=detect, tolerance=tolerance, report=_show)
    except Unreachable as error:
        print(f"unreachable: {error}", file=sys.stderr)
        return EXIT_UNREACHABLE
    sys.stdout.write(rehearsal_text(result))
    for path, make in ((given.report, rehearsal_page), (given.json, rehearsal_json)):
        if path is not None:
            write_text(path, make(result))
    return EXIT[result.verdict]


def _open_sides(given: argparse.Namespace) -> tuple[Side, Side]:
    fleet = read_fleet(given.fleet) if given.fleet else {}
    python = given.remote_python
    access = Access(SshSettings(given.identity, given.known_hosts, python or "python3"), adb_python=python)
    environments = given.environments or environment_folder()
    one, other = (
        open_side(text, fleet=fleet, access=access, environments=environments, progress=partial(_show, text))
        for text in (given.from_side, given.to_side)
    )
    return one, other


def _show(side: str, line: str) -> None:
    print(log_text(f"{side}: {line}"), file=sys.stderr, flush=True)


def rehearse(
    bundle: Path,
    one: Side,
    other: Side,
    request: Request,
    *,
    pairs: int,
    detect: float,
    tolerance: float,
    report: Report,
) -> Rehearsal:
    """Probe ``one`` and ``other`` and measure them in turns. Raises Unreachable where a device is not reached."""
    manifest = read_bundle(bundle).manifest
    if manifest.status != "built":
        raise RdError(f"{bundle}: this bundle is {manifest.status}", hint="finish it on the device first")
    request = request.for_kind(manifest.kind)
    sha = manifest.artifact_sha256
    empty = Rehearsal(
        bundle.resolve().name,
        f"{manifest.kind} {manifest.target} {manifest.precision}, artifact {sha[:10]}",
        one.name,
        other.name,
        UNMEASURED,
        (),
    )
    chunk_s = HOP_MS * manifest.geometry.chunk_frames / 1000 or LONGEST_CHUNK_S
    run = partial(_run, bundle, limit_s=request.longest_s(chunk_s) + 300, report=report)
    probing = replace(request, probe=True)
    try:
        before = [run(one, probing, label="probe and run 1")]
        probe = probe_from(before[0].details, where=one.name)
    except Unreachable:
        raise
    except RdError as error:
        aspect = Aspect(
            "file accepted", "no", UNMEASURED, UNMEASURED, f"not before the upgrade either: {_with_hint(error)}"
        )
        return replace(empty, aspects=(aspect,))
    try:
        after = [run(other, probing, label="probe and run 1")]
    except NotMeasured as error:
        aspect = Aspect("file accepted", "yes", "no", BROKEN, _with_hint(error))
        return replace(empty, verdict=BROKEN, aspects=(aspect,), before=tuple(before))
    try:
        theirs = probe_from(after[0].details, where=other.name)
        outputs, kernels = output_differences(probe, theirs), kernel_difference(probe.nodes, theirs.nodes)
    except RdError as error:  # an answer that is none: nothing is known of the bundle
        aspect = Aspect("answer", "usable", "not usable", UNMEASURED, _with_hint(error))
        return replace(empty, aspects=(aspect,))
    aspects = judge_probes(probe, theirs, outputs, kernels, tolerance=tolerance)
    cost, effect = _cost(run, (one, other), request, (before, after), pairs=pairs, detect=detect)
    aspects = [*aspects, *cost, _software(before[0], after[0])]
    return replace(
        empty,
        verdict=worst(aspects),
        aspects=tuple(aspects),
        outputs=outputs,
        kernels=kernels,
        latency=effect,
        before=tuple(_without_arrays(one) for one in before),
        after=tuple(_without_arrays(one) for one in after),
    )


def _run(bundle: Path, side: Side, request: Request, *, label: str, limit_s: float, report: Report) -> Measurement:
    report(side.name, label)
    return side.transport.measure(bundle, request, limit_s=limit_s, progress=lambda line: None, cancel=Event())


def _cost(
    run: Callable[..., Measurement],
    sides: tuple[Side, Side],
    request: Request,
    runs: tuple[list[Measurement], list[Measurement]],
    *,
    pairs: int,
    detect: float,
) -> tuple[list[Aspect], Effect | None]:
    """The other pairs, in turns; a side that fails on the way is broken (to) or unmeasured (from)."""
    for number in range(2, pairs + 1):
        order = (1, 0) if number % 2 == 0 else (0, 1)  # what drifts meets both sides alike
        for index in order:
            try:
                runs[index].append(run(sides[index], request, label=f"run {number} of {pairs}"))
            except NotMeasured as error:
                verdict = BROKEN if index else UNMEASURED
                return [Aspect("run after run", "", "", verdict, f"{sides[index].name}: {_with_hint(error)}")], None
    return judge_cost(*runs, detect=detect)


def _software(before: Measurement, after: Measurement) -> Aspect:
    target = before.bundle.target
    return Aspect("software", before.context.software_for(target), after.context.software_for(target), NOTED)


def _without_arrays(measurement: Measurement) -> Measurement:
    """The measurement without the sampled features, which are compared already."""
    details: dict[str, Any] = dict(measurement.details)
    if "probe" in details:
        details["probe"] = {**details["probe"], "results": []}
    return replace(measurement, details=details)


def _with_hint(error: RdError) -> str:
    return f"{error.message}{f' ({error.hint})' if error.hint else ''}"
