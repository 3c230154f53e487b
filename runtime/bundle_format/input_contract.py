"""What an artifact expects of its samples, as the manifest says it, and how the runtime gives it that.

A client that reads nothing else finds here: rate, channels, level, mel settings, which samples a frame is made of, the
longest input, and the rules of a stream in words.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ
from reuse_distill.runtime.streaming.snapshot import Saved

AS_IS, PER_UTTERANCE = "as is", "utterance"
LEVELS = (AS_IS, PER_UTTERANCE)


@dataclass(frozen=True)
class MelSettings:
    """Log-mel that the artifact computes itself from its samples (for information: nothing is left to do)."""

    bands: int
    window_samples: int
    hop_samples: int
    scale: str


@dataclass(frozen=True)
class InputContract:
    """The samples of the input ``wave`` (or ``samples``), and what frame f is made of.

    ``level``: ``as is``, samples in -1..1; or ``utterance``: minus the mean, over the square root of the variance plus
    ``level_epsilon``, both of the whole utterance, and in a stream of all samples heard up to the end of a window.
    Frame f is made of ``field_samples`` samples from 320 f + ``first_sample`` on, before attention adds the rest.
    """

    level: str = AS_IS
    level_epsilon: float = 0.0
    channels: int = 1
    first_sample: int = 0
    field_samples: int = RECEPTIVE_FIELD_SAMPLES
    longest_samples: int | None = None  # of one call on a whole utterance
    mel: MelSettings | None = None
    rules: tuple[str, ...] = ()  # the same and the rules of the stream in words

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise RdError(f"manifest: level {self.level!r} is not one of {', '.join(LEVELS)}")
        if self.level == PER_UTTERANCE and not 0 < self.level_epsilon <= 1:
            raise RdError(f"manifest: level_epsilon {self.level_epsilon} is outside 0..1")
        if self.channels != 1:
            raise RdError(f"manifest: {self.channels} channels, this runtime gives 1")
        if self.longest_samples is not None and self.longest_samples < RECEPTIVE_FIELD_SAMPLES:
            raise RdError(f"manifest: longest_samples {self.longest_samples} hold no frame")

    def prepared(self, wave: np.ndarray) -> np.ndarray:
        """A whole utterance (T,) as the artifact wants it. Raises RdError where it is longer than one call takes."""
        if self.longest_samples is not None and len(wave) > self.longest_samples:
            raise RdError(
                f"{len(wave) / SAMPLE_RATE_HZ:.2f} s of audio, this encoder sees at most "
                f"{self.longest_samples / SAMPLE_RATE_HZ:g} s at once",
                hint="cut the recording, or use a stream: encoder.stream(), rd-stream",
            )
        level = self.running()
        if level is None:
            return wave
        level.take(wave)
        return level.apply(wave)

    def running(self) -> RunningLevel | None:
        """The statistics of a stream; None where samples stay as they are."""
        return RunningLevel(self.level_epsilon) if self.level == PER_UTTERANCE else None


class RunningLevel:
    """Mean and variance of all samples of a stream up to ``position``."""

    def __init__(self, epsilon: float) -> None:
        self.epsilon = epsilon
        self.reset()

    def reset(self) -> None:
        """Nothing heard yet."""
        self.position = 0
        self._sums = np.zeros(2)  # of samples and of their squares, float64

    def take(self, samples: np.ndarray) -> None:
        """Add the samples (T,) that follow ``position``."""
        exact = samples.astype(np.float64)
        self._sums += (exact.sum(), np.square(exact).sum())
        self.position += len(samples)

    def apply(self, samples: np.ndarray) -> np.ndarray:
        """(T,) normalised by what was heard so far, float32."""
        mean, square = self._sums / max(1, self.position)
        deviation = np.sqrt(max(0.0, square - mean**2) + self.epsilon)
        return ((samples - mean) / deviation).astype(np.float32)

    def save(self, saved: Saved) -> None:
        """Add the statistics to ``saved``."""
        saved.counters["level_position"] = self.position
        saved.arrays["level_sums"] = self._sums.copy()

    def check(self, saved: Saved, *, start: int, end: int) -> None:
        """Raise RdError where ``saved`` holds no statistics of ``start`` to ``end`` samples."""
        saved.counter("level_position", start, end)
        saved.array("level_sums", np.float64, (2,))

    def load(self, saved: Saved) -> None:
        """Continue with what was saved (checked before by ``check``)."""
        self.position = saved.counters["level_position"]
        self._sums = saved.arrays["level_sums"].copy()
