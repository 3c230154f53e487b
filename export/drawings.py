"""What a bundle proves, drawn: its layers and who takes whose map, and parity layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from reuse_distill.devices.lineplot import Line, Mark, line_plot
from reuse_distill.devices.svg import AMBER, BLUE, INK, RED, text
from reuse_distill.runtime.manifest import GraphProof

WIDTH, ROW, BOX_HEIGHT, HEAD = 440, 34, 24, 30
BOX_LEFT, BOX_RIGHT = 126, 268
PALE_BLUE, PALE_AMBER = "#e9f0fd", "#fdf6e9"


def reuse_graph(proof: GraphProof, *, exported: Sequence[int]) -> str:
    """Layers as a column from the audio down; an arc leads from each reusing layer's source to it."""
    sources = {one.layer: one.source_layer for one in proof.reused}
    top = {layer: HEAD + 22 + ROW * (layer - 1) for layer in range(1, proof.layers + 1)}
    height = HEAD + 22 + ROW * proof.layers + 6
    parts = [_input(), text(BOX_RIGHT + 18, 18, "map handed on", colour=AMBER)]
    for layer, y in top.items():
        parts += _layer(layer, y, source=sources.get(layer), exported=layer in exported)
    for number, (layer, source) in enumerate(sorted(sources.items())):
        parts.append(_arc(top[source], top[layer], lane=_lane(sources, number)))
    label = f"{len(sources)} of {proof.layers} layers take the map of another layer"
    size = f'viewBox="0 0 {WIDTH} {height}" style="max-width:{round(1.25 * WIDTH)}px"'
    return f'<svg {size} role="img" aria-label="{escape(label)}">{_ARROW}{"".join(parts)}</svg>'


def parity_plot(rows: Sequence[dict[str, Any]]) -> str:
    """How far each layer is from torch: 1 - cosine of the mean and of the worst frame, logarithmic."""
    mean = tuple((float(row["layer"]), max(0.0, 1 - row["mean_cosine"])) for row in rows)
    worst = tuple((float(row["layer"]), max(0.0, 1 - row["min_cosine"])) for row in rows)
    return line_plot(
        [Line("worst frame", worst, AMBER, markers=True), Line("mean of frames", mean, BLUE, markers=True)],
        x_title="layer",
        y_title="1 − cosine with torch",
        log=True,
        floor=1e-8,
        x_ticks=[x for x, _ in mean],
    )


def difference_plot(rows: Sequence[dict[str, Any]], *, bound: float | None) -> str:
    """Largest absolute difference from torch after each layer; ``bound`` where the layers are what is exported."""
    points = tuple((float(row["layer"]), row["max_abs"]) for row in rows)
    marks = [Mark(f"bound {bound:.1e}", bound, RED)] if bound else []
    return line_plot(
        [Line("largest difference", points, BLUE, markers=True)],
        x_title="layer",
        y_title="largest absolute difference from torch",
        log=True,
        floor=1e-8,
        marks=marks,
        x_ticks=[x for x, _ in points],
    )


def drift_plot(rows: Sequence[dict[str, Any]], *, side: str) -> str:
    """How far windows are from the whole utterance over the ``left`` or ``right`` context."""
    frames = [float(row[f"{side}_frames"]) for row in rows]
    mean = tuple((x, max(0.0, 1 - row["mean_cosine"])) for x, row in zip(frames, rows, strict=True))
    worst = tuple((x, max(0.0, 1 - row["min_cosine"])) for x, row in zip(frames, rows, strict=True))
    return line_plot(
        [Line("worst frame", worst, AMBER, markers=True), Line("mean of frames", mean, BLUE, markers=True)],
        x_title=f"{side} context, frames of 20 ms",
        y_title="1 − cosine with the whole utterance",
        log=True,
        floor=1e-8,
        x_ticks=frames,
    )


_ARROW = (
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    f'<path d="M0 0.5 L7 4 L0 7.5 z" fill="{AMBER}"/></marker></defs>'
)


def _input() -> str:
    middle = (BOX_LEFT + BOX_RIGHT) / 2
    chip = f'<rect x="{BOX_LEFT}" y="2" width="{BOX_RIGHT - BOX_LEFT}" height="{BOX_HEIGHT}" rx="6" fill="#f0f2f5"/>'
    return chip + text(middle, 18, "audio, conv stack", anchor="middle", colour=INK)


def _layer(layer: int, y: float, *, source: int | None, exported: bool) -> list[str]:
    """One box: a computing layer is filled, a reusing one is outlined."""
    middle, centre = (BOX_LEFT + BOX_RIGHT) / 2, y + BOX_HEIGHT / 2
    fill, stroke = (PALE_BLUE, BLUE) if source is None else (PALE_AMBER, AMBER)
    what = "query · key · value" if source is None else "value only"
    said = "computes its map" if source is None else f"takes the map of {source}"
    parts = [
        f'<line x1="{middle}" y1="{y - ROW + BOX_HEIGHT}" x2="{middle}" y2="{y}" stroke="#c9d0da" stroke-width="1.5"/>',
        f'<rect x="{BOX_LEFT}" y="{y}" width="{BOX_RIGHT - BOX_LEFT}" height="{BOX_HEIGHT}" rx="6" fill="{fill}" '
        f'stroke="{stroke}" stroke-width="1.3"/>',
        text(BOX_LEFT + 10, centre + 4, str(layer), colour=stroke),
        text(middle + 8, centre + 4, what, anchor="middle", colour=INK),
        text(BOX_LEFT - 12, centre + 4, said, anchor="end", colour=INK if source is None else AMBER),
    ]
    if exported:
        start = WIDTH - 96
        parts.append(f'<rect x="{start}" y="{y + 2}" width="92" height="{BOX_HEIGHT - 4}" rx="10" fill="#e4f4ed"/>')
        parts.append(text(start + 46, centre + 4, "features out", anchor="middle", colour="#17805a"))
    return parts


def _lane(sources: dict[int, int], number: int) -> int:
    """Arcs that share a source stand beside each other; the first of a source is the closest."""
    ordered = sorted(sources.items())
    source = ordered[number][1]
    return sum(1 for _, other in ordered[:number] if other == source)


def _arc(start: float, end: float, *, lane: int) -> str:
    """From the right side of the source's box to that of the layer that takes its map."""
    reach = BOX_RIGHT + 34 + 22 * lane
    y1, y2 = start + BOX_HEIGHT / 2, end + BOX_HEIGHT / 2
    path = f"M{BOX_RIGHT + 2} {y1} C {reach} {y1}, {reach} {y2}, {BOX_RIGHT + 4} {y2}"
    return f'<path d="{path}" fill="none" stroke="{AMBER}" stroke-width="1.8" marker-end="url(#tip)"/>'
