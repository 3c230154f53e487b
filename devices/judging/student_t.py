"""Quantiles of Student's t and of chi-square for few degrees of freedom, and binomial tails, without SciPy."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


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


def binomial_cdf(n: int, p: float) -> FloatArray:
    """P(X <= t) of a binomial for t = 0 .. n (p + a bit): as far as tails of one percentile are looked at."""
    count = min(n, math.ceil(n * p) + 1)
    k = np.arange(count)
    steps = np.log((n - k) / (k + 1.0)) + math.log(p) - math.log1p(-p)
    logs = n * math.log1p(-p) + np.concatenate([[0.0], np.cumsum(steps)])
    return np.cumsum(np.exp(logs))
