"""Cooling down on a made clock, and what a made soak shows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from reuse_distill.devices.cli.latency_page import report_html
from reuse_distill.devices.judging.series_stability import Stability
from reuse_distill.devices.judging.thermal import cool_down, soak_of
from reuse_distill.devices.judging.verdicts import DeviceOutcome
from reuse_distill.devices.measuring.measurement import StreamSamples
from reuse_distill.devices.measuring.sensors import Reading
from reuse_distill.runtime.errors import RdError


class MadeClock:
    def __init__(self):
        self.time = 5.0

    def now(self):
        return self.time

    def sleep_until(self, moment):
        self.time = max(self.time, moment)


def reading(temperature_c, *, time_s=0.0, clock_hz=None):
    return Reading(time_s, clock_hz, temperature_c, None, None, None, None, 0.1)


def cooled(start_c, *, gate_c=60.0, limit_s=300.0):
    """A device that loses one degree in ten seconds."""
    clock, lines = MadeClock(), []
    read = lambda: reading(None if start_c is None else start_c - (clock.time - 5.0) / 10)  # noqa: E731
    return cool_down(read, gate_c, limit_s=limit_s, clock=clock, progress=lines.append), lines


def test_a_cool_device_starts_at_once_and_a_hot_one_waits():
    assert cooled(45.0) == ({"start_temperature_c": 45.0, "cool_down_s": 0.0}, [])
    found, lines = cooled(65.0)
    assert found["cool_down_s"] == 50.0 and found["start_temperature_c"] <= 60.0
    assert lines[0] == "cooling down: 65.0 °C, 0 of 300 s"


def test_a_device_that_stays_hot_or_tells_nothing_is_not_measured():
    with pytest.raises(RdError, match=r"77.0 °C after 30 s of cooling down, the gate is 60.0 °C"):
        cooled(80.0, limit_s=30.0)
    with pytest.raises(RdError, match="tells no temperature"):
        cooled(None)


@pytest.fixture
def soak(measurement):
    """Ten minutes: 45 to 75 °C, clocks down by a tenth in the second half, latency up with them."""
    at_s = np.arange(1, 3001) * 0.2
    latency = tuple(np.where(at_s < 300, 5.0, 5.5).tolist())
    readings = tuple(
        reading(75 - 30 * np.exp(-t / 120), time_s=float(t), clock_hz=2.0e9 if t < 300 else 1.8e9)
        for t in range(0, 601, 10)
    )
    return replace(
        measurement,
        request=replace(measurement.request, soak_s=600.0),
        samples=(StreamSamples(tuple(at_s.tolist()), latency, latency),),
        readings=readings,
        throttling="yes",
        metrics={**measurement.metrics, "energy_per_second": 1.25},
    )


def test_a_soak_says_what_heat_did(soak):
    found = soak_of(soak)
    assert found.minutes == pytest.approx(10) and found.latency_change == pytest.approx(0.1)
    assert (
        found.clock_change == pytest.approx(-0.1)
        and found.first_c == 45
        and found.highest_c == pytest.approx(74.8, abs=0.01)
    )
    assert found.rise_c_per_min == pytest.approx(0.19, abs=0.05) and found.throttling == "yes"
    lines = dict(found.lines())
    assert lines["energy per second of audio"] == "1.25 J" and lines["temperature"].startswith("45.0 °C at first")


def test_a_device_that_tells_nothing_leaves_its_soak_unmeasured(soak):
    found = soak_of(replace(soak, readings=(), throttling="unmeasured", metrics={}))
    assert found.steady is None and found.clock_change is None
    assert [value for _, value in found.lines()].count("unmeasured") == 5
    assert soak_of(replace(soak, request=replace(soak.request, soak_s=0.0))) is None


def test_what_a_device_answers_about_its_heat_is_not_trusted(soak):
    hostile = replace(
        soak,
        details={"start_temperature_c": "<hot>"},
        readings=tuple(replace(one, clock_hz=0.0, time_s=1e18) for one in soak.readings),
    )
    assert soak_of(hostile).clock_change is None and soak_of(hostile).rise_c_per_min is None
    outcome = DeviceOutcome("shelf-1", "ci@shelf", "pass", (), hostile, stability=Stability("steady"))
    assert "<hot>" not in report_html([outcome])


def test_the_page_of_a_soak_shows_temperature(soak):
    outcome = DeviceOutcome("shelf-1", "ci@shelf", "pass", (), soak, stability=Stability("steady"))
    page = report_html([outcome])
    assert "Soak" in page and "temperature settled" in page and "hottest zone" in page
    short = replace(outcome, measurement=replace(soak, request=replace(soak.request, soak_s=0.0)))
    assert "temperature settled" not in report_html([short])
