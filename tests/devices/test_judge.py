"""The judge on made series: what it must find, what it must not, and what it must call by name."""

from __future__ import annotations

import numpy as np
import pytest
from reuse_distill.devices.judge import autocorrelation_time, compare, mann_whitney, superiority
from reuse_distill.devices.sensors import Reading
from reuse_distill.devices.series_stability import classify, falling_behind


def series(rng, count=500, *, level=5.0, sd=0.04, phi=0.6, spikes=0.015, runs_differ=0.004):
    """Realistic noise: log-normal, correlated from chunk to chunk, rare spikes of up to four times, and a level that
    differs a little from run to run without any change."""
    noise = np.empty(count)
    noise[0] = sd * rng.standard_normal()
    steps = sd * np.sqrt(1 - phi**2) * rng.standard_normal(count)
    for i in range(1, count):
        noise[i] = phi * noise[i - 1] + steps[i]
    latency = level * np.exp(noise + runs_differ * rng.standard_normal())
    hit = rng.random(count) < spikes
    latency[hit] *= rng.uniform(1.5, 4.0, hit.sum())
    return latency


@pytest.mark.parametrize("phi", [0.3, 0.6])
def test_five_per_cent_slower_is_found_in_at_least_95_of_100_draws(phi):
    rng = np.random.default_rng(1)
    found = [compare([series(rng, phi=phi)], 1.05 * series(rng, phi=phi)).verdict for _ in range(100)]
    assert found.count("regressed") >= 95


@pytest.mark.parametrize("phi", [0.3, 0.6])
def test_no_change_raises_an_alarm_in_at_most_3_of_100_draws(phi):
    rng = np.random.default_rng(2)
    found = [compare([series(rng, phi=phi)], series(rng, phi=phi)).verdict for _ in range(100)]
    assert found.count("regressed") <= 3
    assert found.count("pass") >= 95


def test_several_baseline_runs_keep_both_rates():
    rng = np.random.default_rng(3)
    many = lambda: [series(rng) for _ in range(4)]  # noqa: E731
    assert sum(compare(many(), 1.05 * series(rng)).verdict == "regressed" for _ in range(100)) >= 95
    assert sum(compare(many(), series(rng)).verdict == "regressed" for _ in range(100)) <= 3


def test_one_per_cent_is_below_the_minimum_however_sure_it_is():
    rng = np.random.default_rng(4)
    quiet = lambda: series(rng, 5000, sd=0.01, phi=0.0, spikes=0, runs_differ=0)  # noqa: E731
    result = compare([quiet()], 1.01 * quiet())
    assert result.verdict == "pass"
    assert result.centre.p_value < 1e-6 and result.centre.ratio == pytest.approx(1.01, abs=0.002)


def test_baseline_runs_that_differ_much_raise_the_minimum():
    rng = np.random.default_rng(5)
    base = [series(rng, level=level, runs_differ=0) for level in (4.7, 5.0, 5.3)]
    result = compare(base, 1.05 * series(rng, runs_differ=0))
    assert result.verdict == "pass"
    assert result.centre.minimum > 0.05


def test_a_slower_tail_alone_is_a_regression():
    rng = np.random.default_rng(6)
    slow = series(rng)
    slow[rng.random(500) < 0.12] *= 1.6
    result = compare([series(rng)], slow)
    assert result.verdict == "regressed"
    assert "p95" in result.reason


def test_faster_is_a_pass():
    rng = np.random.default_rng(7)
    result = compare([series(rng)], 0.8 * series(rng))
    assert result.verdict == "pass" and result.centre.ratio < 0.85


def test_the_interval_holds_the_true_ratio():
    rng = np.random.default_rng(8)
    inside = 0
    for _ in range(100):
        effect = compare([series(rng, runs_differ=0)], 1.05 * series(rng, runs_differ=0)).centre
        inside += effect.low <= 1.05 <= effect.high
    assert inside >= 88  # nominally 95


