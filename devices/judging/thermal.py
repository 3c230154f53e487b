"""Heat: waiting until a device is cool before a run, and what a long run says about the device's thermal state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from reuse_distill.devices.judging.baselines import series_of
from reuse_distill.devices.judging.judge import Comparison, FloatArray
from reuse_distill.devices.measuring.measurement import Measurement
from reuse_distill.devices.measuring.sensors import Reading
from reuse_distill.devices.measuring.stream_driver import Clock
from reuse_distill.report.quantities import quantity
from reuse_distill.runtime.errors import RdError

LOOK_S = 1.0
STEADY_C_PER_MIN = 0.2  # of the last third of a soak: slower is called steady
END_SHARE = 0.1
START_APART_C = 10.0  # of two starts: what a governor may answer to
Progress = Callable[[str], None]


def cool_down(
    read: Callable[[], Reading], gate_c: float, *, limit_s: float, clock: Clock, progress: Progress
) -> dict[str, float | None]:
    """Wait until the hottest zone is at or below ``gate_c``: the temperature of the start and how long that took.

    Raises RdError where the device is still hotter after ``limit_s`` s, or tells no temperature.
    """
    began = clock.now()
    while True:
        temperature, waited_s = read().temperature_c, clock.now() - began
        if temperature is None:
            raise RdError(
                f"--cool-below {quantity(gate_c, 'temperature')}: this device tells no temperature",
                hint="leave --cool-below out, and put pauses between runs",
            )
        if temperature <= gate_c:
            return {"start_temperature_c": temperature, "cool_down_s": round(waited_s, 1)}
        if waited_s >= limit_s:
            now, gate = quantity(temperature, "temperature"), quantity(gate_c, "temperature")
            raise RdError(
                f"the device has {now} after {waited_s:.0f} s of cooling down, the gate is {gate}",
                hint="a longer --cool-down, a higher --cool-below, or a fan",
            )
        progress(f"cooling down: {quantity(temperature, 'temperature')}, {waited_s:.0f} of {limit_s:.0f} s")
        clock.sleep_until(clock.now() + LOOK_S)


@dataclass(frozen=True)
class Soak:
    """A long run from its first to its last tenth; None is unmeasured."""

    minutes: float
    latency_change: float  # relative, of the median
    clock_change: float | None  # relative, of the mean clock
    first_c: float | None
    highest_c: float | None
    rise_c_per_min: float | None  # over the last third
    throttling: str
    joules_per_s: float | None  # per second of audio

    @property
    def steady(self) -> bool | None:
        """Whether the temperature had settled; None where it is unmeasured."""
        return None if self.rise_c_per_min is None else abs(self.rise_c_per_min) <= STEADY_C_PER_MIN

    def lines(self) -> list[tuple[str, str]]:
        """Names and values, for people."""
        clock = "unmeasured" if self.clock_change is None else f"{100 * self.clock_change:+.1f} %"
        settled = {None: "unmeasured", True: "yes", False: "no: soak longer to see what it settles at"}[self.steady]
        slope = "" if self.rise_c_per_min is None else f" ({self.rise_c_per_min:+.2f} °C a minute in the last third)"
        span = f"{quantity(self.first_c, 'temperature')} at first, {quantity(self.highest_c, 'temperature')} at most"
        return [
            ("length", f"{self.minutes:.1f} min"),
            ("median latency, last tenth against first", f"{100 * self.latency_change:+.1f} %"),
            ("mean clock, last tenth against first", clock),
            ("temperature", span if self.first_c is not None else "unmeasured"),
            ("temperature settled", settled + slope),
            ("throttling", self.throttling),
            ("energy per second of audio", quantity(self.joules_per_s, "energy")),
        ]


def judged_by_start(
    comparison: Comparison, baseline_c: Sequence[float | None], now_c: Sequence[float | None]
) -> Comparison:
    """``comparison``, or ``unmeasured`` where the runs began so much hotter or cooler that it may be the heat.

    A hotter start excuses a regression, a cooler one may hide it; ``START_APART_C`` beyond the range of the baseline's
    starts counts. Temperatures (°C) that a device does not tell are None and decide nothing.
    """
    before = [value for value in baseline_c if value is not None]
    now = [value for value in now_c if value is not None]
    if not before or not now:
        return comparison
    hotter, cooler = max(now) - max(before), min(before) - min(now)
    doubtful = {"regressed": hotter, "pass": cooler}.get(comparison.verdict, 0.0)
    if doubtful <= START_APART_C:
        return comparison
    began = quantity(max(now) if comparison.verdict == "regressed" else min(now), "temperature")
    span = " to ".join(dict.fromkeys(quantity(value, "temperature") for value in (min(before), max(before))))
    reason = (
        f"the run began at {began}, the baseline's at {span}, so that the difference may be the heat's "
        f"(--cool-below evens starts out, --accept temperature accepts this one); {comparison.reason}"
    )
    return replace(comparison, verdict="unmeasured", reason=reason)


def soak_of(measurement: Measurement) -> Soak | None:
    """What a soak showed; None for another run."""
    if not measurement.request.soak_s:
        return None
    latency = series_of(measurement)
    clocks, heat = (_series(measurement.readings, name) for name in ("clock_hz", "temperature_c"))
    return Soak(
        minutes=max(max(one.at_s) for one in measurement.samples) / 60,
        latency_change=_change(latency, np.median),
        clock_change=_change(clocks[1], np.mean) if len(clocks[1]) > 1 and clocks[1].min() > 0 else None,
        first_c=float(heat[1][0]) if len(heat[1]) else None,
        highest_c=float(heat[1].max()) if len(heat[1]) else None,
        rise_c_per_min=_slope(*heat),
        throttling=measurement.throttling,
        joules_per_s=measurement.metrics.get("energy_per_second"),
    )


def _series(readings: Sequence[Reading], name: str) -> tuple[FloatArray, FloatArray]:
    """Times in minutes and values of a sensor, where it told one."""
    pairs = [(one.time_s / 60, value) for one in readings if (value := getattr(one, name)) is not None]
    times, values = np.asarray(pairs, np.float64).T if pairs else (np.zeros(0), np.zeros(0))
    return times, values


def _change(values: FloatArray, middle: Callable[[FloatArray], np.floating]) -> float:
    count = max(1, int(END_SHARE * len(values)))
    return float(middle(values[-count:]) / middle(values[:count])) - 1


def _slope(minutes: FloatArray, values: FloatArray) -> float | None:
    """Of the last third, per minute; None for fewer than five readings or less than half a minute of them."""
    last = len(minutes) - len(minutes) // 3
    x, y = minutes[last:], values[last:]
    if len(x) < 5 or x[-1] - x[0] < 0.5:
        return None
    return float(np.polyfit(x, y, 1)[0])
