"""runtime/streaming/stream.py: rates, types, ends, and what a bad push leaves behind."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reuse_distill.runtime.audio.resample import resample, resampled_length
from reuse_distill.runtime.encoder import Encoder
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import frames_for

KINDS = ["offline", "window", "streaming"]


@pytest.fixture(scope="module", params=KINDS)
def encoder(request, toys):
    return Encoder.load(getattr(toys, request.param))


def finished(stream):
    return [f.features for f in stream.finish()]


@pytest.mark.parametrize("rate_hz", [8000, 11025, 16000, 44100, 48000])
def test_any_rate_gives_the_features_of_the_resampled_audio(toys, encoder, rate_hz):
    wave = toys.speech(rate_hz)
    stream = encoder.stream(rate_hz)
    parts = [f for at in range(0, len(wave), 997) for f in stream.push(wave[at : at + 997])] + stream.finish()
    reference = encoder.stream()
    wanted = encoder.join([*reference.push(resample(wave, rate_hz)), *reference.finish()])
    assert np.array_equal(encoder.join(parts), wanted)
    assert wanted.shape[-2] == frames_for(resampled_length(len(wave), rate_hz))
    assert stream.seconds == 1.0


@settings(max_examples=20)
@given(rate_hz=st.sampled_from([8000, 44100, 48000]), seed=st.integers(0, 1 << 20), samples=st.integers(0, 60_000))
def test_extract_and_stream_agree_at_every_rate(toys, rate_hz, seed, samples):
    encoder, rng = Encoder.load(toys.streaming), np.random.default_rng(seed)
    wave, stream, parts, at = toys.speech(samples), encoder.stream(rate_hz), [], 0
    while at < samples:
        size = int(rng.integers(0, rate_hz // 2))
        parts += stream.push(wave[at : at + size])
        at += size
    assert np.array_equal(encoder.join(parts + stream.finish()), encoder.extract(wave, rate_hz))


def test_a_frame_starts_where_its_sound_starts(toys):
    """A click in 48 kHz audio changes the frames whose 25 ms contain it, and the one that looks back at them."""
    encoder = Encoder.load(toys.build("streaming", toys.Toy(lookahead=0, past=1)))
    for at_s in (0.5, 0.51, 0.515):
        quiet, click = np.zeros(48_000, np.float32), np.zeros(48_000, np.float32)
        click[round(at_s * 48_000)] = 3.0
        change = np.abs(encoder.extract(click, 48_000) - encoder.extract(quiet, 48_000))[0].max(1)
        contain = [i for i in range(len(change)) if i * 0.02 <= at_s < i * 0.02 + 0.025]
        assert np.flatnonzero(change > 0.1).tolist() == [*contain, contain[-1] + 1]


def test_int16_and_float_are_the_same_audio(toys, encoder):
    pcm = (toys.speech(20_000) * 32767).astype(np.int16)
    a, b = encoder.stream(), encoder.stream()
    assert np.array_equal(
        encoder.join([*a.push(pcm), *a.finish()]),
        encoder.join([*b.push(pcm.astype(np.float64) / 32768), *b.finish()]),
    )


def test_stereo_is_its_mean(toys, encoder):
    left, right = toys.speech(9000, seed=1), toys.speech(9000, seed=2)
    a, b = encoder.stream(), encoder.stream()
    found = encoder.join([*a.push(np.stack([left, right], 1)), *a.finish()])
    assert np.array_equal(found, encoder.join([*b.push((left + right) / 2), *b.finish()]))


@pytest.mark.parametrize("rate_hz", [16_000, 48_000])
def test_finish_is_exact_and_idempotent(toys, encoder, rate_hz):
    stream = encoder.stream(rate_hz)
    parts = stream.push(toys.speech(7777))
    parts += stream.finish()
    assert encoder.join(parts).shape[-2] == frames_for(resampled_length(7777, rate_hz))
    assert stream.finish() == []
    stream.end()
    assert stream.finish() == []
    assert not stream.ready
    before = stream.snapshot()
    stream.end()
    assert stream.snapshot() == before


@pytest.mark.parametrize("rate_hz", [16_000, 48_000])
def test_a_finished_stream_takes_nothing_and_can_be_reset(toys, encoder, rate_hz):
    stream = encoder.stream(rate_hz)
    first = encoder.join([*stream.push(toys.speech(7777)), *stream.finish()])
    for call in (stream.push, stream.feed):
        with pytest.raises(RdError, match=r"finished and takes no more samples\n\nhint: reset"):
            call(np.zeros(10, np.float32))
    for used in (0, 5000):
        stream.reset()
        stream.push(toys.speech(used, seed=4))
        stream.reset()
        assert stream.seconds == 0
        assert np.array_equal(encoder.join([*stream.push(toys.speech(7777)), *stream.finish()]), first)


def test_a_closed_stream_does_nothing(toys, encoder):
    with encoder.stream() as stream:
        stream.feed(toys.speech(40_000))
        assert stream.ready
    assert not stream.ready
    stream.close()
    for call in (stream.finish, stream.reset, stream.snapshot, lambda: stream.push(np.zeros(1, np.int16))):
        with pytest.raises(RdError, match=r"the stream is closed\n\nhint: open another"):
            call()


@pytest.mark.parametrize("rate_hz", [16_000, 48_000])
def test_a_bad_push_leaves_the_stream_as_it_was(toys, encoder, rate_hz):
    wave = toys.speech(rate_hz)
    bad = wave[:5000].copy()
    bad[4321] = np.nan
    clean, stream = encoder.stream(rate_hz), encoder.stream(rate_hz)
    wanted = encoder.join([*clean.push(wave), *clean.finish()])
    parts = stream.push(wave[:6000])
    before = stream.snapshot()
    with pytest.raises(RdError, match=r"sample 10321 is nan: features of it would be garbage\n\nhint: replace"):
        stream.push(bad)
    for wrong in (np.zeros(10, np.int32), np.zeros((1, 1, 1), np.float32), np.full(100, np.inf), "text", None):
        with pytest.raises(RdError):
            stream.push(wrong)
    assert stream.snapshot() == before
    parts += [*stream.push(wave[6000:]), *stream.finish()]
    assert np.array_equal(encoder.join(parts), wanted)


def test_bad_samples_in_extract(encoder):
    with pytest.raises(RdError, match="sample 3 is inf"):
        encoder.extract(np.array([0, 0, 0, np.inf, 0]), 16_000)
    with pytest.raises(RdError, match="sample rate 0 is not"):
        encoder.extract(np.zeros(1000, np.float32), 0)
    with pytest.raises(RdError, match="sample rate -8000 is not"):
        encoder.stream(-8000)


@pytest.mark.parametrize("samples", [0, 1, 160, 399])
def test_less_than_a_frame_is_no_frame(encoder, samples):
    stream = encoder.stream()
    assert stream.push(np.zeros(samples, np.int16)) == []
    assert stream.finish() == []
    assert encoder.extract(np.zeros(samples, np.int16)).shape == (2, 0, 6)


def test_silence_is_finite(encoder):
    found = encoder.extract(np.zeros(32_000, np.int16))
    assert found.shape[-2] == 99
    assert np.isfinite(found).all()


def test_feed_runs_nothing(toys, encoder):
    stream = encoder.stream()
    stream.feed(toys.speech(60_000))
    assert stream.ready
    fed = stream.push(np.zeros(0, np.float32))
    other = encoder.stream()
    pushed = other.push(toys.speech(60_000))
    assert np.array_equal(encoder.join(fed), encoder.join(pushed))


def test_latency_holds_the_resampler(toys):
    encoder = Encoder.load(toys.streaming)
    assert encoder.stream().latency == encoder.latency
    slow = encoder.stream(48_000).latency
    added = slow.worst_ms - encoder.latency.worst_ms
    assert 20 < added < 60  # 37 ms with soxr 1.1
    assert slow.mean_ms - encoder.latency.mean_ms == pytest.approx(added)
    assert slow.first_frame_ms - encoder.latency.first_frame_ms == pytest.approx(added)


def test_frames_come_within_the_stated_latency_behind_the_resampler(toys):
    encoder = Encoder.load(toys.streaming)
    stream, pushed_s, late_ms = encoder.stream(48_000), 0.0, []
    for _ in range(2000):
        for frames in stream.push(np.zeros(48, np.float32)):
            late_ms.append(1000 * (pushed_s - frames.start_s))
        pushed_s += 0.001
    assert max(late_ms) <= stream.latency.worst_ms + 1
    assert max(late_ms) >= stream.latency.worst_ms - 15
