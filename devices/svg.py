"""Plots as inline SVG: no library, no script, readable on any machine that opens the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
WIDTH, HEIGHT = 620, 210
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 22, 30
INK, GRID, BLUE, RED, AMBER, GREY = "#5b6472", "#e8ebf0", "#2f6fde", "#c8372d", "#c77d0a", "#9aa3b0"


@dataclass(frozen=True)
class Axis:
    """Linear or logarithmic map from values to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high, v = (math.log(max(x, 1e-9)) if self.log else x for x in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (min(max(v, low), high) - low) / ((high - low) or 1.0)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values inside the range; 1-2-5 steps on a logarithmic axis."""
        if self.log:
            exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            values = [m * 10.0**e for e in exponents for m in (1, 2, 5)]
            inside = [v for v in values if self.low <= v <= self.high]
            return inside if len(inside) <= 7 else [v for v in inside if f"{v:e}".startswith("1")]
        step = 10 ** math.floor(math.log10((self.high - self.low) / count or 1))
        step *= next(m for m in (1, 2, 5, 10) if (self.high - self.low) / (m * step) <= count)
        first = math.ceil(self.low / step) * step
        return [first + i * step for i in range(int((self.high - first) / step + 1e-9) + 1)]


def number(value: float) -> str:
    """Tick label."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def text(x: float, y: float, label: str, *, anchor: str = "start", colour: str = INK) -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {where} fill="{colour}" font-size="11">{escape(label)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, colour: str, *, dash: str = "", width: float = 1) -> str:
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width}"{dashed}/>'


def frame(parts: Sequence[str], label: str) -> str:
    body = "".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{body}</svg>'


def grid(x: Axis, y: Axis, *, x_title: str, y_title: str, y_ticks: bool = True) -> list[str]:
    """Grid lines, tick labels and the two titles."""
    parts = [
        text(LEFT, 12, y_title, colour=GREY),
        text(WIDTH - RIGHT, HEIGHT - 2, x_title, anchor="end", colour=GREY),
    ]
    for tick in y.ticks(4) if y_ticks else []:
        parts += [
            line(LEFT, y.at(tick), WIDTH - RIGHT, y.at(tick), GRID),
            text(LEFT - 6, y.at(tick) + 4, number(tick), anchor="end"),
        ]
    for tick in x.ticks(6):
        parts.append(text(x.at(tick), HEIGHT - BOTTOM + 15, number(tick), anchor="middle"))
    return [*parts, line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, GREY)]


def _span(values: FloatArray, extra: Sequence[float] = ()) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    high = max(high, *extra) if extra else high
    return max(low * 0.92, 1e-6), high * 1.08


def histogram(latency_ms: FloatArray, marks: Sequence[tuple[str, float, str]]) -> str:
    """How often each latency occurred, on a logarithmic axis; ``marks`` are (label, ms, colour) lines."""
    low, high = _span(latency_ms, [ms for _, ms, _ in marks])
    x = Axis(low, high, LEFT, WIDTH - RIGHT, log=True)
    edges = np.geomspace(low, high, 73)
    counts, _ = np.histogram(latency_ms, edges)
    y = Axis(0, float(counts.max()) * 1.15, HEIGHT - BOTTOM, TOP + 12)
    parts = grid(x, y, x_title="latency of a chunk, ms", y_title="chunks")
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            parts.append(_bar(x.at(left), x.at(right) - 0.6, max(1.5, HEIGHT - BOTTOM - y.at(count))))
    last = -1e9
    for label, ms, colour in sorted(marks, key=lambda mark: mark[1]):
        at = x.at(ms)
        parts.append(line(at, TOP + 8, at, HEIGHT - BOTTOM, colour, dash="4 3"))
        beside = at - last < 58
        parts.append(
            text(
                at,
                TOP - 8 if beside else TOP + 4,
                label,
                anchor="middle" if at < WIDTH - 60 else "end",
                colour=colour,
            )
        )
        last = -1e9 if beside else at
    return frame(parts, "histogram of latencies")


