"""The shipped speech: what its README and manifest say."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from reuse_distill.runtime.audio.audio_files import read_audio

FOLDER = Path(__file__).resolve().parents[2] / "demo" / "speech"


def manifest() -> list[dict[str, str]]:
    with (FOLDER / "manifest.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_manifest_names_every_file_once() -> None:
    named = [row["file"] for row in manifest()]
    assert sorted(named) == sorted(path.name for path in FOLDER.glob("*.flac"))


def test_speakers_are_in_one_split_only() -> None:
    splits: dict[str, set[str]] = {}
    for row in manifest():
        splits.setdefault(row["speaker"], set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert set.union(*splits.values()) == {"train", "test"}


def test_files_are_16_khz_mono_speech_of_the_stated_length() -> None:
    seconds = 0.0
    for path in sorted(FOLDER.glob("*.flac")):
        audio = read_audio(path)
        assert audio.sample_rate_hz == 16_000
        assert audio.samples.ndim == 1
        assert 0.2 < float(np.abs(audio.samples).max()) < 0.3
        seconds += len(audio.samples) / 16_000
    assert 60 <= seconds <= 100
    assert sum(path.stat().st_size for path in FOLDER.glob("*.flac")) < 1_500_000
