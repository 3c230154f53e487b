"""Any rate to 16 kHz, as a stream: the same samples whatever the size of the pushes.

Output sample n is the source at time n / 16000 s: soxr takes its own delay out again, at the price of holding back the
newest samples until it has seen enough (``delay_ms``). A stream of T source samples gives exactly
``resampled_length(T, rate)`` = floor(T * 16000 / rate + 1/2) samples, pushed in pieces or at once.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from reuse_distill.runtime.geometry import SAMPLE_RATE_HZ
from reuse_distill.runtime.streaming.framing import SampleBuffer, check_saved
from reuse_distill.runtime.streaming.snapshot import Saved

# How much of the past the filter remembers, with a margin: after a replay of this much the output differs from that of
# the uninterrupted stream by rounding only (tests/runtime/audio). Low rates need it counted in samples.
MEMORY_S = 0.4
MEMORY_SAMPLES = 4096
NOTHING = np.zeros(0, np.float32)


def resampled_length(samples: int, rate_hz: int) -> int:
    """Samples at 16 kHz that ``samples`` at ``rate_hz`` give: floor(T * 16000 / rate + 1/2), in exact integers."""
    return (2 * samples * SAMPLE_RATE_HZ + rate_hz) // (2 * rate_hz)


def resample(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    """A whole recording (T,) float32 at ``rate_hz`` -> (resampled_length(T, rate_hz),) at 16 kHz, as in a stream."""
    resampler = Resampler(rate_hz)
    return np.concatenate([resampler.push(samples), resampler.finish()])


class Resampler:
    """One stream of samples at ``rate_hz`` to 16 kHz; 16 kHz passes through untouched."""

    def __init__(self, rate_hz: int) -> None:
        self.rate_hz = rate_hz
        self._soxr = None if rate_hz == SAMPLE_RATE_HZ else _open_soxr(rate_hz)
        # A replay can start where source and output grids meet: every this many source samples.
        self._period = rate_hz // math.gcd(rate_hz, SAMPLE_RATE_HZ)
        self._past = SampleBuffer()
        self.reset()

    def reset(self) -> None:
        """Back to the start of a stream."""
        if self._soxr is not None:
            self._soxr.clear()
        self._past.restart()
        self._skip = 0  # samples still to drop after a replay
        self._ahead = NOTHING  # samples that a replay gave too early
        self.taken = 0  # source samples so far
        self.given = 0  # 16 kHz samples so far

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Source samples (T,) float32 -> the 16 kHz samples that are certain by now, (T',) float32."""
        self.taken += len(samples)
        if self._soxr is None:
            self.given += len(samples)
            return samples
        self._past.append(samples)
        self._past.drop_before(self._replay_start(self.taken))
        return self._give(self._soxr.resample_chunk(np.ascontiguousarray(samples)))

    def finish(self) -> np.ndarray:
        """The rest, once per stream; then ``given == resampled_length(taken, rate_hz)``."""
        if self._soxr is None:
            return NOTHING
        return self._give(self._soxr.resample_chunk(NOTHING, last=True))

    def save(self, saved: Saved) -> None:
        """Add counts and the newest source samples, from which ``load`` builds the filter's memory again."""
        saved.counters |= {"taken": self.taken, "given": self.given}
        self._past.save(saved, "past")

    def check(self, saved: Saved, *, ended: bool) -> None:
        """Raise RdError where ``saved`` is not the state of a resampler of this rate."""
        taken = saved.counter("taken", 0)
        all_of_it = resampled_length(taken, self.rate_hz)
        given = saved.counter("given", all_of_it if ended else 0, all_of_it)
        if self._soxr is None:
            saved.counter("given", taken, taken)
            check_saved(saved, "past", start=0, end=0)
            return
        start = self._replay_start(taken)
        check_saved(saved, "past", start=start, end=taken)
        saved.counter("given", start * SAMPLE_RATE_HZ // self.rate_hz, given)

    def load(self, saved: Saved) -> None:
        """Continue the stream that was saved: its newest samples run through the filter again."""
        self.reset()
        self.taken, self.given = saved.counters["taken"], saved.counters["given"]
        if self._soxr is None:
            return
        self._past.load(saved, "past")
        self._skip = self.given - self._past.start * SAMPLE_RATE_HZ // self.rate_hz
        self._ahead = self._drop_skipped(self._soxr.resample_chunk(saved.arrays["past"].copy()))

    def _give(self, samples: np.ndarray) -> np.ndarray:
        samples = self._drop_skipped(samples)
        if len(self._ahead):
            samples, self._ahead = np.concatenate([self._ahead, samples]), NOTHING
        self.given += len(samples)
        return samples

    def _drop_skipped(self, samples: np.ndarray) -> np.ndarray:
        drop = min(self._skip, len(samples))
        self._skip -= drop
        return samples[drop:]

    def _replay_start(self, taken: int) -> int:
        memory = max(MEMORY_SAMPLES, math.ceil(MEMORY_S * self.rate_hz))
        return max(0, taken - memory) // self._period * self._period


@lru_cache(maxsize=64)
def delay_ms(rate_hz: int) -> float:
    """The longest that a source sample waits in the resampler, measured with pushes of 1 ms; 0 at 16 kHz."""
    if rate_hz == SAMPLE_RATE_HZ:
        return 0.0
    resampler, piece = Resampler(rate_hz), np.zeros(max(1, rate_hz // 1000), np.float32)
    worst = 0.0
    while resampler.taken < max(rate_hz, MEMORY_SAMPLES):
        worst = max(worst, (resampler.taken + 1) / rate_hz - resampler.given / SAMPLE_RATE_HZ)
        resampler.push(piece)
    return 1000 * worst


def _open_soxr(rate_hz: int) -> Any:
    import soxr

    return soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32")
