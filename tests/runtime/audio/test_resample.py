"""runtime/audio/resample.py: any push size gives the same samples, at the right times, and as many as stated."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reuse_distill.runtime.audio.resample import Resampler, delay_ms, resample, resampled_length
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.streaming.snapshot import Saved

RATES = [4000, 8000, 11025, 12000, 16000, 22050, 32000, 44100, 44101, 48000, 96000, 192000]


def noise(samples, seed=0):
    return (0.3 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def pushed(resampler, wave, sizes):
    out, at = [], 0
    for size in sizes:
        out.append(resampler.push(wave[at : at + size]))
        at += size
    return np.concatenate([*out, resampler.push(wave[at:]), resampler.finish()])


@settings(max_examples=60)
@given(st.sampled_from(RATES), st.lists(st.integers(0, 3000), max_size=12), st.integers(0, 12000))
def test_any_pushes_give_the_samples_of_one(rate_hz, sizes, samples):
    wave = noise(samples)
    found = pushed(Resampler(rate_hz), wave, sizes)
    assert np.array_equal(found, resample(wave, rate_hz))
    assert len(found) == resampled_length(samples, rate_hz)


@given(st.integers(1, 400_000), st.integers(0, 10_000_000))
def test_the_length_is_rounded_half_up(rate_hz, samples):
    length = resampled_length(samples, rate_hz)
    assert (2 * length - 1) * rate_hz <= 2 * samples * 16000 < (2 * length + 1) * rate_hz


def test_the_length_is_the_rule_for_every_short_stream():
    for rate_hz in RATES:
        for samples in range(60):
            assert len(resample(noise(samples), rate_hz)) == resampled_length(samples, rate_hz), (rate_hz, samples)


def test_16_khz_passes_untouched():
    wave = noise(1000)
    resampler = Resampler(16000)
    assert resampler.push(wave) is wave
    assert len(resampler.finish()) == 0


@pytest.mark.parametrize("rate_hz", [r for r in RATES if r != 16000])
def test_a_sine_keeps_its_place_in_time(rate_hz):
    """Sample n is the source at n / 16000 s: no delay is left."""

    def tone(rate):
        t = np.arange(rate) / rate
        return np.sin(2 * np.pi * 440 * t) * np.sin(np.pi * t) ** 2  # fades in and out

    found = resample(tone(rate_hz).astype(np.float32), rate_hz)
    assert np.abs(found - tone(16000)).max() < 2e-4


@pytest.mark.parametrize("rate_hz", [1000, *RATES, 15999])
def test_a_saved_stream_goes_on(rate_hz):
    wave = noise(3 * rate_hz + 5)
    whole = resample(wave, rate_hz)
    for cut in (0, 1, rate_hz // 3, 2 * rate_hz + 17):
        first, second, saved = Resampler(rate_hz), Resampler(rate_hz), Saved()
        head = first.push(wave[:cut])
        first.save(saved)
        second.push(noise(500, seed=1))  # what it was doing before is gone
        second.check(saved, ended=False)
        second.load(saved)
        found = np.concatenate([head, pushed(second, wave[cut:], [10, 700, 3])])
        assert found.shape == whole.shape
        assert np.abs(found - whole).max() <= (0 if rate_hz == 16000 else 2e-6)
        assert second.taken == len(wave)
        assert second.given == len(whole)


def test_a_saved_state_of_other_counts_is_refused():
    resampler, saved = Resampler(48000), Saved()
    resampler.push(noise(30000))
    resampler.save(saved)
    resampler.check(saved, ended=False)
    for name, value in (("taken", 29999), ("given", -1), ("given", 20000), ("past_start", 3)):
        wrong = Saved({**saved.counters, name: value}, saved.arrays)
        with pytest.raises(RdError, match="snapshot: "):
            resampler.check(wrong, ended=False)


def test_reset_forgets():
    wave = noise(5000)
    resampler = Resampler(44100)
    resampler.push(noise(7000, seed=2))
    resampler.reset()
    assert np.array_equal(pushed(resampler, wave, [100, 1000]), resample(wave, 44100))


@pytest.mark.parametrize("rate_hz", RATES)
def test_the_delay_is_the_longest_wait(rate_hz):
    """With pushes of 1 ms, what has come out never lags behind what went in by more than the stated delay."""
    bound_s, resampler, piece = delay_ms(rate_hz) / 1000, Resampler(rate_hz), noise(max(1, rate_hz // 1000))
    worst_s = 0.0
    for _ in range(2500):
        worst_s = max(worst_s, resampler.taken / rate_hz - resampler.given / 16000)
        resampler.push(piece)
    assert worst_s <= bound_s + 0.001
    assert bound_s <= worst_s + 0.002
