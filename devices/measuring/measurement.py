"""What a run gives back: raw samples with the context they were taken in, and the numbers made from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from reuse_distill.devices.measuring.host_context import Context
from reuse_distill.devices.measuring.measurement_request import Request
from reuse_distill.devices.measuring.sensors import Reading

RESULT_SCHEMA = 1


@dataclass(frozen=True)
class Metric:
    """One number of a report: which dimension its unit has and what it is called."""

    dimension: str
    title: str


METRICS: dict[str, Metric] = {
    "p50": Metric("time", "latency p50"),
    "p90": Metric("time", "latency p90"),
    "p99": Metric("time", "latency p99"),
    "p999": Metric("time", "latency p99.9"),
    "max": Metric("time", "latency max"),
    "deadline_misses": Metric("share", "deadline misses"),
    "rtf": Metric("ratio", "real-time factor"),
    "p90_2s": Metric("time", "p90 of utterances of 2 s"),
    "rtf_2s": Metric("ratio", "real-time factor of 2 s"),
    "p90_10s": Metric("time", "p90 of utterances of 10 s"),
    "rtf_10s": Metric("ratio", "real-time factor of 10 s"),
    "cpu_rtf": Metric("ratio", "CPU time per second of audio"),
    "first_frame": Metric("time", "first frame"),
    "load": Metric("time", "model load"),
    "peak_memory": Metric("bytes", "peak memory"),
    "artifact_size": Metric("bytes", "artifact size"),
    "temperature": Metric("temperature", "highest temperature"),
    "energy_per_second": Metric("energy", "energy per second of audio"),
    "power": Metric("power", "mean power"),
    "wakeup_p99": Metric("time", "timer lateness p99"),
}


@dataclass(frozen=True)
class BundleFacts:
    """The bundle that was measured, as far as a report and a baseline need it."""

    name: str
    kind: str
    target: str
    precision: str
    artifact_sha256: str
    chunk_frames: int
    worst_latency_ms: float  # what the geometry alone costs, before any computing


@dataclass(frozen=True)
class StreamSamples:
    """Raw samples of one stream in milliseconds; ``at_s`` is when the chunk was done, since the run began."""

    at_s: tuple[float, ...]
    latency_ms: tuple[float, ...]
    service_ms: tuple[float, ...]


@dataclass(frozen=True)
class Overhead:
    """What measuring itself costs: the same loop around nothing, and one reading of the sensors."""

    per_chunk_p50_ms: float
    per_chunk_p99_ms: float
    sensor_reading_ms: float


@dataclass(frozen=True)
class Measurement:
    """One finished run."""

    bundle: BundleFacts
    request: Request
    context: Context
    settings: dict[str, str]
    metrics: dict[str, float | None]  # base units of METRICS; None is `unmeasured`
    samples: tuple[StreamSamples, ...]
    readings: tuple[Reading, ...]
    overhead: Overhead
    throttling: str  # what the device says: yes | no | unmeasured
    energy_source: str
    taken_at: str  # UTC, ISO 8601
    notes: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def period_ms(self) -> float:
        return 20.0 * self.bundle.chunk_frames