@pytest.mark.parametrize("count", [0, 50, 99])
def test_too_few_samples_are_unmeasured(count):
    rng = np.random.default_rng(9)
    result = compare([series(rng, 500)], series(rng, count) if count else np.zeros(0), stability=classify(np.ones(500)))
    assert result.verdict == "unmeasured" and "100" in result.reason


def test_samples_that_hang_together_too_much_are_unmeasured():
    rng = np.random.default_rng(10)
    found = [compare([series(rng, 120, phi=0.97)], series(rng, 120, phi=0.97)).verdict for _ in range(50)]
    assert found.count("regressed") <= 2 and found.count("unmeasured") >= 40


def bimodal(rng):
    return series(rng, spikes=0) * np.where(rng.random(500) < 0.35, 1.4, 1.0)


def drifting(rng):
    return series(rng) * np.linspace(1.0, 1.15, 500)


def throttled(rng):
    return series(rng) * np.where(np.arange(500) < 300, 1.0, 1.35)


MADE = {"steady": series, "bimodal": bimodal, "drifting": drifting, "throttled": throttled}


@pytest.mark.parametrize("name", MADE)
def test_series_are_called_by_their_names(name):
    rng = np.random.default_rng(11)
    names = [classify(MADE[name](rng)).name for _ in range(100)]
    assert names.count(name) >= 97


def test_a_step_with_unchanged_clocks_is_no_throttling():
    rng = np.random.default_rng(12)
    same = [Reading(t, 2e9, 50.0, None, None, None, None, 0.1) for t in range(20)]
    falling = [Reading(t, 2e9 if t < 12 else 1.4e9, 50.0, None, None, None, None, 0.1) for t in range(20)]
    assert classify(throttled(rng), readings=same).name == "stepped"
    shape = classify(throttled(rng), readings=falling)
    assert shape.name == "throttled" and "clocks fell by 30 %" in shape.evidence


def test_what_the_device_reports_outweighs_the_series():
    assert classify(series(np.random.default_rng(13)), throttling="yes").name == "throttled"


@pytest.mark.parametrize("name", ["drifting", "throttled"])
def test_what_one_level_cannot_describe_is_not_compared(name):
    rng = np.random.default_rng(14)
    result = compare([series(rng)], MADE[name](rng))
    assert result.verdict == "unmeasured" and name in result.reason


def test_but_slower_throughout_is_a_regression_even_so():
    rng = np.random.default_rng(15)
    result = compare([series(rng)], 1.5 * throttled(rng))
    assert result.verdict == "regressed" and "fastest part" in result.reason


def test_a_growing_queue_is_falling_behind_and_a_slow_device_is_not():
    rng = np.random.default_rng(17)
    service = series(rng, level=170.0)
    behind = falling_behind(service + np.maximum(0, np.cumsum(service - 160.0)), service, period_ms=160.0)
    assert behind is not None and behind.name == "falling behind" and not behind.comparable
    assert falling_behind(service + 3.0, service, period_ms=160.0) is None


def test_rank_test_against_known_values():
    a, b = np.arange(10.0) + 0.5, np.arange(10.0)
    assert superiority(a, b) == pytest.approx(0.55)
    # z = (55 - 50 - 0.5) / sqrt(10 * 10 * 21 / 12) = 0.3402
    assert mann_whitney(a, b) == pytest.approx(0.3669, abs=1e-4)
    assert mann_whitney(np.ones(10), np.ones(10)) == 1.0
    assert mann_whitney(b + 100, b) < 2e-4


def test_autocorrelation_time_of_a_known_process():
    rng = np.random.default_rng(16)
    times = [autocorrelation_time(np.log(series(rng, 4000, phi=0.6, spikes=0))) for _ in range(20)]
    assert np.mean(times) == pytest.approx((1 + 0.6) / (1 - 0.6), rel=0.2)
    assert autocorrelation_time(np.zeros(100)) == 1.0
