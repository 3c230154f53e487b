"""Streams driven chunk by chunk, paced as a microphone would or back to back, every push timed; several in threads.

The first chunk has 80 samples (5 ms) more than the others, so chunk k has arrived (its last sample exists) at
``origin + 5 ms + (k + 1) * period``. Paced, a chunk is pushed when it has arrived and its latency counts from there:
time spent waiting behind a late predecessor is latency too. Back to back the next push follows at once and the latency
is the push itself. Streams stepped as one batch share a push that feeds all of them and ends when each has its frames.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from reuse_distill.devices.measuring import sensors
from reuse_distill.devices.measuring.measurement import BundleFacts, Request
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import HOP_MS, HOP_SAMPLES, OVERLAP_SAMPLES, SAMPLE_RATE_HZ

FloatArray = npt.NDArray[np.float64]
OVERLAP_S = OVERLAP_SAMPLES / SAMPLE_RATE_HZ
MAX_SILENT_S = 30.0  # no bundle needs more audio than this before its first frame
HOPELESS_BACKLOG_S = 10.0  # a device this far behind will not catch up; the run ends there and says so


class Clock(Protocol):
    """Time, so that tests can make it."""

    def now(self) -> float: ...

    def sleep_until(self, moment: float) -> None: ...


class WallClock:
    """The monotonic clock of the machine and a plain sleep: no spinning, which would keep the clocks up."""

    def now(self) -> float:
        return time.perf_counter()

    def sleep_until(self, moment: float) -> None:
        left = moment - time.perf_counter()
        if left > 0:
            time.sleep(left)


@dataclass
class Series:
    """Raw times of one stream's measured chunks, in seconds of the run's clock; rows are chunks that gave frames."""

    due: list[float] = field(default_factory=list)  # when the chunk's last sample existed (back to back: = start)
    start: list[float] = field(default_factory=list)
    end: list[float] = field(default_factory=list)
    empty: int = 0  # measured pushes that gave no frame
    overloaded: bool = False

    def latency_ms(self) -> FloatArray:
        """Per chunk: from the arrival of its last sample to its features in hand."""
        return 1000 * (np.asarray(self.end) - np.asarray(self.due))

    def service_ms(self) -> FloatArray:
        """Per chunk: the push alone."""
        return 1000 * (np.asarray(self.end) - np.asarray(self.start))

    def late_ms(self) -> FloatArray:
        """Per chunk: from its arrival to the start of the push (timer and queue)."""
        return 1000 * (np.asarray(self.start) - np.asarray(self.due))


@dataclass(frozen=True)
class Pace:
    """How to drive one stream."""

    mode: str
    period_s: float
    warmup_chunks: int
    chunks: int  # measured chunks; with ``until_s`` the larger of the two counts
    until_s: float = 0.0  # soak: continue until so many seconds have passed since the first measured chunk
    phase_s: float = 0.0  # shift of this stream's arrivals: microphones are not synchronised


Push = Callable[[npt.NDArray[np.float32]], int]  # samples in, number of frames out


def cut(audio: npt.NDArray[np.float32], chunk_samples: int, *, start: int = 0) -> Iterator[npt.NDArray[np.float32]]:
    """Endless chunks of ``audio`` in a circle. The first has the 80 samples more that a first frame needs, so that
    every push of ``chunk_samples`` completes exactly one chunk of frames."""
    looped = np.concatenate([audio, audio[: chunk_samples + OVERLAP_SAMPLES]])
    yield looped[start : start + chunk_samples + OVERLAP_SAMPLES]
    at = (start + chunk_samples + OVERLAP_SAMPLES) % len(audio)
    while True:
        yield looped[at : at + chunk_samples]
        at = (at + chunk_samples) % len(audio)


def drive(
    push: Push,
    chunks: Iterator[npt.NDArray[np.float32]],
    pace: Pace,
    *,
    clock: Clock,
    stop: Event,
    series: Series | None = None,
) -> Series:
    """Push until the first frames, then the warm-up, then the measured chunks; the last only are in the series.

    ``series`` may be given to watch it grow from another thread. ``stop`` ends the run early.
    """
    series = Series() if series is None else series
    paced = pace.mode == "paced"
    origin = clock.now() + OVERLAP_S + pace.phase_s
    warm, index, measured_since = -1, 0, 0.0
    while not stop.is_set():
        chunk = next(chunks)
        due = origin + (index + 1) * pace.period_s
        if paced:
            clock.sleep_until(due)
        start = clock.now()
        frames = push(chunk)
        end = clock.now()
        index += 1
        if warm < pace.warmup_chunks:  # -1: no frame yet
            warm += 1 if frames or warm >= 0 else 0
            measured_since = end
            continue
        if frames:
            series.due.append(due if paced else start)
            series.start.append(start)
            series.end.append(end)
        else:
            series.empty += 1
        if paced and end - due > HOPELESS_BACKLOG_S:
            series.overloaded = True
            break
        if len(series.end) + series.empty >= pace.chunks and end - measured_since >= pace.until_s:
            break
    return series


def first_frame_ms(push: Push, chunks: Iterator[npt.NDArray[np.float32]], period_s: float, clock: Clock) -> float:
    """From the first sample of a new stream to its first frames in hand, at the pace of a microphone."""
    began = clock.now()
    for index in range(1 + int(MAX_SILENT_S / period_s)):
        clock.sleep_until(began + OVERLAP_S + (index + 1) * period_s)
        if push(next(chunks)):
            return 1000 * (clock.now() - began)
    raise RdError(
        f"the stream gave no frame after {MAX_SILENT_S:.0f} s of audio",
        hint="`rd-stream` shows what it gives",
    )


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


def batch_pusher(encoder: Any, streams: list[Any], audio: npt.NDArray[np.float32], chunk_samples: int) -> Push:
    """A push for ``streams`` of ``encoder``: the samples given go to the first stream, others hear other parts of
    ``audio``. Returns the number of frames of all streams."""
    others: list[Iterator[npt.NDArray[np.float32]]] = []
    for index in range(1, len(streams)):
        start = int(len(audio) * index / len(streams)) // HOP_SAMPLES * HOP_SAMPLES
        others.append(cut(audio, chunk_samples, start=start))

    def push(samples: npt.NDArray[np.float32]) -> int:
        for stream, chunk in zip(streams, (samples, *map(next, others)), strict=True):
            stream.feed(chunk)
        frames = 0
        while any(stream.ready for stream in streams):
            frames += sum(len(one) for one in encoder.step(streams) if one is not None)
        return frames

    return push
