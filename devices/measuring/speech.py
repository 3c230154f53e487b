"""A seeded, speech-like test signal: voiced and unvoiced stretches with pauses, never silence.

Latency must not depend on the recordings a machine happens to have, and silence can be faster or slower than speech
(denormals, sparsity), so the input is made here and named by its seed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from reuse_distill.runtime.geometry import SAMPLE_RATE_HZ

SYLLABLE_S = 0.22  # a speaking rate of four to five syllables a second
FLOOR = 0.003  # room noise under everything: about -50 dBFS


def speech_like(samples: int, *, seed: int, sample_rate_hz: int = SAMPLE_RATE_HZ) -> npt.NDArray[np.float32]:
    """``(T,)`` float32 in [-1, 1]: syllables of a gliding harmonic voice, some of them noise, over a noise floor."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(samples) / sample_rate_hz
    count = int(np.ceil(samples / sample_rate_hz / SYLLABLE_S)) + 1
    pitch_hz = np.interp(time_s, np.arange(count) * SYLLABLE_S, rng.uniform(90.0, 230.0, count))
    phase = 2 * np.pi * np.cumsum(pitch_hz) / sample_rate_hz
    kind = rng.choice(3, size=count, p=[0.65, 0.2, 0.15])[(time_s / SYLLABLE_S).astype(int)]  # voiced, noise, pause
    envelope = np.sin(np.pi * np.mod(time_s / SYLLABLE_S, 1.0)) ** 0.7
    voiced = _harmonics(phase, rng)
    noise = rng.standard_normal(samples)
    signal = envelope * (0.25 * voiced * (kind == 0) + 0.06 * noise * (kind == 1)) + FLOOR * rng.standard_normal(
        samples
    )
    return np.clip(signal, -1.0, 1.0).astype(np.float32)


def _harmonics(phase: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Sixteen harmonics with a falling spectrum and two formant-like bumps."""
    order = np.arange(1, 17)
    gains = order**-0.8 * (0.4 + np.exp(-((order - 4) ** 2) / 4.0) + 0.6 * np.exp(-((order - 11) ** 2) / 6.0))
    offsets = rng.uniform(0, 2 * np.pi, len(order))
    voice = sum(g * np.sin(k * phase + o) for k, g, o in zip(order, gains, offsets, strict=True))
    return np.asarray(voice) / gains.sum()
