"""Plots of a bundle: parity layer by layer, drift of windows over their context, and the search for mixed precision.

And the layers of a student as a column: which compute an attention map, and whose map the others reuse.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape
from typing import Any

from reuse_distill.report.drawing.plots import Line, Mark, bar_plot, line_plot
from reuse_distill.report.drawing.svg import (
    AMBER,
    BLUE,
    EDGE,
    GREEN,
    INK,
    PALE_AMBER,
    PALE_BLUE,
    PALE_GREEN,
    PALE_GREY,
    RED,
    drawing,
    line,
    number,
    text,
)
from reuse_distill.report.page import figures
from reuse_distill.runtime.bundle_format.manifest import GraphProof

WIDTH, ROW, BOX_HEIGHT, HEAD = 470, 34, 24, 30
BOX_LEFT, BOX_RIGHT = 142, 290


def parity_plot(rows: Sequence[dict[str, Any]]) -> str:
    """How far each layer is from torch: 1 - cosine of the mean and of the worst frame, logarithmic."""
    layers = [float(row["layer"]) for row in rows]
    return _cosine_plot(rows, layers, x_title="layer", y_title="1 − cosine with torch")


def drift_plot(rows: Sequence[dict[str, Any]], *, side: str) -> str:
    """How far windows are from the whole utterance over the ``left`` or ``right`` context."""
    frames = [float(row[f"{side}_frames"]) for row in rows]
    title = f"{side} context, frames of 20 ms"
    return _cosine_plot(rows, frames, x_title=title, y_title="1 − cosine with the whole utterance")


def _cosine_plot(rows: Sequence[dict[str, Any]], xs: Sequence[float], *, x_title: str, y_title: str) -> str:
    def points(key: str) -> tuple[tuple[float, float], ...]:
        return tuple((x, max(0.0, 1 - row[key])) for x, row in zip(xs, rows, strict=True))

    lines = [
        Line("worst frame", points("min_cosine"), AMBER, markers=True),
        Line("mean of frames", points("mean_cosine"), BLUE, markers=True),
    ]
    return line_plot(lines, x_title=x_title, y_title=y_title, log=True, floor=1e-8, x_ticks=xs)


def difference_plot(rows: Sequence[dict[str, Any]], *, bound: float | None) -> str:
    """Largest absolute difference from torch after each layer; ``bound`` where the layers are what is exported."""
    points = tuple((float(row["layer"]), row["max_abs"]) for row in rows)
    return line_plot(
        [Line("largest difference", points, BLUE, markers=True)],
        x_title="layer",
        y_title="largest absolute difference from torch",
        log=True,
        floor=1e-8,
        marks=[Mark(f"bound {number(bound)}", bound, RED)] if bound else [],
        x_ticks=[x for x, _ in points],
    )


def search_plots(search: dict[str, Any]) -> str:
    """``quantisation.search`` of a manifest: drift per block, and drift against what int8 computes."""
    chosen, limit = search["chosen"], search["limit"]
    kept = ", ".join(chosen["in_float"]) or "nothing"
    lead = (
        f"Searched for a drift of at most {limit:g} ({search['drift']}). Chosen: {kept} in float, drift "
        f"{chosen['drift']:.2g}, {100 * chosen['macs_in_int8']:.0f} % of the multiply-accumulates that can be in int8. "
        f"All blocks in float: {search['all_in_float']:.2g}. The bundle's own recording and its cut ends have to keep "
        f"the bundle's bound: drift {chosen['own_drift']:.2g} of at most {search['own_limit']:.2g}."
    )
    pictures = [
        ("Drift of each block in int8 alone\namber: kept in float", drift_bars(search["blocks"], chosen["in_float"])),
        ("What was measured", frontier_plot(search["frontier"], limit)),
    ]
    return f'<p class="lead">{escape(lead)}</p>{figures(pictures)}'


def drift_bars(blocks: Sequence[dict[str, Any]], in_float: Collection[str]) -> str:
    """A bar per block on a logarithmic axis; amber ones stay in float."""
    rows = [(row["block"], row["drift_alone"], AMBER if row["block"] in in_float else BLUE) for row in blocks]
    return bar_plot(rows, label="drift of each block alone; amber: kept in float")


def frontier_plot(points: Sequence[dict[str, Any]], limit: float) -> str:
    """Drift over the share of multiply-accumulates in int8, of every combination that was measured."""
    ordered = sorted((100 * row["macs_in_int8"], row["drift"]) for row in points)
    return line_plot(
        [Line("combination", tuple(ordered), BLUE, markers=True)],
        x_title="multiply-accumulates in int8, % of what can be",
        y_title="drift, 1 − mean frame cosine",
        log=True,
        floor=1e-7,
        marks=[Mark(f"limit {number(limit)}", limit, RED)],
    )


def reuse_graph(proof: GraphProof, *, exported: Sequence[int]) -> str:
    """Layers from the audio down; an arc leads from each reusing layer's source to it."""
    sources = {one.layer: one.source_layer for one in proof.reused}
    top = {layer: HEAD + 22 + ROW * (layer - 1) for layer in range(1, proof.layers + 1)}
    parts = [_ARROW, _input(), text(BOX_RIGHT + 14, 18, "attention map reused", colour=AMBER)]
    for layer, y in top.items():
        parts += _layer(layer, y, source=sources.get(layer), exported=layer in exported)
    for place, (layer, source) in enumerate(sorted(sources.items())):
        parts.append(_arc(top[source], top[layer], lane=_lane(sources, place)))
    label = f"{len(sources)} of {proof.layers} layers reuse the map of another layer"
    return drawing(parts, label, width=WIDTH, height=HEAD + 22 + ROW * proof.layers + 6, widest=1.25)


