"""A rehearsal for people: a page, a few lines for the terminal, and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from reuse_distill.devices.judging.baselines import series_of
from reuse_distill.devices.judging.judge import FloatArray
from reuse_distill.devices.rehearsal.differences import KernelDifference, OutputDifference
from reuse_distill.devices.rehearsal.upgrade_verdict import NOTED, SAFE, UNMEASURED
from reuse_distill.report.drawing.plots import Line, line_plot
from reuse_distill.report.drawing.svg import AMBER, BLUE
from reuse_distill.report.page import Badge, Html, Tile, facts, figures, notes, page, section, table, tiles
from reuse_distill.report.plain_text import log_text
from reuse_distill.runtime.untrusted_input import to_dict

if TYPE_CHECKING:
    from reuse_distill.devices.measuring.measurement import Measurement
    from reuse_distill.devices.rehearsal.rehearse_command import Rehearsal

SCHEMA = 1
SHOWN_OPERATORS, SHOWN_NODES = 24, 40
COLOURS = {SAFE: "good", UNMEASURED: "open"}
MEANS = {
    "safe": "every aspect that was compared is the same or no worse",
    "slower": "the features are the same, the cost is higher",
    "different": "the features, the precision that is used or the placement changed",
    "broken": "the bundle does not load, does not run, or gives features outside its own bound",
    "unmeasured": "nothing wrong was found, and safe cannot be said",
}
SHOWN_TILES = ("features", "precision used", "latency p50", "peak memory")
IN_TABLE = ("software",)  # has a section of its own


def rehearsal_text(result: Rehearsal) -> str:
    """For a terminal."""
    lines = [f"{result.verdict}: {result.bundle} from {result.from_side} to {result.to_side}"]
    width = max(len(one.name) for one in result.aspects)
    for one in result.aspects:
        values = one.before if one.before == one.after else f"{one.before} -> {one.after}"
        lines.append(f"  {one.name:<{width}}  {one.verdict or '-':<10}  {values}")
        if one.reason and one.verdict != NOTED:
            lines.append(f"  {'':<{width}}  {'':<10}  {one.reason}")
    return "\n".join("  " * line.startswith("  ") + log_text(line.removeprefix("  ")) for line in lines) + "\n"


def rehearsal_json(result: Rehearsal) -> str:
    """Every figure; the sampled features are left out."""
    document = _finite({"schema": SCHEMA, **to_dict(result)})
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def rehearsal_page(result: Rehearsal) -> str:
    """The page. Everything that came from outside is escaped."""
    means = f"{result.verdict}: {MEANS[result.verdict]}"
    body = notes((means, *result.reasons), _kind(result.verdict)) + tiles(_tiles(result))
    body += section("What was compared", _aspects(result))
    if result.outputs:
        body += section("Features", _features(result.outputs), where="the same recordings through both")
    if result.latency is not None:
        body += section("Time", _time(result), where=f"{len(result.before)} pairs of runs, taken in turns")
    if result.kernels is not None and result.kernels.operators:
        body += section("Kernels", _kernels(result.kernels), where="as each engine ran the graph after optimising it")
    if result.before and result.after:
        body += section("Software and machine", _software(result.before[0], result.after[0]))
    return page(
        f"Upgrade rehearsal: {result.verdict}",
        heading="Upgrade rehearsal",
        badge=Badge(result.verdict, _kind(result.verdict)),
        about=_about(result),
        body=body,
    )


def _about(result: Rehearsal) -> str:
    text = f"{result.bundle} · {result.what} · from {result.from_side} to {result.to_side}"
    if not result.before or not result.after:
        return text
    when = result.before[0].taken_at[:16].replace("T", " ")
    one, other = result.before[0].context.packages, result.after[0].context.packages
    changed = [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]
    names = [f"{name} {one.get(name, 'absent')} → {other.get(name, 'absent')}" for name in changed]
    return f"{text} · {', '.join(names) or 'the same package versions'} · {when} UTC"


def _kind(verdict: str) -> str:
    return COLOURS.get(verdict, "bad")


def _tiles(result: Rehearsal) -> list[Tile]:
    made = []
    for one in result.aspects:
        if one.name not in SHOWN_TILES:
            continue
        kind = "over" if one.verdict not in (SAFE, UNMEASURED, NOTED) else "none" if one.verdict == UNMEASURED else ""
        value = _largest(result.outputs) if one.name == "features" else one.after
        before = "the largest difference" if one.name == "features" else f"before: {one.before}"
        made.append(Tile(one.name, value, before, kind))
    return made


def _largest(outputs: Sequence[OutputDifference]) -> str:
    if all(one.identical for one in outputs):
        return "identical"
    largest = max(one.relative for one in outputs)
    return "unusable" if math.isinf(largest) else f"{100 * largest:.3g} %"


def _aspects(result: Rehearsal) -> str:
    rows = []
    for one in result.aspects:
        if one.name in IN_TABLE:
            continue
        badge = Html(Badge(one.verdict, _kind(one.verdict)).html()) if one.verdict else "shown, not judged"
        rows.append((one.name, one.before, one.after, badge, one.reason))
    return table(("aspect", f"from {result.from_side}", f"to {result.to_side}", "verdict", "why"), rows)


def _features(outputs: Sequence[OutputDifference]) -> str:
    def text(value: float | None, form: str) -> str:
        return "unmeasured" if value is None or not math.isfinite(value) else format(value, form)

    rows = [
        (
            one.recording,
            one.output,
            str(one.frames),
            "yes" if one.identical else one.defect or "no",
            text(one.max_abs, ".3g"),
            text(one.mean_cosine, ".6f"),
            text(one.min_cosine, ".6f"),
            text(100 * one.relative, ".3g") + (" %" if math.isfinite(one.relative) else ""),
        )
        for one in outputs
    ]
    head = ("recording", "output", "frames compared", "same bits", "largest difference", "mean cosine", "worst frame")
    return table((*head, "difference, relative"), rows, numeric=(2, 4, 5, 6, 7))


def _time(result: Rehearsal) -> str:
    sides = ((result.from_side, result.before, BLUE), (result.to_side, result.after, AMBER))
    medians = [
        Line(name, tuple((float(i), float(np.median(series_of(run)))) for i, run in enumerate(runs, 1)), colour, True)
        for name, runs, colour in sides
    ]
    ranks = np.linspace(0.01, 0.99, 99)
    curves = [
        Line(name, tuple(zip(100 * ranks, np.quantile(_all(runs), ranks), strict=True)), colour)
        for name, runs, colour in sides
    ]
    ticks = [float(i) for i in range(1, len(result.before) + 1)]
    by_pair = line_plot(medians, x_title="pair", y_title="median latency, ms", x_ticks=ticks)
    by_rank = line_plot(curves, x_title="per cent of the chunks at or below", y_title="latency, ms", log=True)
    return figures([("Median of each run", by_pair), ("All chunks", by_rank)]) + f"<p>{result.latency}</p>"


def _all(runs: Sequence[Measurement]) -> FloatArray:
    return np.concatenate([series_of(run) for run in runs])


def _kernels(kernels: KernelDifference) -> str:
    timed = any(one.us_from or one.us_to for one in kernels.operators)

    def us(value: float) -> str:
        return f"{value:.0f}" if timed else "unmeasured"

    rows = [
        (one.operator, one.precision, str(one.count_from), str(one.count_to), us(one.us_from), us(one.us_to))
        for one in kernels.operators
    ]
    changed = sum(one.count_from != one.count_to for one in kernels.operators)
    head = ("operator", "precision", "nodes from", "nodes to", "µs a step from", "µs a step to")
    operators = table(head, rows[:SHOWN_OPERATORS], numeric=(2, 3, 4, 5))
    rest = f"<p>{len(rows) - SHOWN_OPERATORS} more operators</p>" if len(rows) > SHOWN_OPERATORS else ""
    text = f"<p>{changed} of {len(rows)} operators have another number of nodes</p>"
    moved = notes(kernels.moved[:SHOWN_NODES])
    more = len(kernels.moved) - SHOWN_NODES
    return text + operators + rest + moved + (f"<p>and {more} more nodes</p>" if more > 0 else "")


def _software(before: Measurement, after: Measurement) -> str:
    one, other = before.context, after.context
    rows = [
        (title, getattr(one, name), getattr(other, name))
        for title, name in (("Python", "python"), ("system", "system"), ("kernel", "kernel"), ("machine", "machine"))
    ]
    rows += [
        (name, one.packages.get(name, "absent"), other.packages.get(name, "absent"))
        for name in sorted({*one.packages, *other.packages} - {"reuse-distill"})
    ]
    rows.append(("processor", one.processor, other.processor))
    return facts([(name, was if was == now else f"{was} → {now}") for name, was, now in rows])
