"""Parts of a drawing as SVG: axes, lines, text, legends. No library, no script, for light and dark screens.

Colours are written as the plain values of a light page; ``DARK`` holds what each becomes where the reader's screen is
dark, as style rules on those values. A viewer that knows no such rules shows the light picture.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 464, 240  # of a plot; readable at 340 pixels, the width of a phone
RIGHT, BOTTOM = 14, 40  # margins; the left one follows the labels, the upper one the legend
FONT_PX, CHARACTER_PX, ROW_PX = 12, 6.9, 17
INK, GRID, BLUE, RED, AMBER, GREY, GREEN = "#4f5866", "#e3e7ed", "#2f6fde", "#c8372d", "#b36b00", "#8a94a2", "#17805a"
PAPER, PALE_BLUE, PALE_AMBER, PALE_GREEN, PALE_GREY = "#fefefe", "#e9f0fd", "#fdf6e9", "#e4f4ed", "#f0f2f5"
EDGE, VIOLET = "#c9d0da", "#7b4fc9"
DARK = {
    INK: "#b3bcc9",
    GRID: "#2b323d",
    BLUE: "#74a5ff",
    RED: "#ff8178",
    AMBER: "#eeb04c",
    GREY: "#828d9c",
    GREEN: "#52c99a",
    PAPER: "#181c23",
    PALE_BLUE: "#1d2b47",
    PALE_AMBER: "#362a15",
    PALE_GREEN: "#15352a",
    PALE_GREY: "#252b35",
    EDGE: "#465060",
    VIOLET: "#b79cff",
}
# Pictures of values from white to navy become pictures from near black to pale blue.
_DARK_IMAGES = "svg image{filter:invert(1) hue-rotate(180deg)}"


def dark_rules() -> str:
    """CSS that turns every colour of a drawing into its dark form."""
    rules = [f'svg [{kind}="{light}"]{{{kind}:{dark}}}' for light, dark in DARK.items() for kind in ("fill", "stroke")]
    return "".join([*rules, _DARK_IMAGES])


@dataclass(frozen=True)
class Axis:
    """Linear or logarithmic map from values to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high, v = (math.log(max(x, 1e-12)) if self.log else x for x in (self.low, self.high, value))
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


@dataclass(frozen=True)
class Name:
    """An entry of a legend."""

    label: str
    colour: str
    dash: str = ""


@dataclass(frozen=True)
class Plot:
    """An empty plot: its two axes, and the grid, labels, titles and legend as markup."""

    x: Axis
    y: Axis
    parts: tuple[str, ...]


def number(value: float) -> str:
    """Tick label."""
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return text.replace("e-0", "e-").replace("e+0", "e")


def text(x: float, y: float, label: str, *, anchor: str = "start", colour: str = INK) -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {where} fill="{colour}" font-size="{FONT_PX}">{escape(label)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, colour: str, *, dash: str = "", width: float = 1) -> str:
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width}"{dashed}/>'


def path(points: Sequence[tuple[float, float]], colour: str, width: float, *, dash: str = "") -> str:
    data = "M" + " L".join(f"{px:.1f} {py:.1f}" for px, py in points)
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path d="{data}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-linejoin="round"{dashed}/>'


def dot(x: float, y: float, colour: str, *, radius: float = 3.6) -> str:
    centre = f'cx="{x:.1f}" cy="{y:.1f}" r="{radius}"'
    return f'<circle {centre} fill="{PAPER}" stroke="{colour}" stroke-width="2"/>'


def bar(x: float, y: float, width: float, height: float, colour: str) -> str:
    corner, size = f'x="{x:.1f}" y="{y:.1f}"', f'width="{max(width, 0.6):.1f}" height="{height:.1f}"'
    return f'<rect {corner} {size} rx="1" fill="{colour}"/>'


def drawing(
    parts: Sequence[str], label: str, *, width: float = WIDTH, height: float = HEIGHT, widest: float = 0.0
) -> str:
    """The whole drawing; ``label`` says it to those who cannot see it. ``widest``: times its own size at most."""
    body = "".join(parts)
    limit = f' style="max-width:{widest * width:.0f}px"' if widest else ""
    return f'<svg{limit} viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">{body}</svg>'


