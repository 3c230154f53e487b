"""Features at another rate: exact means, interpolation, no drift, and the same however the stream is cut."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reuse_distill.runtime.encoder import Encoder
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.streaming.frame_rate import at_rate, rate_of, rows_until


def by_definition(features: np.ndarray, rate: Fraction) -> np.ndarray:
    """Each row as the integral over its time of frames that are constant for 20 ms; or between two frames."""
    frames, rows = len(features), []
    for row in range(rows_until(frames, rate)):
        low, high = Fraction(row) / rate, min(Fraction(row + 1) / rate, Fraction(frames, 50))
        if rate <= 50:
            total = np.zeros(features.shape[1])
            for i in range(frames):
                share = min(high, Fraction(i + 1, 50)) - max(low, Fraction(i, 50))
                total += float(max(share, Fraction(0)) / (high - low)) * features[i]
            rows.append(total)
        else:
            at = min(low * 50, Fraction(frames - 1))
            first, part = int(at), float(at - int(at))
            rows.append((1 - part) * features[first] + part * features[min(first + 1, frames - 1)])
    return np.array(rows).reshape(-1, features.shape[1])


@pytest.mark.parametrize("rate", [1, 12.5, 25, 29.97, 30, 48, 50, 60, 86.1328, 100])
def test_rows_are_means_or_between_frames(rate: float) -> None:
    features = np.random.default_rng(0).standard_normal((73, 4)).astype(np.float32)
    fraction = rate_of(rate)
    result = at_rate(features, fraction)
    assert result.dtype == np.float32 and result == pytest.approx(by_definition(features, fraction), abs=1e-5)
    assert len(result) == rows_until(73, fraction)


def test_an_hour_does_not_drift() -> None:
    features = np.arange(50 * 3600, dtype=np.float32)[:, None]
    rows = at_rate(features, Fraction(30))
    assert len(rows) == 30 * 3600 and rows[-1, 0] == pytest.approx(50 * 3600 - 1.3, abs=1)
    assert at_rate(np.ones((50 * 600, 1), np.float32), rate_of("30000/1001")) == pytest.approx(1.0)


@settings(max_examples=25)
@given(sizes=st.lists(st.integers(1, 4000), min_size=1, max_size=10), fps=st.sampled_from([25, 30, "29.97", 80]))
def test_streamed_rows_are_those_of_the_whole(toys, sizes: list[int], fps: float | str) -> None:
    encoder, wave = Encoder.load(toys.streaming), toys.speech(320 * 33 + 111, seed=2)
    whole = at_rate(encoder.extract(wave), rate_of(fps))
    stream, parts, at, pushes = encoder.stream(fps=fps), [], 0, 0
    while at < len(wave):
        parts += stream.push(wave[at : at + sizes[pushes % len(sizes)]])
        at += sizes[pushes % len(sizes)]
        pushes += 1
        if pushes % 3 == 0:
            saved, stream = stream.snapshot(), encoder.stream(fps=fps)
            stream.restore(saved)
    parts += stream.finish()
    assert [part.index for part in parts] == np.cumsum([0, *(len(p) for p in parts)])[:-1].tolist()
    assert parts[-1].start_s == pytest.approx(parts[-1].index / float(rate_of(fps)))
    assert np.array_equal(encoder.join(parts), whole)
    assert stream.finish() == []
    stream.reset()
    assert np.array_equal(encoder.join([*stream.push(wave), *stream.finish()]), whole)


def test_rates_that_make_no_sense_are_refused(toys) -> None:
    for value, message in (("fast", "a number is needed"), (0, "1 to 1000"), (1e9, "1 to 1000"), ("1/0", "a number")):
        with pytest.raises(RdError, match=message):
            rate_of(value)
    assert rate_of(29.97) == Fraction(30_000, 1001) and rate_of(25) == 25 and rate_of("12.5") == Fraction(25, 2)
    encoder = Encoder.load(toys.streaming)
    stream = encoder.stream(fps=25)
    stream.feed(toys.speech(8000))
    with pytest.raises(RdError, match="not stepped as a batch"):
        encoder.step([stream])
    with pytest.raises(RdError, match="fps"):
        encoder.stream(fps=30).restore(stream.snapshot())
