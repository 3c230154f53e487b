"""One recording of 73 s calibrated with 6 s of it, "6.0 s that are not silent"; and a long list was searched per entry.

``../shared/faults/06_one_long_calibration_file``; 28,000 recordings took 150 s to be distinguished from those held out.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from reuse_distill.export.quantise import calibration
from reuse_distill.export.quantise.calibration import read_calibration
from reuse_distill.runtime.audio.recordings import Recording
from reuse_distill.runtime.errors import RdError


def noise(file: Path, seconds: float) -> Path:
    soundfile.write(file, 0.1 * np.random.default_rng(0).standard_normal(int(16_000 * seconds)), 16_000)
    return file


def test_one_long_recording_is_enough(tmp_path: Path) -> None:
    found = read_calibration(noise(tmp_path / "all.wav", 73))
    assert found.seconds == pytest.approx(73, abs=0.1)
    assert {len(clip) // 16_000 for clip in found.clips} == {6}


def test_the_message_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(RdError, match=r"15\.0 s that are not silent, 20 s are needed"):
        read_calibration(noise(tmp_path / "short.wav", 15))


def test_long_recordings_among_short_ones_count_in_full(tmp_path: Path) -> None:
    for index, seconds in enumerate([14.0, 0.5, 0.5, 0.5, 7.0]):
        noise(tmp_path / f"{index}.wav", seconds)
    assert read_calibration(tmp_path).seconds == pytest.approx(22, abs=0.1)


def test_recordings_are_told_apart_by_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    recordings = [Recording(Path(f"{index}.wav")) for index in range(400)]
    compared = 0

    def equal(one: Recording, other: Any) -> bool:
        nonlocal compared
        compared += 1
        return one.path == other.path

    audio = SimpleNamespace(samples=np.full(16_000, 0.1, np.float32), sample_rate_hz=16_000)
    monkeypatch.setattr(Recording, "__eq__", equal)
    monkeypatch.setattr(calibration, "find_recordings", lambda _: recordings)
    monkeypatch.setattr(calibration, "read_audio", lambda _: audio)
    found = read_calibration("list.csv")
    assert [one.path.stem for one in found.held_out[:2]] == ["3", "7"]
    assert compared <= len(recordings)
