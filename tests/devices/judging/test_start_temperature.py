"""Where runs began at other temperatures than their baseline, the heat may be what is seen."""

from __future__ import annotations

import pytest
from reuse_distill.devices.cli.device_runs import Standards, judged
from reuse_distill.devices.judging.baselines import Baselines, added, read_baselines, start_temperature, write_baselines
from reuse_distill.devices.judging.judge import Comparison, Sensitivity
from reuse_distill.devices.judging.series_stability import Stability
from reuse_distill.devices.judging.thermal import judged_by_start

from tests.devices.judging.test_baselines import with_latency

RED, GREEN = Comparison("regressed", "median +20 %"), Comparison("pass", "median +0.1 %")


@pytest.mark.parametrize(
    ("comparison", "now_c", "verdict"),
    [
        (RED, 71.0, "unmeasured"),  # hotter by 19 degrees: a governor's slowness
        (RED, 60.0, "regressed"),
        (RED, 30.0, "regressed"),  # slower although it began cooler
        (GREEN, 30.0, "unmeasured"),  # cooler by 15 degrees: it may hide a regression
        (GREEN, 40.0, "pass"),
        (GREEN, 71.0, "pass"),  # as fast although it began hotter
    ],
)
def test_a_start_far_from_the_baselines_decides_nothing(comparison, now_c, verdict):
    result = judged_by_start(comparison, [45.0, 52.0, None], [now_c])
    assert result.verdict == verdict and result.reason.endswith(comparison.reason)
    if verdict == "unmeasured":
        assert f"began at {now_c:.1f} °C, the baseline's at 45.0 °C to 52.0 °C" in result.reason


@pytest.mark.parametrize(("before", "now"), [([None], [90.0]), ([], [90.0]), ([45.0], [None])])
def test_temperatures_that_nobody_told_decide_nothing(before, now):
    assert judged_by_start(RED, before, now) is RED


def hot(measurement, celsius, factor=1.0):
    return with_latency(measurement, factor, details={**measurement.details, "start_temperature_c": celsius})


def test_a_baseline_file_keeps_the_start_and_the_verdict_is_by_it(tmp_path, measurement):
    kept = Baselines()
    for _ in range(4):
        kept = added(kept, hot(measurement, 45.0), device="shelf", stability=Stability("steady"))
    write_baselines(tmp_path / "base.json", kept)
    assert {run.start_temperature_c for run in read_baselines(tmp_path / "base.json").entries[0].runs} == {45.0}

    def verdict(celsius, *accepted):
        standards = Standards(
            baselines=read_baselines(tmp_path / "base.json"), sensitivity=Sensitivity(accepted=accepted)
        )
        return judged(hot(measurement, celsius, 1.5), "shelf", standards, address="", duration_s=1.0).verdict

    assert verdict(50.0) == "regressed"
    assert verdict(75.0) == "unmeasured"
    assert verdict(75.0, "temperature") == "regressed"
    assert start_temperature(hot(measurement, True)) is None
