"""Is this bundle slower than its baseline? Runs are compared with runs, so that the judge knows how much runs differ.

The unit is the run: its median and its tail (mean of the slowest tenth without the slowest half per cent), in logs.
Three or more baseline runs, each in a process of its own, tell how much runs differ without a change; the difference
of the candidate has to exceed what a Student t prediction at ALPHA allows, and a least effect, relative and absolute.
A regression that such a baseline could not have shown makes the verdict ``unmeasured``, never a silent pass. Every
step is linear in the number of samples but for one sort of a run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from reuse_distill.devices.judging.confidence import chi_square_quantile, t_quantile
from reuse_distill.devices.judging.series_stability import BIMODAL, Stability, block_medians, classify, two_modes

FloatArray = npt.NDArray[np.float64]
MIN_RUNS = 3
MIN_SAMPLES = 100
ALPHA_CENTRE, ALPHA_TAIL = 0.005, 0.003  # false alarms of the two tests; together below 1 % a verdict
POWER_Z = 1.645  # 95 % of regressions of the visible size are found
MIN_TAIL_EFFECT = 0.10
TAIL_FROM, TAIL_TO = 0.90, 0.995
BLOCKS = 20  # of a run, for the sampling error of its median
LEVELS_APART, LEVEL_SEPARATION = 0.08, 6.0  # of baseline runs that fall into two groups


@dataclass(frozen=True)
class Sensitivity:
    """What is worth a red build. A regression exceeds both least effects; ``detect`` must be visible for a pass."""

    relative: float = 0.025
    absolute_ms: float = 0.02
    detect: float = 0.05
    accepted: tuple[str, ...] = ()  # defects of a baseline that are accepted by name: bimodal, busy


@dataclass(frozen=True)
class Effect:
    """Candidate against baseline in one respect; all as ratios or relative changes."""

    ratio: float  # candidate / baseline
    low: float  # 95 % interval of the ratio
    high: float
    threshold: float  # relative change from which it is called a regression
    visible: float  # smallest relative regression that is found in 95 of 100 cases
    spread: float  # relative standard deviation from run to run
    absolute_ms: float  # candidate - baseline
    least_ms: float = 0.0

    @property
    def regressed(self) -> bool:
        return self.ratio - 1 > self.threshold and self.absolute_ms > self.least_ms

    def __str__(self) -> str:
        interval = f"95 % interval {100 * (self.low - 1):+.1f} to {100 * (self.high - 1):+.1f} %"
        seen = f"smallest visible regression {100 * self.visible:.1f} %"
        return f"{100 * (self.ratio - 1):+.1f} % ({interval}; {seen}; runs differ by {100 * self.spread:.1f} %)"


@dataclass(frozen=True)
class Comparison:
    """The verdict on one or more runs against their baseline."""

    verdict: str  # pass | regressed | unmeasured
    reason: str
    centre: Effect | None = None
    tail: Effect | None = None
    stability: Stability | None = None


def compare(
    baseline: Sequence[FloatArray],
    candidate: FloatArray | Sequence[FloatArray],
    *,
    stability: Stability | None = None,
    sensitivity: Sensitivity | None = None,
    reference: float | None = None,
) -> Comparison:
    """Compare latencies (ms, in order of time) of one or more runs with those of the baseline's runs.

    ``reference``: how much slower (ratio - 1) the fixed reference workload was beside the candidate than beside the
    baseline; None is unmeasured. Slowness that it shares is the machine's, and makes the verdict ``unmeasured``.
    """
    limits = sensitivity or Sensitivity()
    runs = [candidate] if isinstance(candidate, np.ndarray) else list(candidate)
    fewest = min([len(run) for run in (*runs, *baseline)], default=0)
    if not runs or (baseline and fewest < MIN_SAMPLES):
        return Comparison("unmeasured", f"{fewest} samples in a run, {MIN_SAMPLES} are needed", stability=stability)
    stability = stability or _worst_stability(runs)
    if len(baseline) < MIN_RUNS:
        reason = f"a baseline of {len(baseline)} run{'s' * (len(baseline) != 1)}, {MIN_RUNS} in separate processes are"
        return Comparison("unmeasured", f"{reason} needed to know how much runs differ", stability=stability)
    length = min(map(len, runs))
    cut = [run[:length] for run in baseline]  # a longer run has a steadier median
    defect = baseline_defect(cut, accepted=limits.accepted)
    if defect:
        return Comparison("unmeasured", f"baseline refused: {defect}", stability=stability)
    centre = effect(cut, runs, log_median, alpha=ALPHA_CENTRE, least=limits.relative, least_ms=limits.absolute_ms)
    tail = effect(cut, runs, _tail, alpha=ALPHA_TAIL, least=MIN_TAIL_EFFECT, least_ms=limits.absolute_ms)
    verdict, reason = _decide(centre, tail, stability, cut, runs, limits)
    if verdict == "regressed" and reference is not None and _shared(reference, centre, tail):
        verdict = "unmeasured"
        reason = f"the machine was slower too: the reference workload took {100 * reference:+.0f} %; {reason}"
    return Comparison(verdict, reason, centre, tail, stability)


def _worst_stability(runs: Sequence[FloatArray]) -> Stability:
    return next((stability for run in runs if not (stability := classify(run)).comparable), classify(runs[0]))


def _shared(reference: float, centre: Effect, tail: Effect) -> bool:
    excess = (centre if centre.regressed else tail).ratio - 1
    return reference >= max(0.02, 0.5 * excess)


def _decide(
    centre: Effect,
    tail: Effect,
    stability: Stability,
    baseline: Sequence[FloatArray],
    runs: Sequence[FloatArray],
    limits: Sensitivity,
) -> tuple[str, str]:
    """Verdict and reason."""
    bimodal = stability.name == BIMODAL and BIMODAL not in limits.accepted
    if not stability.comparable or bimodal:
        # Even its fastest tenth is slower than the baseline's middle: that is a regression whatever else happens.
        level = float(np.mean([log_median(run) for run in baseline]))
        gap = math.expm1(float(np.mean([math.log(np.quantile(run, 0.1)) for run in runs])) - level)
        text = f"{stability.name}: {stability.evidence}"
        if centre.regressed and gap > centre.threshold:
            return "regressed", f"even the fastest part is {100 * gap:+.1f} % ({text})"
        return "unmeasured", f"the series cannot be compared, it is {text}"
    if centre.regressed:
        return "regressed", f"median {centre}"
    if tail.regressed:
        return "regressed", f"tail (slowest tenth) {tail}"
    if centre.visible > limits.detect:
        more = "more and longer runs on a quiet machine (--runs, --save-baseline) show less"
        return "unmeasured", f"nothing below {100 * centre.visible:.1f} % could have been seen; median {centre}; {more}"
    unseen = f"; of the tail nothing below {100 * tail.visible:.0f} % can be seen" if tail.visible > 0.5 else ""
    return "pass", f"median {centre}{unseen}"


def baseline_defect(runs: Sequence[FloatArray], *, accepted: Sequence[str] = ()) -> str:
    """Why runs are no baseline: one of them is bimodal, or the runs fall into two groups; empty where they are one."""
    if BIMODAL in accepted:
        return ""
    hint = "accept it by name with --accept bimodal, or take it again on a quiet machine"
    for number, run in enumerate(runs, start=1):
        named = two_modes(np.log(run))
        if named is not None:
            return f"run {number} is bimodal ({named.evidence}); {hint}"
    levels = np.sort([log_median(run) for run in runs])
    gaps = np.diff(levels)
    at = int(np.argmax(gaps))
    within = max(float(np.ptp(levels[: at + 1])), float(np.ptp(levels[at + 1 :])))
    if min(at + 1, len(levels) - at - 1) < 2 or math.expm1(gaps[at]) < LEVELS_APART:
        return ""
    if gaps[at] < LEVEL_SEPARATION * max(within, 0.25 * gaps[at] / LEVEL_SEPARATION) and gaps[at] < 3 * within:
        return ""
    apart = 100 * math.expm1(gaps[at])
    return f"its runs fall into two groups, bimodal with {apart:.0f} % between them; {hint}"


def log_median(run: FloatArray) -> float:
    return math.log(float(np.median(run)))


def _tail(run: FloatArray) -> float:
    """Log of the mean of the slowest tenth, without the slowest half per cent."""
    first, last = int(TAIL_FROM * len(run)), max(int(TAIL_FROM * len(run)) + 1, int(TAIL_TO * len(run)))
    return math.log(float(np.sort(run)[first:last].mean()))


def effect(
    baseline: Sequence[FloatArray],
    runs: Sequence[FloatArray],
    statistic: object,
    *,
    alpha: float,
    least: float,
    least_ms: float,
) -> Effect:
    """The candidate's mean statistic against a t prediction from the baseline's runs.

    With k baseline and n candidate runs the difference has variance s^2 (1/k + 1/n) without a change, s^2 estimated
    with k - 1 degrees of freedom; s is at least the sampling error of a run's median.
    """
    values = np.asarray([statistic(run) for run in baseline])  # type: ignore[operator]
    ours = float(np.mean([statistic(run) for run in runs]))  # type: ignore[operator]
    k, level = len(values), float(values.mean())
    spread = max(float(values.std(ddof=1)), float(np.mean([sampling_error(run) for run in baseline])), 1e-6)
    return t_effect(
        ours - level,
        spread,
        math.sqrt(1 / k + 1 / len(runs)),
        freedom=k - 1,
        alpha=alpha,
        least=least,
        absolute_ms=math.exp(ours) - math.exp(level),
        least_ms=least_ms,
    )


def t_effect(
    shift: float,
    spread: float,
    scale: float,
    *,
    freedom: int,
    alpha: float,
    least: float,
    absolute_ms: float,
    least_ms: float,
) -> Effect:
    """A change ``shift`` of logarithms; its standard error is ``spread * scale``, the spread known with ``freedom``."""
    allowed = t_quantile(1 - alpha, freedom) * spread * scale
    upper = spread * math.sqrt(freedom / chi_square_quantile(0.05, freedom))  # what the spread may really be
    threshold = max(allowed, math.log1p(least))
    half = t_quantile(0.975, freedom) * spread * scale
    return Effect(
        ratio=math.exp(shift),
        low=math.exp(shift - half),
        high=math.exp(min(shift + half, 50.0)),
        threshold=math.expm1(min(threshold, 50.0)),
        visible=math.expm1(min(threshold + POWER_Z * upper * scale, 50.0)),
        spread=spread,
        absolute_ms=absolute_ms,
        least_ms=least_ms,
    )


def sampling_error(run: FloatArray) -> float:
    """Standard error of a run's log median, from the medians of its blocks: neighbouring chunks may be correlated."""
    blocks = block_medians(np.log(run), max(1, len(run) // BLOCKS))
    return float(blocks.std(ddof=1) / math.sqrt(len(blocks))) if len(blocks) > 1 else 0.0


def smallest_visible(runs: Sequence[FloatArray], *, candidate_runs: int = 1) -> Effect:
    """What a baseline of these runs could show of a candidate of ``candidate_runs`` runs: an A/A comparison."""
    limits = Sensitivity()
    made = [np.full(MIN_SAMPLES, math.exp(float(np.mean([log_median(run) for run in runs]))))] * candidate_runs
    return effect(runs, made, log_median, alpha=ALPHA_CENTRE, least=limits.relative, least_ms=limits.absolute_ms)
