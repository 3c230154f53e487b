"""A malformed, endless or hostile answer of one device is that device's verdict: no traceback, never status 1."""

from __future__ import annotations

import copy
import json
import sys
from threading import Event

import numpy as np
import pytest
from reuse_distill.devices.cli.device_runs import Standards, judged
from reuse_distill.devices.cli.latency_page import report_html
from reuse_distill.devices.cli.latency_reports import console, junit_xml, markdown, results_json
from reuse_distill.devices.transports.device_answer import measurement_in, no_result, worker_error
from reuse_distill.devices.transports.process import run
from reuse_distill.devices.transports.transport import Finished, NotMeasured

COUNT = 120


def answer() -> dict:
    """What a worker prints after a run of 120 chunks."""
    latency = (5.0 * np.exp(0.02 * np.random.default_rng(7).standard_normal(COUNT))).tolist()
    context = {
        "machine": "Board", "processor": "Core", "architecture": "aarch64", "cores": 4, "memory_bytes": 4_000_000_000,
        "system": "OS 1", "kernel": "Linux 6", "python": "3.11.2", "packages": {"onnxruntime": "1.31.0"},
        "board_release": "unmeasured", "virtualised": "no", "load_before": 0.1,
    }  # fmt: skip
    return {
        "bundle": {
            "name": "toy", "kind": "streaming", "target": "onnx", "precision": "fp32", "artifact_sha256": "0" * 64,
            "chunk_frames": 8, "worst_latency_ms": 245.0,
        },
        "request": {"mode": "paced", "seconds": 2.0},
        "context": context,
        "settings": {"governor": "performance", "highest_clock": "2.40 GHz", "power_mode": "unmeasured"},
        "metrics": {"p50": 5.0, "rtf": 0.1},
        "samples": [{"at_s": [0.16 * i for i in range(COUNT)], "latency_ms": latency, "service_ms": list(latency)}],
        "readings": [],
        "overhead": {"per_chunk_p50_ms": 0.001, "per_chunk_p99_ms": 0.002, "sensor_reading_ms": 0.1},
        "throttling": "unmeasured",
        "energy_source": "unmeasured",
        "taken_at": "2030-01-02T03:04:05+00:00",
    }  # fmt: skip


def of(text: str) -> Finished:
    return Finished(0, f"RD-LATENCY-RESULT {text}\n", (), 1.0)


def each(**values):
    return lambda r: r["samples"][0].update({name: [value] * COUNT for name, value in values.items()})


CASES = {
    "deep": "[" * 100_000,
    "deep in a whole answer": lambda r: r.update(details={"x": json.loads("[" * 20 + "]" * 20)}),
    "bigint": "9" * 5000,
    "null": "null",
    "cut off": '{"bundle": {"na',
    "metrics list": lambda r: r.update(metrics=[1]),
    "no samples": lambda r: r.update(samples=[]),
    "empty stream": lambda r: r.update(samples=[{"at_s": [], "latency_ms": [], "service_ms": []}]),
    "unequal lengths": lambda r: r["samples"][0]["at_s"].append(1.0),
    "NaN metric": lambda r: r["metrics"].update(p50=float("nan")),
    "inf metric": lambda r: r["metrics"].update(p50=float("inf")),
    "negative metric": lambda r: r["metrics"].update(p50=-1.0),
    "int 1e400": lambda r: r["metrics"].update(p50=10**400),
    "NaN latency": each(latency_ms=float("nan")),
    "0 latency": each(latency_ms=0.0, service_ms=0.0),
    "negative": each(latency_ms=-5.0, service_ms=-5.0),
    "1e308": each(latency_ms=1e308),
    "inf at_s": each(at_s=float("inf")),
    "chunk 1e400": lambda r: r["bundle"].update(chunk_frames=10**400),
    "chunk 0": lambda r: r["bundle"].update(chunk_frames=0),
    "no settings": lambda r: r.update(settings={}),
    "NaN in details": lambda r: r.update(details={"x": float("nan")}),
    "endless note": lambda r: r.update(notes=["x" * 100_000]),
    "many notes": lambda r: r.update(notes=["x"] * 10_000),
    "no time": lambda r: r.update(taken_at="<script>"),
    "unknown key": lambda r: r.update(verdict="pass"),
    "unknown mode": lambda r: r["request"].update(mode="\x1b[2J"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_malformed_answer_is_not_measured(name: str) -> None:
    case = CASES[name]
    text = case if isinstance(case, str) else ""
    if not isinstance(case, str):
        made = copy.deepcopy(answer())
        case(made)
        text = json.dumps(made)
    with pytest.raises(NotMeasured) as caught:
        measurement_in(of(text))
    assert "\x1b" not in str(caught.value) and len(caught.value.message) < 1000


def test_a_whole_answer_is_measured_and_goes_through_every_report() -> None:
    measurement = measurement_in(of(json.dumps(answer())))
    assert measurement is not None
    outcome = [judged(measurement, "pi", Standards(), address="", duration_s=1.0)]
    for report in (report_html, results_json, markdown, console, junit_xml):
        assert report(outcome)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "null", '{"message": 3}', '{"message": "x", "hint": ["y"]}', "9" * 5000]
)
def test_an_error_line_that_is_none_is_no_traceback(text: str) -> None:
    error = worker_error(Finished(4, f"RD-LATENCY-ERROR {text}\n", (), 1.0))
    assert error is None or error.hint is None


def test_an_endless_answer_is_stopped_and_bounded() -> None:
    code = "import sys\nwhile True: sys.stdout.buffer.write(b'x' * 65536)"
    finished = run([sys.executable, "-c", code], limit_s=60, progress=lambda line: None, cancel=Event())
    assert finished.too_long and not finished.timed_out
    assert len(finished.stdout) < 32 << 20
    assert "answered more than" in no_result(finished, where="pi").message


def test_an_endless_line_of_messages_is_bounded() -> None:
    code = "import sys\nfor _ in range(400): sys.stderr.write('y' * 65536)"
    finished = run([sys.executable, "-c", code], limit_s=60, progress=lambda line: None, cancel=Event())
    assert sum(map(len, finished.messages)) < 1 << 20
