"""Percentiles with a bound, and quantiles of Student's t and of chi-square for few degrees of freedom, without SciPy.

A percentile is the early-stopping estimate of MLPerf inference at 99 % confidence. Of n samples let t be the most that
may lie above the true percentile with a probability of at most 1 %: P(X <= t) <= 0.01 for X binomial (n, 1 - q). The
t - 1 slowest are dropped and the next is reported, so that the true percentile is below the figure with 99 %
confidence. p50 takes 11 samples, p90 64, p99 662 and p99.9 6,636; fewer are `unmeasured`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
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
    import numpy as np  # here only: this file serves the command line, which answers at once

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


def _beta_integral(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function (continued fraction, Numerical Recipes 6.4)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta_integral(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    c, d = 1.0, 1 / max(1 - (a + b) * x / (a + 1), 1e-300)
    result = d
    for m in range(1, 300):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / (1 + term * d)
            c = 1 + term / c
            result *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return front * result / a


def _gamma_integral(x: float, a: float) -> float:
    """Regularised lower incomplete gamma function by its series."""
    if x <= 0:
        return 0.0
    term = total = 1 / a
    n = a
    while term > 1e-16 * total:
        n += 1
        term *= x / n
        total += term
    return min(1.0, total * math.exp(-x + a * math.log(x) - math.lgamma(a)))


@lru_cache(maxsize=256)
def t_quantile(p: float, degrees: int) -> float:
    """Quantile of Student's t, ``p`` above one half."""

    def below(t: float) -> float:
        return 1 - 0.5 * _beta_integral(degrees / (degrees + t * t), degrees / 2, 0.5)

    return _solve(below, p, 1e4)


@lru_cache(maxsize=256)
def chi_square_quantile(p: float, degrees: int) -> float:
    """Quantile of chi-square."""
    return _solve(lambda x: _gamma_integral(x / 2, degrees / 2), p, 40.0 + 4 * degrees)


def _solve(rising: object, p: float, high: float) -> float:
    low = 0.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < p else (low, middle)  # type: ignore[operator]
    return (low + high) / 2


def binomial_cdf(n: int, p: float) -> npt.NDArray[np.float64]:
    """P(X <= t) of a binomial for t = 0 .. n (p + a bit): as far as tails of one percentile are looked at."""
    import numpy as np

    count = min(n, math.ceil(n * p) + 1)
    k = np.arange(count)
    steps = np.log((n - k) / (k + 1.0)) + math.log(p) - math.log1p(-p)
    logs = n * math.log1p(-p) + np.concatenate([[0.0], np.cumsum(steps)])
    return np.cumsum(np.exp(logs))
