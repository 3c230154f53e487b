"""Percentiles with a bound: the early-stopping estimate of MLPerf inference at 99 % confidence.

Of n samples let t be the most that may lie above the true percentile with a probability of at most 1 %:
P(X <= t) <= 0.01 for X binomial (n, 1 - q). The t - 1 slowest are dropped and the next is reported, so that the true
percentile is below the figure with 99 % confidence. p50 takes 11 samples, p90 64, p99 662 and p99.9 6,636; fewer are
`unmeasured`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy.typing as npt

CONFIDENCE = 0.99
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


@dataclass(frozen=True)
class BoundedPercentile:
    """One percentile. ``value`` is None where ``samples`` are fewer than ``needed``."""

    value: float | None
    samples: int
    needed: int
    dropped: int  # slowest samples above the one that is reported


@lru_cache(maxsize=64)
def samples_needed(q: float) -> int:
    """Fewest samples that carry the percentile ``q``: one may lie above it, P(X <= 1) <= 1 %."""
    n = max(2, math.ceil(math.log(1 - CONFIDENCE) / math.log(q)))
    while (n * (1 - q) + q) * q ** (n - 1) > 1 - CONFIDENCE:  # q^n + n (1 - q) q^(n - 1)
        n += 1
    return n


def estimate(values: npt.ArrayLike, q: float) -> BoundedPercentile:
    """The early-stopping estimate of the percentile ``q`` of ``values``."""
    import numpy as np  # the rest of this file serves the command line, which answers at once
    from reuse_distill.devices.judging.student_t import binomial_cdf

    array = np.asarray(values, np.float64)
    needed, n = samples_needed(q), array.size
    if n < needed:
        return BoundedPercentile(None, n, needed, 0)
    allowed = int(np.searchsorted(binomial_cdf(n, 1 - q), 1 - CONFIDENCE, side="right")) - 1
    dropped = allowed - 1
    return BoundedPercentile(float(np.partition(array, n - 1 - dropped)[n - 1 - dropped]), n, needed, dropped)


def seconds_needed(name: str, *, period_s: float, streams: int = 1) -> float:
    """Seconds of audio a stream that carry the percentile called ``name`` with chunks of ``period_s`` s."""
    return math.ceil(samples_needed(PERCENTILES[name]) / streams) * period_s


def too_short(names: Sequence[str], samples: int, *, period_s: float, streams: int = 1) -> str:
    """Why percentiles are unmeasured and what would measure them; empty where the samples carry all of ``names``."""
    lacking = [name for name in names if samples < samples_needed(PERCENTILES[name])]
    if not lacking:
        return ""
    name = lacking[0]
    seconds = math.ceil(seconds_needed(name, period_s=period_s, streams=streams))
    title = "p99.9" if name == "p999" else name
    return (
        f"{title} is unmeasured: {samples} samples, {samples_needed(PERCENTILES[name])} are needed, "
        f"{seconds} s of audio (--seconds {seconds} or --until-enough {name})"
    )
