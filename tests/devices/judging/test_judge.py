"""The judge on made series: what it must find, what it must not, and what it must call by name."""

from __future__ import annotations

import numpy as np
import pytest
from reuse_distill.devices.judging.confidence import binomial_cdf, chi_square_quantile, t_quantile
from reuse_distill.devices.judging.judge import Sensitivity, compare, smallest_visible
from reuse_distill.devices.judging.series_stability import classify, falling_behind
from reuse_distill.devices.measuring.sensors import Reading


def series(rng, count=500, *, level=5.0, sd=0.04, phi=0.6, spikes=0.015, runs_differ=0.004):
    """Realistic noise: log-normal, correlated from chunk to chunk, rare spikes of up to four times, and a level that
    differs a little from run to run without any change."""
    steps = sd * np.sqrt(1 - phi**2) * rng.standard_normal(count + 50)
    noise = np.convolve(steps, phi ** np.arange(50), mode="full")[50 : count + 50]
    latency = level * np.exp(noise + runs_differ * rng.standard_normal())
    hit = rng.random(count) < spikes
    latency[hit] *= rng.uniform(1.5, 4.0, hit.sum())
    return latency


def runs(rng, count, **how):
    return [series(rng, **how) for _ in range(count)]


def test_five_per_cent_slower_is_found_where_it_is_visible_and_never_passes():
    rng = np.random.default_rng(1)
    judged = [compare(runs(rng, 8), [1.05 * one for one in runs(rng, 3)]) for _ in range(24)]
    visible = [one for one in judged if one.centre.visible <= 0.05]
    assert len(visible) >= 14
    assert sum(one.verdict == "regressed" for one in visible) >= 0.95 * len(visible)
    assert not any(one.verdict == "pass" for one in judged)


def test_no_change_raises_next_to_no_alarm():
    rng = np.random.default_rng(2)
    verdicts = [compare(runs(rng, 8), series(rng)).verdict for _ in range(40)]
    assert verdicts.count("regressed") <= 1
    assert verdicts.count("pass") >= 24


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_runs_are_no_baseline(count):
    rng = np.random.default_rng(3)
    result = compare(runs(rng, count), 2.0 * series(rng))
    assert result.verdict == "unmeasured" and "3 in separate processes" in result.reason


def test_one_per_cent_is_below_the_least_effect_however_sure_it_is():
    rng = np.random.default_rng(4)
    quiet = lambda: series(rng, 3000, sd=0.01, phi=0.0, spikes=0, runs_differ=0)  # noqa: E731
    result = compare([quiet() for _ in range(4)], 1.01 * quiet())
    assert result.verdict == "pass"
    assert result.centre.ratio == pytest.approx(1.01, abs=0.002) and result.centre.threshold == pytest.approx(0.025)


def test_an_absolute_limit_holds_together_with_the_relative_one():
    rng = np.random.default_rng(4)
    quiet = lambda: series(rng, 1000, level=0.1, sd=0.01, phi=0.0, spikes=0, runs_differ=0)  # noqa: E731
    base = [quiet() for _ in range(6)]
    assert compare(base, 1.1 * quiet()).verdict == "pass"  # 10 % are 10 microseconds
    assert compare(base, 1.1 * quiet(), sensitivity=Sensitivity(absolute_ms=0.001)).verdict == "regressed"


def test_baseline_runs_that_differ_much_make_small_changes_unmeasured():
    rng = np.random.default_rng(5)
    base = [series(rng, level=level, runs_differ=0) for level in (4.7, 4.85, 5.0, 5.15, 5.3)]
    result = compare(base, 1.05 * series(rng, runs_differ=0))
    assert result.verdict == "unmeasured" and "could have been seen" in result.reason
    assert compare(base, 1.5 * series(rng, runs_differ=0)).verdict == "regressed"


def test_a_slower_tail_alone_is_a_regression():
    rng = np.random.default_rng(6)
    slow = series(rng)
    slow[rng.random(500) < 0.12] *= 1.9
    result = compare(runs(rng, 8), slow)
    assert result.verdict == "regressed" and "tail" in result.reason


def test_faster_is_no_regression():
    rng = np.random.default_rng(7)
    result = compare(runs(rng, 10), 0.8 * series(rng))
    assert result.verdict == "pass" and result.centre.ratio < 0.85


def test_the_interval_holds_the_true_ratio():
    rng = np.random.default_rng(8)
    inside = 0
    for _ in range(30):
        centre = compare(runs(rng, 5), 1.05 * series(rng)).centre
        inside += centre.low <= 1.05 <= centre.high
    assert inside >= 26


@pytest.mark.parametrize("count", [50, 99])
def test_too_few_samples_are_unmeasured(count):
    rng = np.random.default_rng(9)
    result = compare(runs(rng, 3), series(rng, count), stability=classify(np.ones(500)))
    assert result.verdict == "unmeasured" and "100" in result.reason


def test_slowness_that_the_reference_workload_shares_is_the_machines():
    rng = np.random.default_rng(10)
    base, slow = runs(rng, 8), 1.2 * series(rng)
    assert compare(base, slow, reference=0.01).verdict == "regressed"
    result = compare(base, slow, reference=0.18)
    assert result.verdict == "unmeasured" and "the reference workload took +18 %" in result.reason


def test_a_bimodal_baseline_is_refused_unless_accepted_by_name():
    rng = np.random.default_rng(11)
    base = [*runs(rng, 3), bimodal(rng)]
    result = compare(base, series(rng))
    assert result.verdict == "unmeasured" and "run 4 is bimodal" in result.reason and "--accept" in result.reason
    accepted = compare(base, series(rng), sensitivity=Sensitivity(accepted=("bimodal",)))
    assert "refused" not in accepted.reason


def test_more_candidate_runs_make_less_visible():
    rng = np.random.default_rng(12)
    base = runs(rng, 6)
    assert smallest_visible(base, candidate_runs=3).visible < smallest_visible(base).visible
    assert smallest_visible(runs(rng, 12)).visible < smallest_visible(base[:3]).visible


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
    result = compare(runs(rng, 8), MADE[name](rng))
    assert result.verdict == "unmeasured" and name in result.reason


def test_but_slower_throughout_is_a_regression_even_so():
    rng = np.random.default_rng(15)
    result = compare(runs(rng, 8), 1.5 * throttled(rng))
    assert result.verdict == "regressed" and "fastest part" in result.reason


def test_a_growing_queue_is_falling_behind_and_a_slow_device_is_not():
    rng = np.random.default_rng(17)
    service = series(rng, level=170.0)
    behind = falling_behind(service + np.maximum(0, np.cumsum(service - 160.0)), service, period_ms=160.0)
    assert behind is not None and behind.name == "falling behind" and not behind.comparable
    assert falling_behind(service + 3.0, service, period_ms=160.0) is None


def test_quantiles_against_tables():
    assert t_quantile(0.995, 2) == pytest.approx(9.925, abs=1e-3)
    assert t_quantile(0.975, 9) == pytest.approx(2.262, abs=1e-3)
    assert t_quantile(0.99, 200) == pytest.approx(2.345, abs=1e-3)
    assert chi_square_quantile(0.05, 2) == pytest.approx(0.1026, abs=1e-4)
    assert chi_square_quantile(0.05, 9) == pytest.approx(3.325, abs=1e-3)
    assert binomial_cdf(64, 0.1)[:2] == pytest.approx([0.00118, 0.00956], abs=1e-5)
