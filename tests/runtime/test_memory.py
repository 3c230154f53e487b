"""runtime/memory.py, and that the runtime itself holds on to none."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
from reuse_distill.runtime import memory
from reuse_distill.runtime.encoder import Encoder
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.memory import attention_bytes, available_bytes, check_fits


def test_an_utterance_that_does_not_fit_is_refused(toys, monkeypatch):
    manifest = Encoder.load(toys.offline).manifest
    known = dataclasses.replace(manifest, source={"student": {"heads": 12}})
    monkeypatch.setattr(memory, "available_bytes", lambda: 20_000_000_000)
    check_fits(known, 14_000)
    text = (
        r"337 s at once need 27\.\d GB for attention maps \(12 heads, 16850 frames\), 20\.0 GB are free\n\nhint: stream"
    )
    with pytest.raises(RdError, match=text):
        check_fits(known, 16_850)
    check_fits(manifest, 16_850)  # heads unknown
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    check_fits(known, 16_850)


def test_extract_asks_before_it_runs(toys, monkeypatch):
    encoder = Encoder.load(toys.offline)
    manifest = dataclasses.replace(encoder.manifest, source={"student": {"heads": 2}})
    encoder.bundle = dataclasses.replace(encoder.bundle, manifest=manifest)
    monkeypatch.setattr(memory, "available_bytes", lambda: attention_bytes(2, 99))
    assert encoder.extract(toys.speech(32_000)).shape[1] == 99
    with pytest.raises(RdError, match="100 frames"):
        encoder.extract(toys.speech(32_320))


def test_free_memory_is_a_plausible_number():
    free = available_bytes()
    assert free is None or 10_000_000 < free < 1 << 50


@pytest.mark.parametrize("batch", [1, 5])
def test_a_step_allocates_its_frames_and_nothing_that_stays(toys, batch):
    """Past the warm-up, memory in use does not grow, and no step copies a state, not even for a moment."""
    encoder = Encoder.load(toys.build("streaming", toys.Toy(left=5000, trace=3000)))
    streams = encoder.streams(batch)
    piece = toys.speech(320 * 4)
    state_bytes = 4 * 6 * 3000 * batch

    def window(turns=40):
        """Growth and peak in bytes over some steps of every stream."""
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in range(turns):
            for stream in streams:
                stream.feed(piece)
            encoder.step(streams)
        after, peak = tracemalloc.get_traced_memory()
        return after - before, peak - before

    tracemalloc.start()
    try:
        windows = [window() for _ in range(8)]
    finally:
        tracemalloc.stop()
    # The interpreter allocates now and then; what a step keeps or copies would show in every window.
    growth, peak = np.min(windows, axis=0)
    assert growth < 40 * batch * 16  # less than the smallest object per step
    assert peak < 25_000 < state_bytes


def test_a_long_push_needs_no_more_than_many_short_ones(toys):
    """An hour at once is taken in pieces: the buffer stays as small as with pushes of a second."""
    stream = Encoder.load(toys.streaming).stream()
    stream.push(np.zeros(16_000 * 60, np.int16))
    assert stream.engine._buffer._block.nbytes < 4 * 16_000 * 4


@pytest.mark.slow
def test_an_hour_through_one_stream_and_16_interleaved(toys):
    """Resident memory and step time do not grow, and the last features are those of a fresh stream."""
    encoder = Encoder.load(toys.streaming)
    streams, piece = encoder.streams(16), toys.speech(16_000)
    resident = []
    for second in range(3600):
        for stream in streams:
            stream.feed(np.roll(piece, second))
        last = []
        while any(stream.ready for stream in streams):
            last.append(encoder.step(streams))
        if second % 60 == 59:
            resident.append(resident_bytes())
    quarter = len(resident) // 4
    assert abs(np.mean(resident[-quarter:]) - np.mean(resident[:quarter])) < 2_000_000
    warm = np.concatenate([np.roll(piece, second) for second in range(3570, 3600)])
    wanted = encoder.stream().push(warm)[-1]
    assert np.abs(last[-1][0].features - wanted.features).max() < 5e-6


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
