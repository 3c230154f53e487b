"""Text of a device reaches terminal, CI log, Markdown and HTML as text: no escape sequence, command or markup."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reuse_distill.devices.cli.latency_page import report_html
from reuse_distill.devices.cli.latency_reports import console, junit_xml, markdown
from reuse_distill.devices.judging.verdicts import UNMEASURED, DeviceOutcome
from reuse_distill.devices.transports.device_answer import no_result, worker_error
from reuse_distill.devices.transports.transport import Finished
from reuse_distill.report.plain_text import log_text, markdown_text, one_line, text_table

HOSTILE = "\x1b[2J\x1b]0;owned\x07\n::error::broken\n##[error]x\r<script>alert(1)</script> | `a` [b](c) @all\u202e"


def lost(reason: str) -> DeviceOutcome:
    return DeviceOutcome("pi", "", UNMEASURED, (reason,))


def test_what_a_device_reports_as_its_error_is_shown_as_text() -> None:
    line = "RD-LATENCY-ERROR " + json.dumps({"message": HOSTILE, "hint": HOSTILE})
    error = worker_error(Finished(4, line + "\n", (), 1.0))
    assert error is not None
    for text in (error.message, error.hint or "", no_result(Finished(1, "", (HOSTILE,), 1.0), where="pi").message):
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202e]", text)


@pytest.mark.parametrize("report", [console, markdown, report_html, junit_xml])
def test_reports_hold_no_control_and_no_command(report) -> None:
    text = report([lost(HOSTILE)])
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text.replace("\r", "\x00"))
    assert report is console or "<script" not in text
    if report in (console, markdown):
        assert not any(line.strip().startswith("::") or "##[" in line for line in text.splitlines())


def test_markdown_shows_the_text_and_no_markup() -> None:
    row = markdown([lost("a | b <img src=x> @team `code` [link](http://x)")])
    assert "<img" not in row and "@team" not in row and r"\|" in row and r"\`code\`" in row and r"\[link\]" in row


@given(st.text())
def test_any_text_becomes_one_harmless_line(text: str) -> None:
    for made in (one_line(text), log_text(text), markdown_text(text)):
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]", made)
        made.encode("utf-8")
    assert "::" not in log_text(text) and "##[" not in log_text(text)
    assert "<" not in markdown_text(text)


def test_a_text_table_is_aligned_and_never_cut() -> None:
    assert text_table([("a", "long head"), ("value", "x")], rule=True).splitlines() == [
        "a      long head",
        "-----  ---------",
        "value  x",
    ]
