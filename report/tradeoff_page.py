"""``tradeoff.html``: what each compression costs and loses on one machine, and which is cheapest by each measure."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from reuse_distill.report.page import Badge, Html, Tile, facts, figures, notes, page, section, table, tiles
from reuse_distill.report.tradeoff_plots import (
    COSTS,
    compressed_by,
    cost_plot,
    error_text,
    faster_text,
    loss_text,
    numbered,
    parameters,
    published_plot,
    time_plot,
    utterance_lengths,
)
from reuse_distill.runtime.geometry import HOP_MS


def tradeoff_page(results: Mapping[str, Any]) -> str:
    """The page of a trade-off or of a search, self-contained."""
    rows = results["points"]
    failed = [row for row in rows if row["status"] == "failed"]
    summary = f"{len(rows) - len(failed)} measured" + (f", {len(failed)} failed" if failed else "")
    parts = [
        notes([f"{row['name']} failed: {row['reason']}" for row in failed], "bad"),
        _search(results["search"]) if results.get("search") else "",
        section("Cheapest within the limit of loss", _winners(results), where=_limit(results)),
        section("Error over cost", _plots(results), where="bars: 95 % intervals; dotted: Pareto front"),
        section("What the points cost", _points(results)),
        section("What they lose", _losses(results)),
        section("Is smaller faster?", _smaller(results), where=results["timing"]["machine"]["processor"]),
        section("Published models", _published(results["published"], results), badge=Badge("published, not measured")),
        section("How it was measured", _how(results)),
    ]
    return page(
        f"{results['name']}: trade-off",
        heading=f"What compression costs and gains: {results['student']}",
        badge=Badge(summary, "bad" if failed else "good"),
        about=results["summary"],
        body="".join(parts),
    )


def _limit(results: Mapping[str, Any]) -> str:
    return f"error at most {100 * results['limit']:g} points above {results['baseline']}, by its interval's upper end"


def _winners(results: Mapping[str, Any]) -> str:
    by_name = {row["name"]: row for row in results["points"]}
    items, lines = [], []
    for metric, cost in COSTS.items():
        name = results["winners"][metric]
        if name is None:
            items.append(Tile(cost.winner, "unmeasured", kind="none"))
            continue
        row = by_name[name]
        items.append(Tile(cost.winner, name, cost.text(row)))
        texts = (name, cost.text(row), faster_text(row), loss_text(row))
        lines.append((cost.winner, *map(_whole, texts)))
    best = min((r for r in results["points"] if r["error"]), key=lambda r: r["error"]["value"], default=None)
    if best is not None:
        items.append(Tile("least error", best["name"], f"{error_text(best['error'])} %"))
    head = ("by", "point", "cost", "times faster", "error against the baseline, points")
    return tiles(items) + (table(head, lines) if lines else "")


def _plots(results: Mapping[str, Any]) -> str:
    drawn = [(f"{cost.caption}\n{cost.note}", cost_plot(results, metric)) for metric, cost in COSTS.items()]
    plots = [(caption, plot) for caption, plot in drawn if plot is not None]
    lead = "Numbers are those of the table below; rings are fp32, discs int8."
    return f'<p class="lead">{lead}</p>{figures(plots)}' if plots else '<p class="lead">unmeasured</p>'


def _points(results: Mapping[str, Any]) -> str:
    head = ("", "point", "compressed by", "precision", "M par.", "GMACs", "MB", "ms", "times faster")
    rows = [(number, *_costs(row)) for number, row in numbered(results)]
    note = (
        "Steps are those of recovery. M par.: millions of parameters that are not zero. ms: processor time of one step "
        "of a stream (160 ms of audio where chunks have 8 frames); of a second of audio for whole utterances."
    )
    return f'<p class="lead">{escape(note)}</p>{table(head, rows, numeric=(0, 4, 5, 6, 7))}'


def _costs(row: Mapping[str, Any]) -> tuple[str, ...]:
    named = (_whole(row["name"]), compressed_by(row), _whole(row["precision"]))
    if row["status"] == "failed":
        return (*named, Html(Badge("failed", "bad").html()), *["unmeasured"] * 4)
    return (
        *named,
        parameters(row),
        f"{row['superb_macs'] / 1e9:.1f}",
        f"{row['artifact_bytes'] / 1e6:.2f}",
        f"{1e3 * _step_s(row) * row['processor_s']:.2f}",
        _whole(faster_text(row)),
    )


def _losses(results: Mapping[str, Any]) -> str:
    probes = [one["data"] for one in results["probes"]]
    names = [probe.removeprefix("label: ").removesuffix("/manifest.csv") for probe in probes]
    head = ("", "point", "error, %", "against the baseline", *names, "cosine", "to the original", "on the fronts of")
    rows = [(number, *_loss_row(row, results, probes)) for number, row in numbered(results)]
    note = (
        "Brackets: 95 % intervals. Error: mean over the probes. Cosine: mean frame cosine of the artifact's last layer "
        "to its own student in torch; to the original: to the uncompressed student."
    )
    return f'<p class="lead">{escape(note)}</p>{table(head, rows, numeric=(0, len(probes) + 4, len(probes) + 5))}'


def _loss_row(row: Mapping[str, Any], results: Mapping[str, Any], probes: list[str]) -> tuple[str, ...]:
    if row["status"] == "failed":
        return (_whole(row["name"]), *["unmeasured"] * (len(probes) + 4), "")
    fronts = [metric for metric, names in results["fronts"].items() if row["name"] in names]
    return (
        _whole(row["name"]),
        _whole(error_text(row["error"])),
        _whole(loss_text(row)),
        *[_whole(error_text(row["probe_errors"][probe])) for probe in probes],
        _cosine(row["cosine_to_student"]),
        _cosine(row["cosine_to_original"]),
        _whole(", ".join(fronts)),
    )


def _smaller(results: Mapping[str, Any]) -> str:
    """Time over counted work for utterances of several lengths, and how often less of a count is less time."""
    compared = results["smaller_and_faster"]
    plots = [
        (f"Utterances of {seconds} s", plot)
        for seconds in utterance_lengths(results)
        if (plot := time_plot(results, seconds)) is not None
    ]
    if not plots:
        return '<p class="lead">unmeasured</p>'
    lengths = list(compared[0]["faster"]) if compared else []
    head = ("precision", "smaller by", "pairs", *[f"faster at {seconds} s" for seconds in lengths], "never faster")
    rows = [
        (
            _whole(one["precision"]),
            one["count"],
            str(one["pairs"]),
            *[f"{one['faster'][seconds] / one['pairs']:.0%}" for seconds in lengths],
            "; ".join(f"{smaller} than {larger}" for smaller, larger in one["exceptions"]) or "none",
        )
        for one in compared
    ]
    note = (
        "Of every two points of one precision of which one is smaller by 5 % or more: how often is it faster, in nine "
        "of ten turns? The last column names pairs of which the smaller one is faster at no length. ONNX Runtime on "
        "this processor: other engines and devices may differ."
    )
    shares = table(head, rows, numeric=range(2, 3 + len(lengths))) if rows else ""
    return f'<p class="lead">{escape(note)}</p>{figures(plots, columns=3)}{shares}'


def _step_s(row: Mapping[str, Any]) -> float:
    """Seconds of audio that one step finishes."""
    return 1.0 if row["chunk_frames"] is None else row["chunk_frames"] * HOP_MS / 1e3


def _published(published: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    plots = [
        ("SUPERB over parameters", published_plot(results, "million_parameters")),
        ("SUPERB over multiply-accumulates", published_plot(results, "superb_gmacs")),
    ]
    rows = [
        (
            str(number),
            one["name"],
            f"{one['million_parameters']:.2f}",
            "not published" if one["superb_gmacs"] is None else f"{one['superb_gmacs']:.1f}",
            f"{one['superb_overall']:.1f}",
            one["source"],
        )
        for number, one in enumerate(published["models"], start=1)
    ]
    head = ("", "model", "M parameters", "GMACs", "SUPERB overall", "source")
    note = f"{published['note']}. Parameters and GMACs are counted alike there and here; quality is not comparable."
    return f'<p class="lead">{escape(note)}</p>{figures(plots)}{table(head, rows, numeric=(0, 2, 3, 4))}'


def _how(results: Mapping[str, Any]) -> str:
    timing, made = results["timing"], results["timing"]["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    probes = "; ".join(
        f"{one['data']} ({one['measure']}, {one['train']} to train, {one['test']} to test, {one['split']})"
        for one in results["probes"]
    )
    shares = results["shares"]
    thin = f"{100 * shares['train']:g} % of the items to train on, {100 * shares['test']:g} % of those to test with"
    references = "; ".join(f"{name}: error {error_text(value)} %" for name, value in results["references"].items())
    rows = [
        ("error", "mean over the probes; a probe is one linear layer on the frozen features of the artifact"),
        ("probes", probes),
        ("of the data", thin),
        ("intervals", "95 %, test items resampled 2000 times; differences on the same items"),
        ("beside it", references),
        ("chosen on the test items", "the cheapest of many points looks better on them than it will elsewhere"),
        ("time", f"{timing['clock']}; {timing['repeats']} turns of {timing['seconds']:g} s of speech from the probes"),
        ("times faster", f"than {results['baseline']}, turn by turn: median, 10th to 90th percentile"),
        ("machine", f"{made['processor']}, {made['system']}, {made['threads']} thread"),
        ("versions", f"Python {made['python']}, {versions}"),
    ]
    return facts(rows)


def _search(search: Mapping[str, Any]) -> str:
    lead = f'<p class="lead">{escape(search["reason"])}</p>'
    head = ("", "tried", "error against the baseline", "decision")
    rows = [(str(i), one["name"], one["loss"], one["decision"]) for i, one in enumerate(search["steps"], start=1)]
    badge = Badge(search["chosen"] or "nothing", "good" if search["chosen"] else "open")
    device = _on_device(search["device"]) if search.get("device") else ""
    return section("Search", lead + device + table(head, rows, numeric=(0,)), badge=badge)


def _on_device(device: Mapping[str, Any]) -> str:
    head = (f"within the limit, on {device['device']}", "real-time factor", "times faster")
    rows = [
        (name, f"{row['rtf']['median']:.4f}", _whole(faster_text(row)))
        for name, row in sorted(device["points"].items(), key=lambda item: float(item[1]["rtf"]["median"]))
    ]
    return table(head, rows, numeric=(1,))


def _cosine(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _whole(text: str) -> Html:
    """Without a line break."""
    return Html(f'<span style="white-space:nowrap">{escape(text)}</span>')
