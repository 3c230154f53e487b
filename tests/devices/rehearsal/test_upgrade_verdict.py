"""The verdict on made pairs of runs and made probes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from reuse_distill.devices.measuring.measurement import StreamSamples
from reuse_distill.devices.rehearsal.differences import OutputDifference, kernel_difference
from reuse_distill.devices.rehearsal.probe import NodeTime, SideProbe
from reuse_distill.devices.rehearsal.upgrade_verdict import (
    BROKEN,
    DIFFERENT,
    SAFE,
    SLOWER,
    UNMEASURED,
    judge_cost,
    judge_probes,
    worst,
)

NODES = (NodeTime("m", "QLinearMatMul", "cpu", "uint8 int8", 5.0), NodeTime("s", "Softmax", "cpu", "float32", 1.0))
PROBE = SideProbe("cpu", True, "passed", (), NODES)
SAME = OutputDifference("speech", "features", 9, True, 0.0, 1.0, 1.0, 0.0)


@pytest.fixture
def pairs(measurement):
    """``pairs(factor, apart=…, drift=…)``: five pairs of runs; ``drift`` is what the machine does to both of a pair."""

    def make(factor=1.0, *, apart=0.005, drift=0.2, count=5, memory=1.0, cpu=1.0):
        rng, sides = np.random.default_rng(5), ([], [])
        for _ in range(count):
            machine = np.exp(drift * rng.standard_normal())
            for side, scale in enumerate((1.0, factor)):
                level = 5.0 * machine * scale * np.exp(apart * rng.standard_normal())
                latency = tuple((level * np.exp(0.02 * rng.standard_normal(300))).tolist())
                samples = (StreamSamples(measurement.samples[0].at_s, latency, latency),)
                metrics = {**measurement.metrics, "peak_memory": 100e6 * (memory if side else 1.0), "cpu_rtf": 0.1}
                metrics["cpu_rtf"] *= (cpu if side else 1.0) * np.exp(0.002 * rng.standard_normal())
                sides[side].append(replace(measurement, samples=samples, metrics=metrics))
        return sides

    return make


def verdicts(aspects):
    return {one.name: one.verdict for one in aspects}


def test_what_the_machine_does_to_both_cancels(pairs):
    aspects, effect = judge_cost(*pairs(), detect=0.05)
    assert worst(aspects) == SAFE and effect.high < 1.03


def test_a_slow_down_is_found_and_a_speed_up_is_safe(pairs):
    slow, _ = judge_cost(*pairs(1.06), detect=0.05)
    assert verdicts(slow)["latency p50"] == SLOWER and worst(slow) == SLOWER
    fast, _ = judge_cost(*pairs(0.7), detect=0.05)
    assert worst(fast) == SAFE


def test_pairs_that_differ_too_much_are_unmeasured(pairs):
    aspects, _ = judge_cost(*pairs(apart=0.2), detect=0.05)
    assert worst(aspects) == UNMEASURED
    assert "slower is possible" in next(one.reason for one in aspects if one.verdict == UNMEASURED)


def test_cpu_time_shows_on_a_busy_machine_what_latency_cannot(pairs):
    aspects, _ = judge_cost(*pairs(1.06, apart=0.2, cpu=1.2), detect=0.05)
    assert verdicts(aspects)["latency p50"] == UNMEASURED and worst(aspects) == SLOWER


def test_more_memory_is_a_cost(pairs):
    aspects, _ = judge_cost(*pairs(memory=1.3), detect=0.05)
    assert verdicts(aspects)["peak memory"] == SLOWER


def test_unchanged_pairs_are_hardly_ever_called_slower(pairs, measurement):
    """False alarms of the paired test, many draws: at most the one per cent that is promised."""
    from reuse_distill.devices.rehearsal.upgrade_verdict import effect_of

    rng = np.random.default_rng(1)
    alarms = sum(effect_of(0.05 * rng.standard_normal(5), level_ms=5.0).regressed for _ in range(600))
    assert alarms <= 9  # 0.5 % of 600 is 3; more than 9 happens once in a thousand


def judge(before=PROBE, after=PROBE, outputs=(SAME,), tolerance=0.01):
    return judge_probes(before, after, outputs, kernel_difference(before.nodes, after.nodes), tolerance=tolerance)


def test_the_same_on_both_sides_is_safe():
    assert worst(judge()) == SAFE


@pytest.mark.parametrize(
    ("after", "aspect", "verdict"),
    [
        (replace(PROBE, provider="cuda"), "provider", DIFFERENT),
        (replace(PROBE, selftest_passed=False), "self-test", BROKEN),
        (replace(PROBE, selftest_passed=None), "self-test", UNMEASURED),
        (replace(PROBE, nodes=(replace(NODES[0], types="float32"), NODES[1])), "precision used", DIFFERENT),
        (replace(PROBE, nodes=(NODES[0], replace(NODES[1], provider="cuda"))), "placement", DIFFERENT),
    ],
)
def test_what_changed_is_named(after, aspect, verdict):
    aspects = judge(after=after)
    assert verdicts(aspects)[aspect] == verdict and worst(aspects) == verdict


def test_features_within_and_beyond_the_tolerance():
    near = replace(SAME, identical=False, relative=0.009)
    assert worst(judge(outputs=(SAME, near))) == SAFE
    assert worst(judge(outputs=(SAME, replace(near, relative=0.011)))) == DIFFERENT
    assert worst(judge(outputs=(SAME, replace(near, relative=float("inf"), defect="NaN")))) == BROKEN
    assert worst(judge(outputs=())) == UNMEASURED


def test_kernels_that_no_engine_tells_are_no_reason():
    silent = replace(PROBE, nodes=(), nodes_unmeasured="executorch does not tell which kernels it runs")
    aspects = judge(silent, silent)
    assert worst(aspects) == SAFE and "does not tell" in next(one.reason for one in aspects if not one.verdict)
