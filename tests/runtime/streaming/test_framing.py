"""runtime/streaming/framing.py: the sample buffer against a plain array, and frames in time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reuse_distill.runtime.streaming.framing import Frames, SampleBuffer


@given(
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 4000)), max_size=30),
    st.integers(1, 5000),
)
def test_it_holds_what_a_plain_array_holds(moves, capacity):
    buffer, everything, dropped = SampleBuffer(capacity), np.zeros(0, np.float32), 0
    rng = np.random.default_rng(0)
    for added, drop in moves:
        samples = rng.standard_normal(added).astype(np.float32)
        buffer.append(samples)
        everything = np.concatenate([everything, samples])
        assert np.array_equal(buffer.view(dropped, buffer.end), everything[dropped:])
        dropped = min(dropped + drop, len(everything))
        buffer.drop_before(dropped)
        assert (buffer.start, buffer.end, len(buffer)) == (dropped, len(everything), len(everything) - dropped)


@given(st.integers(-50, 150), st.integers(1, 60), st.one_of(st.none(), st.integers(0, 120)))
def test_fill_puts_zeros_where_there_is_no_audio(first, count, last):
    wave = np.arange(1, 101, dtype=np.float32)
    buffer = SampleBuffer(10)
    buffer.append(wave)
    out = np.full(count, np.nan, np.float32)
    buffer.fill(out, first, None if last is None else min(last, 100))
    stop = 100 if last is None else min(last, 100)
    wanted = [wave[i] if 0 <= i < stop else 0.0 for i in range(first, first + count)]
    assert out.tolist() == wanted


def test_in_the_long_run_nothing_is_allocated():
    buffer = SampleBuffer(4096)
    block = buffer._block
    for _ in range(1000):
        buffer.append(np.ones(700, np.float32))
        buffer.drop_before(buffer.end - 80)
    assert buffer._block is block


def test_samples_that_are_gone_are_not_given():
    buffer = SampleBuffer()
    buffer.append(np.ones(100, np.float32))
    buffer.drop_before(10)
    for first, last in ((9, 20), (20, 101), (30, 20)):
        with pytest.raises(IndexError, match=r"are not in \[10, 100\)"):
            buffer.view(first, last)


def test_frames_know_their_time_and_number():
    assert Frames(50, np.zeros((7, 3), np.float32)).start_s == 1.0
    assert len(Frames(0, np.zeros((7, 3), np.float32))) == 7
    assert len(Frames(0, np.zeros((2, 7, 3), np.float32))) == 7
