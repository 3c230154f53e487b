"""runtime/streaming/windows.py: sliding windows see the real audio around their chunk, and real edges."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reuse_distill.runtime.encoder import Encoder
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import frames_for, samples_for
from reuse_distill.runtime.streaming.windows import WindowEngine

CLOSE = 5e-6


@pytest.fixture(scope="module")
def offline(toys):
    return Encoder.load(toys.offline)


@pytest.fixture(scope="module")
def window(toys):
    return Encoder.load(toys.window)


def windowed(toys, wave, chunk, left, right):
    """The definition: every chunk from the whole-utterance features of its own slice of the audio."""
    frames, out, at = frames_for(len(wave)), [], 0
    while at < frames:
        last = min(at + chunk, frames)
        start, stop = max(0, at - left), min(last + right, frames)
        piece = wave[320 * start : samples_for(stop) if at + chunk + right <= frames else len(wave)]
        out.append(toys.offline_reference(toys.Toy(), piece)[:, at - start : last - start])
        at = last
    return np.concatenate([np.zeros((2, 0, toys.WIDTH), np.float32), *out], axis=1)


@settings(max_examples=40)
@given(
    samples=st.integers(0, 320 * 60),
    sizes=st.lists(st.integers(0, 5000), max_size=8),
    chunk=st.integers(1, 9),
    left=st.integers(0, 20),
    right=st.integers(0, 12),
)
def test_an_offline_bundle_streams_by_slices(toys, offline, samples, sizes, chunk, left, right):
    wave = toys.speech(samples)
    stream = offline.stream(chunk_frames=chunk, left_frames=left, right_frames=right)
    parts, at = [], 0
    for size in sizes:
        parts += stream.push(wave[at : at + size])
        at += size
    parts += [*stream.push(wave[at:]), *stream.finish()]
    found = offline.join(parts)
    wanted = windowed(toys, wave, chunk, left, right)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max(initial=0) < CLOSE


def test_a_window_that_sees_everything_is_the_whole_utterance(toys, offline):
    """Its edges are the utterance's own: samples after the last frame are there too, and no frame is added."""
    wave = toys.speech(320 * 30 + 250)
    stream = offline.stream(chunk_frames=5, left_frames=100, right_frames=100)
    assert np.array_equal(offline.join([*stream.push(wave), *stream.finish()]), offline.extract(wave))


def test_extract_is_one_run_over_the_whole_utterance(toys, offline):
    for samples in (0, 1, 399, 400, 719, 720, 9999):
        wave = toys.speech(samples)
        assert np.abs(offline.extract(wave) - toys.offline_reference(toys.Toy(), wave)).max(initial=0) < CLOSE
        assert offline.extract(wave).shape == (2, frames_for(samples), toys.WIDTH)


def test_the_default_window_is_documented(toys, offline):
    assert offline.latency.worst_ms == 25 + 20 * (16 - 1 + 64)
    stream = offline.stream()
    assert stream.push(toys.speech(samples_for(80) - 1)) == []
    (first,) = stream.push(np.zeros(1, np.float32))
    assert (first.index, len(first)) == (0, 16)


def test_a_window_bundle_marks_what_does_not_exist(toys, window):
    """At the edges the mean is over real frames only; inside, over the window."""
    g = toys.WINDOW
    for samples in (0, 399, 400, *range(320 * 12, 320 * 24, 1111)):
        wave = toys.speech(samples)
        frames = frames_for(samples)
        h = toys.frames_of(toys.Toy(), wave)
        found = window.extract(wave)
        assert found.shape == (2, frames, toys.WIDTH)
        for t in range(frames):
            first = t // g.chunk_frames * g.chunk_frames
            start, stop = max(0, first - g.left_frames), min(first + g.chunk_frames + g.right_frames, frames)
            # h looks 2 frames ahead and 3 back: exact where the window reaches that far
            mean = window_h(toys, wave, start, stop).mean(0)
            assert np.abs(found[0, t] - h[t]).max() < CLOSE
            assert np.abs(found[1, t] - h[t] - mean).max() < CLOSE


def window_h(toys, wave, start, stop):
    return toys.frames_of(toys.Toy(), wave[320 * start : samples_for(stop - start) + 320 * start])


@given(st.lists(st.integers(0, 4000), max_size=10), st.integers(0, 14000))
@settings(max_examples=30)
def test_any_pushes_give_the_same_bits(toys, window, sizes, samples):
    wave, stream, parts, at = toys.speech(samples), window.stream(), [], 0
    for size in sizes:
        parts += stream.push(wave[at : at + size])
        at += size
    parts += [*stream.push(wave[at:]), *stream.finish()]
    assert np.array_equal(window.join(parts), window.extract(wave))


def test_several_windows_step_together(toys, offline, window):
    for encoder in (offline, window):
        waves = [toys.speech(samples_for(80 + 16 * i) + 200, seed=i) for i in range(3)]
        streams, parts = encoder.streams(3), [[], [], []]
        for stream, wave in zip(streams, waves, strict=True):
            stream.feed(wave)
            stream.end()
        while any(stream.ready for stream in streams):
            for part, frames in zip(parts, encoder.step(streams), strict=True):
                part += [] if frames is None else [frames]
        for wave, part in zip(waves, parts, strict=True):
            stream = encoder.stream()  # pushed: its windows run before its end is known
            assert np.array_equal(encoder.join(part), encoder.join([*stream.push(wave), *stream.finish()]))


@pytest.mark.parametrize(("name", "value"), [("chunk_frames", 0), ("left_frames", -1), ("right_frames", -1)])
def test_windows_that_are_none_are_refused(offline, name, value):
    with pytest.raises(RdError, match=r"window of .* frames\n\nhint: the chunk is 1 or more"):
        offline.stream(**{name: value})


def test_built_in_windows_cannot_be_changed(toys, window):
    window.stream(chunk_frames=4, left_frames=9, right_frames=3)
    with pytest.raises(RdError, match="right_frames=5: this window bundle was exported with 3"):
        window.stream(right_frames=5)
    with pytest.raises(RdError, match="chunk_frames=9: this streaming bundle was exported with 4"):
        Encoder.load(toys.streaming).stream(chunk_frames=9)


class Recorder:
    """A backend that keeps what it was given and returns zeros."""

    def __init__(self):
        self.given = []

    def run(self, inputs):
        self.given.append({name: array.copy() for name, array in inputs.items()})
        return {"features": np.zeros((1, 2, 4, 6), np.float32)}


def test_a_window_graph_gets_what_it_was_promised(toys):
    """Real samples where a frame is valid, zeros and 0 everywhere else, windows that follow one another."""
    g, backend, wave = toys.WINDOW, Recorder(), toys.speech(samples_for(10) + 200)
    engine = WindowEngine(backend, g, static=True)
    engine.feed(wave)
    engine.end()
    while engine.ready:
        engine.step()
    assert len(backend.given) == 3
    padded = np.concatenate([np.zeros(320 * g.left_frames), wave[: samples_for(10)], np.zeros(320 * 20)])
    valid = np.concatenate([np.zeros(g.left_frames), np.ones(10), np.zeros(20)])
    for n, inputs in enumerate(backend.given):
        first = n * g.chunk_frames
        assert np.array_equal(inputs["wave"][0], padded[320 * first :][: inputs["wave"].size].astype(np.float32))
        assert np.array_equal(inputs["frame_valid"][0], valid[first:][: inputs["frame_valid"].size])
