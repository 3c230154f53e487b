"""How many live streams this machine carries: the largest number whose chunks are late in at most 1 % of all cases.

``rd-latency BUNDLE --streams auto``. A number is accepted, or refused, only where the chunks seen say so at 99 %
confidence (an exact binomial test of the late ones); a trial that says neither is made longer, and counts as refused in
the end. Numbers double until one is refused; then the gap is halved.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from reuse_distill.runtime.errors import RdError

LATE_SHARE = 0.01  # of chunks: what a p99 within the deadline means
CONFIDENCE = 0.99
LEAST_CHUNKS = math.ceil(math.log(1 - CONFIDENCE) / math.log(1 - LATE_SHARE))  # 459: none late, and it is accepted
MOST_STREAMS = 1024
LONGER = 3.0  # times the seconds of a trial that was unsure
LEAST_S = 2.0

# (streams, seconds) -> milliseconds from the last sample of every chunk to its features, all streams together
Measure = Callable[[int, float], npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Trial:
    """What one number of streams showed."""

    streams: int
    chunks: int
    late: int
    p99_ms: float  # as seen, without a bound
    verdict: str  # carried | too many | unsure

    def __str__(self) -> str:
        seen = f"{self.late} of {self.chunks} chunks late, p99 {self.p99_ms:.1f} ms"
        return f"{self.streams:>5} streams: {self.verdict:<8} ({seen})"


@dataclass(frozen=True)
class Capacity:
    """The largest number of streams that was carried (0: not even one) and the smallest that was not (0: none met)."""

    way: str
    deadline_ms: float
    carried: int
    refused: int
    trials: tuple[Trial, ...]

    def __str__(self) -> str:
        limit = f"p99 within {self.deadline_ms:g} ms at {CONFIDENCE:.0%} confidence"
        if not self.carried:
            return f"{self.way}: not one stream with {limit}"
        more = f"{self.refused} are not" if self.refused else "more were not tried"
        return f"{self.way}: {self.carried} streams with {limit}; {more}"


def late_tail(late: int, chunks: int, share: float = LATE_SHARE) -> tuple[float, float]:
    """(P(X <= late), P(X >= late)) of late chunks X where the true share is ``share``: exact, binomial."""
    below = math.fsum(_probability(k, chunks, share) for k in range(late))
    at = _probability(late, chunks, share)
    return min(1.0, below + at), max(0.0, 1.0 - below)


def verdict(late: int, chunks: int) -> str:
    """``carried`` or ``too many`` where the chunks say so at the confidence, else ``unsure``."""
    so_few, so_many = late_tail(late, chunks)
    if so_few <= 1 - CONFIDENCE:
        return "carried"
    return "too many" if so_many <= 1 - CONFIDENCE else "unsure"


def find_capacity(
    way: str,
    measure: Measure,
    *,
    deadline_ms: float,
    seconds: float,
    period_s: float,
    most: int = MOST_STREAMS,
    say: Callable[[Trial], None] = lambda _: None,
) -> Capacity:
    """Search the largest number of streams; ``seconds`` of audio per trial, more where it takes that to be sure.

    Raises RdError for a deadline or a length that is none.
    """
    if not (math.isfinite(deadline_ms) and deadline_ms > 0):
        raise RdError(f"--deadline {deadline_ms:g} ms: more than 0 is needed")
    trials: list[Trial] = []

    def carries(streams: int) -> bool:
        length_s = max(seconds, LEAST_S, LEAST_CHUNKS * period_s / streams)
        trial = _trial(streams, measure(streams, length_s), deadline_ms)
        if trial.verdict == "unsure":
            trial = _trial(streams, measure(streams, LONGER * length_s), deadline_ms)
        trials.append(trial)
        say(trial)
        return trial.verdict == "carried"

    carried, refused, streams = 0, 0, 1
    while not refused:
        if carries(streams):
            carried = streams
            if streams == most:
                break
            streams = min(2 * streams, most)
        else:
            refused = streams
    while refused and refused - carried > 1:
        middle = (carried + refused) // 2
        carried, refused = (middle, refused) if carries(middle) else (carried, middle)
    return Capacity(way, deadline_ms, carried, refused, tuple(trials))


def _trial(streams: int, latencies_ms: npt.NDArray[np.float64], deadline_ms: float) -> Trial:
    chunks = len(latencies_ms)
    if not chunks:
        raise RdError(f"{streams} streams gave no chunk: nothing was measured")
    late = int((latencies_ms > deadline_ms).sum())
    return Trial(streams, chunks, late, float(np.percentile(latencies_ms, 99)), verdict(late, chunks))


def _probability(k: int, n: int, share: float) -> float:
    """P(X = k) of a binomial distribution."""
    if not 0 <= k <= n:
        return 0.0
    combinations = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(combinations + k * math.log(share) + (n - k) * math.log1p(-share))
