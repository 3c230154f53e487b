"""Drawings of a trade-off: error over each cost with its Pareto front, published models on axes of their own.

And its points as a Markdown table, for documentation and pull requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reuse_distill.report.drawing.scatter import LevelLine, ScatterPoint, scatter_plot
from reuse_distill.report.drawing.svg import AMBER, BLUE, GREEN, GREY, INK, RED, VIOLET, Name, arranged, file_text
from reuse_distill.report.plain_text import markdown_text

SUPERB_GMACS = "GMACs, 32 utterances of SUPERB (224.86 s)"
HEAD = (
    *("", "point", "compressed by", "precision", "M parameters", "GMACs", "MB", "times faster"),
    *("error, %", "against the baseline", "cosine to the original"),
)


@dataclass(frozen=True)
class Cost:
    """A metric by which points are compared; ``factor`` makes ``unit`` of a row's value under ``key``."""

    key: str
    factor: float
    unit: str
    axis: str
    caption: str
    note: str
    winner: str  # what the cheapest one is called

    def text(self, row: Mapping[str, Any]) -> str:
        """The row's cost with its unit."""
        return f"{row[self.key] * self.factor:.3g} {self.unit}"


COSTS = {
    "time": Cost(
        *("processor_s", 1e3, "ms per s of audio", "processor time, ms per second of audio", "Measured time"),
        *("of the artifact through the runtime, in turns in one process", "fastest"),
    ),
    "parameters": Cost(
        *("nonzero_parameters", 1e-6, "M", "parameters that are not zero, M", "Parameters"),
        *("zeros are left out, though engines multiply them", "fewest parameters"),
    ),
    "macs": Cost(
        *("superb_macs", 1e-9, "GMACs", SUPERB_GMACS, "Multiply-accumulates"),
        *("by the shapes of the matrices: zeros count", "fewest MACs"),
    ),
    "size": Cost("artifact_bytes", 1e-6, "MB", "artifact, MB", "File size", "of the artifact", "smallest file"),
}
FAMILIES = {
    "uncompressed": INK,
    "heads": BLUE,
    "rows": GREEN,
    "low rank": AMBER,
    "weights": RED,
    "several": VIOLET,
    "other": GREY,
}
_FAMILY_OF = {
    "heads": "heads",
    "heads-data": "heads",
    "heads-diagonal": "heads",
    "heads-random": "heads",
    "rows": "rows",
    "low-rank": "low rank",
    "low-rank-data": "low rank",
    "weights": "weights",
    "2:4": "weights",
    "gates": "several",
    "pinch": "several",
}
FLOOR = 0.1  # percent, of a logarithmic axis


def family(row: Mapping[str, Any]) -> str:
    """What kind of compression a point is, for its colour."""
    method = row["method"]
    if method is None:
        return "other" if row.get("fresh") else "uncompressed"
    return "several" if "+" in method else _FAMILY_OF.get(method, "other")


