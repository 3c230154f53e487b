"""Numbers from raw samples. Percentiles are estimates at 99 % confidence (``devices.judging.confidence``).

One that the samples cannot carry is None, which reports show as `unmeasured`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from reuse_distill.devices.judging.confidence import PERCENTILES, estimate
from reuse_distill.devices.measuring.sensors import Reading
from reuse_distill.devices.measuring.stream_driver import Series

FloatArray = npt.NDArray[np.float64]


def latency_metrics(series: Sequence[Series], *, period_ms: float, mode: str) -> dict[str, float | None]:
    """Latency quantiles over all streams, deadline misses and RTF.

    A deadline is missed when a chunk is not done before the next one has arrived. RTF is the share of real time that
    a stream spends in its pushes.
    """
    latency = np.concatenate([one.latency_ms() for one in series])
    service = np.concatenate([one.service_ms() for one in series])
    if not len(latency):
        return dict.fromkeys([*PERCENTILES, "max", "deadline_misses", "rtf", "wakeup_p99"])
    late = np.concatenate([one.late_ms() for one in series])
    return {
        **percentiles(latency),
        "max": float(latency.max()),
        "deadline_misses": float(np.mean(latency > period_ms)),
        "rtf": float(service.mean() / period_ms),
        "wakeup_p99": estimate(late, 0.99).value if mode == "paced" else None,
    }


def percentiles(latency_ms: FloatArray) -> dict[str, float | None]:
    """p50 to p99.9, each with the samples that it takes or None."""
    return {name: estimate(latency_ms, q).value for name, q in PERCENTILES.items()}


def utterance_metrics(timed: Mapping[float, Sequence[float]], *, judged_s: float) -> dict[str, float | None]:
    """Of whole utterances: seconds of audio -> times in ms.

    Percentiles are of the utterances of ``judged_s`` s; p90 and RTF of the other lengths stand beside them.
    """
    judged = np.asarray(timed[judged_s], np.float64)
    metrics = {**percentiles(judged), "max": float(judged.max()), "rtf": float(judged.mean()) / (1000 * judged_s)}
    for length_s, times in timed.items():
        if length_s != judged_s:
            metrics[f"p90_{length_s:g}s"] = estimate(times, PERCENTILES["p90"]).value
            metrics[f"rtf_{length_s:g}s"] = float(np.mean(times)) / (1000 * length_s)
    return {**metrics, "deadline_misses": None, "wakeup_p99": None}


def throttling(readings: Sequence[Reading]) -> str:
    """``yes`` if a throttle flag was up or a throttle counter rose during the run, ``no`` if the device said
    otherwise, ``unmeasured`` if it says nothing."""
    flags = [r.throttled_now for r in readings if r.throttled_now is not None]
    counts = [r.throttle_events for r in readings if r.throttle_events is not None]
    if not flags and not counts:
        return "unmeasured"
    return "yes" if any(flags) or (counts and counts[-1] > counts[0]) else "no"


def energy_metrics(readings: Sequence[Reading], *, audio_s: float) -> dict[str, float | None]:
    """Mean power and energy per second of audio (all streams together), from a counter or by integrating power."""
    joules = _counted(readings)
    if joules is None:
        joules = _integrated(readings)
    span_s = readings[-1].time_s - readings[0].time_s if len(readings) > 1 else 0.0
    known = joules is not None and span_s > 0 and audio_s > 0
    return {
        "power": joules / span_s if known and joules is not None else None,
        "energy_per_second": joules / audio_s if known and joules is not None else None,
    }


def _counted(readings: Sequence[Reading]) -> float | None:
    values = [r.energy_j for r in readings if r.energy_j is not None]
    if len(values) < 2:
        return None
    steps = np.diff(values)
    return float(steps.sum()) if (steps >= 0).all() else None  # a counter that wrapped tells nothing


def _integrated(readings: Sequence[Reading]) -> float | None:
    points = [(r.time_s, r.power_w) for r in readings if r.power_w is not None]
    if len(points) < 2:
        return None
    times, watts = np.asarray(points, dtype=np.float64).T
    return float(np.sum(np.diff(times) * (watts[1:] + watts[:-1]) / 2))


def highest(readings: Sequence[Reading]) -> float | None:
    """Highest temperature of the run."""
    return max((r.temperature_c for r in readings if r.temperature_c is not None), default=None)
