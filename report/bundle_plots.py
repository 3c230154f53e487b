"""Plots of a bundle: parity layer by layer, drift of windows over their context, and the search for mixed precision."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape
from typing import Any

from reuse_distill.report.page import figures
from reuse_distill.report.plots import Line, Mark, bar_plot, line_plot
from reuse_distill.report.svg import AMBER, BLUE, RED, number


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
