"""What a latency series looks like over time: steady, bimodal, drifting, throttled, stepped or falling behind.

Named before two series are compared: the median of a run that throttled half-way says nothing about the code. All
measures are on log latency, so that they are relative changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from reuse_distill.devices.measuring.sensors import Reading

FloatArray = npt.NDArray[np.float64]
STEADY, BIMODAL, DRIFTING, THROTTLED, STEPPED = "steady", "bimodal", "drifting", "throttled", "stepped"
FALLING_BEHIND = "falling behind"
TOO_SHORT = "too short to name"
MIN_SAMPLES = 60
DRIFT = 0.05  # relative change over the run
STEP = 0.08  # relative rise of the level
MODES_APART = 0.05  # relative distance of two modes
MODE_SEPARATION = 4.0  # distance of the modes in standard deviations of a mode; one normal mode cut in two has 2.6
MODE_SHARE = 0.13  # of the chunks in the smaller mode; a slow tail of a tenth is a tail
CLOCK_DROP = 0.10


@dataclass(frozen=True)
class Stability:
    """Name, and the evidence in a sentence."""

    name: str
    evidence: str = ""

    @property
    def comparable(self) -> bool:
        """Whether one level describes the whole series."""
        return self.name in (STEADY, BIMODAL)


def classify(latency_ms: FloatArray, *, readings: Sequence[Reading] = (), throttling: str = "unmeasured") -> Stability:
    """Name the series (samples in order of time) with what the device said about clocks and throttling."""
    if throttling == "yes":
        return Stability(THROTTLED, "the device reported throttling during the run")
    if len(latency_ms) < MIN_SAMPLES:
        return Stability(TOO_SHORT, f"{len(latency_ms)} samples, {MIN_SAMPLES} needed")
    logs = np.log(np.maximum(latency_ms, 1e-6))
    return _level_change(logs, readings) or two_modes(logs) or Stability(STEADY)


def falling_behind(latency_ms: FloatArray, service_ms: FloatArray, *, period_ms: float) -> Stability | None:
    """Whether chunks wait longer and longer before they are pushed: the device does not keep up with its streams."""
    waiting = latency_ms - service_ms
    quarter = len(waiting) // 4
    if quarter < 5:
        return None
    first, last = float(np.median(waiting[:quarter])), float(np.median(waiting[-quarter:]))
    if last - first < period_ms:
        return None
    return Stability(FALLING_BEHIND, f"chunks wait {first:.0f} ms at first and {last:.0f} ms at the end")


def _level_change(logs: FloatArray, readings: Sequence[Reading]) -> Stability | None:
    """A drift or a step of the level, whichever explains the block medians better."""
    blocks = block_medians(logs, max(1, len(logs) // int(np.clip(len(logs) // 10, 8, 60))))
    whole = _scatter(blocks)
    at, step, step_rest = _best_step(blocks)
    slope, line_rest = _line(blocks)
    change = float(np.expm1(slope * (len(blocks) - 1)))
    stepped = step_rest <= 0.75 * line_rest  # two levels have one parameter more than a line: they have to earn it
    if not stepped and line_rest <= 0.6 * whole and abs(change) >= DRIFT:
        return Stability(DRIFTING, f"latency changes steadily by {100 * change:+.0f} % over the run")
    rise = float(np.expm1(step))
    if stepped and step_rest <= 0.4 * whole and abs(rise) >= STEP:
        return _name_step(rise, at / len(blocks), readings)
    return None


def _name_step(rise: float, at: float, readings: Sequence[Reading]) -> Stability:
    """A rise is throttling unless the device's clocks say otherwise; anything else is a step."""
    evidence = f"latency changes by {100 * rise:+.0f} % after {100 * at:.0f} % of the run and stays there"
    drop = _clock_drop(readings, at)
    if rise > 0 and (drop is None or drop >= CLOCK_DROP):
        known = "clocks unmeasured" if drop is None else f"clocks fell by {100 * drop:.0f} %"
        return Stability(THROTTLED, f"{evidence} ({known})")
    return Stability(STEPPED, evidence if drop is None else f"{evidence} (clocks changed by {-100 * drop:+.0f} %)")


def _clock_drop(readings: Sequence[Reading], at: float) -> float | None:
    """Relative fall of the mean clock from before the share ``at`` of the run to after it."""
    clocks = [(r.time_s, r.clock_hz) for r in readings if r.clock_hz]
    if len(clocks) < 4:
        return None
    times, hertz = np.asarray(clocks, dtype=np.float64).T
    after = times >= times[0] + at * (times[-1] - times[0])
    if after.all() or not after.any():
        return None
    return float(1 - hertz[after].mean() / hertz[~after].mean())


def two_modes(logs: FloatArray) -> Stability | None:
    """Two separate humps of log latencies: Otsu's threshold, then the distance of the halves in their own spread."""
    values = np.sort(logs[(logs >= np.quantile(logs, 0.005)) & (logs <= np.quantile(logs, 0.985))])
    n = np.arange(1, len(values))
    low = np.cumsum(values)[:-1] / n
    high = (values.sum() - np.cumsum(values)[:-1]) / (len(values) - n)
    cut = int(np.argmax(n * (len(values) - n) * (high - low) ** 2)) + 1
    lower, upper = values[:cut], values[cut:]
    spread = float(np.sqrt((lower.var() + upper.var()) / 2))
    apart = float(upper.mean() - lower.mean())
    share = min(len(lower), len(upper)) / len(values)
    if share < MODE_SHARE or np.expm1(apart) < MODES_APART or apart < MODE_SEPARATION * spread:
        return None
    modes = f"{np.exp(lower.mean()):.3g} ms and {np.exp(upper.mean()):.3g} ms"
    return Stability(
        BIMODAL,
        f"two modes at {modes}, {100 * len(upper) / len(values):.0f} % of the chunks in the slower one",
    )


def block_medians(values: FloatArray, block: int) -> FloatArray:
    """Medians of consecutive blocks; samples beyond the last whole block are left out."""
    count = len(values) // block
    return np.median(values[: count * block].reshape(count, block), axis=1)


def _scatter(values: FloatArray) -> float:
    return float(((values - values.mean()) ** 2).sum())


def _best_step(values: FloatArray) -> tuple[int, float, float]:
    """Where one step fits best, its height, and the scatter that is left; a tenth of the blocks on either side."""
    edge = max(2, len(values) // 10)
    cuts = range(edge, len(values) - edge + 1)
    rests = [_scatter(values[:cut]) + _scatter(values[cut:]) for cut in cuts]
    best = cuts[int(np.argmin(rests))]
    return best, float(values[best:].mean() - values[:best].mean()), min(rests)


def _line(values: FloatArray) -> tuple[float, float]:
    """Slope per block of the least-squares line and the scatter that is left."""
    x = np.arange(len(values)) - (len(values) - 1) / 2
    slope = float((x * values).sum() / (x**2).sum())
    return slope, float(((values - values.mean() - slope * x) ** 2).sum())
