"""JUnit XML: a test suite per device, a test case per limit and one for the comparison with the baseline."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from reuse_distill.devices.results import METRICS
from reuse_distill.devices.verdicts import OVER, PASS, REGRESSED, UNMEASURED, UNREACHABLE, Outcome

_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(outcomes: Sequence[Outcome]) -> str:
    """The document. Over budget and regressed are failures, unreachable and unmeasured are errors."""
    root = ET.Element("testsuites", name="rd-latency")
    for outcome in outcomes:
        root.append(_suite(outcome))
    for count in ("tests", "failures", "errors"):
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in root)))
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _suite(outcome: Outcome) -> ET.Element:
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
