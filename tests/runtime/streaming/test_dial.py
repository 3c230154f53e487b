"""dial.py and steps of several sizes: exact for any sequence of sizes, and policies that choose them."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reuse_distill.runtime.encoder import Encoder
from reuse_distill.runtime.equivalence.certify import certify
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.streaming.dial import (
    ByLoad,
    ByReading,
    StepStatus,
    battery_percent,
    by_battery,
    by_temperature,
    hottest_celsius,
    in_sequence,
    largest_of,
)

EXACT = 2e-5
SIZES = (1, 3, 4, 16)  # the largest is longer than the ring of 13 slots


@pytest.fixture(scope="module")
def dial(toys):
    """A toy with steps of several sizes, its bundle's encoder and its definition."""
    toy = toys.Toy(choices=SIZES)
    return toy, Encoder.load(toys.build("streaming", toy))


@settings(max_examples=80)
@given(
    plan=st.lists(st.sampled_from(SIZES), min_size=1, max_size=24),
    pushes=st.lists(st.integers(0, 9000), max_size=6),
    samples=st.integers(0, 26_000),
    moves=st.sets(st.integers(0, 6), max_size=3),
)
def test_random_switches_are_exact(toys, dial, plan, pushes, samples, moves):
    """Whatever the sizes, the pushes, and where the stream moves into another one by snapshot."""
    toy, encoder = dial
    wave = toys.speech(samples)
    stream, parts, at = encoder.stream(), [], 0
    stream.policy = in_sequence(plan)
    for i, size in enumerate([*pushes, samples]):
        parts += stream.push(wave[at : at + size])
        at = min(at + size, samples)
        if i in moves:
            saved, stream = stream.snapshot(), encoder.stream(chunk_frames=3)
            stream.policy = in_sequence(plan)
            stream.restore(saved)
    found = encoder.join(parts + stream.finish())
    expected = toys.streaming_reference(toy, wave, plan)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max(initial=0) <= EXACT


def test_sizes_set_by_hand_hold_from_the_next_step_on(toys, dial):
    toy, encoder = dial
    wave, plan, parts = toys.speech(320 * 60 + 90), [], []
    stream = encoder.stream()
    assert stream.chunk_choices == SIZES and stream.chunk_frames == 4
    stream.feed(wave)
    for size in (16, 1, 1, 3, 4, 16, 3):
        stream.chunk_frames = size
        assert stream.latency.step_audio_ms == 20 * size and stream.ready
        plan.append(size)
        parts += [frames for frames in encoder.step([stream]) if frames is not None]
    found = encoder.join(parts + stream.finish())
    assert np.abs(found - toys.streaming_reference(toy, wave, plan)).max() <= EXACT


def test_a_batch_of_streams_with_sizes_of_their_own(toys, dial):
    toy, encoder = dial
    plans = [[1, 4, 3], [16, 1], [3], [4, 16, 1, 1], [1]]
    waves = [toys.speech(320 * (30 + 7 * n), seed=n) for n in range(5)]
    for streams in (encoder.streams(5), [encoder.stream() for _ in plans]):
        parts = [[] for _ in plans]
        for stream, plan, wave in zip(streams, plans, waves, strict=True):
            stream.policy = in_sequence(plan)
            stream.feed(wave)
            stream.end()
        while any(stream.ready for stream in streams):
            for part, frames in zip(parts, encoder.step(streams), strict=True):
                part += [] if frames is None else [frames]
        for part, plan, wave in zip(parts, plans, waves, strict=True):
            expected = toys.streaming_reference(toy, wave, plan)
            assert np.abs(encoder.join(part) - expected).max() <= EXACT


def test_a_reset_begins_with_the_first_size(toys, dial):
    toy, encoder = dial
    wave = toys.speech(9000)
    stream = encoder.stream(chunk_frames=3)
    stream.push(wave)
    stream.chunk_frames = 16
    stream.reset()
    found = encoder.join([*stream.push(wave), *stream.finish()])
    assert np.abs(found - toys.streaming_reference(toy, wave, [3])).max() <= EXACT


def test_other_sizes_are_refused_and_change_nothing(toys, dial):
    _, encoder = dial
    stream = encoder.stream()
    with pytest.raises(
        RdError, match=r"chunk_frames=2: this bundle has steps of 1, 3, 4, 16 frames\n\nhint: .*--chunks"
    ):
        stream.chunk_frames = 2
    with pytest.raises(RdError, match="chunk_frames=2"):
        encoder.stream(chunk_frames=2)
    assert stream.chunk_frames == 4
    with pytest.raises(RdError, match="steps of 4 frames"):
        Encoder.load(toys.streaming).stream().chunk_frames = 3
    with pytest.raises(RdError, match="windows of this stream give 16 frames"):
        Encoder.load(toys.offline).stream().chunk_frames = 3


def test_provisional_frames_are_what_an_end_here_would_give(toys, dial):
    """With less look-ahead: they come again, corrected, and the stream is as if nobody had looked."""
    toy, encoder = dial
    wave = toys.speech(320 * 50)
    stream, parts, changed = encoder.stream(), [], []
    stream.policy = in_sequence([4, 1, 3])
    plan = [4, 1, 3]
    for first in range(0, len(wave), 2500):
        parts += stream.push(wave[first : first + 2500])
        preview = stream.provisional()
        assert all(frames.provisional for frames in preview)
        assert [p.index for p in preview[:1]] in ([], [sum(map(len, parts))])
        if preview:
            changed.append(preview)
    parts += stream.finish()
    found = encoder.join(parts)
    assert np.abs(found - toys.streaming_reference(toy, wave, plan)).max() <= EXACT
    assert not any(frames.provisional for frames in parts)
    differences = [
        np.abs(found[:, frames.index : frames.index + len(frames)] - frames.features).max()
        for preview in changed
        for frames in preview
    ]
    assert len(changed) > 4 and max(differences) > 1e-3
    assert stream.provisional() == []


