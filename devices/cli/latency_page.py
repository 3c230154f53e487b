"""The HTML report: one self-contained file, verdicts first, then per device its numbers, plots and context."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from reuse_distill.devices.cli.latency_reports import headline, notes_of
from reuse_distill.devices.judging.baselines import series_of, start_temperature
from reuse_distill.devices.judging.judge import Comparison
from reuse_distill.devices.judging.thermal import soak_of
from reuse_distill.devices.judging.verdicts import DeviceOutcome
from reuse_distill.devices.measuring.measurement import METRICS, UTTERANCES, Measurement
from reuse_distill.report.drawing.plots import Line, Mark, histogram, line_plot, run_history, timeline
from reuse_distill.report.drawing.svg import AMBER, INK, RED
from reuse_distill.report.page import Badge, Tile, facts, figures, notes, page, section, tiles
from reuse_distill.report.quantities import quantity

COLOURS = {
    "pass": "good",
    "over budget": "bad",
    "regressed": "bad",
    "unmeasured": "open",
    "unreachable": "open",
}
NOT_JUDGED = Badge("not judged")
TILES = ("p50", "p99", "max", "deadline_misses", "rtf", "first_frame", "peak_memory", "load")
OF_UTTERANCES = ("p90_2s", "rtf_2s", "p90_10s", "rtf_10s")  # of offline bundles only
LATENCIES = ("p50", "p90", "p99", "p999", "max")


def report_html(outcomes: Sequence[DeviceOutcome]) -> str:
    """The page. Everything that came from outside is escaped."""
    verdict = headline(outcomes)
    measured = next((outcome.measurement for outcome in outcomes if outcome.measurement), None)
    return page(
        f"Latency: {verdict}",
        heading="Latency report",
        badge=Badge(verdict, COLOURS[verdict]) if verdict in COLOURS else NOT_JUDGED,
        about=_about(measured) if measured else "nothing was measured",
        body="".join(_section(outcome) for outcome in outcomes),
    )


def _about(measured: Measurement) -> str:
    bundle, when = measured.bundle, measured.taken_at.replace("T", " ").removesuffix("+00:00")
    what = f"{bundle.name} · {bundle.kind} {bundle.precision} ({bundle.target})"
    return f"{what} · artifact {bundle.artifact_sha256[:10]} · {measured.request.label} · {when} UTC"


def _section(outcome: DeviceOutcome) -> str:
    where, measured = outcome.address or "this machine", outcome.measurement
    badge = Badge(outcome.verdict, COLOURS[outcome.verdict])
    noted = notes(notes_of(outcome), "bad" if badge.kind == "bad" else "open")
    if measured is None:
        return section(outcome.device, noted, badge=badge, where=where)
    context = measured.context
    machine = context.machine if context.machine != "unmeasured" else context.processor
    return section(
        outcome.device,
        noted + _tiles(outcome, measured) + _plots(outcome, measured) + _soak(measured) + _tables(outcome, measured),
        badge=badge if outcome.checks or outcome.comparison else NOT_JUDGED,
        where=f"{where} · {machine} · {context.cores} cores · {context.system}",
    )


def _tiles(outcome: DeviceOutcome, measured: Measurement) -> str:
    checks = {check.metric: check for check in outcome.checks}
    items = []
    for name in TILES:
        metric, check, value = METRICS[name], checks.get(name), measured.metrics.get(name)
        limit = f"limit {quantity(check.limit, metric.dimension)}" if check else "no limit"
        kind = "none" if value is None else "over" if check and check.verdict == "over budget" else ""
        items.append(Tile(metric.title.removeprefix("latency "), quantity(value, metric.dimension), limit, kind))
    return tiles(items)


def _plots(outcome: DeviceOutcome, measured: Measurement) -> str:
    latency = series_of(measured)
    at_s = np.sort(np.concatenate([np.asarray(one.at_s) for one in measured.samples]))
    stability = outcome.stability.name if outcome.stability else "unmeasured"
    clocks = [(r.time_s, r.clock_hz) for r in measured.readings if r.clock_hz is not None]
    remarks = f"{'' if clocks else ', clocks unmeasured'}, throttling {measured.throttling}"
    over_time = timeline(at_s, latency, deadline_ms=measured.period_ms, clocks=clocks, hot=stability == "throttled")
    often = histogram(latency, _marks(outcome, measured))
    return figures([("How often", often), (f"Over time: {stability}{remarks}", over_time)])


def _soak(measured: Measurement) -> str:
    """Temperature and clocks of a long run; nothing for another one."""
    soak = soak_of(measured)
    if soak is None:
        return ""
    heat = [(one.time_s / 60, one.temperature_c) for one in measured.readings if one.temperature_c is not None]
    plots = [("Soak", facts(soak.lines()))]
    if len(heat) > 1:
        line = Line("temperature", tuple(heat), AMBER)
        plots.append(("Temperature", line_plot([line], x_title="minutes", y_title="hottest zone, °C")))
    return figures(plots)


def _marks(outcome: DeviceOutcome, measured: Measurement) -> list[Mark]:
    """p50, p99 and the limits on latencies."""
    percentiles = [(name, measured.metrics.get(name)) for name in ("p50", "p99")]
    marks = [Mark(name, value, INK) for name, value in percentiles if value is not None]
    limits = [check for check in outcome.checks if check.metric in LATENCIES]
    return [*marks, *(Mark(f"limit {check.metric}", check.limit, RED) for check in limits)]


def _tables(outcome: DeviceOutcome, measured: Measurement) -> str:
    context, numbers = facts(_context(measured)), facts(_numbers(measured))
    if outcome.comparison is None:
        return figures([("Other numbers", numbers), ("Context", context)])
    against = _history(outcome, outcome.comparison, measured)
    more = f"<details><summary>other numbers</summary>{numbers}</details>"
    return figures([("Against the baseline", against), ("Context", context)]) + more


def _history(outcome: DeviceOutcome, comparison: Comparison, measured: Measurement) -> str:
    verdict = f"<p>{escape(comparison.verdict)}: {escape(comparison.reason)}</p>"
    if not outcome.history:
        return verdict
    low, middle, high = np.quantile(series_of(measured), [0.1, 0.5, 0.9])
    points = [(run.taken_at[5:16].replace("T", " "), run.p10_ms, run.p50_ms, run.p90_ms) for run in outcome.history]
    points.append(("this run", float(low), float(middle), float(high)))
    return run_history(points, judged=comparison.verdict) + verdict


def _numbers(measured: Measurement) -> list[tuple[str, str]]:
    hidden = (*TILES, *(() if measured.request.mode == UTTERANCES else OF_UTTERANCES))
    others = [(name, metric) for name, metric in METRICS.items() if name not in hidden]
    rows = [(metric.title, quantity(measured.metrics.get(name), metric.dimension)) for name, metric in others]
    cost = measured.overhead
    per_chunk = f"{quantity(cost.per_chunk_p50_ms, 'time')} a chunk (p99 {quantity(cost.per_chunk_p99_ms, 'time')})"
    reading = f"{quantity(cost.sensor_reading_ms, 'time')} a sensor reading each second"
    return [*rows, ("measuring itself", f"{per_chunk}, {reading}")]


def _context(measured: Measurement) -> list[tuple[str, str]]:
    where, chunks = measured.context, sum(len(one.at_s) for one in measured.samples)
    geometry = f"{measured.bundle.worst_latency_ms:.0f} ms for the oldest frame of a chunk, before computing"
    load = "unmeasured" if where.load_before is None else f"{where.load_before:.2f}"
    return [
        ("samples", f"{chunks} chunks of {measured.period_ms:.0f} ms, raw in the JSON report"),
        ("self-test on the device", str(measured.details.get("selftest", "unmeasured"))),
        ("latency of the geometry", geometry),
        ("processor", f"{where.processor}, {where.architecture}, virtualised: {where.virtualised}"),
        ("software", where.software),
        ("kernel", where.kernel),
        ("governor, power mode", f"{measured.settings['governor']}, {measured.settings['power_mode']}"),
        ("clocks", measured.settings.get("clocks", "unmeasured")),
        ("temperature at the start", quantity(start_temperature(measured), "temperature")),
        ("load before the run", load),
        ("energy from", measured.energy_source),
    ]
