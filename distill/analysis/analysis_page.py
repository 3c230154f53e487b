"""An analysis as one self-contained HTML page."""

from __future__ import annotations

import math
from collections.abc import Sequence

from reuse_distill.distill.analysis.student_analysis import PARTS, HeadRow, MeasuredBundles, StudentAnalysis
from reuse_distill.report.drawing.heatmap import attention_picture, full_scale, matrix_picture
from reuse_distill.report.drawing.plots import Line, line_plot
from reuse_distill.report.drawing.svg import AMBER, BLUE, GREEN, GREY, INK, RED
from reuse_distill.report.page import Tile, figures, notes, page, section, table, tiles

COLOURS = dict(zip(PARTS, (BLUE, AMBER, GREEN, RED, INK, GREY), strict=True))
LISTED = 12  # heads that a list of who goes first names


def analysis_page(analysis: StudentAnalysis, *, name: str, data: str, measured: MeasuredBundles | None = None) -> str:
    """The whole document; ``data`` says which recordings scores are of; ``measured``: bundles of the student."""
    about = f"{analysis.recordings} recordings of {data}; attention as the student is meant to be run"
    parts = [_overview(analysis), _first(analysis), _maps(analysis), _layers(analysis), _cost(analysis)]
    body = "".join([*parts, "" if measured is None else _times(measured)])
    return page(f"Analysis of {name}", heading=f"What the parts of {name} do and cost", body=body, about=about)


def _overview(analysis: StudentAnalysis) -> str:
    config, seconds = analysis.config, analysis.macs_per_second[10]
    correlation = analysis.diagonal_and_important
    maps = len(analysis.maps)
    items = [
        Tile("parameters", f"{analysis.parameters / 1e6:.2f} M"),
        Tile("MACs per second", f"{sum(seconds.values()) / 1e9:.3g} G", "of an utterance of 10 s"),
        Tile("layers", str(config.layers), f"{maps} compute a map, {config.layers - maps} reuse one"),
        Tile("heads", str(len(analysis.heads)), "of all maps"),
        Tile(
            "diagonal and important",
            "none" if math.isnan(correlation) else f"{correlation:+.2f}",
            "rank correlation over heads; +1: the most diagonal matter most",
        ),
    ]
    return tiles(items)


def _first(analysis: StudentAnalysis) -> str:
    """Who goes first by each order, and how weak the weakest units are."""
    heads = analysis.heads
    orders = (
        ("heads-data", sorted(heads, key=lambda row: row.importance_rank)),
        ("heads-diagonal", sorted(heads, key=lambda row: row.diagonality_rank)),
        ("heads (weakest of each map by L1)", _weakest_of_each(heads)),
    )
    rows = [(name, ", ".join(map(_short, order[:LISTED]))) for name, order in orders]
    lead = notes(
        [
            "layer.head; a head stands for the layer that computes its map and for all that reuse it. Importance: how "
            "much a head moves the last features in any direction (rd-distill compress heads-data); place 1 goes "
            "first. One head of each map always stays."
        ]
    )
    weak = [(f"{layer}", f"{value:.2f}") for layer, value in analysis.weak_units.items()]
    units = "<h3>Feed-forward units: L1 of the weakest tenth over that of the median unit</h3>" + table(
        [f"layer {layer}" for layer, _ in weak], [[value for _, value in weak]], numeric=range(len(weak))
    )
    return section("What pruning removes first", lead + table(("order", "heads, the first to go first"), rows) + units)


def _weakest_of_each(heads: Sequence[HeadRow]) -> list[HeadRow]:
    by_map: dict[tuple[int, ...], list[HeadRow]] = {}
    for row in heads:
        by_map.setdefault(row.layers, []).append(row)
    ordered = [sorted(rows, key=lambda row: row.l1) for rows in by_map.values()]
    return [rows[place] for place in range(max(map(len, ordered))) for rows in ordered if place < len(rows)]


def _short(row: HeadRow) -> str:
    return f"{row.layers[0]}.{row.head}"


def _maps(analysis: StudentAnalysis) -> str:
    """Small pictures of every head's map with its scores; one scale per map."""
    parts, count = [], len(analysis.heads)
    for source, maps in analysis.maps.items():
        rows = [row for row in analysis.heads if row.layers[0] == source]
        full = full_scale(list(maps))
        pictures = [
            (
                f"Head {source}.{row.head}\ndiagonality {row.diagonality:.3f}, entropy {row.entropy:.2f}, importance "
                f"{row.importance:.2f} (place {row.importance_rank} of {count})",
                attention_picture(maps[row.head - 1], full=full),
            )
            for row in rows
        ]
        reusers = rows[0].layers[1:]
        title = f"Layer {source}" + (f", reused by {', '.join(map(str, reusers))}" if reusers else "")
        columns = 6 if len(pictures) > 2 else 2
        strongest = f"<p>the strongest colour is a weight of {full:.2g} and more</p>"
        parts.append(f"<h3>{title}</h3>{strongest}{figures(pictures, columns=columns)}")
    return section(
        "Heads",
        "".join(parts),
        where="first 2 s of one recording; diagonality 0: all weight on its own frame; entropy 1: flat",
    )


