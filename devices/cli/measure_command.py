"""``rd-latency BUNDLE``: measure a bundle on devices, judge it by a budget and a baseline, write reports."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from reuse_distill.devices.cli.device_runs import Report, Standards, run_devices, stability_of
from reuse_distill.devices.cli.latency_options import Options
from reuse_distill.devices.cli.latency_page import report_html
from reuse_distill.devices.cli.latency_reports import console, junit_xml, markdown, results_json
from reuse_distill.devices.judging import baselines as store
from reuse_distill.devices.judging.budgets import read_budget
from reuse_distill.devices.judging.judge import Sensitivity
from reuse_distill.devices.judging.verdicts import UNMEASURED, DeviceOutcome, exit_status
from reuse_distill.devices.measuring.measurement import Request
from reuse_distill.devices.transports.fleet import devices, read_fleet
from reuse_distill.report.plain_text import log_text
from reuse_distill.runtime.cli.progress import on_terminal, print_header
from reuse_distill.runtime.errors import RdError


def measure_command(options: Options) -> int:
    """Measure, judge, report."""
    fleet = read_fleet(options.fleet) if options.fleet else {}
    chosen = devices(options.devices, hosts=options.hosts, fleet=fleet, access=options.access)
    standards = Standards(
        budget=read_budget(options.budget) if options.budget else None,
        baselines=store.read_baselines(options.baseline) if options.baseline else None,
        baseline_path=options.baseline or Path(),
        sensitivity=Sensitivity(detect=options.detect, accepted=options.accepted),
        runs=options.runs,
        print_visible=options.print_visible,
    )
    _check_writable(options)
    if on_terminal():
        names = ", ".join(options.devices)
        print_header("rd-latency", [("bundle", options.bundle), ("on", names), ("workload", options.request.label)])
    show = _progress(many=len(chosen) > 1)
    outcomes = run_devices(options.bundle, chosen, _long_enough(options.request, standards), standards, report=show)
    if sys.stderr.isatty():
        print(" " * 100, end="\r", file=sys.stderr)
    _write_reports(options, outcomes)
    sys.stdout.write(console(outcomes))
    unsaved = _save_baselines(options, outcomes)
    return exit_status([*(outcome.verdict for outcome in outcomes), *([UNMEASURED] if unsaved else [])])


def _long_enough(request: Request, standards: Standards) -> Request:
    """A limit on p99 lengthens a run whose length nobody named until p99 is measured."""
    named = request.seconds or request.soak_s or request.enough
    limited = standards.budget is not None and any("p99" in entry.limits for entry in standards.budget.entries)
    return replace(request, enough="p99") if limited and not named else request


def _progress(*, many: bool) -> Report:
    end = "\r" if sys.stderr.isatty() and not many else "\n"

    def show(device: str, line: str) -> None:
        print(log_text(f"{device}: {line}").ljust(100 if end == "\r" else 0), end=end, file=sys.stderr, flush=True)

    return show


def _check_writable(options: Options) -> None:
    """A report that cannot be written is a mistake in the call, found before the device is busy for minutes."""
    for path in (options.json, options.junit, options.markdown, options.report, options.save_baseline):
        if path is not None and path.is_dir():
            raise RdError(f"{path}: is a folder, a file is to be written there")


def _write_reports(options: Options, outcomes: Sequence[DeviceOutcome]) -> None:
    for path, make in (
        (options.json, results_json),
        (options.junit, junit_xml),
        (options.markdown, markdown),
        (options.report, report_html),
    ):
        if path is not None:
            store.write_text(path, make(outcomes))


def _save_baselines(options: Options, outcomes: Sequence[DeviceOutcome]) -> bool:
    """Add every measured run to the baseline file; True where one that was requested could not be kept."""
    if options.save_baseline is None:
        return False
    path, refused = options.save_baseline, False
    kept = store.read_baselines(path) if path.is_file() else store.Baselines()
    for outcome in outcomes:
        if outcome.measurement is None or outcome.stability is None:
            refused = True
            continue
        for run in outcome.repeats or (outcome.measurement,):
            try:
                stability, accepted = stability_of(run), options.accepted
                kept = store.added(kept, run, device=outcome.device, stability=stability, accepted=accepted)
            except RdError as error:
                refused = True
                print(f"warning: {error}", file=sys.stderr)
    store.write_baselines(path, kept)
    return refused
