"""runtime/streaming/stream_scheduler.py: many live streams, deadline first, bounded whatever clients do."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from reuse_distill.runtime.encoder import Encoder
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.streaming.dial import in_sequence


@pytest.fixture(scope="module")
def encoder(toys) -> Encoder:
    return Encoder.load(toys.streaming)  # chunks of 4 frames: 80 ms


class Clock:
    """Time that the test moves."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def drained(scheduler) -> int:
    steps = 0
    while scheduler.run_once():
        steps += 1
    return steps


@pytest.mark.parametrize("most_at_once", [1, 3, 8])
def test_every_stream_gives_what_it_gives_alone(encoder, toys, most_at_once):
    scheduler = encoder.scheduler(most_at_once=most_at_once, waiting_s=60.0)
    waves = [toys.speech(5000 + 1777 * n, seed=n) for n in range(5)]
    streams, parts = [scheduler.open(16_000) for _ in waves], [[] for _ in waves]
    for turn in range(12):
        for stream, wave in zip(streams, waves, strict=True):
            assert stream.feed(wave[1000 * turn : 1000 * (turn + 1)])
        drained(scheduler)
        for stream, part in zip(streams, parts, strict=True):
            part += stream.take()
    for stream in streams:
        stream.end()
    drained(scheduler)
    for stream, part, wave in zip(streams, parts, waves, strict=True):
        assert stream.finished and stream.waiting_s == 0
        assert np.abs(encoder.join(part + stream.take()) - encoder.extract(wave)).max() <= 1e-6


def test_bytes_and_other_rates(encoder, toys):
    scheduler, wave = encoder.scheduler(waiting_s=60.0), toys.speech(24_000)
    pcm = (wave * 32767).astype("<i2")
    stream = scheduler.open(24_000)
    stream.feed(pcm.tobytes(), format="s16le")
    stream.end()
    drained(scheduler)
    assert np.abs(encoder.join(stream.take()) - encoder.extract(pcm, 24_000)).max() <= 1e-6


def test_who_is_due_first_is_stepped_first(encoder, toys):
    clock = Clock()
    scheduler = encoder.scheduler(clock=clock, most_at_once=1)
    late, early = scheduler.open(16_000), scheduler.open(16_000)
    early.feed(toys.speech(1400))
    scheduler._hand_over(early, list(early._inbox), False)
    early._inbox.clear()
    clock.now_s = 0.05
    late.feed(toys.speech(1400))
    assert scheduler.run_once() == 1
    assert early.take() and not late.take()


def test_a_flood_does_not_push_others_aside(encoder, toys):
    """One client sends 20 s at once, the others in real time: these are stepped as soon as they are ready."""
    clock = Clock()
    scheduler = encoder.scheduler(clock=clock, most_at_once=1, waiting_s=30.0)
    flood, live = scheduler.open(16_000), [scheduler.open(16_000) for _ in range(3)]
    flood.feed(toys.speech(320_000))
    delays = []
    for chunk in range(20):
        clock.now_s = 0.08 * (chunk + 1)
        for stream in live:
            stream.feed(toys.speech(1280 + 80 * (chunk == 0), seed=chunk))
        for turn in range(8):  # the processor manages eight steps in each 80 ms
            scheduler.run_once()
            delays += [turn for stream in live if stream.take()]
    assert len(delays) == 60 and max(delays) <= 3, delays
    assert scheduler.counts.late == 0 and flood.waiting_s < 20


def test_audio_that_waits_is_bounded(encoder, toys):
    scheduler = encoder.scheduler(waiting_s=1.0)
    stream = scheduler.open(16_000)
    taken = sum(stream.feed(toys.speech(4000)) for _ in range(20))
    assert taken == 4 and not stream.has_room and 1.0 <= stream.waiting_s < 1.25
    drained(scheduler)
    assert stream.has_room and stream.feed(toys.speech(4000))


def test_who_does_not_fetch_rests_and_costs_the_others_nothing(encoder, toys):
    scheduler = encoder.scheduler(waiting_s=1.0, unsent_frames=20)
    lazy, live = scheduler.open(16_000), scheduler.open(16_000)
    frames, refused = 0, 0
    for _ in range(40):
        refused += not lazy.feed(toys.speech(4000))
        assert live.feed(toys.speech(4000))
        drained(scheduler)
        frames += sum(map(len, live.take()))
    assert frames >= 490 and refused > 25
    assert lazy._unsent <= 20 + 4 and lazy.waiting_s < 1.25
    assert sum(map(len, lazy.take())) <= 24
    assert drained(scheduler) > 0, "it goes on once its frames were fetched"


