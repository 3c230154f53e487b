"""Intervals by resampling the test items. Every number that is compared has one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A value with the 2.5 and 97.5 percentiles of its resamples."""

    value: float
    low: float
    high: float


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], *, groups: Sequence[str] | None = None, seed: int = 0
) -> Interval:
    """sum(numerators) / sum(denominators) over test items, resampled by item, or by group where several are given.

    Accuracy: numerator 1 where right, denominator 1. Error rate: edits and reference length.
    """
    top, bottom = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    weights = _weights(len(top), groups, seed)  # (resamples, items)
    values = (weights @ top) / np.maximum(weights @ bottom, 1e-12)
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(float(top.sum() / bottom.sum()), float(low), float(high))


def difference_interval(
    first: Sequence[float],
    second: Sequence[float],
    denominators: Sequence[float],
    *,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> Interval:
    """The difference of two ratios on the same items, resampled together (paired)."""
    change = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return ratio_interval(change.tolist(), denominators, groups=groups, seed=seed)


@dataclass(frozen=True)
class Scores:
    """Of each test item of one probe the numerator and denominator of its measure, and its speaker where known."""

    numerators: Sequence[float]
    denominators: Sequence[float]
    groups: Sequence[str] | None = None


def mean_interval(parts: Sequence[Scores], *, seed: int = 0) -> Interval:
    """The mean of the ratios of several probes, each resampled by itself. Numerators may be differences (paired)."""
    values, resampled = [], []
    for number, part in enumerate(parts):
        top, bottom = np.asarray(part.numerators, dtype=np.float64), np.asarray(part.denominators, dtype=np.float64)
        weights = _weights(len(top), part.groups, seed + number)
        values.append(float(top.sum() / bottom.sum()))
        resampled.append((weights @ top) / np.maximum(weights @ bottom, 1e-12))
    low, high = np.percentile(np.mean(resampled, axis=0), [2.5, 97.5])
    return Interval(float(np.mean(values)), float(low), float(high))


def _weights(items: int, groups: Sequence[str] | None, seed: int) -> NDArray[np.float64]:
    """How often each item is drawn in each resample. Groups (speakers) are drawn whole where there are five or more."""
    generator = np.random.default_rng(seed)
    names = sorted(set(groups)) if groups is not None else []
    if len(names) < 5:
        return generator.multinomial(items, np.full(items, 1 / items), size=RESAMPLES).astype(np.float64)
    drawn = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    member = np.array([names.index(group) for group in groups or ()])
    return drawn[:, member].astype(np.float64)
