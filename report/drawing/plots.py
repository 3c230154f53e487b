"""The plots of every page: lines over a common axis, histograms, a run over time, runs side by side, bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from reuse_distill.report.drawing.svg import (
    AMBER,
    BLUE,
    BOTTOM,
    CHARACTER_PX,
    GREY,
    HEIGHT,
    RED,
    RIGHT,
    ROW_PX,
    WIDTH,
    Axis,
    Name,
    bar,
    dot,
    drawing,
    empty_plot,
    line,
    number,
    path,
    text,
)

FloatArray = npt.NDArray[np.float64]
DECADE = 10.0  # least span of a logarithmic axis
BINS = 72


@dataclass(frozen=True)
class Line:
    """Points (x, y) under one label; an empty label stays out of the legend. ``markers`` draws every point; ``faint``
    steps back behind the others."""

    label: str
    points: tuple[tuple[float, float], ...]
    colour: str
    markers: bool = False
    faint: bool = False
    dash: str = ""


@dataclass(frozen=True)
class Mark:
    """A line at one value, such as a bound."""

    label: str
    at: float
    colour: str


def line_plot(
    lines: Sequence[Line],
    *,
    x_title: str,
    y_title: str,
    log: bool = False,
    floor: float | None = None,
    from_zero: bool = False,
    marks: Sequence[Mark] = (),
    x_ticks: Sequence[float] | None = None,
) -> str:
    """The lines with a legend. ``floor``: smallest value shown on a logarithmic axis, lower ones sit on it. The legend
    is left out for one line that has nothing to be distinguished from."""
    xs = [x for one in lines for x, _ in one.points]
    ys = [y for one in lines for _, y in one.points if math.isfinite(y)] + [mark.at for mark in marks]
    low, high = _y_range(ys or [0.0], log=log, floor=floor)
    pad = 0.04 * (max(xs) - min(xs)) if x_ticks is not None else 0.0
    named = [one for one in lines if one.label]
    plot = empty_plot(
        (min(xs) - pad, max(xs) + pad or 1.0),
        (0.0 if from_zero else low, high),
        x_title=x_title,
        y_title=y_title,
        y_log=log,
        names=[Name(one.label, one.colour, one.dash) for one in named] if len(named) > 1 else (),
        x_ticks=None if x_ticks is None else [(tick, number(tick)) for tick in x_ticks],
    )
    parts = [*plot.parts, *_level_marks(marks, plot.x, plot.y)]
    for one in lines:
        parts += _drawn(one, plot.x, plot.y)
    return drawing(parts, f"{y_title} over {x_title}")


def _y_range(ys: Sequence[float], *, log: bool, floor: float | None) -> tuple[float, float]:
    low, high = min(ys), max(ys)
    if log:
        least = floor or 1e-9
        low, high = max(low, least) / 1.4, max(high, least) * 1.4
        widen = max(1.0, (DECADE / (high / low)) ** 0.5)  # a flat line is shown flat, not blown up
        return low / widen, high * widen
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _drawn(one: Line, x: Axis, y: Axis) -> list[str]:
    points = [(x.at(px), y.at(py)) for px, py in one.points if math.isfinite(py)]
    if not points:
        return []
    drawn = path(points, one.colour, 1.2 if one.faint else 1.9, dash=one.dash)
    parts = [f'<g opacity="0.35">{drawn}</g>' if one.faint else drawn]
    return parts + ([dot(px, py, one.colour) for px, py in points] if one.markers else [])


def _level_marks(marks: Sequence[Mark], x: Axis, y: Axis) -> list[str]:
    """Dashed lines across the plot, each label above its line or, at the upper edge, below it."""
    parts = []
    for mark in marks:
        at = y.at(mark.at)
        parts.append(line(x.start, at, x.end, at, mark.colour, dash="4 3"))
        below = at - 5 < y.end + 8
        parts.append(text(x.end, at + 14 if below else at - 5, mark.label, anchor="end", colour=mark.colour))
    return parts


def _range_of(values: FloatArray, extra: Sequence[float] = ()) -> tuple[float, float]:
    low, high = float(values.min()), max(float(values.max()), *extra, 0.0)
    return max(low * 0.92, 1e-6), max(high * 1.08, 2e-6)


def histogram(latency_ms: FloatArray, marks: Sequence[Mark], *, what: str = "chunk") -> str:
    """How often each latency (ms) occurred, on a logarithmic axis, with vertical lines at ``marks``."""
    low, high = _range_of(latency_ms, [mark.at for mark in marks])
    edges = np.geomspace(low, high, BINS + 1)
    counts, _ = np.histogram(latency_ms, edges)
    rows = _mark_rows(marks, Axis(low, high, 40, WIDTH - RIGHT, log=True))
    plot = empty_plot(
        (low, high),
        (0.0, float(counts.max()) * 1.05 or 1.0),
        x_title=f"latency of a {what}, ms",
        y_title=f"{what}s",
        x_log=True,
        room_above=ROW_PX * (max(rows.values(), default=-1) + 1),
    )
    parts = [*plot.parts]
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            at, height = plot.x.at(left), max(1.5, HEIGHT - BOTTOM - plot.y.at(count))
            parts.append(bar(at, HEIGHT - BOTTOM - height, plot.x.at(right) - at - 0.6, height, BLUE))
    for mark in marks:
        at, base = plot.x.at(mark.at), plot.y.end - 5 - ROW_PX * rows[mark]
        half = CHARACTER_PX * len(mark.label) / 2
        parts.append(line(at, base + 3, at, HEIGHT - BOTTOM, mark.colour, dash="4 3"))
        parts.append(text(min(max(at, half), WIDTH - half), base, mark.label, anchor="middle", colour=mark.colour))
    return drawing(parts, f"how often each latency of a {what} occurred")


def _mark_rows(marks: Sequence[Mark], x: Axis) -> dict[Mark, int]:
    """A row for each label, so that neighbours do not overlap: 0 is next to the plot."""
    rows: dict[Mark, int] = {}
    ends: list[float] = []
    for mark in sorted(marks, key=lambda mark: mark.at):
        half = CHARACTER_PX * len(mark.label) / 2
        middle = min(max(x.at(mark.at), half), WIDTH - half)
        row = next((i for i, end in enumerate(ends) if middle - half > end + 8), len(ends))
        ends[row : row + 1] = [middle + half]
        rows[mark] = row
    return rows


def timeline(
    at_s: FloatArray,
    latency_ms: FloatArray,
    *,
    deadline_ms: float | None,
    clocks: Sequence[tuple[float, float]] = (),
    hot: bool = False,
) -> str:
    """Latency over time: the range of neighbouring chunks as a band, their median as a line, clocks in amber."""
    near = deadline_ms is not None and deadline_ms < 4 * float(latency_ms.max())
    marks = [Mark("next chunk is due", deadline_ms, RED)] if near and deadline_ms is not None else []
    colour = RED if hot else BLUE
    names = [Name("median of neighbouring chunks, and their range", colour)]
    if len(clocks) > 1:
        names.append(Name(f"clock, up to {max(v for _, v in clocks) / 1e9:.2f} GHz", AMBER))
    x_range = (float(min(at_s[0], 0)), float(at_s[-1]))
    y_range = _range_of(latency_ms, [mark.at for mark in marks])
    plot = empty_plot(
        x_range, y_range, x_title="seconds since the run began", y_title="latency, ms", y_log=True, names=names
    )
    x, y = plot.x, plot.y
    bins = np.array_split(np.arange(len(at_s)), max(1, min(150, len(at_s) // 5)))
    middle = [(x.at(float(at_s[b].mean())), y.at(float(np.median(latency_ms[b])))) for b in bins]
    ranges = [
        line(px, y.at(float(latency_ms[b].min())), px, y.at(float(latency_ms[b].max())), BLUE, width=2.4)
        for b, (px, _) in zip(bins, middle, strict=True)
    ]
    parts = [*plot.parts, f'<g opacity="0.3">{"".join(ranges)}</g>', path(middle, colour, 1.8)]
    parts += _level_marks(marks, x, y)
    if len(clocks) > 1:
        hertz = Axis(0, max(value for _, value in clocks) * 1.05, y.start, y.end)
        parts.append(path([(x.at(when), hertz.at(value)) for when, value in clocks], AMBER, 1.5))
    return drawing(parts, "latency over time")


def run_history(points: Sequence[tuple[str, float, float, float]], *, judged: str) -> str:
    """Median and middle 80 % of earlier runs and this one, the newest on the right: (label, p10, p50, p90) in ms."""
    last = len(points) - 1
    y_range = min(p[1] for p in points) * 0.95, max(p[3] for p in points) * 1.05
    ticks = [(float(i), label) for i, (label, *_) in enumerate(points)]
    y_title = "p10, p50 and p90 of each run, ms"
    plot = empty_plot((-0.5, last + 0.5), y_range, x_title="", y_title=y_title, x_ticks=ticks)
    parts = [*plot.parts]
    for i, (_, low, middle, high) in enumerate(points):
        colour = GREY if i != last else RED if judged == "regressed" else BLUE
        at = plot.x.at(i)
        parts.append(line(at, plot.y.at(low), at, plot.y.at(high), colour, width=5))
        parts.append(dot(at, plot.y.at(middle), colour, radius=5))
    return drawing(parts, "history of runs")


def bar_plot(rows: Sequence[tuple[str, float, str]], *, label: str) -> str:
    """A bar per (name, value, colour) on a logarithmic axis, its value behind it."""
    values = [max(value, 1e-7) for _, value, _ in rows]
    left = 12 + CHARACTER_PX * max(len(name) for name, _, _ in rows)
    axis = Axis(min(values) / 2, max(values), left, WIDTH - 64, log=True)
    parts = []
    for index, ((name, _, colour), value) in enumerate(zip(rows, values, strict=True)):
        y, length = 6 + ROW_PX * index, axis.at(value) - left
        parts.append(text(left - 8, y + 11, name, anchor="end"))
        parts.append(bar(left, y + 1, length, ROW_PX - 5, colour))
        parts.append(text(left + length + 6, y + 11, number(float(f"{value:.1e}"))))
    return drawing(parts, label, height=10 + ROW_PX * len(rows))