def _layers(analysis: StudentAnalysis) -> str:
    title = f"linear CKA of the layers, {analysis.recordings} recordings"
    picture = matrix_picture(analysis.likeness, title=title, across="layer", down="layer")
    following = [analysis.likeness[n][n + 1] for n in range(len(analysis.likeness) - 1)]
    rows = [(f"{n} and {n + 1}", f"{value:.3f}") for n, value in enumerate(following, start=1)]
    body = figures([("", picture), ("", table(("layers", "CKA"), rows, numeric=(1,)))])
    return section("Layers by likeness", body, where="1: equal up to rotation and scale")


def _cost(analysis: StudentAnalysis) -> str:
    lengths = list(analysis.macs_per_second)
    names = [name for name in analysis.macs_per_second[lengths[0]] if _ever(analysis, name)]
    macs = analysis.macs_per_second
    lines = [
        Line(name, tuple((float(s), macs[s][name] / 1e9) for s in lengths), COLOURS[name], markers=True)
        for name in names
    ]
    plot = line_plot(lines, x_title="seconds of the utterance", y_title="GMACs per second of audio", from_zero=True)
    rows = []
    for seconds in lengths:
        parts = analysis.macs_per_second[seconds]
        whole = sum(parts.values())
        rows.append((f"{seconds} s", *(f"{parts[name] / whole:.1%}" for name in names), f"{whole / 1e9:.3f}"))
    head = ("length", *names, "GMACs per second")
    lead = (
        "<p>Counted from shapes, in full context: only the attention products grow with the length. What a part takes "
        "in time differs by engine and device: <code>--bundle</code> measures whole bundles, <code>rd-latency</code> "
        "those on devices.</p>"
    )
    context = analysis.config.context
    if context is not None:
        keys = context.chunk_frames + context.left_frames
        lead += f"<p>A stream attends to {keys} frames ({keys / 50:.1f} s) however long it runs.</p>"
    shares = table(head, rows, numeric=range(1, len(head)))
    return section("Cost by part and length", figures([("", plot), ("", lead)]) + shares)


def _times(measured: MeasuredBundles) -> str:
    """Time of every bundle by length, and which smaller ones are not faster."""
    rows = []
    for one in measured.bundles:
        times = [f"{1e3 * one.processor_s[s]['median']:.2f}" for s in one.processor_s]
        faster = [f"{r['median']:.2f} ({r['p10']:.2f} to {r['p90']:.2f})" for r in one.faster.values()]
        rows.append((one.name, one.target, one.precision, one.kind, f"{one.size_bytes / 1e6:.2f}", *times, faster[-1]))
    lengths = list(measured.bundles[0].processor_s)
    head = ("bundle", "engine", "precision", "kind", "MB", *[f"{s} s" for s in lengths], "times faster than the first")
    made = measured.machine
    lead = notes(
        [
            f"Milliseconds of processor time per second of audio for utterances of {', '.join(map(str, lengths))} s: "
            f"median of {measured.repeats} turns, one thread, {made['processor']}. Times faster: at {lengths[-1]} s, "
            "turn by turn, 10th to 90th percentile.",
            *smaller_not_faster(measured),
        ]
    )
    return section("Measured time", lead + table(head, rows, numeric=range(4, 5 + len(lengths))))


def smaller_not_faster(measured: MeasuredBundles) -> list[str]:
    """A sentence for every bundle with a smaller file than another's that takes as long or longer at some length."""
    lines = []
    for one in measured.bundles:
        for other in measured.bundles:
            slower = [s for s, t in one.processor_s.items() if t["median"] >= other.processor_s[s]["median"]]
            if one.size_bytes < other.size_bytes and slower:
                at = ", ".join(f"{s} s" for s in slower)
                lines.append(f"{one.name} is smaller than {other.name}, but not faster at {at}.")
    return lines or ["Every smaller bundle is faster at every length."]


def _ever(analysis: StudentAnalysis, name: str) -> bool:
    return any(parts[name] > 0 for parts in analysis.macs_per_second.values())
