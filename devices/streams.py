"""N streams at once, a thread each, while this thread reads the sensors and reports progress once a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from reuse_distill.devices import sensors
from reuse_distill.devices.pacing import Clock, Pace, Push, Series, cut, drive
from reuse_distill.devices.request import Request
from reuse_distill.devices.results import BundleFacts
from reuse_distill.runtime.geometry import HOP_MS, HOP_SAMPLES

SENSOR_PERIOD_S = 1.0
Progress = Callable[[str], None]


@dataclass
class Run:
    """What the streams left behind."""

    series: list[Series]
    readings: list[sensors.Reading]
    began: float
    audio_s: float
    cpu_s: float


def drive_all(
    pushes: Sequence[Push],
    audio: npt.NDArray[np.float32],
    facts: BundleFacts,
    request: Request,
    *,
    sensor: sensors.Sensors,
    clock: Clock,
    progress: Progress,
) -> Run:
    """All streams at once, a thread each; this thread reads the sensors and reports progress once a second."""
    period_s, stop = HOP_MS * facts.chunk_frames / 1000, threading.Event()
    goal = request.chunks(period_s)
    series, errors = [Series() for _ in pushes], []

    def one(index: int, push: Push) -> None:
        phase_s = period_s * index / len(pushes)
        pace = Pace(request.mode, period_s, request.warmup_chunks, goal, request.least_s, phase_s)
        start = int(len(audio) * index / len(pushes)) // HOP_SAMPLES * HOP_SAMPLES
        try:
            drive(
                push,
                cut(audio, HOP_SAMPLES * facts.chunk_frames, start=start),
                pace,
                clock=clock,
                stop=stop,
                series=series[index],
            )
        except BaseException as error:
            errors.append(error)
            stop.set()

    threads = [threading.Thread(target=one, args=pair, daemon=True) for pair in enumerate(pushes)]
    began, cpu_began = clock.now(), time.process_time()
    for thread in threads:
        thread.start()
    readings = [sensor.read(0.0)]
    try:
        while any(thread.is_alive() for thread in threads):
            _join(threads, SENSOR_PERIOD_S)
            readings.append(sensor.read(clock.now() - began))
            progress(_progress_line(series, goal, request, clock.now() - began))
    finally:
        stop.set()
    cpu_s = time.process_time() - cpu_began
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    pushed = sum(len(one.end) + one.empty + request.warmup_chunks + 1 for one in series)
    return Run(series, readings, began, audio_s=pushed * period_s, cpu_s=cpu_s)


def _join(threads: Sequence[threading.Thread], timeout_s: float) -> None:
    """Wait for the threads, but no longer than ``timeout_s`` in all."""
    end = time.perf_counter() + timeout_s
    for thread in threads:
        thread.join(max(0.0, end - time.perf_counter()))


def _progress_line(series: Sequence[Series], goal: int, request: Request, elapsed_s: float) -> str:
    done = sum(len(one.end) for one in series) // len(series)
    if request.soak_s:
        return f"{request.label}: soak {elapsed_s:.0f} of {request.soak_s:.0f} s, {done} chunks"
    return f"{request.label}: {min(done, goal)} of {goal} chunks"
