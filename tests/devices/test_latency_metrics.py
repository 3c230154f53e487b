from __future__ import annotations

import numpy as np
import pytest
from reuse_distill.devices.latency_metrics import energy_metrics, latency_metrics, throttling
from reuse_distill.devices.sensors import Reading
from reuse_distill.devices.stream_driver import Series


def reading(t, **values):
    none = dict.fromkeys(("clock_hz", "temperature_c", "throttle_events", "throttled_now", "power_w", "energy_j"))
    return Reading(time_s=t, cost_ms=0.1, **{**none, **values})


def test_metrics_of_a_made_series():
    due = np.arange(200) * 0.1
    service = np.full(200, 0.05)
    service[::20] = 0.15  # ten chunks longer than their period
    series = Series(list(due), list(due + 0.001), list(due + 0.001 + service))
    metrics = latency_metrics([series], period_ms=100, mode="paced")
    assert metrics["p50"] == pytest.approx(51) and metrics["max"] == pytest.approx(151)
    assert metrics["deadline_misses"] == pytest.approx(0.05)
    assert metrics["rtf"] == pytest.approx((190 * 0.05 + 10 * 0.15) / 200 / 0.1)
    assert metrics["wakeup_p99"] == pytest.approx(1)
    assert latency_metrics([series], period_ms=100, mode="back-to-back")["wakeup_p99"] is None


def test_nothing_measured_is_unmeasured_everywhere():
    assert set(latency_metrics([Series()], period_ms=100, mode="paced").values()) == {None}


@pytest.mark.parametrize(
    ("readings", "expected"),
    [
        ([reading(0), reading(1)], "unmeasured"),
        ([reading(0, throttled_now=False), reading(1, throttled_now=False)], "no"),
        (
            [
                reading(0, throttled_now=False),
                reading(1, throttled_now=True),
                reading(2, throttled_now=False),
            ],
            "yes",
        ),
        ([reading(0, throttle_events=7), reading(1, throttle_events=7)], "no"),
        ([reading(0, throttle_events=7), reading(1, throttle_events=9)], "yes"),
    ],
)
def test_throttling_is_what_the_device_says(readings, expected):
    assert throttling(readings) == expected


def test_energy_from_a_counter_from_power_and_from_nothing():
    counter = [reading(t, energy_j=100 + 3.0 * t) for t in range(11)]
    assert energy_metrics(counter, audio_s=10) == {
        "power": pytest.approx(3.0),
        "energy_per_second": pytest.approx(3.0),
    }
    power = [reading(t, power_w=4.0) for t in range(11)]
    assert energy_metrics(power, audio_s=20)["energy_per_second"] == pytest.approx(2.0)
    assert energy_metrics([reading(0), reading(1)], audio_s=1) == {"power": None, "energy_per_second": None}
    wrapped = [reading(0, energy_j=9.0), reading(1, energy_j=1.0)]
    assert energy_metrics(wrapped, audio_s=1)["power"] is None
