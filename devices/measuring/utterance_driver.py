"""Whole utterances, one after the other: what an offline bundle is made for.

The lengths take turns, so that what the machine does meets all of them alike. Every utterance is another part of the
test signal; the first of each length is the warm-up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from reuse_distill.devices.measuring import sensors
from reuse_distill.devices.measuring.stream_driver import Clock, Series
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import HOP_SAMPLES, SAMPLE_RATE_HZ

SENSOR_PERIOD_S = 1.0
Progress = Callable[[str], None]
Extract = Callable[[npt.NDArray[np.float32]], Any]  # (T,) samples -> features (..., F, W)


@dataclass
class UtteranceRun:
    """Raw times of every length, in seconds of the run's clock."""

    series: dict[float, Series]
    readings: list[sensors.Reading] = field(default_factory=list)
    began: float = 0.0
    audio_s: float = 0.0
    cpu_s: float = 0.0

    def times_ms(self) -> dict[float, list[float]]:
        """Per length in seconds: how long each utterance took, ms."""
        return {length_s: one.service_ms().tolist() for length_s, one in self.series.items()}


def drive_utterances(
    extract: Extract,
    audio: npt.NDArray[np.float32],
    lengths_s: Sequence[float],
    *,
    rounds: int,
    sensor: sensors.Sensors,
    clock: Clock,
    progress: Progress,
) -> UtteranceRun:
    """``rounds`` utterances of each length, in turns. Raises RdError where one gives no frame."""
    run = UtteranceRun({length_s: Series() for length_s in lengths_s})
    for length_s in lengths_s:
        _timed(extract, _part(audio, length_s, 0), Series(), clock)
    run.began, cpu_began = clock.now(), time.process_time()
    run.readings.append(sensor.read(0.0))
    for number in range(rounds):
        for length_s in lengths_s:
            _timed(extract, _part(audio, length_s, number), run.series[length_s], clock)
            run.audio_s += length_s
        elapsed_s = clock.now() - run.began
        if elapsed_s - run.readings[-1].time_s >= SENSOR_PERIOD_S or number == rounds - 1:
            run.readings.append(sensor.read(elapsed_s))
            progress(f"{number + 1} of {rounds} utterances of each length")
    run.cpu_s = time.process_time() - cpu_began
    return run


def _timed(extract: Extract, samples: npt.NDArray[np.float32], series: Series, clock: Clock) -> None:
    start = clock.now()
    features = extract(samples)
    series.due.append(start)
    series.start.append(start)
    series.end.append(clock.now())
    if not features.shape[-2]:
        raise RdError(f"an utterance of {len(samples) / SAMPLE_RATE_HZ:g} s gave no frame")


def _part(audio: npt.NDArray[np.float32], length_s: float, number: int) -> npt.NDArray[np.float32]:
    """Samples of ``length_s`` seconds from another place for every ``number``."""
    count = int(length_s * SAMPLE_RATE_HZ)
    last = len(audio) - count
    start = number * 7919 * HOP_SAMPLES % max(1, last)  # a prime: places do not repeat soon
    return np.ascontiguousarray(audio[start : start + count])
