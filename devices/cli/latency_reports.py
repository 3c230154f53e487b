"""Outcomes as Markdown for a pull request, text for a terminal, JSON with every sample, and JUnit XML for CI."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree as ET

from reuse_distill.devices.judging.budgets import LimitCheck
from reuse_distill.devices.judging.verdicts import (
    OVER,
    PASS,
    REGRESSED,
    UNMEASURED,
    UNREACHABLE,
    DeviceOutcome,
    exit_status,
    worst,
)
from reuse_distill.devices.measuring.measurement import METRICS, RESULT_SCHEMA
from reuse_distill.report.plain_text import log_text, markdown_text
from reuse_distill.report.quantities import UNITS, quantity
from reuse_distill.runtime.untrusted_input import to_dict

COLUMNS = ("p50", "p99", "max", "deadline_misses", "rtf", "first_frame", "peak_memory")
SIGNS = {"pass": "✅", "over budget": "❌", "regressed": "❌", "unmeasured": "❔", "unreachable": "🔌"}


def headline(outcomes: Sequence[DeviceOutcome]) -> str:
    """The verdict of the call in words."""
    verdict = worst([outcome.verdict for outcome in outcomes])
    judged = any(outcome.checks or outcome.comparison for outcome in outcomes)
    if verdict == "pass" and not judged:
        return "measured; without a budget or a baseline nothing was judged"
    return verdict


def markdown(outcomes: Sequence[DeviceOutcome]) -> str:
    """GitHub-flavoured Markdown."""
    lines = [f"### Latency: {headline(outcomes)}", ""]
    measured = next((outcome.measurement for outcome in outcomes if outcome.measurement), None)
    if measured:
        bundle = measured.bundle
        lines += [
            markdown_text(f"{bundle.name} ({bundle.kind}, {bundle.precision}), {measured.request.label}"),
            "",
        ]
    titles = ["device", "verdict", *(METRICS[name].title for name in COLUMNS), "against the baseline"]
    lines += ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    lines += ["| " + " | ".join(_row(outcome)) + " |" for outcome in outcomes]
    notes = [
        f"- **{markdown_text(outcome.device)}** {markdown_text(note)}"
        for outcome in outcomes
        for note in notes_of(outcome)
    ]
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"


def _row(outcome: DeviceOutcome) -> list[str]:
    checks = {check.metric: check for check in outcome.checks}
    metrics = outcome.measurement.metrics if outcome.measurement else {}
    cells = [_cell(metrics.get(name), name, checks.get(name)) for name in COLUMNS]
    return [markdown_text(outcome.device), f"{SIGNS[outcome.verdict]} {outcome.verdict}", *cells, _against(outcome)]


def _cell(value: float | None, name: str, check: LimitCheck | None) -> str:
    text = quantity(value, METRICS[name].dimension)
    if check is None:
        return text
    limit = quantity(check.limit, METRICS[name].dimension)
    return f"**{text}** > {limit}" if check.verdict == "over budget" else f"{text} (≤ {limit})"


def _against(outcome: DeviceOutcome) -> str:
    if outcome.comparison is None:
        return "not compared"
    effect = outcome.comparison.centre
    return outcome.comparison.verdict if effect is None else f"{100 * (effect.ratio - 1):+.1f} % median"


def notes_of(outcome: DeviceOutcome) -> list[str]:
    """What a reader has to know besides the numbers: reasons, the shape of the series, notes of the run."""
    notes = [*outcome.reasons, *outcome.notes]
    if (
        outcome.stability is not None
        and outcome.stability.name != "steady"
        and not _mentioned(outcome.stability.evidence, notes)
    ):
        notes.append(f"the series is {outcome.stability.name}: {outcome.stability.evidence}")
    if outcome.measurement is not None:
        notes += outcome.measurement.notes
    return list(dict.fromkeys(notes))


def _mentioned(evidence: str, notes: Sequence[str]) -> bool:
    return bool(evidence) and any(evidence in note for note in notes)


def console(outcomes: Sequence[DeviceOutcome]) -> str:
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
        blocks.append("\n".join("  " * line.startswith("  ") + log_text(line.strip()) for line in lines))
    return "\n".join(blocks) + "\n"


def _limit(check: LimitCheck | None) -> str:
    if check is None:
        return ""
    return f"limit {quantity(check.limit, METRICS[check.metric].dimension)}  {check.verdict}"


def results_json(outcomes: Sequence[DeviceOutcome]) -> str:
    """One document; metrics are in the base units it names, `null` is unmeasured."""
    units = {name: next(iter(UNITS[metric.dimension])) or metric.dimension for name, metric in METRICS.items()}
    document: dict[str, Any] = {
        "schema": RESULT_SCHEMA,
        "exit_status": exit_status([outcome.verdict for outcome in outcomes]),
        "units": units,
        "outcomes": [to_dict(outcome) for outcome in outcomes],
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(outcomes: Sequence[DeviceOutcome]) -> str:
    """The document. Over budget and regressed are failures, unreachable and unmeasured are errors."""
    root = ET.Element("testsuites", name="rd-latency")
    for outcome in outcomes:
        root.append(_suite(outcome))
    for count in ("tests", "failures", "errors"):
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in root)))
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _suite(outcome: DeviceOutcome) -> ET.Element:
    suite = ET.Element("testsuite", name=_clean(f"rd-latency.{outcome.device}"), time=f"{outcome.duration_s:.3f}")
    cases = [(METRICS[check.metric].title, check.verdict, str(check)) for check in outcome.checks]
    if outcome.comparison is not None:
        cases.append(("against the baseline", outcome.comparison.verdict, outcome.comparison.reason))
    if not cases or outcome.measurement is None:
        cases.append(("measured", outcome.verdict, "; ".join(outcome.reasons) or "measured, nothing to judge by"))
    for name, verdict, text in cases:
        suite.append(_case(outcome.device, name, verdict, text))
    suite.set("tests", str(len(cases)))
    suite.set("failures", str(sum(verdict in (OVER, REGRESSED) for _, verdict, _ in cases)))
    suite.set("errors", str(sum(verdict in (UNMEASURED, UNREACHABLE) for _, verdict, _ in cases)))
    return suite


def _case(device: str, name: str, verdict: str, text: str) -> ET.Element:
    case = ET.Element("testcase", classname=_clean(f"rd-latency.{device}"), name=name)
    clean = _clean(text)
    if verdict in (OVER, REGRESSED):
        ET.SubElement(case, "failure", type=verdict, message=clean)
    elif verdict != PASS:
        ET.SubElement(case, "error", type=verdict, message=clean)
    else:
        ET.SubElement(case, "system-out").text = clean
    return case


def _clean(text: str) -> str:
    """Without the characters that XML cannot hold; a device's messages may have any."""
    return _FORBIDDEN.sub("?", text)
