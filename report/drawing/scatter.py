"""Points with intervals over a cost, the Pareto front among them, and labels that keep clear of each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from reuse_distill.report.drawing.svg import (
    BOTTOM,
    FONT_PX,
    GREY,
    INK,
    PAPER,
    WIDTH,
    Axis,
    Name,
    drawing,
    empty_plot,
    line,
    number,
    path,
)

HEIGHT = 330  # of the drawing
RADIUS, LABEL_PX = 4.0, 10
CHARACTER = 5.8  # pixels of a character of a label
LOG_ERRORS, LOG_COSTS = 6.0, 2.5  # times the smallest value, from which an axis is logarithmic
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class ScatterPoint:
    """One point: ``label`` beside it, ``title`` for those who point at it; ``low`` to ``high`` is drawn upright."""

    label: str
    title: str
    x: float
    y: float
    colour: str
    low: float | None = None
    high: float | None = None
    hollow: bool = False


@dataclass(frozen=True)
class LevelLine:
    """A dashed line across the plot at ``y``."""

    label: str
    y: float


def scatter_plot(
    points: Sequence[ScatterPoint],
    *,
    front: Sequence[str] = (),
    x_title: str,
    y_title: str,
    names: Sequence[Name] = (),
    levels: Sequence[LevelLine] = (),
    floor: float = 0.0,
) -> str:
    """The points; ``front``: labels of those that a stepped line joins. ``floor``: smallest value of a logarithmic
    axis, which is taken where values are far apart."""
    values = [value for one in points for value in (one.y, one.low, one.high) if value is not None]
    values += [level.y for level in levels]
    smallest = max(min(one.y for one in points), floor)
    log = floor > 0 and max(values) > LOG_ERRORS * smallest
    y_range = (max(min(values), floor) / 1.15, max(values) * 1.15) if log else _padded(values, 0.06)
    xs = [one.x for one in points]
    far = min(xs) > 0 and max(xs) > LOG_COSTS * min(xs)
    x_range = (min(xs) / 1.1, max(xs) * 1.1) if far else _padded(xs, 0.07)
    shape: dict[str, Any] = {"names": names, "x_ticks": _ticks(*x_range) if far else None, "height": HEIGHT}
    plot = empty_plot(x_range, y_range, x_title=x_title, y_title=y_title, x_log=far, y_log=log, **shape)
    parts = [*plot.parts]
    for level in levels:
        at = plot.y.at(level.y)
        parts.append(line(plot.x.start, at, plot.x.end, at, GREY, dash="4 3"))
        parts.append(_small(plot.x.end, at - 4, level.label, "end", GREY))
    parts += _front_line([one for label in front for one in points if one.label == label], plot.x, plot.y)
    for one in points:
        if one.low is not None and one.high is not None:
            at = plot.x.at(one.x)
            parts.append(f'<g opacity="0.45">{line(at, plot.y.at(one.low), at, plot.y.at(one.high), one.colour)}</g>')
    parts += [_marker(one, plot.x.at(one.x), plot.y.at(one.y)) for one in points]
    parts += _labels(points, plot.x, plot.y)
    return drawing(parts, f"{y_title} over {x_title}", height=HEIGHT)


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Round values of a short logarithmic axis."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [round(step * 10.0**e, 9) for e in exponents for step in (1, 1.5, 2, 3, 4, 5, 7)]
    return [(value, number(value)) for value in values if low <= value <= high]


def _padded(values: Sequence[float], share: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = share * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _front_line(points: Sequence[ScatterPoint], x: Axis, y: Axis) -> list[str]:
    """From each point of the front to the right, then down to the next: what is reached at most at every cost."""
    if not points:
        return []
    corners = [(x.at(points[0].x), y.end), (x.at(points[0].x), y.at(points[0].y))]
    for one in points[1:]:
        corners += [(x.at(one.x), corners[-1][1]), (x.at(one.x), y.at(one.y))]
    corners.append((x.end, corners[-1][1]))
    return [f'<g opacity="0.7">{path(corners, INK, 1.2, dash="2 3")}</g>']


def _marker(one: ScatterPoint, x: float, y: float) -> str:
    fill = PAPER if one.hollow else one.colour
    circle = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS}" fill="{fill}" stroke="{one.colour}" stroke-width="1.8">'
    return f"{circle}<title>{escape(one.title)}</title></circle>"


def _labels(points: Sequence[ScatterPoint], x: Axis, y: Axis) -> list[str]:
    """Each label on the first side of its point where it covers no other label or point."""
    occupied: list[Box] = []
    for one in points:
        at = (x.at(one.x), y.at(one.y))
        occupied.append((at[0] - RADIUS, at[1] - RADIUS, at[0] + RADIUS, at[1] + RADIUS))
    parts = []
    for one in points:
        places = _places(one.label, x.at(one.x), y.at(one.y))
        inside = [p for p in places if p[2][0] >= x.start and p[2][2] <= WIDTH and p[2][3] < HEIGHT - BOTTOM] or places
        place = min(inside, key=lambda place: sum(_overlap(place[2], box) for box in occupied))
        occupied.append(place[2])
        parts.append(_small(place[0], place[1], one.label, "middle", INK))
    return parts


def _places(label: str, x: float, y: float) -> list[tuple[float, float, Box]]:
    """(x of the middle, base line, box) on the sides of a point, the best ones first."""
    half, gap = CHARACTER * len(label) / 2, RADIUS + 3
    sides = []
    for reach in (1.0, 2.2):
        beside, above = gap * reach, gap * reach
        corner = 0.75 * beside
        sides += [(half + beside, 3.5), (-half - beside, 3.5), (0, -above), (0, above + 7)]
        sides += [(half + corner, -corner), (half + corner, corner + 6), (-half - corner, -corner)]
        sides += [(-half - corner, corner + 6)]
    placed = []
    for dx, dy in sides:
        middle, base = x + dx, y + dy
        placed.append((middle, base, (middle - half, base - 8, middle + half, base + 1)))
    return placed


def _overlap(one: Box, other: Box) -> float:
    """Common area in square pixels."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _small(x: float, y: float, label: str, anchor: str, colour: str) -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    size = LABEL_PX if len(label) < 4 else FONT_PX - 1
    halo = f'stroke="{PAPER}" stroke-width="2.5" paint-order="stroke"'  # lines stop short of it
    return f'<text {where} fill="{colour}" {halo} font-size="{size}">{escape(label)}</text>'
