"""A summary for a pull request or a terminal: one table, and a line for everything that is not a pass."""

from __future__ import annotations

from collections.abc import Sequence

from reuse_distill.devices.budgets import Check
from reuse_distill.devices.results import METRICS
from reuse_distill.devices.verdicts import Outcome, worst
from reuse_distill.report.quantities import quantity

COLUMNS = ("p50", "p99", "max", "deadline_misses", "rtf", "first_frame", "peak_memory")
SIGNS = {"pass": "✅", "over budget": "❌", "regressed": "❌", "unmeasured": "❔", "unreachable": "🔌"}


def headline(outcomes: Sequence[Outcome]) -> str:
    """The verdict of the call in words."""
    verdict = worst([outcome.verdict for outcome in outcomes])
    judged = any(outcome.checks or outcome.comparison for outcome in outcomes)
    if verdict == "pass" and not judged:
        return "measured; without a budget or a baseline nothing was judged"
    return verdict


def markdown(outcomes: Sequence[Outcome]) -> str:
    """GitHub-flavoured Markdown."""
    lines = [f"### Latency: {headline(outcomes)}", ""]
    measured = next((outcome.measurement for outcome in outcomes if outcome.measurement), None)
    if measured:
        lines += [
            f"`{measured.bundle.name}` ({measured.bundle.kind}, {measured.bundle.precision}), {measured.request.label}",
            "",
        ]
    titles = ["device", "verdict", *(METRICS[name].title for name in COLUMNS), "against the baseline"]
    lines += ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    lines += ["| " + " | ".join(_row(outcome)) + " |" for outcome in outcomes]
    notes = [f"- **{outcome.device}** {note}" for outcome in outcomes for note in notes_of(outcome)]
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"


def _row(outcome: Outcome) -> list[str]:
    checks = {check.metric: check for check in outcome.checks}
    metrics = outcome.measurement.metrics if outcome.measurement else {}
    cells = [_cell(metrics.get(name), name, checks.get(name)) for name in COLUMNS]
    return [outcome.device, f"{SIGNS[outcome.verdict]} {outcome.verdict}", *cells, _against(outcome)]


def _cell(value: float | None, name: str, check: Check | None) -> str:
    text = quantity(value, METRICS[name].dimension)
    if check is None:
        return text
    limit = quantity(check.limit, METRICS[name].dimension)
    return f"**{text}** > {limit}" if check.verdict == "over budget" else f"{text} (≤ {limit})"


def _against(outcome: Outcome) -> str:
    if outcome.comparison is None:
        return "not asked"
    effect = outcome.comparison.centre
    return outcome.comparison.verdict if effect is None else f"{100 * (effect.ratio - 1):+.1f} % median"


def notes_of(outcome: Outcome) -> list[str]:
    """What a reader has to know besides the numbers: reasons, the shape of the series, notes of the run."""
    notes = [*outcome.reasons]
    if outcome.shape is not None and outcome.shape.name != "steady" and not _said(outcome.shape.evidence, notes):
        notes.append(f"the series is {outcome.shape.name}: {outcome.shape.evidence}")
    if outcome.measurement is not None:
        notes += outcome.measurement.notes
    return list(dict.fromkeys(notes))


def _said(evidence: str, notes: Sequence[str]) -> bool:
    return bool(evidence) and any(evidence in note for note in notes)


def console(outcomes: Sequence[Outcome]) -> str:
    """The same for a terminal: a block per device."""
    blocks = []
    for outcome in outcomes:
        lines = [
            f"{outcome.device}: {outcome.verdict if outcome.checks or outcome.comparison else headline([outcome])}"
        ]
        if outcome.measurement:
            checks = {check.metric: check for check in outcome.checks}
            for name, metric in METRICS.items():
                value = outcome.measurement.metrics.get(name)
                if value is not None or name in checks:
                    lines.append(
                        f"  {metric.title:<30}{quantity(value, metric.dimension):>12}{_limit(checks.get(name)):>28}"
                    )
            if outcome.comparison and outcome.comparison.reason:
                lines.append(f"  against the baseline: {outcome.comparison.verdict}: {outcome.comparison.reason}")
        lines += [f"  {note}" for note in notes_of(outcome)]
        blocks.append("\n".join(lines))
    return "\n".join(blocks) + "\n"


def _limit(check: Check | None) -> str:
    if check is None:
        return ""
    return f"limit {quantity(check.limit, METRICS[check.metric].dimension)}  {check.verdict}"
