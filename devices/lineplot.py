"""Lines over a common axis as inline SVG: losses over steps, differences over layers, drift over context."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reuse_distill.devices.svg import (
    BOTTOM,
    GREY,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    frame,
    grid,
    line,
    number,
    text,
)

CHARACTER_PX = 6.1  # width of a legend's character
DECADE = 10.0  # least span of a logarithmic axis


@dataclass(frozen=True)
class Line:
    """Points (x, y) under one label. ``markers`` draws every point; ``faint`` steps back behind the others."""

    label: str
    points: tuple[tuple[float, float], ...]
    colour: str
    markers: bool = False
    faint: bool = False


@dataclass(frozen=True)
class Mark:
    """A horizontal line at ``y``, such as a bound."""

    label: str
    y: float
    colour: str


def line_plot(
    lines: Sequence[Line],
    *,
    x_title: str,
    y_title: str,
    log: bool = False,
    floor: float | None = None,
    marks: Sequence[Mark] = (),
    x_ticks: Sequence[float] | None = None,
) -> str:
    """The lines with a legend. ``floor``: smallest value shown on a logarithmic axis, lower ones sit on it."""
    xs = [x for one in lines for x, _ in one.points]
    ys = [y for one in lines for _, y in one.points if math.isfinite(y)] + [mark.y for mark in marks]
    low, high = _range(ys, log=log, floor=floor)
    pad = 0.04 * (max(xs) - min(xs)) if x_ticks is not None else 0.0
    x = Axis(min(xs) - pad, max(xs) + pad or 1.0, LEFT, WIDTH - RIGHT)
    y = Axis(low, high, HEIGHT - BOTTOM, TOP, log=log)
    parts = grid(x, y, x_title=x_title, y_title=y_title)
    if x_ticks is not None:
        parts = [part for part in parts if 'text-anchor="middle"' not in part]
        parts += [text(x.at(tick), HEIGHT - BOTTOM + 15, number(tick), anchor="middle") for tick in x_ticks]
    for mark in marks:
        parts.append(line(LEFT, y.at(mark.y), WIDTH - RIGHT, y.at(mark.y), mark.colour, dash="4 3"))
        parts.append(text(WIDTH - RIGHT, y.at(mark.y) - 4, mark.label, anchor="end", colour=mark.colour))
    for one in lines:
        parts += _drawn(one, x, y)
    return frame([*parts, *_legend([one for one in lines if one.label])], f"{y_title} over {x_title}")


def _range(ys: Sequence[float], *, log: bool, floor: float | None) -> tuple[float, float]:
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
    data = "M" + " L".join(f"{px:.1f} {py:.1f}" for px, py in points)
    width, opacity = (1.2, ' opacity="0.35"') if one.faint else (1.9, "")
    parts = [
        f'<path d="{data}" fill="none" stroke="{one.colour}" stroke-width="{width}" stroke-linejoin="round"{opacity}/>'
    ]
    if one.markers:
        parts += [
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.6" fill="white" stroke="{one.colour}" stroke-width="2"/>'
            for px, py in points
        ]
    return parts


def _legend(lines: Sequence[Line]) -> list[str]:
    """Names from the right on the line above the plot."""
    parts, right = [], float(WIDTH - RIGHT)
    for one in reversed(lines):
        start = right - CHARACTER_PX * len(one.label)
        parts.append(text(right, 12, one.label, anchor="end", colour=GREY if one.faint else one.colour))
        parts.append(line(start - 20, 8, start - 6, 8, one.colour, width=2))
        right = start - 34
    return parts