def _bar(left: float, right: float, height: float) -> str:
    corner = f'x="{left:.1f}" y="{HEIGHT - BOTTOM - height:.1f}"'
    return f'<rect {corner} width="{right - left:.1f}" height="{height:.1f}" fill="{BLUE}" opacity="0.8"/>'


def timeline(
    at_s: FloatArray,
    latency_ms: FloatArray,
    *,
    deadline_ms: float | None,
    clocks: Sequence[tuple[float, float]],
    hot: bool,
) -> str:
    """Latency over time: the range of neighbouring chunks as a band, their median as a line; clocks in amber above."""
    marks = [deadline_ms] if deadline_ms is not None and deadline_ms < 4 * float(latency_ms.max()) else []
    x, y = Axis(float(min(at_s[0], 0)), float(at_s[-1]), LEFT, WIDTH - RIGHT), _level(latency_ms, marks)
    parts = grid(x, y, x_title="seconds since the run began", y_title="latency, ms")
    bins = np.array_split(np.arange(len(at_s)), max(1, min(150, len(at_s) // 5)))
    middle = [(x.at(float(at_s[b].mean())), y.at(float(np.median(latency_ms[b])))) for b in bins]
    for b, (px, _) in zip(bins, middle, strict=True):
        parts.append(line(px, y.at(float(latency_ms[b].min())), px, y.at(float(latency_ms[b].max())), BLUE, width=2.4))
    parts[-len(bins) :] = [f'<g opacity="0.25">{"".join(parts[-len(bins) :])}</g>']
    parts.append(_path(middle, RED if hot else BLUE, 1.8))
    for ms in marks:
        parts += [line(LEFT, y.at(ms), WIDTH - RIGHT, y.at(ms), RED, dash="4 3")]
        parts += [text(WIDTH - RIGHT, y.at(ms) - 4, "next chunk is due", anchor="end", colour=RED)]
    if len(clocks) > 1:
        hertz = Axis(0, max(value for _, value in clocks) * 1.05, HEIGHT - BOTTOM, TOP)
        parts.append(_path([(x.at(when), hertz.at(value)) for when, value in clocks], AMBER, 1.5))
        parts.append(
            text(
                WIDTH - RIGHT,
                12,
                f"clock, up to {max(v for _, v in clocks) / 1e9:.2f} GHz",
                anchor="end",
                colour=AMBER,
            )
        )
    return frame(parts, "latency over time")


def _level(values: FloatArray, extra: Sequence[float]) -> Axis:
    low, high = _span(values, extra)
    return Axis(low, high, HEIGHT - BOTTOM, TOP, log=True)


def _path(points: Sequence[tuple[float, float]], colour: str, width: float) -> str:
    data = "M" + " L".join(f"{px:.1f} {py:.1f}" for px, py in points)
    return f'<path d="{data}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-linejoin="round"/>'


def history(points: Sequence[tuple[str, float, float, float]], *, judged: str) -> str:
    """Median and middle 80 % of earlier runs and this one, the newest on the right: (label, p10, p50, p90) in ms."""
    x = Axis(-0.5, len(points) - 0.5, LEFT, WIDTH - RIGHT)
    highs, lows = [p[3] for p in points], [p[1] for p in points]
    y = Axis(min(lows) * 0.95, max(highs) * 1.05, HEIGHT - BOTTOM, TOP)
    parts = [p for p in grid(x, y, x_title="", y_title="p10, p50, p90 of a run, ms") if 'text-anchor="middle"' not in p]
    for i, (label, low, middle, high) in enumerate(points):
        colour = (RED if judged == "regressed" else BLUE) if i == len(points) - 1 else GREY
        parts.append(line(x.at(i), y.at(low), x.at(i), y.at(high), colour, width=5))
        dot = f'<circle cx="{x.at(i):.1f}" cy="{y.at(middle):.1f}" r="5"'
        parts.append(f'{dot} fill="white" stroke="{colour}" stroke-width="2.5"/>')
        parts.append(text(x.at(i), HEIGHT - BOTTOM + 15, label, anchor="middle", colour=colour))
    return frame(parts, "history of runs")
