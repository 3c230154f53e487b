"""What a run cost: real-time factor and time per step, measured around every push."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from reuse_distill.runtime.framing import Frames


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
    said = ("unmeasured" if value is None else f"{value:.2f} ms" for value in (p50, p99))
    return "p50 {}, p99 {}".format(*said)


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
        told = p50_p99(quantile(self.step_ms, 0.5), quantile(self.step_ms, 0.99))
        return f"{text}; {len(self.step_ms)} steps: {told}, max {max(self.step_ms):.2f} ms"
