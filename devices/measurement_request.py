"""What to measure: the workload of one run, checked once and carried as JSON to wherever it runs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from reuse_distill.report.quantities import parse_quantity
from reuse_distill.runtime.errors import RdError, nearest

MODES = ("paced", "back-to-back")
MIN_CHUNKS = 250  # enough to find a slowdown of 5 % under the noise of a quiet machine (docs/ci.md)
DEFAULT_PACED_S = 20.0
DEFAULT_BACK_TO_BACK_CHUNKS = 500
DEFAULT_BACK_TO_BACK_S = 3.0  # fast bundles: longer than one time slice of other processes


@dataclass(frozen=True)
class Request:
    """One workload. ``seconds`` is audio per stream; 0 means the default of the mode."""

    mode: str = "paced"
    streams: int = 1
    seconds: float = 0.0
    warmup_chunks: int = 20
    soak_s: float = 0.0
    threads: int = 1
    provider: str = "auto"
    seed: int = 20240601
    probe: bool = False  # a rehearsal: features of fixed recordings and the nodes that ran, beside the latencies

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise RdError(f"mode {self.mode!r} is unknown", hint=nearest(self.mode, MODES))
        for name, value, least in (("--streams", self.streams, 1), ("--threads", self.threads, 1)):
            if not least <= value <= 1024:
                raise RdError(f"{name} {value}: expected {least} to 1024")
        if not 0 <= self.warmup_chunks <= 100_000:
            raise RdError(f"--warmup {self.warmup_chunks}: expected 0 to 100000 chunks")
        if self.seconds < 0 or self.soak_s < 0:
            raise RdError(f"--seconds {self.seconds}, --soak {self.soak_s} s: expected 0 or more")

    def chunks(self, period_s: float) -> int:
        """Measured chunks per stream for chunks of ``period_s`` seconds."""
        if self.seconds:
            return max(1, round(self.seconds / period_s))
        if self.soak_s:
            return 1
        if self.mode == "paced":
            return max(MIN_CHUNKS, round(DEFAULT_PACED_S / period_s))
        return DEFAULT_BACK_TO_BACK_CHUNKS

    @property
    def least_s(self) -> float:
        """Seconds that the measured part lasts at least, whatever the number of chunks."""
        return self.soak_s or (0.0 if self.seconds or self.mode == "paced" else DEFAULT_BACK_TO_BACK_S)

    def longest_s(self, period_s: float) -> float:
        """A bound on the run's duration at real time, for watchdogs: far behind real time is an overload anyway."""
        audio_s = (self.chunks(period_s) + self.warmup_chunks + 50) * period_s
        return 120.0 + 2.0 * max(audio_s, self.soak_s + (self.warmup_chunks + 50) * period_s)

    @property
    def label(self) -> str:
        """The workload in a few words; part of the key under which baselines are kept."""
        many = "1 stream" if self.streams == 1 else f"{self.streams} streams"
        return f"{self.mode}, {many}, {self.threads} thread{'s' if self.threads > 1 else ''}, {self.provider}"


def duration_s(text: str, *, where: str) -> float:
    """``10min``, ``90 s`` or ``2 h`` in seconds; a bare number is refused."""
    spaced = re.sub(r"(?<=\d)(?=[a-zA-Z])", " ", text.strip())
    return parse_quantity(spaced, "time", where=where) / 1000