_ARROW = (
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    f'<path d="M0 0.5 L7 4 L0 7.5 z" fill="{AMBER}"/></marker></defs>'
)


def _box(x: float, y: float, width: float, height: float, fill: str, *, radius: int = 6, stroke: str = "none") -> str:
    size = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius}"'
    return f'<rect {size} fill="{fill}" stroke="{stroke}" stroke-width="1.3"/>'


def _input() -> str:
    middle = (BOX_LEFT + BOX_RIGHT) / 2
    chip = _box(BOX_LEFT, 2, BOX_RIGHT - BOX_LEFT, BOX_HEIGHT, PALE_GREY)
    return chip + text(middle, 18, "audio, front end", anchor="middle")


def _layer(layer: int, y: float, *, source: int | None, exported: bool) -> list[str]:
    """One box: a computing layer in blue, a reusing one in amber."""
    middle, centre = (BOX_LEFT + BOX_RIGHT) / 2, y + BOX_HEIGHT / 2
    fill, stroke = (PALE_BLUE, BLUE) if source is None else (PALE_AMBER, AMBER)
    weights = "query · key · value" if source is None else "value only"
    label = "computes its map" if source is None else f"reuses the map of {source}"
    parts = [
        line(middle, y - ROW + BOX_HEIGHT, middle, y, EDGE, width=1.5),
        _box(BOX_LEFT, y, BOX_RIGHT - BOX_LEFT, BOX_HEIGHT, fill, stroke=stroke),
        text(BOX_LEFT + 9, centre + 4, str(layer), colour=stroke),
        text(middle + 10, centre + 4, weights, anchor="middle"),
        text(BOX_LEFT - 10, centre + 4, label, anchor="end", colour=INK if source is None else AMBER),
    ]
    if exported:
        start = WIDTH - 96
        parts.append(_box(start, y + 2, 94, BOX_HEIGHT - 4, PALE_GREEN, radius=10))
        parts.append(text(start + 47, centre + 4, "features out", anchor="middle", colour=GREEN))
    return parts


def _lane(sources: dict[int, int], number: int) -> int:
    """Arcs that share a source stand beside each other; the first of a source is the closest."""
    ordered = sorted(sources.items())
    source = ordered[number][1]
    return sum(1 for _, other in ordered[:number] if other == source)


def _arc(start: float, end: float, *, lane: int) -> str:
    """From the right side of the source's box to that of the layer that reuses its map."""
    reach = BOX_RIGHT + 34 + 22 * lane
    y1, y2 = start + BOX_HEIGHT / 2, end + BOX_HEIGHT / 2
    curve = f"M{BOX_RIGHT + 2} {y1} C {reach} {y1}, {reach} {y2}, {BOX_RIGHT + 4} {y2}"
    return f'<path d="{curve}" fill="none" stroke="{AMBER}" stroke-width="1.8" marker-end="url(#tip)"/>'
