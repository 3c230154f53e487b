"""What a run cost: real-time factor and time per step, measured around every push."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from runtime.framing import Frames


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
        p50, p99, worst = np.percentile(self.step_ms, [50, 99, 100])
        return f"{text}; {len(self.step_ms)} steps: p50 {p50:.2f} ms, p99 {p99:.2f} ms, max {worst:.2f} ms"
