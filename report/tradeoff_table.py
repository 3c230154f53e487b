"""The points of a trade-off as a Markdown table, for documentation and pull requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reuse_distill.report.plain_text import markdown_text
from reuse_distill.report.tradeoff_plots import compressed_by, error_text, faster_text, loss_text, numbered, parameters

HEAD = (
    *("", "point", "compressed by", "precision", "M parameters", "GMACs", "MB", "times faster"),
    *("error, %", "against the baseline", "cosine to the original"),
)


def tradeoff_table(results: Mapping[str, Any]) -> str:
    """One row per point, what it was measured with, and the cheapest by each measure."""
    lines = [_line(HEAD), _line(["---"] * len(HEAD))]
    lines += [_line([number, *_cells(row)]) for number, row in numbered(results)]
    timing, probes = results["timing"], results["probes"]
    made = timing["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    data = "; ".join(f"{one['data']}, {one['train']} to train, {one['test']} to test" for one in probes)
    winners = ", ".join(f"{metric}: {name or 'unmeasured'}" for metric, name in results["winners"].items())
    references = "; ".join(f"{name}: {error_text(value)}" for name, value in results["references"].items())
    said = [
        f"Baseline: {results['baseline']}. Cheapest within a loss of {100 * results['limit']:g} points: {winners}.",
        f"Probes: {data}. {references}. Brackets: 95 % intervals.",
        f"{made['processor']}, {made['system']}, {made['threads']} thread, {timing['repeats']} turns; {versions}.",
    ]
    return "\n".join([*lines, "", *map(markdown_text, said)]) + "\n"


def _cells(row: Mapping[str, Any]) -> list[str]:
    named = [row["name"], compressed_by(row), row["precision"]]
    if row["status"] == "failed":
        return [*named, f"failed: {row['reason']}", *["unmeasured"] * 6]
    cosine = row["cosine_to_original"]
    return [
        *named,
        parameters(row),
        f"{row['superb_macs'] / 1e9:.1f}",
        f"{row['artifact_bytes'] / 1e6:.2f}",
        faster_text(row),
        error_text(row["error"]),
        loss_text(row),
        "" if cosine is None else f"{cosine:.3f}",
    ]


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cell if cell == '---' else markdown_text(cell) for cell in cells)} |"