def test_an_ended_stream_that_nobody_fetches_does_not_keep_the_thread_busy(encoder, toys):
    scheduler = encoder.scheduler(unsent_frames=4)
    stream = scheduler.open(16_000)
    stream.feed(toys.speech(16_000))
    stream.end()
    drained(scheduler)
    assert not stream.finished and not scheduler._could_step()
    found = []
    while not stream.finished:
        found += stream.take()
        drained(scheduler)
    assert sum(map(len, found + stream.take())) == 49


def test_streams_that_leave_are_forgotten(encoder, toys):
    scheduler = encoder.scheduler()
    streams = [scheduler.open(16_000) for _ in range(4)]
    for stream in streams:
        stream.feed(toys.speech(4000))
    streams[0].leave()
    drained(scheduler)
    assert len(scheduler) == 3
    with pytest.raises(RdError, match="takes no more samples"):
        streams[0].feed(toys.speech(10))


def test_samples_that_are_none_are_refused_where_they_come_in(encoder, toys):
    scheduler = encoder.scheduler()
    stream, other = scheduler.open(16_000), scheduler.open(16_000)
    with pytest.raises(RdError, match=r"NaN|finite"):
        stream.feed(np.full(2000, np.nan, np.float32))
    with pytest.raises(RdError):
        stream.feed(b"123", format="s16le")
    other.feed(toys.speech(2000))
    assert drained(scheduler) == 1 and other.take()


def test_a_step_that_fails_is_told_to_its_stream(encoder, toys, monkeypatch):
    scheduler = encoder.scheduler()
    called = []
    stream = scheduler.open(16_000, notify=lambda: called.append(1))
    stream.feed(toys.speech(2000))

    def fail(streams):
        raise RdError("out of memory")

    monkeypatch.setattr(encoder, "step", fail)
    scheduler.run_once()
    assert called and not scheduler.run_once()
    with pytest.raises(RdError, match="out of memory"):
        stream.feed(toys.speech(10))


def test_sizes_of_steps_may_differ(toys):
    toy = toys.Toy(choices=(1, 4, 16))
    encoder = Encoder.load(toys.build("streaming", toy))
    scheduler, wave = encoder.scheduler(waiting_s=60.0), toys.speech(20_000)
    streams = [scheduler.open(16_000, chunk_frames=size) for size in (1, 4, 16)]
    streams[0].stream.policy = in_sequence([16, 4, 1])
    for stream in streams:
        stream.feed(wave)
        stream.end()
    drained(scheduler)
    for stream, plan in zip(streams, ([16, 4, 1], [4], [16]), strict=True):
        expected = toys.streaming_reference(toy, wave, plan)
        assert np.abs(encoder.join(stream.take()) - expected).max() <= 2e-5


def test_one_thread_steps_what_others_feed(encoder, toys):
    scheduler, stop = encoder.scheduler(waiting_s=0.5), threading.Event()
    worker = threading.Thread(target=scheduler.serve, args=(stop,))
    worker.start()
    waves, found = [toys.speech(30_000, seed=n) for n in range(4)], [None] * 4

    def client(n: int) -> None:
        changed = threading.Event()
        stream, parts, at = scheduler.open(16_000, notify=changed.set), [], 0
        while at < len(waves[n]):
            if stream.feed(waves[n][at : at + 1000]):
                at += 1000
            else:
                changed.wait(0.05)
                changed.clear()
            parts += stream.take()
        stream.end()
        while not stream.finished:
            changed.wait(0.05)
            changed.clear()
            parts += stream.take()
        found[n] = encoder.join(parts + stream.take())
        stream.leave()

    clients = [threading.Thread(target=client, args=(n,)) for n in range(4)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join(60)
    stop.set()
    worker.join(60)
    assert not worker.is_alive() and scheduler.counts.frames == 4 * 93
    for wave, features in zip(waves, found, strict=True):
        assert features is not None and np.abs(features - encoder.extract(wave)).max() <= 1e-6


@pytest.mark.parametrize("settings", [{"waiting_s": 0}, {"unsent_frames": 0}, {"most_at_once": 0}])
def test_settings_that_make_no_sense(encoder, settings):
    with pytest.raises(RdError, match="above 0"):
        encoder.scheduler(**settings)
    with pytest.raises(RdError, match="fps"):
        encoder.scheduler().open(16_000, fps=25)