def empty_plot(
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    *,
    x_title: str,
    y_title: str,
    x_log: bool = False,
    y_log: bool = False,
    names: Sequence[Name] = (),
    x_ticks: Sequence[tuple[float, str]] | None = None,
    room_above: float = 0.0,
    height: float = HEIGHT,
) -> Plot:
    """Axes with labels that do not collide and titles that are never cut. ``room_above``: pixels kept free between
    the legend and the plot. ``x_ticks``: (value, label) in place of round numbers."""
    legend, rows = _legend(names)
    top = 8 + ROW_PX * (1 + rows) + room_above
    base = height - BOTTOM
    y = Axis(*y_range, base, top, log=y_log)
    ticks = [(tick, number(tick)) for tick in y.ticks(4)]
    left = max(34.0, 12 + CHARACTER_PX * max((len(label) for _, label in ticks), default=0))
    x = Axis(*x_range, left, WIDTH - RIGHT, log=x_log)
    parts = [text(2, 13, y_title), text(WIDTH - RIGHT, height - 5, x_title, anchor="end"), *legend]
    for value, label in ticks:
        parts.append(line(left, y.at(value), WIDTH - RIGHT, y.at(value), GRID))
        parts.append(text(left - 6, y.at(value) + 4, label, anchor="end"))
    parts += _x_labels(x, x_ticks if x_ticks is not None else [(tick, number(tick)) for tick in x.ticks(6)], base + 16)
    parts.append(line(left, base, WIDTH - RIGHT, base, GREY))
    return Plot(x, y, tuple(parts))


def _x_labels(x: Axis, ticks: Sequence[tuple[float, str]], base: float) -> list[str]:
    """Labels below the axis, kept inside the drawing; what would touch its right neighbour is left out."""
    kept: list[tuple[float, str]] = []
    free = float(WIDTH)
    for value, label in reversed(ticks):
        half = CHARACTER_PX * len(label) / 2
        middle = min(max(x.at(value), half), WIDTH - half)
        if middle + half + 6 <= free or not kept:
            kept.append((middle, label))
            free = middle - half
    return [text(middle, base, label, anchor="middle") for middle, label in reversed(kept)]


def _legend(names: Sequence[Name]) -> tuple[list[str], int]:
    """The legend below the title, in as many rows as it needs."""
    parts: list[str] = []
    at, row = 2.0, 1
    for name in names:
        width = 34 + CHARACTER_PX * len(name.label)
        if at > 2 and at + width > WIDTH:
            at, row = 2.0, row + 1
        base = 13 + ROW_PX * row
        parts.append(line(at, base - 4, at + 16, base - 4, name.colour, dash=name.dash, width=2.4))
        parts.append(text(at + 21, base, name.label))
        at += width
    return parts, row if names else 0


def file_text(picture: str) -> str:
    """A drawing as the text of an ``.svg`` file, with its own font and dark colours."""
    light = "svg{font-family:system-ui,sans-serif;background:#fefefe}"
    style = f"<style>{light}@media (prefers-color-scheme: dark){{svg{{background:#181c23}}{dark_rules()}}}</style>"
    *_, width, height = _view(picture)
    margin = 10
    box = f'viewBox="{-margin} {-margin} {width + 2 * margin:g} {height + 2 * margin:g}"'
    head, rest = picture.split(">", 1)
    head = re.sub(r'viewBox="[^"]*"', box, head).replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return f"{head}>{style}{rest}\n"


def _view(picture: str) -> tuple[float, float, float, float]:
    """The drawing's own ``viewBox``."""
    left, top, width, height = map(float, picture.split('viewBox="', 1)[1].split('"', 1)[0].split())
    return left, top, width, height


def arranged(pictures: Sequence[tuple[str, str]], *, columns: int, label: str, title: str = "") -> str:
    """Drawings with captions side by side in one: (caption, drawing), each as wide as the first."""
    sizes = [_view(picture)[2:] for _, picture in pictures]
    width, height = max(w for w, _ in sizes), max(h for _, h in sizes)
    above = 24.0 if title else 0.0
    step_x, step_y = width + 24, height + 26
    parts = [text(2, 15, title)] if title else []
    for index, (caption, picture) in enumerate(pictures):
        x, y = step_x * (index % columns), above + step_y * (index // columns)
        w, h = sizes[index]
        place = f'<svg x="{x:g}" y="{y + 20:g}" width="{w:g}" height="{h:g}" '
        parts += [text(x + 2, y + 13, caption), picture.replace("<svg ", place, 1)]
    across, down = min(columns, len(pictures)), -(-len(pictures) // columns)
    return drawing(parts, label, width=step_x * across - 24, height=above + step_y * down)
