"""Is this run slower than the baseline? A rank test on block medians, with an effect size and a minimum.

Latencies of neighbouring chunks are correlated (caches, clocks, other processes), so the samples are cut into blocks of
at least twice the autocorrelation time and the test runs on the blocks' medians. A regression has to be both improbable
without a change (one-sided Mann-Whitney, p < ALPHA) and large enough to matter (Hodges-Lehmann ratio of at least
1 + MIN_EFFECT, more where the baseline's own runs differ more). The tail is tested the same way, on how often blocks
exceed the baseline's p95. What one level cannot describe (throttled, drifting) is not compared but named.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from reuse_distill.devices.series_stability import Stability, block_medians, classify

FloatArray = npt.NDArray[np.float64]
ALPHA = 0.01
MIN_EFFECT = 0.025  # of the median: a change below is not reported whatever its p value
MIN_TAIL_EFFECT = 0.10  # of the p95
MIN_SAMPLES = 100
MIN_BLOCKS = 12
SHORTEST_BLOCK = 5


@dataclass(frozen=True)
class Effect:
    """Candidate against baseline in one respect."""

    ratio: float  # candidate / baseline
    low: float  # 95 % interval of the ratio
    high: float
    p_value: float  # one-sided: as slow as this or slower without a change
    minimum: float  # relative change below which it is not called a regression

    @property
    def regressed(self) -> bool:
        return self.p_value < ALPHA and self.ratio >= 1 + self.minimum

    def __str__(self) -> str:
        interval = f"95 % interval {100 * (self.low - 1):+.1f} to {100 * (self.high - 1):+.1f} %"
        minimum = f"minimum {100 * self.minimum:.1f} %"
        return f"{100 * (self.ratio - 1):+.1f} % ({interval}, p = {self.p_value:.2g}, {minimum})"


@dataclass(frozen=True)
class Comparison:
    """The verdict on one run against its baseline."""

    verdict: str  # pass | regressed | unmeasured
    reason: str
    centre: Effect | None = None
    tail: Effect | None = None
    slower_share: float | None = None  # probability that a block of the candidate is slower than one of the baseline
    block: int = 0
    stability: Stability | None = None


def compare(baseline: Sequence[FloatArray], candidate: FloatArray, *, stability: Stability | None = None) -> Comparison:
    """Compare a run's latencies (ms, in order of time) with those of one or more baseline runs."""
    stability = stability or classify(candidate)
    fewest = min([len(candidate), *map(len, baseline)], default=0)
    if not baseline or fewest < MIN_SAMPLES:
        return Comparison("unmeasured", f"{fewest} samples, the comparison needs {MIN_SAMPLES}", stability=stability)
    logs, base_logs = np.log(candidate), [np.log(run) for run in baseline]
    block = max(SHORTEST_BLOCK, *(math.ceil(2 * autocorrelation_time(run)) for run in [logs, *base_logs]))
    if fewest // block < MIN_BLOCKS and stability.comparable:
        needed = block * MIN_BLOCKS
        return Comparison(
            "unmeasured", f"{fewest} samples so correlated need to be {needed}: run longer", stability=stability
        )
    block = min(block, fewest // MIN_BLOCKS)
    ours = block_medians(logs, block)
    theirs = np.concatenate([block_medians(run, block) for run in base_logs])
    centre = _effect(ours, theirs, minimum=_minimum(base_logs))
    tail = _tail(logs, base_logs, block)
    verdict, reason = _decide(centre, tail, stability, ours, theirs)
    return Comparison(verdict, reason, centre, tail, superiority(ours, theirs), block, stability)


def _decide(
    centre: Effect, tail: Effect, stability: Stability, ours: FloatArray, theirs: FloatArray
) -> tuple[str, str]:
    """Verdict and reason."""
    if not stability.comparable:
        # Even its fastest tenth is slower than the baseline's middle: that is a regression whatever else happens.
        gap = float(np.expm1(np.quantile(ours, 0.1) - np.median(theirs)))
        if centre.regressed and gap >= centre.minimum:
            return "regressed", f"even the fastest part is {100 * gap:+.1f} % ({_stability_text(stability)})"
        return "unmeasured", f"the series cannot be compared, it is {_stability_text(stability)}"
    if centre.regressed:
        return "regressed", f"median {centre}"
    if tail.regressed:
        return "regressed", f"p95 {tail}"
    blind = centre.high - 1
    noisy = f"; too noisy to have seen less than {100 * blind:+.0f} %" if blind > 2 * centre.minimum else ""
    return "pass", f"median {centre}{noisy}"


def _stability_text(stability: Stability) -> str:
    return f"{stability.name}: {stability.evidence}"


def _minimum(runs: Sequence[FloatArray]) -> float:
    """The minimum effect: MIN_EFFECT, or twice the spread of the baseline's own runs where three or more are kept."""
    if len(runs) < 3:
        return MIN_EFFECT
    return max(MIN_EFFECT, 2 * float(np.std([np.median(run) for run in runs], ddof=1)))


def _effect(ours: FloatArray, theirs: FloatArray, *, minimum: float) -> Effect:
    """Hodges-Lehmann shift of log block medians as a ratio, its distribution-free interval, and the rank test."""
    differences = np.sort((ours[:, None] - theirs[None, :]).ravel())
    m, n = len(ours), len(theirs)
    half = m * n / 2 - 1.96 * math.sqrt(m * n * (m + n + 1) / 12)
    k = int(np.clip(math.floor(half), 0, len(differences) // 2))
    low, high = differences[k], differences[-1 - k]
    shift = float(np.median(differences))
    return Effect(math.exp(shift), math.exp(low), math.exp(high), mann_whitney(ours, theirs), minimum)


def _tail(logs: FloatArray, base_logs: Sequence[FloatArray], block: int) -> Effect:
    """The p95: ratio of the two, and a rank test on the shares of each block above the baseline's."""
    pooled = np.concatenate(base_logs)
    limit = float(np.quantile(pooled, 0.95))
    ours = _exceedances(logs, block, limit)
    theirs = np.concatenate([_exceedances(run, block, limit) for run in base_logs])
    blocks = _blocks(logs, block)
    draws = np.random.default_rng(0).integers(0, len(blocks), (400, len(blocks)))
    spread = np.quantile(blocks[draws].reshape(400, -1), 0.95, axis=1)
    low, high = np.quantile(spread, [0.025, 0.975]) - limit
    shift = float(np.quantile(logs, 0.95)) - limit
    return Effect(math.exp(shift), math.exp(low), math.exp(high), mann_whitney(ours, theirs), MIN_TAIL_EFFECT)


def _blocks(values: FloatArray, block: int) -> FloatArray:
    count = len(values) // block
    return values[: count * block].reshape(count, block)


def _exceedances(values: FloatArray, block: int, limit: float) -> FloatArray:
    return np.asarray((_blocks(values, block) > limit).mean(axis=1), dtype=np.float64)


def superiority(ours: FloatArray, theirs: FloatArray) -> float:
    """P(ours > theirs) + P(equal) / 2: 0.5 for no difference, 1 where every one of ours is slower."""
    return float(np.mean((ours[:, None] > theirs) + 0.5 * (ours[:, None] == theirs)))


def mann_whitney(ours: FloatArray, theirs: FloatArray) -> float:
    """One-sided p value of `ours` being larger (normal approximation, ties and continuity corrected)."""
    m, n = len(ours), len(theirs)
    u = superiority(ours, theirs) * m * n
    _, ties = np.unique(np.concatenate([ours, theirs]), return_counts=True)
    total = m + n
    variance = m * n / 12 * (total + 1 - (ties**3 - ties).sum() / (total * (total - 1)))
    if variance <= 0:
        return 1.0
    z = (u - m * n / 2 - 0.5) / math.sqrt(variance)
    return 0.5 * math.erfc(z / math.sqrt(2))


def autocorrelation_time(logs: FloatArray) -> float:
    """Integrated autocorrelation time in samples (1 for independent ones), outliers clipped."""
    values = np.clip(logs, *np.quantile(logs, [0.02, 0.98]))
    values = values - values.mean()
    variance = float((values**2).mean())
    if variance == 0:
        return 1.0
    total = 1.0
    for lag in range(1, len(values) // 4):
        rho = float((values[lag:] * values[:-lag]).mean()) / variance
        if rho < 2 / math.sqrt(len(values)):  # what independent samples show by chance
            break
        total += 2 * rho
    return total