def numbered(results: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Every point with its number, as drawings and tables have it."""
    return [(str(number), row) for number, row in enumerate(results["points"], start=1)]


def compressed_by(row: Mapping[str, Any]) -> str:
    """What was done to a point's student."""
    steps = f", {row['recover']} steps" if row["recover"] else ""
    if row.get("fresh"):
        changes = ", ".join(f"{key} {_plain(value)}" for key, value in row["fresh"].items())
        return f"initial weights, {changes}{steps}"
    if row["method"] is None:
        return "nothing"
    ratios = ", ".join(f"{value:g}" for value in row["ratio"])
    schedule = "" if row["schedule"] == "1" else f", schedule {row['schedule']}"
    gates = f", {row['gate_steps']} steps of gates" if row["gate_steps"] else ""
    return f"{row['method']} {ratios}{schedule}{gates}{steps}"


def _plain(value: Any) -> str:
    """A setting; a list of equal values as one of them."""
    same = isinstance(value, list) and value and all(one == value[0] for one in value)
    return f"{value[0]} in each" if same else f"{value}"


def error_text(value: Mapping[str, float]) -> str:
    """An interval of shares in percent."""
    return f"{100 * value['value']:.1f} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def loss_text(row: Mapping[str, Any]) -> str:
    """How far the point's error is above the baseline's, in points."""
    return "unmeasured" if row["loss"] is None else points_text(row["loss"])


def points_text(value: Mapping[str, float]) -> str:
    """An interval of differences of shares, in points."""
    return f"{100 * value['value']:+.1f} [{100 * value['low']:+.1f}, {100 * value['high']:+.1f}]"


def faster_text(row: Mapping[str, Any]) -> str:
    """Times as fast as the baseline: median, 10th and 90th percentile."""
    if row["faster"] is None:
        return "unmeasured"
    ratio = row["faster"]
    return f"{ratio['median']:.2f} ({ratio['p10']:.2f} to {ratio['p90']:.2f})"


def parameters(row: Mapping[str, Any]) -> str:
    """Millions of parameters that are not zero, and of how many, where zeros matter."""
    text = f"{row['nonzero_parameters'] / 1e6:.2f}"
    return text if row["nonzero_parameters"] >= 0.99 * row["parameters"] else f"{text} of {row['parameters'] / 1e6:.2f}"


def cost_plot(results: Mapping[str, Any], metric: str) -> str | None:
    """Error in percent over a cost, with intervals; None where no point was measured."""
    cost = COSTS[metric]
    key, factor = cost.key, cost.factor
    rows = [(number, row) for number, row in numbered(results) if row["status"] == "measured" and row[key] is not None]
    if not rows:
        return None
    points = [
        ScatterPoint(
            number,
            f"{row['name']}: {row[key] * factor:.3g}, error {error_text(row['error'])} %",
            row[key] * factor,
            100 * row["error"]["value"],
            FAMILIES[family(row)],
            100 * row["error"]["low"],
            100 * row["error"]["high"],
            hollow=row["precision"] == "fp32",
        )
        for number, row in rows
    ]
    number_of = {row["name"]: number for number, row in rows}
    used = {family(row) for _, row in rows}
    return scatter_plot(
        points,
        front=[number_of[name] for name in results["fronts"][metric]],
        x_title=cost.axis,
        y_title="probe error, %",
        names=[Name(_legend(name), colour) for name, colour in FAMILIES.items() if name in used],
        levels=_levels(results),
        floor=FLOOR,
    )


def published_plot(results: Mapping[str, Any], key: str) -> str:
    """SUPERB overall score over ``million_parameters`` or ``superb_gmacs``, as published."""
    models = [(str(i), one) for i, one in enumerate(results["published"]["models"], start=1) if one[key] is not None]
    points = [ScatterPoint(i, one["name"], one[key], one["superb_overall"], GREY, hollow=True) for i, one in models]
    titles = {"million_parameters": "parameters, M", "superb_gmacs": SUPERB_GMACS}
    return scatter_plot(points, x_title=titles[key], y_title="SUPERB overall, published (higher is better)")


def utterance_lengths(results: Mapping[str, Any]) -> list[str]:
    """Seconds of the utterances that were timed one by one."""
    return list(dict.fromkeys(seconds for row in results["points"] for seconds in row["by_length"] or ()))


def time_plot(results: Mapping[str, Any], seconds: str) -> str | None:
    """Processor time over MACs for utterances of so many seconds; None where no point was timed."""
    rows = [(number, row) for number, row in numbered(results) if row["by_length"]]
    if not rows:
        return None
    points = []
    for number, row in rows:
        gmacs, ms = row["superb_macs"] / 1e9, 1e3 * row["by_length"][seconds]["processor_s"]
        title = f"{row['name']}: {gmacs:.1f} GMACs, {ms:.2f} ms"
        colour = FAMILIES[family(row)]
        points.append(ScatterPoint(number, title, gmacs, ms, colour, hollow=row["precision"] == "fp32"))
    return scatter_plot(points, x_title=SUPERB_GMACS, y_title="processor time, ms per second of audio")


def tradeoff_picture(results: Mapping[str, Any]) -> str:
    """The four plots in one SVG file, for documentation."""
    drawn = [(cost.caption, cost_plot(results, metric)) for metric, cost in COSTS.items()]
    pictures = [(caption, plot) for caption, plot in drawn if plot is not None]
    return file_text(arranged(pictures, columns=2, label="error over cost"))


def _levels(results: Mapping[str, Any]) -> list[LevelLine]:
    levels = [LevelLine(name, 100 * value["value"]) for name, value in results["references"].items()]
    base = next((row for row in results["points"] if row["name"] == results["baseline"]), None)
    if base is not None and base["error"] is not None:
        levels.append(LevelLine("limit of loss", 100 * (base["error"]["value"] + results["limit"])))
    return levels


def _legend(name: str) -> str:
    return "fresh or other" if name == "other" else name


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
    notes = [
        f"Baseline: {results['baseline']}. Cheapest within a loss of {100 * results['limit']:g} points: {winners}.",
        f"Probes: {data}. {references}. Brackets: 95 % intervals.",
        f"{made['processor']}, {made['system']}, {made['threads']} thread, {timing['repeats']} turns; {versions}.",
    ]
    return "\n".join([*lines, "", *map(markdown_text, notes)]) + "\n"


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
