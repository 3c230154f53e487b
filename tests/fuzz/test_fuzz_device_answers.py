"""Mutated answers of devices: read, or refused as not measured; no other exception, no hang, no flood of memory.

``RD_FUZZ_N`` answers are tried (600 by default).
"""

from __future__ import annotations

import json
import os
import random
import time
import tracemalloc

from reuse_distill.devices.device_runs import Standards, judged
from reuse_distill.devices.latency_page import report_html
from reuse_distill.devices.latency_reports import console, junit_xml, markdown, results_json
from reuse_distill.devices.transports.device_answer import measurement_in, worker_error
from reuse_distill.devices.transports.transport import Finished, NotMeasured

COUNT = int(os.environ.get("RD_FUZZ_N", "600"))
LONGEST_S, MOST_BYTES = 5.0, 500 << 20
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
VALUES = [
    None, True, 0, -1, 1e308, -1e308, 5e-324, 10**30, "", "x" * 3000, "\x1b[2J", "::error::", "<script>", "\ud800", [],
    {}, [[]], {"": None}, [1.0] * 3, float("nan"), float("inf"), "1", 1e-9, 3.5, 2**63, "paced", "\u202e",
]  # fmt: skip
INSERTED = ["", "[" * 5000, "9" * 6000, "\x00", "NaN", '"', "}", "\n", "é"]


def places(value: object, found: list) -> list:
    """Every container with a key in it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found.append((value, key))
        places(item, found)
    return found


def mutated(rng: random.Random) -> str:
    """One answer with some values, keys or bytes changed."""
    data = json.loads(json.dumps(BASE))
    for _ in range(rng.randint(0, 3)):
        container, key = rng.choice(places(data, []))
        kind = rng.random()
        if kind < 0.7:
            container[key] = rng.choice(VALUES)
        elif kind < 0.85:
            del container[key]
        elif isinstance(container, dict):
            container[rng.choice(["", "x", "__class__", "samples"])] = rng.choice(VALUES)
        else:
            container.extend([rng.choice(VALUES)] * rng.randint(1, 300))
    text = json.dumps(data)
    if rng.random() < 0.3:
        at = rng.randrange(len(text))
        cut = rng.randint(0, 40)
        text = text[:at] + rng.choice(INSERTED) + text[at + cut :]
    return text


def test_any_answer_is_measured_or_refused() -> None:
    rng = random.Random(f"device answers {COUNT}")
    read = 0
    tracemalloc.start()
    for number in range(COUNT):
        text = mutated(rng)
        began = time.monotonic()
        finished = Finished(0, f"RD-LATENCY-RESULT {text}\nRD-LATENCY-ERROR {text}\n", (), 1.0)
        worker_error(finished)
        try:
            measurement = measurement_in(finished)
        except NotMeasured as error:
            assert error.message.isprintable(), ascii(error.message)
            continue
        assert measurement is not None
        outcomes = [judged(measurement, "pi", Standards(), address="", duration_s=1.0)]
        reports = (console, markdown, junit_xml, results_json, *([report_html] if number % 10 == 0 else []))
        for report in reports:
            report(outcomes).encode("utf-8")
        read += 1
        assert time.monotonic() - began < LONGEST_S, text[:500]
    assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    tracemalloc.stop()
    assert 0 < read < COUNT
