"""The layers of a student drawn as a column: which compute an attention map, and whose map the others reuse."""

from __future__ import annotations

from collections.abc import Sequence

from reuse_distill.report.svg import (
    AMBER,
    BLUE,
    EDGE,
    GREEN,
    INK,
    PALE_AMBER,
    PALE_BLUE,
    PALE_GREEN,
    PALE_GREY,
    drawing,
    line,
    text,
)
from reuse_distill.runtime.manifest import GraphProof

WIDTH, ROW, BOX_HEIGHT, HEAD = 470, 34, 24, 30
BOX_LEFT, BOX_RIGHT = 142, 290


def reuse_graph(proof: GraphProof, *, exported: Sequence[int]) -> str:
    """Layers from the audio down; an arc leads from each reusing layer's source to it."""
    sources = {one.layer: one.source_layer for one in proof.reused}
    top = {layer: HEAD + 22 + ROW * (layer - 1) for layer in range(1, proof.layers + 1)}
    parts = [_ARROW, _input(), text(BOX_RIGHT + 14, 18, "attention map reused", colour=AMBER)]
    for layer, y in top.items():
        parts += _layer(layer, y, source=sources.get(layer), exported=layer in exported)
    for number, (layer, source) in enumerate(sorted(sources.items())):
        parts.append(_arc(top[source], top[layer], lane=_lane(sources, number)))
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
