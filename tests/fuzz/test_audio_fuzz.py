"""Damaged audio files of every container that is read."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import soundfile
from reuse_distill.runtime.audio.audio_files import read_audio

from .mutations import damage_bytes

KINDS = (
    ("WAV", "PCM_16", 1), ("WAV", "FLOAT", 2), ("WAV", "PCM_24", 1), ("WAV", "ALAW", 1), ("FLAC", "PCM_16", 1),
    ("FLAC", "PCM_24", 2), ("OGG", "VORBIS", 1), ("OGG", "OPUS", 1), ("AIFF", "PCM_16", 1), ("AU", "PCM_16", 1),
    ("CAF", "PCM_16", 1), ("W64", "PCM_16", 1), ("RF64", "PCM_16", 1), ("MP3", "MPEG_LAYER_III", 1),
)  # fmt: skip


def encoded(format: str, subtype: str, channels: int) -> bytes:
    memory = io.BytesIO()
    wave = 0.3 * np.sin(np.arange(1600 * channels) / 9).reshape(-1, channels)
    soundfile.write(memory, wave, 16_000, format=format, subtype=subtype)
    return memory.getvalue()


def test_audio_files(tmp_path: Path, fuzz) -> None:
    bases = [encoded(*kind) for kind in KINDS]
    names = [tmp_path / f"a.{kind[0].lower()}" for kind in KINDS]

    def case(rng: np.random.Generator) -> None:
        kind = rng.integers(len(KINDS))
        names[kind].write_bytes(damage_bytes(bases[kind], rng))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # probably truncated, channels that cancel
            audio = read_audio(names[kind])
        assert np.isfinite(audio.samples).all()

    outcomes = fuzz(case, cases=300)
    assert 0 < outcomes.refused < outcomes.cases
