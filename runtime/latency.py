"""How late features are: what the geometry implies, and what the steps cost on this machine, once measured."""

from __future__ import annotations

from dataclasses import dataclass, replace

from reuse_distill.runtime.geometry import HOP_MS, RECEPTIVE_FIELD_MS
from reuse_distill.runtime.manifest import Geometry
from reuse_distill.runtime.stats import p50_p99

OVERLAP_MS = RECEPTIVE_FIELD_MS - HOP_MS  # 5.0


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
