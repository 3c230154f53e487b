"""What a run is to measure and what it gives back, carried as JSON to wherever it runs and home again.

A request is the workload, checked once. A measurement has raw samples with the context they were taken in, and the
numbers made from them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from typing import Any

from reuse_distill.devices.judging.confidence import PERCENTILES, samples_needed
from reuse_distill.devices.measuring.host_context import Context
from reuse_distill.devices.measuring.sensors import Reading
from reuse_distill.report.quantities import parse_quantity
from reuse_distill.runtime.errors import RdError, nearest

PACED, BACK_TO_BACK, BATCH, UTTERANCES = "paced", "back-to-back", "multi-stream", "utterances"
MODES = (PACED, BACK_TO_BACK, BATCH, UTTERANCES)
# The names of MLPerf inference, as far as they fit: what --scenario NAME measures.
SCENARIOS = {
    "single-stream": "one stream, back to back; p90 needs 64 chunks",
    "multi-stream": "N streams (8) stepped as one batch, back to back; p99 needs 662 steps",
    "paced": "chunks at the pace of a microphone (default)",
    "soak": "paced for a long time (10min); p99.9 needs 6,636 chunks",
}
MULTI_STREAMS, SOAK_S = 8, 600.0
UTTERANCE_LENGTHS_S = (2.0, 5.0, 10.0)
JUDGED_UTTERANCE_S = 5.0  # whose times are the samples that limits and baselines are about
UTTERANCE_ROUNDS = 100  # of one utterance of each length: what the judge takes of a run; p90 takes 64
MIN_CHUNKS = 250  # enough to find a slowdown of 5 % under the noise of a quiet machine (docs/ci.md)
DEFAULT_PACED_S = 20.0
DEFAULT_BACK_TO_BACK_CHUNKS = 500
DEFAULT_BACK_TO_BACK_S = 3.0  # fast bundles: longer than one time slice of other processes


@dataclass(frozen=True)
class Request:
    """One workload. ``seconds`` is audio per stream; 0 means the default of the mode.

    ``sliding_window`` streams an offline bundle through a window instead of measuring whole utterances. ``enough``
    names the percentile that the run continues for.
    """

    mode: str = "paced"
    streams: int = 1
    seconds: float = 0.0
    warmup_chunks: int = 20
    soak_s: float = 0.0
    threads: int = 1
    provider: str = "auto"
    seed: int = 20240601
    sliding_window: bool = False
    enough: str = ""
    cool_below_c: float = 0.0  # start no hotter than this; 0: no gate
    cool_down_s: float = 300.0  # how long to wait for that
    probe: bool = False  # a rehearsal: features of fixed recordings and the nodes that ran, beside the latencies

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise RdError(f"mode {self.mode!r} is unknown", hint=nearest(self.mode, MODES))
        if not 0 <= self.cool_below_c <= 150 or not 0 <= self.cool_down_s <= 86_400:
            raise RdError(f"--cool-below {self.cool_below_c} C, --cool-down {self.cool_down_s} s: out of range")
        if self.enough and self.enough not in PERCENTILES:
            raise RdError(f"--until-enough {self.enough!r}", hint=nearest(self.enough, list(PERCENTILES)))
        for name, value, least in (("--streams", self.streams, 1), ("--threads", self.threads, 1)):
            if not least <= value <= 1024:
                raise RdError(f"{name} {value}: expected {least} to 1024")
        if not 0 <= self.warmup_chunks <= 100_000:
            raise RdError(f"--warmup {self.warmup_chunks}: expected 0 to 100000 chunks")
        if self.seconds < 0 or self.soak_s < 0:
            raise RdError(f"--seconds {self.seconds}, --soak {self.soak_s} s: expected 0 or more")

    def chunks(self, period_s: float) -> int:
        """Measured chunks per stream for chunks of ``period_s`` seconds; of utterances: rounds of all lengths."""
        enough = 0
        if self.enough:
            series = self.streams if self.mode in (PACED, BACK_TO_BACK) else 1
            enough = math.ceil(samples_needed(PERCENTILES[self.enough]) / series)
        return max(enough, self._chunks(period_s))

    def _chunks(self, period_s: float) -> int:
        if self.mode == UTTERANCES:
            return max(1, round(self.seconds / sum(UTTERANCE_LENGTHS_S))) if self.seconds else UTTERANCE_ROUNDS
        if self.seconds:
            return max(1, round(self.seconds / period_s))
        if self.soak_s:
            return 1
        if self.mode == PACED:
            return max(MIN_CHUNKS, round(DEFAULT_PACED_S / period_s))
        if self.mode == BATCH:
            return samples_needed(PERCENTILES["p99"])
        return DEFAULT_BACK_TO_BACK_CHUNKS

    @property
    def least_s(self) -> float:
        """Seconds that the measured part lasts at least, whatever the number of chunks."""
        quick = self.seconds or self.mode in (PACED, UTTERANCES)
        return self.soak_s or (0.0 if quick else DEFAULT_BACK_TO_BACK_S)

    def longest_s(self, period_s: float) -> float:
        """A bound on the run's duration at real time, for watchdogs: far behind real time is an overload anyway."""
        if self.mode == UTTERANCES:
            period_s = sum(UTTERANCE_LENGTHS_S)
        many = self.streams if self.mode == BATCH else 1
        audio_s = (self.chunks(period_s) + self.warmup_chunks + 50) * period_s * many
        cooling_s = self.cool_down_s if self.cool_below_c else 0.0
        return 120.0 + cooling_s + 2.0 * max(audio_s, self.soak_s + (self.warmup_chunks + 50) * period_s)

    @property
    def label(self) -> str:
        """The workload in a few words; part of the key under which baselines are kept."""
        if self.mode == UTTERANCES:
            lengths = ", ".join(f"{length:g}" for length in UTTERANCE_LENGTHS_S)
            return f"whole utterances of {lengths} s, {self._threads}"
        many = "1 stream" if self.streams == 1 else f"{self.streams} streams"
        return f"{self.mode}, {many}, {self._threads}"

    @property
    def _threads(self) -> str:
        return f"{self.threads} thread{'s' if self.threads > 1 else ''}, {self.provider}"

    def for_kind(self, kind: str) -> Request:
        """The request as it is measured on a bundle of ``kind``: an offline one is given whole utterances.

        Raises RdError for streams, a soak or a batch of an offline bundle without ``--sliding-window``.
        """
        if kind != "offline" or self.sliding_window or self.mode == UTTERANCES:
            return self
        if self.streams > 1 or self.soak_s or self.mode == BATCH:
            raise RdError(
                "an offline bundle is measured with whole utterances, one at a time",
                hint="--sliding-window measures it as a stream, which it is not made for",
            )
        return replace(self, mode=UTTERANCES)


def duration_s(text: str, *, where: str) -> float:
    """``10min``, ``90 s`` or ``2 h`` in seconds; a bare number is refused."""
    spaced = re.sub(r"(?<=\d)(?=[a-zA-Z])", " ", text.strip())
    return parse_quantity(spaced, "time", where=where) / 1000


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
