"""Parity where it is likely to break: on the quiet and on the loud frames, in noise, and at the levels of users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from reuse_distill.runtime.equivalence.parity import Difference, frame_cosines
from reuse_distill.runtime.geometry import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ, frames_for

NOISE_SNR_DB = 10.0
NOISE_SEED = 5
NOISY_CLIPS = 2
NOISY_SECONDS = 4.0
SILENCE_DB = -100.0  # the level of digital silence here
LEVELS_DBFS = (-36, -26, -16)  # root mean square of quiet, usual and loud speech as microphones give it


@dataclass(frozen=True)
class Compared:
    """One clip's features and its reference, both (N, F, W), and the level of every frame."""

    wave: np.ndarray  # (T,)
    features: np.ndarray
    reference: np.ndarray


def frame_levels_db(wave: np.ndarray) -> np.ndarray:
    """(T,) -> (F,): root mean square of the 400 samples of each frame, in dB of full scale."""
    frames = frames_for(len(wave))
    starts = HOP_SAMPLES * np.arange(frames)[:, None]
    power = np.square(wave[starts + np.arange(RECEPTIVE_FIELD_SAMPLES)], dtype=np.float64).mean(-1)
    return 10 * np.log10(np.maximum(power, 10 ** (SILENCE_DB / 10)))


def noisy_clips(clips: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The start of the longest clips with white noise from a seeded generator, 10 dB below the speech."""
    rng = np.random.default_rng(NOISE_SEED)
    longest = sorted(clips, key=len, reverse=True)[:NOISY_CLIPS]
    noisy = []
    for clip in longest:
        speech = clip[: int(NOISY_SECONDS * SAMPLE_RATE_HZ)]
        level = float(np.sqrt(np.square(speech).mean())) * 10 ** (-NOISE_SNR_DB / 20)
        noisy.append((speech + level * rng.standard_normal(len(speech))).astype(np.float32))
    return noisy


def level_dbfs(wave: np.ndarray) -> float:
    """Root mean square of ``wave`` (T,) in dB of full scale; digital silence has -100."""
    return float(10 * np.log10(max(np.square(wave, dtype=np.float64).mean(), 10 ** (SILENCE_DB / 10))))


def clips_at_levels(clips: Sequence[np.ndarray]) -> dict[int, np.ndarray]:
    """Level -> the loudest clip's start (4 s) at that level, cut at full scale; nothing where all clips are silent."""
    loudest = max(clips, key=level_dbfs)[: int(NOISY_SECONDS * SAMPLE_RATE_HZ)]
    own = level_dbfs(loudest)
    if own <= SILENCE_DB:
        return {}
    gains = {level: np.float32(10 ** ((level - own) / 20)) for level in LEVELS_DBFS}
    return {level: (gain * loudest).clip(-1, 1).astype(np.float32) for level, gain in gains.items()}


def level_row(level: int, clip: Compared) -> dict[str, Any]:
    """Parity of a clip that was brought to ``level`` dBFS."""
    every = np.ones(frames_for(len(clip.wave)), bool)
    name, of = f"{level} dBFS", f"the start of the loudest clip, brought to {level} dBFS"
    return {"slice": name, "of": of, "level_dbfs": level, **_figures([clip], every)}


def slice_rows(clips: Sequence[Compared], noisy: Sequence[Compared]) -> list[dict[str, Any]]:
    """Parity of the quietest third of all frames, of the loudest third, and of the noisy clips."""
    levels = np.concatenate([frame_levels_db(clip.wave) for clip in clips])
    low, high = np.quantile(levels, [1 / 3, 2 / 3])
    soft, loud = levels <= low, levels >= high
    rows = [
        {"slice": "soft", "of": f"the quietest third of the frames, up to {low:.0f} dBFS", **_figures(clips, soft)},
        {"slice": "loud", "of": f"the loudest third of the frames, from {high:.0f} dBFS", **_figures(clips, loud)},
    ]
    if noisy:
        which = "the longest clip" if len(noisy) == 1 else f"the {len(noisy)} longest clips"
        of = f"the start of {which} with white noise at {NOISE_SNR_DB:g} dB SNR, seed {NOISE_SEED}"
        every = np.ones(sum(frames_for(len(clip.wave)) for clip in noisy), bool)
        rows.append({"slice": "noisy", "of": of, **_figures(noisy, every)})
    return rows


def _figures(clips: Sequence[Compared], chosen: np.ndarray) -> dict[str, float]:
    """Of the frames of all clips, one after the other, that are ``chosen``."""
    features = np.concatenate([clip.features for clip in clips], axis=1)[:, chosen].astype(np.float64)
    reference = np.concatenate([clip.reference for clip in clips], axis=1)[:, chosen].astype(np.float64)
    cosines = frame_cosines(features, reference)
    return {
        "frames": int(chosen.sum()),
        "max_abs": float(np.abs(features - reference).max()),
        "mean_cosine": float(cosines.mean()),
        "min_cosine": float(cosines.min()),
    }


def worst_figures(rows: Sequence[Difference]) -> dict[str, float]:
    """Of several clips: the largest difference, the mean cosine over all frames, and the worst frame."""
    frames = sum(row.frames for row in rows)
    return {
        "max_abs": max(row.max_abs for row in rows),
        "mean_cosine": sum(row.mean_cosine * row.frames for row in rows) / frames,
        "min_cosine": min(row.min_cosine for row in rows),
    }


def worst_clip(rows: Sequence[Difference], names: Sequence[str], *, by_size: bool) -> dict[str, Any]:
    """The recording that is furthest from its reference: by its largest difference, or by its mean frame cosine."""
    distance = [row.max_abs if by_size else 1 - row.mean_cosine for row in rows]
    index = int(np.argmax(distance))
    name = names[index] if index < len(names) else f"clip {index + 1}"
    return {"clip": index + 1, "name": name, "max_abs": rows[index].max_abs, "mean_cosine": rows[index].mean_cosine}
