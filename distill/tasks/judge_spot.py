"""What a keyword spotter does on recordings it has not seen: misses, false alarms in an hour, delay after the word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from reuse_distill.distill.evaluation.bootstrap import ratio_interval
from reuse_distill.runtime.tasks import TaskOutput, decode, decoder_of


@dataclass(frozen=True)
class Heard:
    """One recording through the network: probabilities (F, 1 + K S), what was said (-1: no keyword), the word's end."""

    rows: NDArray[np.float32]
    label: int = -1
    word_end: int = 0  # frame after the word


def judge_spot(output: TaskOutput, spoken: Sequence[Heard], others: Sequence[Heard]) -> dict[str, Any]:
    """Misses of ``spoken`` with their interval, false alarms in ``others`` with theirs, and the delay of detections."""
    decoder, delays = decoder_of(output), []
    missed: list[float] = []
    wrong = 0
    for recording in spoken:
        events = decode(decoder, recording.rows)
        right = [event for event in events if event.label == output.labels[recording.label]]
        wrong += len(events) - len(right)
        missed.append(0.0 if right else 1.0)
        if right:
            delays.append(right[0].end_s - recording.word_end / output.rate_hz)
    seconds = sum(len(recording.rows) for recording in others) / output.rate_hz
    alarms = [event.label for recording in others for event in decode(decoder, recording.rows)]
    by_keyword = {
        label: {
            "recordings": sum(r.label == number for r in spoken),
            "missed": int(sum(m for m, r in zip(missed, spoken, strict=True) if r.label == number)),
            "false_alarms": alarms.count(label),
            "threshold": output.thresholds[number],
        }
        for number, label in enumerate(output.labels)
    }
    return {
        "false_rejection_rate": asdict(ratio_interval(missed, [1.0] * len(missed))) if missed else "unmeasured",
        "recordings": len(missed),
        "other_keyword_detected": wrong,
        "false_alarms": len(alarms),
        "other_speech_hours": round(seconds / 3600, 3),
        "false_alarms_per_hour": poisson_rate(len(alarms), seconds / 3600),
        "delay_after_word_s": _spread(delays),
        "keywords": by_keyword,
    }


def poisson_rate(count: int, hours: float) -> dict[str, float] | str:
    """Events per hour with the exact 95 % interval of a Poisson count (Garwood 1936)."""
    if hours <= 0:
        return "unmeasured"
    from scipy.stats import chi2

    low = float(chi2.ppf(0.025, 2 * count)) / 2 if count else 0.0
    high = float(chi2.ppf(0.975, 2 * count + 2)) / 2
    return {"value": count / hours, "low": low / hours, "high": high / hours}


def _spread(delays: Sequence[float]) -> dict[str, float] | str:
    if not delays:
        return "unmeasured"
    p10, median, p90 = np.percentile(delays, [10, 50, 90])
    return {"p10": round(float(p10), 3), "median": round(float(median), 3), "p90": round(float(p90), 3)}
