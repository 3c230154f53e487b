"""Damaged answers of devices: read and reported on, or refused as not measured."""

from __future__ import annotations

import json

import numpy as np
from reuse_distill.devices.cli.device_runs import Standards, judged
from reuse_distill.devices.cli.latency_page import report_html
from reuse_distill.devices.cli.latency_reports import console, junit_xml, markdown, results_json
from reuse_distill.devices.transports.device_answer import measurement_in, worker_error
from reuse_distill.devices.transports.transport import Finished, NotMeasured

from .mutations import WEIRD, damage_bytes, damage_value

SAMPLES = 70
BASE = {
    "bundle": {"name": "toy", "kind": "streaming", "target": "onnx", "precision": "fp32", "artifact_sha256": "0" * 64,
               "chunk_frames": 8, "worst_latency_ms": 245.0},
    "request": {"mode": "paced", "streams": 1, "seconds": 2.0, "warmup_chunks": 2, "threads": 1, "provider": "auto"},
    "context": {"machine": "Board", "processor": "Core", "architecture": "aarch64", "cores": 4, "memory_bytes": 4000,
                "system": "OS", "kernel": "Linux", "python": "3.11.2", "packages": {"numpy": "2"},
                "board_release": "unmeasured", "virtualised": "no", "load_before": 0.1},
    "settings": {"governor": "performance", "power_mode": "unmeasured"},
    "metrics": {"p50": 5.0, "p99": 5.1, "rtf": 0.1, "temperature": 40.0},
    "samples": [{"at_s": [0.16 * i for i in range(SAMPLES)], "latency_ms": [5.0 + i % 7 for i in range(SAMPLES)],
                 "service_ms": [4.0 + i % 5 for i in range(SAMPLES)]}],
    "readings": [{"time_s": 0.0, "clock_hz": 1e9, "temperature_c": 40.0, "throttle_events": 0, "throttled_now": False,
                  "power_w": 1.0, "energy_j": None, "cost_ms": 0.1}],
    "overhead": {"per_chunk_p50_ms": 0.001, "per_chunk_p99_ms": 0.002, "sensor_reading_ms": 0.1},
    "throttling": "no", "energy_source": "unmeasured", "taken_at": "2030-01-02T03:04:05+00:00", "notes": ["a"],
    "details": {"selftest": "passed"},
}  # fmt: skip
HOSTILE = (
    *WEIRD, "\x1b[2J", "::error::", "<script>", "\ud800", "\u202e", "x" * 3000, 10**30, 1e308, -1e308, 5e-324, 3.5,
    float("nan"), float("inf"), "1", "paced", {"": None}, [1.0] * 300,
)  # fmt: skip
INSERTED = (b"", b"[" * 5000, b"9" * 6000, b"\0", b"NaN", b'"', b"}", b"\n", "é".encode())


def test_any_answer_is_measured_or_refused(fuzz) -> None:
    def case(rng: np.random.Generator) -> None:
        finished = Finished(0, _printed(rng), (), 1.0)
        worker_error(finished)
        try:
            measurement = measurement_in(finished)
        except NotMeasured as error:
            assert error.message.isprintable(), ascii(error.message)
            raise
        assert measurement is not None
        outcomes = [judged(measurement, "pi", Standards(), address="", duration_s=1.0)]
        for report in (console, markdown, junit_xml, results_json, report_html)[: 5 if rng.random() < 0.1 else 4]:
            report(outcomes).encode("utf-8")

    outcomes = fuzz(case, cases=600)
    assert 0 < outcomes.refused < outcomes.cases


def _printed(rng: np.random.Generator) -> str:
    """What a worker prints: an answer, a quarter of them undamaged in their values, some with damaged text."""
    text = json.dumps(damage_value(BASE, rng, HOSTILE) if rng.random() < 0.75 else BASE).encode()
    if rng.random() < 0.2:
        at = int(rng.integers(len(text)))
        text = text[:at] + INSERTED[rng.integers(len(INSERTED))] + text[at + int(rng.integers(40)) :]
    elif rng.random() < 0.1:
        text = damage_bytes(text, rng)
    line = text.decode("utf-8", "replace")
    return f"RD-LATENCY-RESULT {line}\nRD-LATENCY-ERROR {line}\n"
