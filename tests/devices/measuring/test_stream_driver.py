"""Pacing with a made clock: every expected number is exact."""

from __future__ import annotations

from itertools import repeat
from threading import Event

import numpy as np
import pytest
from reuse_distill.devices.measuring.stream_driver import OVERLAP_S, Pace, cut, drive, first_frame_ms
from reuse_distill.runtime.errors import RdError


class MadeClock:
    """Time that passes only by sleeping and by what a push costs."""

    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time

    def sleep_until(self, moment: float) -> None:
        self.time = max(self.time, moment)


def costing(clock, costs, frames=1):
    """A push that takes the next of ``costs`` seconds."""
    queue = list(costs)

    def push(samples):
        clock.time += queue.pop(0) if queue else 0.0
        return frames

    return push


def run(costs, *, mode="paced", chunks=4, warmup=0, **more):
    clock = MadeClock()
    pace = Pace(mode, 0.1, warmup, chunks, **more)
    audio = repeat(np.zeros(1600, np.float32))
    return drive(costing(clock, costs), audio, pace, clock=clock, stop=Event())


def test_paced_latency_counts_from_the_arrival():
    series = run([0.01, 0.02, 0.03, 0.04, 0.05])  # the first push gives the first frames, and is no sample
    assert series.latency_ms() == pytest.approx([20, 30, 40, 50])
    assert series.late_ms() == pytest.approx([0, 0, 0, 0])
    assert np.diff(series.due) == pytest.approx(0.1)


def test_waiting_behind_a_late_chunk_is_latency_too():
    series = run([0.0, 0.25, 0.01, 0.01, 0.01])
    assert series.service_ms() == pytest.approx([250, 10, 10, 10])
    assert series.latency_ms() == pytest.approx([250, 160, 70, 10])


def test_back_to_back_latency_is_the_push_alone():
    series = run([0.0, 0.25, 0.01, 0.02, 0.03], mode="back-to-back")
    assert series.latency_ms() == pytest.approx([250, 10, 20, 30])


def test_warm_up_chunks_are_not_in_the_series():
    series = run([0.5, 0.4, 0.3, 0.01, 0.02, 0.03, 0.04], mode="back-to-back", warmup=2)
    assert series.latency_ms() == pytest.approx([10, 20, 30, 40])


def test_a_hopeless_device_ends_the_run_and_says_so():
    series = run([0.0, *[3.0] * 100], chunks=1000)
    assert series.overloaded
    assert len(series.end) < 10


def test_soak_goes_on_for_its_duration():
    series = run([0.01] * 1000, chunks=1, until_s=5.0)
    assert len(series.end) == 50


def test_pushes_without_frames_are_counted_and_are_no_samples():
    clock = MadeClock()
    answers = iter([1, 1, 0, 1, 0])
    series = drive(
        lambda samples: next(answers),
        repeat(np.zeros(1)),
        Pace("paced", 0.1, 0, 4),
        clock=clock,
        stop=Event(),
    )
    assert (len(series.end), series.empty) == (2, 2)


def test_first_frame_counts_the_audio_and_the_computing():
    clock = MadeClock()
    answers = iter([0, 0, 2])

    def push(samples):
        clock.time += 0.03
        return next(answers)

    assert first_frame_ms(push, repeat(np.zeros(1)), 0.1, clock) == pytest.approx(1000 * OVERLAP_S + 330)


def test_a_stream_that_never_gives_a_frame_is_an_error():
    with pytest.raises(RdError, match="no frame after 30 s"):
        first_frame_ms(lambda samples: 0, repeat(np.zeros(1)), 0.1, MadeClock())


@pytest.mark.parametrize("start", [0, 320, 31_680])
def test_chunks_follow_each_other_without_a_gap_around_the_end(start):
    audio = np.arange(32_000, dtype=np.float32)
    chunks = cut(audio, 640, start=start)
    first = next(chunks)
    assert len(first) == 720
    joined = np.concatenate([first, *(next(chunks) for _ in range(200))])
    assert (np.diff(joined) % 32_000 == 1).all()
    assert joined[0] == start
