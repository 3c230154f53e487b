"""Samples of a stream as one moving block, and the frames that come out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from reuse_distill.runtime.geometry import HOP_SAMPLES, SAMPLE_RATE_HZ
from reuse_distill.runtime.streaming.snapshot import Saved

UNKNOWN = -1  # frames of a stream that has not ended, in a snapshot


@dataclass(frozen=True, eq=False)
class Frames:
    """Consecutive frames of one stream.

    ``features`` is float32 (n, W) where the bundle exports one layer, (N, n, W) where it exports several. Frame i
    covers the source from ``i * 0.02`` to ``i * 0.02 + 0.025`` seconds, whatever its sample rate. ``heads`` has the
    output (n, K) of every head by its name; without features ``features`` is (n, 0).
    """

    index: int  # of the first frame
    features: np.ndarray
    heads: Mapping[str, np.ndarray] = field(default_factory=dict)
    rate_hz: Fraction | None = None  # rows per second, where another rate than 50 was requested
    provisional: bool = False  # made with less look-ahead than these frames will have: they come again, corrected

    def __len__(self) -> int:
        return int(self.features.shape[-2])

    @property
    def start_s(self) -> float:
        """Where the first frame starts, in seconds of the source."""
        if self.rate_hz is not None:
            return float(self.index / self.rate_hz)
        return self.index * HOP_SAMPLES / SAMPLE_RATE_HZ


class SampleBuffer:
    """The newest samples of a stream under their absolute positions, in one contiguous block.

    Appending copies the samples once; room is made by moving what is still needed to the front, so a stream that
    drops what it has used allocates nothing in the long run.
    """

    def __init__(self, capacity: int = 4096) -> None:
        self._block = np.zeros(capacity, np.float32)
        self._low = 0  # where in the block the kept samples start
        self.start = 0  # absolute position of the first kept sample
        self.end = 0  # absolute position after the last

    def __len__(self) -> int:
        return self.end - self.start

    def append(self, samples: np.ndarray) -> None:
        """Add (T,) float32 at the end."""
        if self._low + len(self) + len(samples) > len(self._block):
            self._make_room(len(samples))
        high = self._low + len(self)
        self._block[high : high + len(samples)] = samples
        self.end += len(samples)

    def drop_before(self, position: int) -> None:
        """Forget the samples before the absolute ``position``."""
        drop = min(max(position - self.start, 0), len(self))
        self._low += drop
        self.start += drop

    def view(self, first: int, last: int) -> np.ndarray:
        """Samples [first, last) without a copy; valid until the next append."""
        if not self.start <= first <= last <= self.end:
            raise IndexError(f"samples [{first}, {last}) are not in [{self.start}, {self.end})")
        return self._block[self._low + first - self.start : self._low + last - self.start]

    def fill(self, out: np.ndarray, first: int, last: int | None = None) -> None:
        """Write samples [first, first + len(out)) into ``out``; zeros before 0 and from ``last`` (or the end) on."""
        stop = min(first + len(out), self.end if last is None else last)
        begin = max(first, 0)
        out[: begin - first] = 0
        if stop > begin:
            out[begin - first : stop - first] = self.view(begin, stop)
        out[max(stop, begin) - first :] = 0

    def restart(self, position: int = 0) -> None:
        """Empty, at the absolute ``position``."""
        self._low, self.start, self.end = 0, position, position

    def save(self, saved: Saved, name: str) -> None:
        """Add what is kept to ``saved``."""
        saved.counters[f"{name}_start"] = self.start
        saved.arrays[name] = self.view(self.start, self.end).copy()

    def load(self, saved: Saved, name: str) -> None:
        """Become what was saved (checked before by ``check_saved``)."""
        self.restart(saved.counters[f"{name}_start"])
        self.append(saved.arrays[name])

    def _make_room(self, extra: int) -> None:
        kept = self._block[self._low : self._low + len(self)]
        need = len(kept) + extra
        # Moving to the front must free at least as much as it moves, or it would be done at every append.
        grow = 2 * need > len(self._block)
        target = np.zeros(2 * need, np.float32) if grow else self._block
        target[: len(kept)] = kept
        self._block, self._low = target, 0


def check_saved(saved: Saved, name: str, *, start: int, end: int) -> None:
    """Raise RdError unless ``saved`` holds a buffer of samples [start, end)."""
    saved.counter(f"{name}_start", start, start)
    saved.array(name, np.float32, (end - start,))
