"""One call: several devices side by side, each measured, judged and never hidden by another one's failure."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event

import numpy as np
from reuse_distill.devices.judging.baselines import (
    BUSY,
    TEMPERATURE,
    BaselineEntry,
    Baselines,
    baseline_for,
    check_owner,
    key_of,
    reference_of,
    series_of,
    start_temperature,
    why_none,
)
from reuse_distill.devices.judging.budgets import Budget
from reuse_distill.devices.judging.judge import MIN_RUNS, Comparison, Sensitivity, compare, smallest_visible
from reuse_distill.devices.judging.series_stability import Stability, classify, falling_behind
from reuse_distill.devices.judging.thermal import judged_by_start
from reuse_distill.devices.judging.verdicts import UNMEASURED, UNREACHABLE, DeviceOutcome, EarlierRun, verdict_of
from reuse_distill.devices.measuring.measurement import Measurement, Request
from reuse_distill.devices.transports.fleet import Device
from reuse_distill.devices.transports.transport import NotMeasured, Unreachable
from reuse_distill.report.plain_text import one_line
from reuse_distill.runtime.bundle_format.bundle import read_bundle
from reuse_distill.runtime.bundle_format.manifest import Manifest
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import HOP_MS

Report = Callable[[str, str], None]  # device, line of progress
LONGEST_CHUNK_S = 1.0  # where the bundle leaves the chunk to the runtime


@dataclass(frozen=True)
class Standards:
    """What a run is judged by."""

    budget: Budget | None = None
    baselines: Baselines | None = None
    baseline_path: Path = Path()
    sensitivity: Sensitivity = field(default_factory=Sensitivity)
    runs: int = 1  # of the bundle, each in a process of its own
    print_visible: bool = False  # A/A: say what these runs could show


def check_bundle(manifest: Manifest, devices: Sequence[Device], *, bundle: Path) -> None:
    """Raise RdError where the bundle is not for one of the devices, before anything is measured."""
    if manifest.status != "built":
        raise RdError(
            f"{bundle}: this bundle is {manifest.status}",
            hint="finish it on the device first (see its report)",
        )
    for device in devices:
        if manifest.target not in device.profile.targets:
            runs = ", ".join(device.profile.targets)
            raise RdError(
                f"{bundle}: built for target {manifest.target!r}, {device.name} runs {runs}",
                hint=f"export it again: rd-export CHECKPOINT --target {device.profile.targets[0]}",
            )
        bound = (manifest.device or {}).get("profile")
        if bound is not None and bound != device.profile.name:
            raise RdError(f"{bundle}: built for {bound}, not for {device.name} ({device.profile.name})")


def run_devices(
    bundle: Path, devices: Sequence[Device], request: Request, standards: Standards, *, report: Report
) -> tuple[DeviceOutcome, ...]:
    """Measure all devices at once and judge each; Ctrl-C stops all, waits for their clean-up and is raised again."""
    manifest = read_bundle(bundle).manifest
    request = request.for_kind(manifest.kind)
    check_bundle(manifest, devices, bundle=bundle)
    _check_limits(manifest, devices, request, standards.budget)
    if standards.baselines is not None:
        check_owner(standards.baselines, [device.name for device in devices], path=standards.baseline_path)
    chunk_s = HOP_MS * manifest.geometry.chunk_frames / 1000 or LONGEST_CHUNK_S
    limit_s, cancel = request.longest_s(chunk_s), Event()

    def one(device: Device) -> DeviceOutcome:
        return _outcome(bundle, device, request, standards, limit_s=limit_s, report=report, cancel=cancel)

    with ThreadPoolExecutor(max_workers=len(devices)) as pool:
        futures = [pool.submit(one, device) for device in devices]
        try:
            while not all(future.done() for future in futures):
                time.sleep(0.1)  # a wait that a signal can interrupt on every platform
        except KeyboardInterrupt:
            cancel.set()
            raise
        return tuple(future.result() for future in futures)


def _check_limits(manifest: Manifest, devices: Sequence[Device], request: Request, budget: Budget | None) -> None:
    """A budget that says nothing about a device is a mistake in the call, found before the device is busy."""
    for device in devices if budget else ():
        facts = {"device": device.name, "kind": manifest.kind, "precision": manifest.precision}
        if budget and not budget.limits({**facts, "mode": request.mode, "streams": request.streams}):
            what = f"{device.name}, {manifest.kind}, {manifest.precision}, {request.mode}, {request.streams} stream(s)"
            raise RdError(
                f"{budget.path}: no limit applies to {what}",
                hint="add a [[budget]] for it, or limits at the top",
            )


def _outcome(
    bundle: Path,
    device: Device,
    request: Request,
    standards: Standards,
    *,
    limit_s: float,
    report: Report,
    cancel: Event,
) -> DeviceOutcome:
    began, address = time.monotonic(), device.transport.address
    try:
        repeats = []
        for number in range(1, standards.runs + 1):
            label = f"run {number} of {standards.runs}: " if standards.runs > 1 else ""
            progress = partial(_labelled, report, device.name, label)
            repeats.append(device.transport.measure(bundle, request, limit_s=limit_s, progress=progress, cancel=cancel))
        report(device.name, "measured")
        seconds = time.monotonic() - began
        return judged(repeats, device.name, standards, address=address, duration_s=seconds)
    except (Unreachable, NotMeasured) as error:
        verdict = UNREACHABLE if isinstance(error, Unreachable) else UNMEASURED
        hint = f" ({error.hint})" if error.hint else ""
        seconds = time.monotonic() - began
        return DeviceOutcome(device.name, address, verdict, (f"{error.message}{hint}",), duration_s=seconds)
    except Exception as error:  # one device's failure, whatever it is, is that device's verdict
        reason = f"its answer could not be judged: {type(error).__name__}: {one_line(str(error))[:200]}"
        return DeviceOutcome(device.name, address, UNMEASURED, (reason,), duration_s=time.monotonic() - began)


def _labelled(report: Report, device: str, label: str, line: str) -> None:
    report(device, label + line)


def judged(
    measured: Measurement | Sequence[Measurement],
    device: str,
    standards: Standards,
    *,
    address: str,
    duration_s: float,
) -> DeviceOutcome:
    """The outcome of one finished run or several; limits apply to the run with the middle median."""
    repeats = [measured] if isinstance(measured, Measurement) else list(measured)
    by_median = sorted(repeats, key=lambda one: float(np.median(series_of(one))))
    measurement = by_median[len(by_median) // 2]
    stability = next((s for one in repeats if not (s := stability_of(one)).comparable), stability_of(measurement))
    checks = standards.budget.check(measurement, device=device) if standards.budget else ()
    comparison, history = _against_baseline(repeats, device, standards, stability)
    verdict, reasons = verdict_of(checks, comparison)
    return DeviceOutcome(
        device,
        address,
        verdict,
        reasons,
        measurement,
        checks,
        comparison,
        stability,
        duration_s,
        history,
        repeats=tuple(repeats) if len(repeats) > 1 else (),
        notes=_visible(repeats) if standards.print_visible else (),
    )


def _visible(repeats: Sequence[Measurement]) -> tuple[str, ...]:
    """A/A: the smallest regression that these runs, kept as a baseline, could show."""
    if len(repeats) < MIN_RUNS:
        return (f"A/A: {len(repeats)} runs, {MIN_RUNS} are needed to know how much runs differ (--runs)",)
    runs = [series_of(one) for one in repeats]
    one, three = (smallest_visible(runs, candidate_runs=count) for count in (1, 3))
    return (
        f"A/A: {len(runs)} runs differ by {100 * one.spread:.2f} %; the smallest regression of the median that they "
        f"could show is {100 * one.visible:.1f} % for one run, {100 * three.visible:.1f} % for three",
    )


def stability_of(measurement: Measurement) -> Stability:
    """The stability of the computing itself; waiting in a growing queue has a name of its own."""
    latency, service = series_of(measurement), series_of(measurement, "service_ms")
    behind = falling_behind(latency, service, period_ms=measurement.period_ms)
    return behind or classify(service, readings=measurement.readings, throttling=measurement.throttling)


def _against_baseline(
    repeats: Sequence[Measurement], device: str, standards: Standards, stability: Stability
) -> tuple[Comparison | None, tuple[EarlierRun, ...]]:
    if standards.baselines is None:
        return None, ()
    key = key_of(repeats[0], device=device)
    try:
        entry = baseline_for(standards.baselines, key, path=standards.baseline_path)
    except RdError as error:  # refused, but this device's numbers and the other devices stay visible
        return Comparison(UNMEASURED, f"baseline refused: {error.message}", stability=stability), ()
    if entry is None:
        return Comparison(UNMEASURED, why_none(standards.baselines, key), stability=stability), ()
    runs = [np.asarray(run.latency_ms) for run in entry.runs]
    history = tuple(
        EarlierRun(run.taken_at, *(float(q) for q in np.quantile(latency, [0.1, 0.5, 0.9])))
        for run, latency in zip(entry.runs, runs, strict=True)
    )
    if BUSY not in standards.sensitivity.accepted and any(run.busy for run in entry.runs):
        reason = f"baseline refused: taken on a busy machine; --accept {BUSY} accepts it"
        return Comparison(UNMEASURED, reason, stability=stability), history
    made = [series_of(one) for one in repeats]
    slower = _reference_slowness(entry, repeats)
    comparison = compare(runs, made, stability=stability, sensitivity=standards.sensitivity, reference=slower)
    if TEMPERATURE not in standards.sensitivity.accepted:
        starts = [run.start_temperature_c for run in entry.runs]
        comparison = judged_by_start(comparison, starts, [start_temperature(one) for one in repeats])
    return comparison, history


def _reference_slowness(entry: BaselineEntry, repeats: Sequence[Measurement]) -> float | None:
    """How much slower the reference workload was beside these runs than beside the baseline's; None: unmeasured."""
    before = [run.reference_ms for run in entry.runs if run.reference_ms]
    now = [value for one in repeats if (value := reference_of(one))]
    return float(np.median(now) / np.median(before)) - 1 if before and now else None
