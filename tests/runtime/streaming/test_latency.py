"""runtime/streaming/latency.py with a clock of our own."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reuse_distill.runtime.streaming import latency
from reuse_distill.runtime.streaming.framing import Frames
from reuse_distill.runtime.streaming.latency import RunStats, quantile


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when told."""
    now = [100.0]
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])
    return now


def test_figures(clock):
    run = RunStats()

    def push(seconds, steps):
        clock[0] += seconds
        return [Frames(0, np.zeros((4, 3), np.float32))] * steps

    run.timed(lambda: push(0.002, 0))
    run.timed(lambda: push(0.010, 1))
    run.timed(lambda: push(0.060, 2))
    run.audio_s = 0.72
    assert run.frames == 12
    assert run.step_ms == pytest.approx([10.0, 30.0, 30.0])
    assert run.rtf == pytest.approx(0.1)
    text = "0.72 s of audio, 12 frames, 0.072 s busy, RTF 0.1000; 3 steps: p50 30.00 ms, p99 unmeasured, max 30.00 ms"
    assert str(run) == text


def test_nothing_measured_says_so():
    assert RunStats().rtf is None
    assert str(RunStats()) == "0.00 s of audio, 0 frames, 0.000 s busy, RTF unmeasured; steps unmeasured"


def test_a_percentile_is_a_value_that_occurred_and_needs_enough_of_them():
    values = np.arange(1.0, 101.0)
    assert quantile(values, 0.99) == 99.0
    assert quantile(values[:99], 0.99) is None
    assert quantile(values, 0.999) is None
    assert quantile(np.arange(1.0, 1001.0), 0.999) == 999.0


@given(st.lists(st.floats(0.1, 1e3), min_size=100, max_size=300))
def test_at_least_its_share_of_the_values_lies_at_or_below_a_percentile(values):
    array = np.asarray(values)
    for q in (0.5, 0.9, 0.99):
        found = quantile(array, q)
        assert np.mean(array <= found) >= q and found in array
