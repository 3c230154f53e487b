"""runtime/audio/samples.py: what counts as samples, and what does not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from reuse_distill.runtime.audio.samples import LOUDEST, mono, sample_rate_of
from reuse_distill.runtime.errors import RdError


def test_int16_is_divided_by_32768():
    found = mono(np.array([-32768, 0, 16384, 32767], np.int16))
    assert found.dtype == np.float32
    assert found.tolist() == [-1.0, 0.0, 0.5, 32767 / 32768]


@given(hnp.arrays(np.int16, st.integers(0, 50)))
def test_int16_is_the_same_as_its_floats(pcm):
    assert np.array_equal(mono(pcm), mono(pcm.astype(np.float64) / 32768))


def test_channels_are_averaged():
    left, right = np.float32([0.5, 0.25]), np.float32([0.25, -0.75])
    assert mono(np.stack([left, right], 1)).tolist() == [0.375, -0.25]
    assert mono(left[:, None]).tolist() == left.tolist()


def test_float64_becomes_float32():
    assert mono(np.array([0.1])).tolist() == [float(np.float32(0.1))]


def test_channels_that_cancel_are_reported():
    tone = np.sin(np.arange(1000) / 10).astype(np.float32)
    with pytest.warns(RuntimeWarning, match="channels cancel each other"):
        mixed = mono(np.stack([tone, -tone], 1))
    assert not mixed.any()


@pytest.mark.filterwarnings("error")
def test_silence_and_one_silent_channel_are_not_reported():
    tone = np.sin(np.arange(1000) / 10).astype(np.float32)
    mono(np.stack([tone, 0 * tone], 1))
    mono(np.zeros((1000, 2), np.int16))
    mono(np.zeros((0, 2), np.int16))


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int64, np.float16, complex, bool, object])
def test_other_types_are_refused(dtype):
    with pytest.raises(RdError, match=r"samples of type .*: int16, float32 or float64 is needed"):
        mono(np.zeros(4, dtype))


def test_other_shapes_are_refused():
    with pytest.raises(RdError, match=r"shape \(\): \(samples,\)"):
        mono(np.float32(1.0))
    with pytest.raises(RdError, match=r"\(1, 2, 3\)"):
        mono(np.zeros((1, 2, 3), np.float32))
    with pytest.raises(RdError, match=r"48000 channels.*\n\nhint: .*pcm\.T"):
        mono(np.zeros((2, 48000), np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_first_bad_sample_is_named(value, dtype):
    pcm = np.zeros(100, dtype)
    pcm[[37, 60]] = value
    with pytest.raises(RdError, match=rf"sample 1037 is {value}"):
        mono(pcm, first_sample=1000)


def test_bad_samples_of_two_kinds_do_not_cancel():
    pcm = np.float32([0.0, np.inf, -np.inf])
    with pytest.raises(RdError, match="sample 1 is inf"):
        mono(pcm)


def test_a_bad_sample_of_one_channel_is_named_by_its_time():
    pcm = np.zeros((10, 2), np.float32)
    pcm[4, 1] = np.nan
    with pytest.raises(RdError, match="sample 4 is nan"):
        mono(pcm)


@pytest.mark.filterwarnings("error")
def test_values_beyond_float32_and_beyond_any_audio_are_refused() -> None:
    with pytest.raises(RdError, match="sample 1 is inf"):
        mono(np.array([0.0, 1e300]))
    with pytest.raises(RdError, match=r"sample 1 is -3e\+38: beyond 4.29497e\+09"):
        mono(np.array([0.0, -3e38], np.float32))
    loudest = np.full(1000, LOUDEST, np.float32)
    assert np.array_equal(mono(loudest), loudest)
    assert not mono(np.empty(0, np.float32)).size


@pytest.mark.parametrize("rate", [16000, 16000.0, np.int64(16000), np.float32(16000)])
def test_rates(rate):
    assert sample_rate_of(rate) == 16000
    assert type(sample_rate_of(rate)) is int


@pytest.mark.parametrize("rate", [0, -16000, 16000.5, float("nan"), float("inf"), "16000", None, True])
def test_other_rates_are_refused(rate):
    with pytest.raises(RdError, match="is not a positive whole number of Hz"):
        sample_rate_of(rate)
