"""One run in this process: load, first frame, the measurement's own overhead, then the streams.

Nothing here knows where it runs; ``worker.py`` calls it in a process of its own, on this machine or on another one.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from reuse_distill.devices.judging.confidence import too_short
from reuse_distill.devices.judging.thermal import cool_down
from reuse_distill.devices.measuring import host_context, latency_metrics, sensors
from reuse_distill.devices.measuring.measurement import (
    BATCH,
    JUDGED_UTTERANCE_S,
    UTTERANCE_LENGTHS_S,
    UTTERANCES,
    BundleFacts,
    Measurement,
    Overhead,
    Request,
    StreamSamples,
)
from reuse_distill.devices.measuring.speech import speech_like
from reuse_distill.devices.measuring.stream_driver import (
    Clock,
    Pace,
    Push,
    Run,
    Series,
    WallClock,
    batch_pusher,
    cut,
    drive,
    drive_all,
    first_frame_ms,
)
from reuse_distill.devices.measuring.utterance_driver import drive_utterances
from reuse_distill.devices.rehearsal.probe_run import run_probe
from reuse_distill.runtime.bundle_format.bundle import Bundle
from reuse_distill.runtime.bundle_format.manifest import Geometry
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import HOP_MS, HOP_SAMPLES, SAMPLE_RATE_HZ, frames_for
from reuse_distill.runtime.untrusted_input import to_dict

AUDIO_S = 30.0  # of test signal, pushed in a circle
OVERHEAD_PUSHES = 2000
LONGEST_PUSH_FRAMES = 50  # in the loop around nothing
REFERENCE_VALUES, REFERENCE_REPEATS = 20_000, 61
Progress = Callable[[str], None]


def measure(bundle: Path, request: Request, *, progress: Progress, clock: Clock | None = None) -> Measurement:
    """Measure ``bundle`` under ``request`` on this machine, in this process.

    Raises RdError where the bundle cannot be loaded or run here.
    """
    clock = clock or WallClock()
    where = host_context.collect()
    sensor, resident_before = sensors.Sensors(), sensors.resident_bytes()
    heat = _gate(request, sensor, clock, progress)
    reference_before = reference_workload_ms()
    progress("loading the bundle")
    encoder, load_ms = _load(bundle, request)
    request = request.for_kind(encoder.manifest.kind)
    facts = bundle_facts(encoder.bundle, encoder.geometry, request)
    audio = speech_like(int(AUDIO_S * SAMPLE_RATE_HZ), seed=request.seed)
    overhead = measure_overhead(audio, HOP_SAMPLES * min(facts.chunk_frames, LONGEST_PUSH_FRAMES), sensor)
    run_one = _utterances if request.mode == UTTERANCES else _streams
    run = run_one(encoder, audio, facts, request, sensor=sensor, clock=clock, progress=progress)
    peak_bytes = sensors.peak_bytes()  # before the self-test, which is no part of streaming
    metrics = {
        **run.metrics,
        **latency_metrics.energy_metrics(run.readings, audio_s=run.audio_s),
        "cpu_rtf": run.cpu_s / run.audio_s if run.audio_s else None,
        "load": load_ms,
        "peak_memory": _maybe(peak_bytes),
        "artifact_size": float(encoder.manifest.artifact_bytes),
        "temperature": latency_metrics.highest(run.readings),
    }
    details = {
        "provider": encoder.provider,
        "reference_ms": min(reference_before, reference_workload_ms()),
        "resident_before_load_bytes": resident_before,
        "pushes_without_frames": sum(one.empty for one in run.series),
        **run.details,
        **heat,
    }
    settings = sensors.settings()
    if request.probe:
        probe = run_probe(encoder, seed=request.seed, progress=progress)
        details |= {"selftest": probe.selftest, "probe": to_dict(probe)}
    else:
        details["selftest"] = _selftest(encoder)
    return Measurement(
        bundle=facts,
        request=request,
        context=where,
        settings=settings,
        metrics=metrics,
        samples=tuple(_samples(one, run.began) for one in run.series),
        readings=tuple(run.readings),
        overhead=overhead,
        throttling=latency_metrics.throttling(run.readings),
        energy_source=sensor.energy_source,
        taken_at=dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        notes=(*_notes(run, where, facts, request), *_clock_notes(settings)),
        details=details,
    )


def _gate(request: Request, sensor: sensors.Sensors, clock: Clock, progress: Progress) -> dict[str, float | None]:
    """Wait for a cool device where that is requested; the temperature of the start in any case."""
    if not request.cool_below_c:
        return {"start_temperature_c": sensor.read(0.0).temperature_c}
    return cool_down(
        lambda: sensor.read(0.0), request.cool_below_c, limit_s=request.cool_down_s, clock=clock, progress=progress
    )


@dataclass
class _Workload(Run):
    """What a workload left behind; its series are the samples that limits and baselines are about."""

    metrics: dict[str, float | None]
    details: dict[str, Any]


def _streams(
    encoder: Any,
    audio: npt.NDArray[np.float32],
    facts: BundleFacts,
    request: Request,
    *,
    sensor: sensors.Sensors,
    clock: Clock,
    progress: Progress,
) -> _Workload:
    """The first frame of one stream, then all streams chunk by chunk."""
    period_s, chunk_samples = HOP_MS * facts.chunk_frames / 1000, HOP_SAMPLES * facts.chunk_frames
    progress("first frame")
    with encoder.stream(sample_rate=SAMPLE_RATE_HZ) as stream:
        first_ms = first_frame_ms(pusher(stream), cut(audio, chunk_samples), period_s, clock)
    with ExitStack() as stack:
        if request.mode == BATCH:
            streams = [stack.enter_context(one) for one in encoder.streams(request.streams, SAMPLE_RATE_HZ)]
            pushes = [batch_pusher(encoder, streams, audio, chunk_samples)]
        else:
            pushes = [
                pusher(stack.enter_context(encoder.stream(sample_rate=SAMPLE_RATE_HZ))) for _ in range(request.streams)
            ]
        run = drive_all(pushes, audio, facts, request, sensor=sensor, clock=clock, progress=progress)
    metrics = latency_metrics.latency_metrics(run.series, period_ms=1000 * period_s, mode=request.mode)
    audio_s = run.audio_s * (request.streams if request.mode == BATCH else 1)
    return _Workload(run.series, run.readings, run.began, audio_s, run.cpu_s, {**metrics, "first_frame": first_ms}, {})


def _utterances(
    encoder: Any,
    audio: npt.NDArray[np.float32],
    facts: BundleFacts,
    request: Request,
    *,
    sensor: sensors.Sensors,
    clock: Clock,
    progress: Progress,
) -> _Workload:
    """Whole utterances of every length; the samples are those of the length that is judged."""
    rounds = request.chunks(JUDGED_UTTERANCE_S)
    run = drive_utterances(
        encoder.extract, audio, UTTERANCE_LENGTHS_S, rounds=rounds, sensor=sensor, clock=clock, progress=progress
    )
    times = run.times_ms()
    metrics = latency_metrics.utterance_metrics(times, judged_s=JUDGED_UTTERANCE_S)
    details = {"utterances_ms": {f"{length:g} s": np.round(ms, 4).tolist() for length, ms in times.items()}}
    judged = [run.series[JUDGED_UTTERANCE_S]]
    return _Workload(judged, run.readings, run.began, run.audio_s, run.cpu_s, {**metrics, "first_frame": None}, details)


def reference_workload_ms() -> float:
    """Median time of a fixed piece of work that has nothing to do with the bundle, ms: how fast the machine is now."""
    values = np.random.default_rng(0).standard_normal(REFERENCE_VALUES).astype(np.float32)
    times = []
    for _ in range(REFERENCE_REPEATS):
        began = time.perf_counter()
        np.sort(values)
        (values * values).sum()
        times.append(time.perf_counter() - began)
    return 1000 * float(np.median(times))


def _load(bundle: Path, request: Request) -> tuple[Any, float]:
    """The encoder and how long it took, verification of the files and import of the engine included."""
    began = time.perf_counter()
    from reuse_distill.runtime import Encoder

    encoder = Encoder.load(bundle, provider=request.provider, threads=request.threads)
    _ = encoder.provider  # the artifact is opened when it is first asked for
    return encoder, 1000 * (time.perf_counter() - began)


def _selftest(encoder: Any) -> str:
    """The bundle's own recording against its expected features: fast but wrong is not measured.

    Raises RdError where the features are outside the stated bound.
    """
    from reuse_distill.runtime.equivalence.parity import stated_bound
    from reuse_distill.runtime.equivalence.selftest import read_expected

    try:
        stated_bound(encoder.manifest.parity)
        read_expected(encoder.bundle)
    except RdError as error:
        return f"unmeasured: {error.message}"
    result = encoder.selftest()
    if not result.passed:
        raise RdError(
            f"this device gives other features than the bundle's source: {result}",
            hint="rd-stream --certify shows more",
        )
    return str(result)


def bundle_facts(bundle: Bundle, geometry: Geometry, request: Request) -> BundleFacts:
    """What the manifest says; a whole utterance counts as one chunk that has to be complete.

    ``geometry``: of the stream, which is the window's where the bundle takes whole utterances.
    """
    manifest, whole = bundle.manifest, request.mode == UTTERANCES
    return BundleFacts(
        name=bundle.path.resolve().name,
        kind=manifest.kind,
        target=manifest.target,
        precision=manifest.precision,
        artifact_sha256=manifest.artifact_sha256,
        chunk_frames=frames_for(int(JUDGED_UTTERANCE_S * SAMPLE_RATE_HZ)) if whole else geometry.chunk_frames,
        worst_latency_ms=1000 * JUDGED_UTTERANCE_S if whole else geometry.worst_latency_ms,
    )


def pusher(stream: Any) -> Push:
    """A push that exhausts the stream's answer and counts its frames (the axis before the features')."""

    def push(samples: npt.NDArray[np.float32]) -> int:
        return sum(frames.features.shape[-2] for frames in stream.push(samples))

    return push


def measure_overhead(audio: npt.NDArray[np.float32], chunk_samples: int, sensor: sensors.Sensors) -> Overhead:
    """The same loop with a push that does nothing, and one reading of the sensors (median of five)."""
    pace = Pace(mode="back-to-back", period_s=1.0, warmup_chunks=100, chunks=OVERHEAD_PUSHES)
    series = drive(len, cut(audio, chunk_samples), pace, clock=WallClock(), stop=threading.Event())
    whole = 1000 * np.diff(np.asarray(series.end))
    return Overhead(
        per_chunk_p50_ms=float(np.quantile(whole, 0.5)),
        per_chunk_p99_ms=float(np.quantile(whole, 0.99)),
        sensor_reading_ms=float(np.median([sensor.read(0.0).cost_ms for _ in range(5)])),
    )


def _samples(series: Series, began: float) -> StreamSamples:
    def rounded(values: npt.NDArray[np.float64], places: int) -> tuple[float, ...]:
        return tuple(np.round(values, places).tolist())

    at_s = rounded(np.asarray(series.end) - began, 4)
    return StreamSamples(at_s, rounded(series.latency_ms(), 4), rounded(series.service_ms(), 4))


def _notes(run: _Workload, where: host_context.Context, facts: BundleFacts, request: Request) -> list[str]:
    notes = []
    if any(one.overloaded for one in run.series):
        notes.append("overloaded: the streams fell 10 s behind the microphone and the run was ended")
    if not any(one.end for one in run.series):
        raise RdError("no measured chunk gave a frame", hint="give more --seconds")
    if lacking := _lacking(run, facts, request):
        notes.append(lacking)
    if where.load_before is not None and where.load_before > 0.5 * max(1, where.cores):
        notes.append(f"busy machine: load average {where.load_before:.1f} on {where.cores} cores before the run")
    return notes


def _clock_notes(settings: dict[str, str]) -> list[str]:
    """Clocks that may wander are said: two runs of them differ by more than their code."""
    clocks = settings["clocks"]
    if not clocks.startswith(sensors.NOT_LOCKED):
        return []
    return [f"clocks are {clocks}, governor {settings['governor']}: jetson_clocks or cpupower locks them"]


def _lacking(run: _Workload, facts: BundleFacts, request: Request) -> str:
    """Which percentile the run was too short for, and how much audio measures it."""
    whole = request.mode == UTTERANCES
    names = ["p90"] if whole else ["p90", "p99"]
    if request.soak_s:
        names.append("p999")
    period_s = sum(UTTERANCE_LENGTHS_S) if whole else HOP_MS * facts.chunk_frames / 1000
    samples = sum(len(one.end) for one in run.series)
    return too_short(names, samples, period_s=period_s, streams=len(run.series))


def _maybe(value: int | None) -> float | None:
    return None if value is None else float(value)
