"""runtime/stats.py with a clock of our own."""

import numpy as np
import pytest

from runtime import stats
from runtime.framing import Frames
from runtime.stats import RunStats


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when told."""
    now = [100.0]
    monkeypatch.setattr(stats.time, "perf_counter", lambda: now[0])
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
    text = "0.72 s of audio, 12 frames, 0.072 s busy, RTF 0.1000; 3 steps: p50 30.00 ms, p99 30.00 ms, max 30.00 ms"
    assert str(run) == text


def test_nothing_measured_says_so():
    assert RunStats().rtf is None
    assert str(RunStats()) == "0.00 s of audio, 0 frames, 0.000 s busy, RTF unmeasured; steps unmeasured"
