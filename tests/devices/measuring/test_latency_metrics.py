from __future__ import annotations

import numpy as np
import pytest
from reuse_distill.devices.measuring.latency_metrics import (
    energy_metrics,
    latency_metrics,
    throttling,
    utterance_metrics,
)
from reuse_distill.devices.measuring.sensors import Reading
from reuse_distill.devices.measuring.stream_driver import Series


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
    assert metrics["p90"] == pytest.approx(151)  # the bound: ten of 200 are slow, eleven may be above the true p90
    assert metrics["p99"] is None  # 200 samples do not carry it
    assert metrics["deadline_misses"] == pytest.approx(0.05)
    assert metrics["rtf"] == pytest.approx((190 * 0.05 + 10 * 0.15) / 200 / 0.1)
    assert metrics["wakeup_p99"] is None
    assert latency_metrics([series], period_ms=100, mode="back-to-back")["wakeup_p99"] is None


def test_utterances_are_judged_by_one_length_and_show_the_others():
    timed = {2.0: [20.0] * 64, 5.0: [50.0] * 63 + [80.0], 10.0: [100.0] * 63}
    metrics = utterance_metrics(timed, judged_s=5.0)
    assert metrics["p90"] == 80 and metrics["p50"] == 50 and metrics["max"] == 80
    assert metrics["rtf_2s"] == pytest.approx(0.01) and metrics["rtf_10s"] == pytest.approx(0.01)
    assert metrics["p90_2s"] == 20 and metrics["p90_10s"] is None  # one fewer than it takes
    assert metrics["deadline_misses"] is None


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
