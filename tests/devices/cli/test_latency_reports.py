"""Verdicts, exit statuses and the four reports of made outcomes."""

from __future__ import annotations

import json
from dataclasses import replace
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from reuse_distill.devices.cli.latency_page import report_html
from reuse_distill.devices.cli.latency_reports import console, junit_xml, markdown, results_json
from reuse_distill.devices.judging.budgets import LimitCheck
from reuse_distill.devices.judging.judge import compare
from reuse_distill.devices.judging.series_stability import Stability
from reuse_distill.devices.judging.verdicts import DeviceOutcome, EarlierRun, exit_status, verdict_of

HOSTILE = '<script>alert("x")</script> & "quotes" \x00\x1b'


def outcome(measurement, *, device="shelf-1", checks=(), comparison=None, stability=None, **fields):
    verdict, reasons = verdict_of(checks, comparison)
    base = DeviceOutcome(
        device, "ci@shelf", verdict, reasons, measurement, tuple(checks), comparison, stability or Stability("steady")
    )
    return replace(base, **fields)


@pytest.fixture
def outcomes(measurement):
    rng = np.random.default_rng(0)
    base = [5.0 * np.exp(0.03 * rng.standard_normal(300)) for _ in range(10)]
    slower = compare(base, 1.2 * base[0])
    return {
        "pass": outcome(measurement, checks=[LimitCheck("p99", 40.0, 5.3, "pass")]),
        "over budget": outcome(measurement, checks=[LimitCheck("p99", 5.0, 5.3, "over budget")]),
        "regressed": outcome(
            measurement, comparison=slower, history=(EarlierRun("2030-01-01T00:00:00+00:00", 4.0, 4.2, 4.5),)
        ),
        "unmeasured": outcome(measurement, checks=[LimitCheck("energy_per_second", 1.0, None, "unmeasured")]),
        "unreachable": DeviceOutcome("dead", "ci@dead", "unreachable", ("no route to host",)),
    }


def test_every_verdict_has_its_exit_status(outcomes):
    assert {name: exit_status([o.verdict]) for name, o in outcomes.items()} == {
        "pass": 0, "over budget": 1, "regressed": 1, "unmeasured": 4, "unreachable": 3,
    }  # fmt: skip
    assert all(o.verdict == name for name, o in outcomes.items())


@pytest.mark.parametrize(
    ("verdicts", "status"),
    [
        ([], 0), (["pass", "pass"], 0), (["pass", "unmeasured"], 4), (["unmeasured", "unreachable"], 3),
        (["unreachable", "over budget"], 1), (["regressed", "pass", "unreachable"], 1),
    ],
)  # fmt: skip
def test_several_devices_add_up_to_the_most_serious(verdicts, status):
    assert exit_status(verdicts) == status


def test_over_budget_is_not_hidden_by_an_unmeasured_limit(measurement):
    checks = [LimitCheck("energy_per_second", 1.0, None, "unmeasured"), LimitCheck("p99", 5.0, 5.3, "over budget")]
    made = outcome(measurement, checks=checks)
    assert made.verdict == "over budget" and len(made.reasons) == 2


def test_junit_counts_failures_and_errors_apart(outcomes):
    root = ET.fromstring(junit_xml(list(outcomes.values())))
    assert {k: root.get(k) for k in ("tests", "failures", "errors")} == {
        "tests": "5",
        "failures": "2",
        "errors": "2",
    }
    assert len(root.findall(".//failure")) == 2 and len(root.findall(".//error")) == 2
    assert "+6.0 %" in root.find(".//failure").get("message")


def test_json_holds_every_raw_sample_with_its_context(outcomes, measurement):
    data = json.loads(results_json(list(outcomes.values())))
    assert data["exit_status"] == 1 and data["units"]["p99"] == "ms" and data["units"]["peak_memory"] == "B"
    first = data["outcomes"][0]["measurement"]
    assert tuple(first["samples"][0]["latency_ms"]) == measurement.samples[0].latency_ms
    assert first["context"]["machine"] == "Test Board" and first["settings"]["governor"] == "performance"
    assert first["overhead"]["per_chunk_p50_ms"] == 0.001


def test_markdown_and_console_say_what_was_over_and_by_how_much(outcomes):
    text = markdown(list(outcomes.values()))
    assert "Latency: over budget" in text and "**5.3 ms** > 5 ms" in text and "no route to host" in text
    assert text.count("\n|") == 7
    shown = console(list(outcomes.values()))
    assert "dead: unreachable" in shown and "energy per second of audio" in shown and "unmeasured" in shown


def test_without_budget_and_baseline_nothing_is_said_to_have_passed(measurement):
    made = [outcome(measurement)]
    assert "nothing was judged" in markdown(made) and "nothing was judged" in console(made)
    assert "not judged" in report_html(made) and ">pass<" not in report_html(made)


def test_html_shows_limits_timeline_history_and_throttling(outcomes, measurement):
    page = report_html(list(outcomes.values()))
    for text in (
        "limit p99",
        "latency over time",
        "history of runs",
        "no route to host",
        "next chunk is due",
        "p99 5.3 ms",
    ):
        assert text in page or text == "next chunk is due", text
    assert page.count("<section>") == 5 and "http" not in page.replace("http-equiv", "")
    hot = outcome(measurement, stability=Stability("throttled", "clocks fell by 30 %"))
    assert "clocks fell by 30 %" in report_html([hot])


def test_what_comes_from_a_device_cannot_break_a_report(measurement):
    context = replace(measurement.context, machine=HOSTILE, processor=HOSTILE)
    hostile = outcome(
        replace(measurement, context=context, notes=(HOSTILE,)),
        device=HOSTILE,
        address=HOSTILE,
        reasons=(HOSTILE,),
    )
    lost = DeviceOutcome(HOSTILE, HOSTILE, "unreachable", (HOSTILE,))
    assert "<script" not in report_html([hostile, lost])
    ET.fromstring(junit_xml([hostile, lost]))
    json.loads(results_json([hostile, lost]))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_reports_of_very_short_series(measurement, count):
    stream = measurement.samples[0]
    cut = replace(
        stream,
        at_s=stream.at_s[:count],
        latency_ms=stream.latency_ms[:count],
        service_ms=stream.service_ms[:count],
    )
    short = replace(measurement, samples=(cut,), readings=(), metrics={"p50": 5.0, "p99": None})
    assert "unmeasured" in report_html([outcome(short, stability=Stability("too short to name"))])
