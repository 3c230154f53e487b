"""The HTML report: one self-contained file, verdicts first, then per device its numbers, plots and context."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from devices import svg
from devices.baselines import series_of
from devices.judge import Comparison
from devices.report_markdown import headline, notes_of
from devices.report_style import STYLE
from devices.results import METRICS, Measurement
from devices.units import show
from devices.verdicts import Outcome

COLOURS = {
    "pass": "good",
    "over budget": "bad",
    "regressed": "bad",
    "unmeasured": "open",
    "unreachable": "open",
}
TILES = ("p50", "p99", "max", "deadline_misses", "rtf", "first_frame", "peak_memory", "load")


def report_html(outcomes: Sequence[Outcome]) -> str:
    """The page. Everything that came from outside is escaped."""
    verdict = headline(outcomes)
    judged = verdict in COLOURS
    measured = next((outcome.measurement for outcome in outcomes if outcome.measurement), None)
    about = _about(measured) if measured else "nothing was measured"
    body = "".join(_section(outcome) for outcome in outcomes)
    badge = _badge(verdict) if judged else _badge("not judged")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>Latency: {escape(verdict)}</title><style>{STYLE}</style></head>"
        f"<body><main><header><h1>Latency report</h1>{badge}<p>{about}</p></header>{body}</main></body></html>\n"
    )


def _badge(verdict: str) -> str:
    return f'<span class="badge {COLOURS.get(verdict, "open")}">{escape(verdict)}</span>'


def _about(measured: Measurement) -> str:
    bundle = measured.bundle
    artifact = f"artifact {bundle.artifact_sha256[:10]}"
    what = f"{bundle.name} · {bundle.kind} {bundle.precision} ({bundle.target}) · {artifact}"
    return escape(
        f"{what} · {measured.request.label} · {measured.taken_at.replace('T', ' ').removesuffix('+00:00')} UTC"
    )


def _section(outcome: Outcome) -> str:
    where, measured = outcome.address or "this machine", outcome.measurement
    if measured is None:
        return f"<section>{_top(outcome.device, _badge(outcome.verdict), where)}{_notes(outcome)}</section>"
    context = measured.context
    judged = bool(outcome.checks) or outcome.comparison is not None
    machine = context.machine if context.machine != "unmeasured" else context.processor
    top = _top(
        outcome.device,
        _badge(outcome.verdict if judged else "not judged"),
        f"{where} · {machine} · {context.cores} cores · {context.system}",
    )
    parts = (top, _notes(outcome), _tiles(outcome), _plots(outcome, measured), _tables(outcome, measured))
    return f"<section>{''.join(parts)}</section>"


def _top(name: str, badge: str, where: str) -> str:
    return f'<div class="top"><h2>{escape(name)}</h2>{badge}<span class="where">{escape(where)}</span></div>'


def _notes(outcome: Outcome) -> str:
    notes = notes_of(outcome)
    if not notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    kind = "notes bad" if COLOURS[outcome.verdict] == "bad" else "notes"
    return f'<ul class="{kind}">{items}</ul>'


def _tiles(outcome: Outcome) -> str:
    checks = {check.metric: check for check in outcome.checks}
    metrics = outcome.measurement.metrics if outcome.measurement else {}
    tiles = []
    for name in TILES:
        metric, check, value = METRICS[name], checks.get(name), metrics.get(name)
        limit = f"limit {show(check.limit, metric.dimension)}" if check else "no limit"
        kind = "none" if value is None else "over" if check and check.verdict == "over budget" else ""
        title = metric.title.removeprefix("latency ")
        number = f"<small>{title}</small><b>{show(value, metric.dimension)}</b><small>{limit}</small>"
        tiles.append(f'<div class="tile {kind}">{number}</div>')
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _plots(outcome: Outcome, measured: Measurement) -> str:
    latency = series_of(measured)
    at_s = np.sort(np.concatenate([np.asarray(one.at_s) for one in measured.samples]))
    names = [(name, svg.INK) for name in ("p50", "p99") if measured.metrics.get(name) is not None]
    marks = [(name, float(measured.metrics[name] or 0), colour) for name, colour in names]
    marks += [
        (f"limit {c.metric}", c.limit, svg.RED)
        for c in outcome.checks
        if c.metric in ("p50", "p90", "p99", "p999", "max")
    ]
    shape = outcome.shape.name if outcome.shape else ""
    clocks = [(r.time_s, r.clock_hz) for r in measured.readings if r.clock_hz is not None]
    told = f"{'' if clocks else ', clocks unmeasured'}, throttling {measured.throttling}"
    figures = [
        ("How often", svg.histogram(latency, marks)),
        (
            f"Over time: {shape}{told}",
            svg.timeline(
                at_s, latency, deadline_ms=measured.period_ms, clocks=clocks, hot=shape == "throttled"
            ),
        ),
    ]
    return _pair(*figures)


def _tables(outcome: Outcome, measured: Measurement) -> str:
    context, numbers = _rows(_context(measured)), _rows(_numbers(measured))
    if outcome.comparison is None:
        return _pair(("Other numbers", numbers), ("Context", context))
    against = _history(outcome, outcome.comparison, measured)
    more = f"<details><summary>other numbers</summary>{numbers}</details>"
    return _pair(("Against the baseline", against), ("Context", context)) + more


def _pair(*figures: tuple[str, str]) -> str:
    parts = [f"<figure><figcaption>{escape(title)}</figcaption>{body}</figure>" for title, body in figures]
    return f'<div class="plots">{"".join(parts)}</div>'


def _history(outcome: Outcome, comparison: Comparison, measured: Measurement) -> str:
    low, middle, high = np.quantile(series_of(measured), [0.1, 0.5, 0.9])
    points = [
        (run.taken_at[5:16].replace("T", " "), run.p10_ms, run.p50_ms, run.p90_ms) for run in outcome.history
    ]
    points.append(("this run", float(low), float(middle), float(high)))
    plot = svg.history(points, judged=comparison.verdict) if outcome.history else ""
    return plot + f"<p>{escape(comparison.verdict)}: {escape(comparison.reason)}</p>"


def _numbers(measured: Measurement) -> list[tuple[str, str]]:
    rows = [
        (metric.title, show(measured.metrics.get(name), metric.dimension))
        for name, metric in METRICS.items()
        if name not in TILES
    ]
    cost = measured.overhead
    per_chunk = f"{show(cost.per_chunk_p50_ms, 'time')} a chunk (p99 {show(cost.per_chunk_p99_ms, 'time')})"
    return [
        *rows,
        (
            "measuring itself",
            f"{per_chunk}, {show(cost.sensor_reading_ms, 'time')} a sensor reading each second",
        ),
    ]


def _context(measured: Measurement) -> list[tuple[str, str]]:
    where, chunks = measured.context, sum(len(one.at_s) for one in measured.samples)
    return [
        ("samples", f"{chunks} chunks of {measured.period_ms:.0f} ms, raw in the JSON report"),
        (
            "latency of the geometry",
            f"{measured.bundle.worst_latency_ms:.0f} ms for the oldest frame of a chunk, before computing",
        ),
        ("processor", f"{where.processor}, {where.architecture}, virtualised: {where.virtualised}"),
        ("software", where.software),
        ("kernel", where.kernel),
        ("governor, power mode", f"{measured.settings['governor']}, {measured.settings['power_mode']}"),
        ("load before the run", "unmeasured" if where.load_before is None else f"{where.load_before:.2f}"),
        ("energy from", measured.energy_source),
    ]


def _rows(rows: Sequence[tuple[str, str]]) -> str:
    return (
        "<table>"
        + "".join(f"<tr><td>{escape(a)}</td><td>{escape(b)}</td></tr>" for a, b in rows)
        + "</table>"
    )