def test_a_preview_is_exact_for_what_was_heard(toys, dial):
    toy, encoder = dial
    wave = toys.speech(320 * 21 + 80)
    stream = encoder.stream()
    stream.policy = in_sequence([4, 1, 3])
    stream.feed(wave)
    parts = [frames for _ in range(3) if (frames := stream.engine.step()) is not None]
    found = encoder.join([*parts, *stream.provisional()])  # 8 of 21 frames are taken: 13 and 2 of look-ahead into 16
    assert np.abs(found - toys.streaming_reference(toy, wave, [4, 1, 3, 16])).max() <= EXACT


def test_the_certificate_covers_switches(dial, tmp_path: Path):
    _, encoder = dial
    certificate = certify(encoder)
    check = certificate.checks[-1]
    assert certificate.passed and check.name == "switches of chunk size"
    assert check.max_abs is not None and check.max_abs <= EXACT and check.cases >= 7


def test_a_stream_that_does_not_switch_fails_the_certificate(dial, monkeypatch):
    from reuse_distill.runtime.streaming.steps import StepEngine

    monkeypatch.setattr(StepEngine, "ask_policy", lambda self, step_s: None)
    certificate = certify(dial[1])
    assert [check.name for check in certificate.checks if not check.passed] == ["switches of chunk size"]


def test_a_switch_costs_less_than_a_step(toys, dial):
    """Steps that alternate between two sizes against steps of each alone, measured in turns."""
    _, encoder = dial

    def median_s(plan: list[int]) -> float:
        stream, times = encoder.stream(), []
        stream.policy = in_sequence(plan)
        stream.feed(toys.speech(320 * (sum(plan) + 1)))
        for _ in plan:
            start = time.perf_counter()
            stream.engine.step()
            times.append(time.perf_counter() - start)
        return float(np.median(times[4:]))

    rounds = [(median_s([4] * 60), median_s([3] * 60), median_s([4, 3] * 30)) for _ in range(5)]
    costs = [mixed - (a + b) / 2 for a, b, mixed in rounds]
    assert np.median(costs) < np.median([(a + b) / 2 for a, b, _ in rounds])


def status(load: float = 0.2, chunk: int = 4, steps: int = 1, waiting: int = 0) -> StepStatus:
    return StepStatus(steps, chunk, SIZES, waiting, load * chunk * 0.02)


def test_load_turns_the_dial_up_at_once_and_down_with_patience():
    policy = ByLoad(most=0.5, patience=3)
    assert policy(status(load=0.9)) == 16
    assert policy(status(load=0.1, waiting=8)) == 16, "a stream that falls behind"
    assert [policy(status(load=0.1)) for _ in range(3)] == [4, 4, 3]
    assert [policy(status(load=0.45)) for _ in range(9)] == [4] * 9, "3 frames a step would be above the limit"
    assert policy(status(load=9.0, chunk=16)) == 16
    assert ByLoad(patience=1)(status(load=0.01, chunk=1)) == 1


def test_a_busy_stream_really_turns(toys, dial):
    """Driven by what the steps take: with a limit below any load the size grows to the largest."""
    _, encoder = dial
    stream = encoder.stream(chunk_frames=1)
    stream.policy = ByLoad(most=1e-9)
    stream.push(toys.speech(20_000))
    assert stream.chunk_frames == 16


def test_battery_and_temperature():
    battery = by_battery({20: 16, 50: 3}, otherwise=1, read=iter([80.0, 49.0, 5.0, None]).__next__)
    assert isinstance(battery, ByReading)
    battery.every_s = 0.0
    assert [battery(status()) for _ in range(4)] == [1, 3, 16, 1]
    heat = by_temperature({70: 4, 80: 16}, otherwise=1, read=iter([60.0, 71.0, 99.0]).__next__)
    assert isinstance(heat, ByReading)
    heat.every_s = 0.0
    assert [heat(status()) for _ in range(3)] == [1, 4, 16]
    both = largest_of(in_sequence([1, 4]), in_sequence([3, 3]))
    assert [both(status(steps=n)) for n in range(2)] == [3, 4]


def test_readings_are_taken_now_and_then():
    now, readings = [0.0], []

    def read() -> float:
        readings.append(now[0])
        return 99.0

    policy = ByReading(read, lambda value: 16, 1, every_s=10, clock=lambda: now[0])
    for second in range(25):
        now[0] = second
        assert policy(status()) == 16
    assert readings == [0, 10, 20]


def test_sensors_of_linux(tmp_path: Path):
    assert battery_percent(tmp_path) is None and hottest_celsius(tmp_path) is None
    for name, kind, state, charge in (
        ("BAT0", "Battery", "Discharging", "37"),
        ("BAT1", "Battery", "Full", "3"),
        ("AC", "Mains", "", ""),
    ):
        folder = tmp_path / name
        folder.mkdir()
        for file, text in (("type", kind), ("status", state), ("capacity", charge)):
            (folder / file).write_text(text + "\n")
    assert battery_percent(tmp_path) == 37
    for zone, text in (("thermal_zone0", "45000"), ("thermal_zone1", "71500"), ("thermal_zone2", "broken")):
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "temp").write_text(text)
    assert hottest_celsius(tmp_path) == 71.5


def test_a_policy_that_asks_for_a_size_that_is_not_there(dial):
    stream = dial[1].stream()
    with pytest.raises(RdError, match="chunk_frames=7"):
        stream.policy = in_sequence([7])
