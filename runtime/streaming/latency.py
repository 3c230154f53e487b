"""How late features are: what the geometry implies, and what steps and whole runs cost on this machine, once measured.

A run's cost is its real-time factor and the time per step, measured around every push.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from reuse_distill.runtime.bundle_format.manifest import Geometry
from reuse_distill.runtime.geometry import HOP_MS, RECEPTIVE_FIELD_MS
from reuse_distill.runtime.streaming.framing import Frames

OVERLAP_MS = RECEPTIVE_FIELD_MS - HOP_MS  # 5.0


def quantile(values: npt.ArrayLike, q: float) -> float | None:
    """Nearest-rank quantile: a value that occurred, with at least a share ``q`` of the values at or below it.

    None where fewer than one value is expected above it (p99 needs 100 values, p99.9 a thousand).
    """
    array = np.asarray(values, np.float64)
    if array.size * (1 - q) < 1 - 1e-9:
        return None
    return float(np.quantile(array, q, method="inverted_cdf"))


def p50_p99(p50: float | None, p99: float | None) -> str:
    """Both in words, ms: what too few steps cannot carry is unmeasured."""
    texts = ("unmeasured" if value is None else f"{value:.2f} ms" for value in (p50, p99))
    return "p50 {}, p99 {}".format(*texts)


@dataclass
class RunStats:
    """Times of one stream. ``audio_s`` is the source time taken."""

    audio_s: float = 0.0
    busy_s: float = 0.0
    frames: int = 0
    step_ms: list[float] = field(default_factory=list)

    def timed(self, call: Callable[[], list[Frames]]) -> list[Frames]:
        """Run a push or finish; its time counts for the steps that gave frames."""
        start = time.perf_counter()
        parts = call()
        taken_s = time.perf_counter() - start
        self.busy_s += taken_s
        self.frames += sum(len(part) for part in parts)
        self.step_ms += [1000 * taken_s / len(parts) for _ in parts]
        return parts

    @property
    def rtf(self) -> float | None:
        """Busy time over audio time; None for no audio."""
        return self.busy_s / self.audio_s if self.audio_s else None

    def __str__(self) -> str:
        rtf = "unmeasured" if self.rtf is None else f"{self.rtf:.4f}"
        text = f"{self.audio_s:.2f} s of audio, {self.frames} frames, {self.busy_s:.3f} s busy, RTF {rtf}"
        if not self.step_ms:
            return f"{text}; steps unmeasured"
        percentiles = p50_p99(quantile(self.step_ms, 0.5), quantile(self.step_ms, 0.99))
        return f"{text}; {len(self.step_ms)} steps: {percentiles}, max {max(self.step_ms):.2f} ms"


@dataclass(frozen=True)
class Latency:
    """Milliseconds from the start of a frame in the audio to its features.

    The algorithmic part is waiting for samples: exact, the same on every machine. The compute part is None until
    ``Encoder.measure_latency`` has measured it, and its p99 stays None with fewer than a hundred steps.
    """

    worst_ms: float  # oldest frame of a chunk: 25 + 20 (C-1 + R) ms
    mean_ms: float  # mean over the frames of a chunk
    first_frame_ms: float  # from the start of the stream to its first frame
    step_audio_ms: float  # audio per step: a step must cost less than this
    compute_p50_ms: float | None = None
    compute_p99_ms: float | None = None
    compute_max_ms: float | None = None
    measured_steps: int = 0

    @property
    def algorithmic(self) -> str:
        """The part that is waiting for samples, in words."""
        return f"worst {self.worst_ms:.0f} ms, mean {self.mean_ms:.0f} ms, first frame {self.first_frame_ms:.0f} ms"

    def __str__(self) -> str:
        compute = "unmeasured"
        if self.measured_steps:
            compute = f"{p50_p99(self.compute_p50_ms, self.compute_p99_ms)} ({self.measured_steps} steps)"
        return f"algorithmic {self.algorithmic}; compute per step of {self.step_audio_ms:.0f} ms: {compute}"

    def with_delay(self, delay_ms: float) -> Latency:
        """The same behind a resampler that holds samples back."""
        return replace(
            self,
            worst_ms=self.worst_ms + delay_ms,
            mean_ms=self.mean_ms + delay_ms,
            first_frame_ms=self.first_frame_ms + delay_ms,
        )


def algorithmic_latency(geometry: Geometry) -> Latency:
    """What chunk C, look-ahead R and right context imply: a chunk waits for its last sample and for R more frames."""
    chunk, ahead = geometry.chunk_frames, geometry.lookahead_frames
    steps_to_first = ahead // chunk + 1
    first_frames = steps_to_first * chunk + geometry.right_frames
    return Latency(
        worst_ms=geometry.worst_latency_ms,
        mean_ms=geometry.mean_latency_ms,
        first_frame_ms=first_frames * HOP_MS + OVERLAP_MS,
        step_audio_ms=chunk * HOP_MS,
    )
