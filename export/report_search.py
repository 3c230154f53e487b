"""The search for mixed precision as two plots: drift per block, and drift against what int8 computes."""

from __future__ import annotations

from html import escape
from typing import Any

from reuse_distill.devices.lineplot import Line, Mark, line_plot
from reuse_distill.devices.page import figures
from reuse_distill.devices.svg import AMBER, BLUE, RED, Axis, number, text

ROW, LEFT, RIGHT, WIDTH, HEAD = 18, 120, 60, 440, 8


def search_plots(told: dict[str, Any]) -> str:
    """``quantisation.search`` of a manifest, drawn."""
    chosen, limit = told["chosen"], told["limit"]
    kept = ", ".join(chosen["in_float"]) or "nothing"
    lead = (
        f"Searched for a drift of at most {limit:g} ({told['drift']}). Chosen: {kept} in float, drift "
        f"{chosen['drift']:.2g}, {100 * chosen['macs_in_int8']:.0f} % of the multiply-accumulates that can be in int8. "
        f"All blocks in float: {told['all_in_float']:.2g}. The bundle's own recording and its cut ends have to keep "
        f"the bundle's bound: drift {chosen['own_drift']:.2g} of at most {told['own_limit']:.2g}."
    )
    pictures = [
        ("Drift of each block in int8 alone", drift_bars(told["blocks"], set(chosen["in_float"]))),
        ("What was measured", frontier_plot(told["frontier"], limit)),
    ]
    return f'<p class="lead">{escape(lead)}</p>{figures(pictures)}'


def drift_bars(blocks: list[dict[str, Any]], in_float: set[str]) -> str:
    """A bar per block on a logarithmic axis; amber ones stay in float."""
    values = [max(row["drift_alone"], 1e-7) for row in blocks]
    axis = Axis(min(values) / 2, max(values), LEFT, WIDTH - RIGHT, log=True)
    parts = []
    for index, (row, value) in enumerate(zip(blocks, values, strict=True)):
        y = HEAD + ROW * index
        colour = AMBER if row["block"] in in_float else BLUE
        parts.append(text(LEFT - 8, y + 11, row["block"], anchor="end"))
        length = axis.at(value) - LEFT
        parts.append(f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{ROW - 5}" rx="2" fill="{colour}"/>')
        parts.append(text(LEFT + length + 6, y + 11, f"{value:.1e}"))
    label = "drift of each block alone; amber: kept in float"
    height = HEAD + ROW * len(blocks) + 4
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def frontier_plot(points: list[dict[str, Any]], limit: float) -> str:
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
