"""What the demo trains on is never what it checks with."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile
from reuse_distill.runtime.errors import RdError

from demo import data


def write_folder(folder: Path, rows: list[dict[str, str]], *, manifest: bool = True) -> Path:
    folder.mkdir(parents=True)
    for number, row in enumerate(rows):
        samples = np.sin(np.arange(8000 + 100 * number) / 20.0).astype(np.float32) * 0.1
        soundfile.write(folder / row["file"], samples, 16_000)
    if manifest:
        with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return folder


def column(path: Path, name: str) -> set[str]:
    with path.open(newline="", encoding="utf-8") as stream:
        return {row[name] for row in csv.DictReader(stream)}


def names(path: Path) -> set[str]:
    return {Path(file).name for file in column(path, "file")}


def test_shipped_speech_holds_two_voices_out(tmp_path: Path) -> None:
    found = data.prepare(None, tmp_path)
    assert column(found.check, "speaker") == {"gus", "hana"}
    assert not column(found.train, "speaker") & {"gus", "hana"}
    assert (found.trained, found.checked, found.left_out) == (24, 8, 0)
    assert found.held_out_by == "the manifest's split, no speaker in both"
    assert str(found.longest.resolve()) in column(found.check, "file")


def test_split_of_the_manifest_that_shares_speakers_says_so(tmp_path: Path) -> None:
    rows = [
        {"file": f"{i}.wav", "speaker": "a" if i < 3 else "b", "split": "test" if i in (0, 3) else "train"}
        for i in range(6)
    ]
    found = data.prepare(write_folder(tmp_path / "audio", rows), tmp_path / "out")
    assert names(found.check) == {"0.wav", "3.wav"}
    assert found.held_out_by == "the manifest's split, 2 speakers in both"


def test_speakers_without_a_split_are_held_out_whole(tmp_path: Path) -> None:
    rows = [{"file": f"{i}.wav", "speaker": f"s{i // 2:02d}"} for i in range(16)]
    found = data.prepare(write_folder(tmp_path / "audio", rows), tmp_path / "out")
    assert column(found.check, "speaker") == {"s05"}
    assert "s05" not in column(found.train, "speaker")
    assert found.held_out_by.startswith("speaker")


def test_plain_folder_is_split_by_recording(tmp_path: Path) -> None:
    rows = [{"file": f"{i:02d}.wav"} for i in range(13)]
    found = data.prepare(write_folder(tmp_path / "audio", rows, manifest=False), tmp_path / "out")
    assert names(found.check) == {"05.wav", "11.wav"}
    assert names(found.train) == {row["file"] for row in rows} - {"05.wav", "11.wav"}
    assert found.held_out_by == "recording: speakers are unknown"


def test_large_data_is_thinned_evenly_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "MOST_TRAINED", 4)
    monkeypatch.setattr(data, "MOST_CHECKED", 1)
    rows = [{"file": f"{i:02d}.wav"} for i in range(24)]
    found = data.prepare(write_folder(tmp_path / "audio", rows, manifest=False), tmp_path / "out")
    assert (found.trained, found.checked, found.left_out) == (4, 1, 19)
    assert names(found.train) == {"00.wav", "06.wav", "12.wav", "18.wav"}


def test_one_recording_is_an_error(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "audio", [{"file": "0.wav"}], manifest=False)
    with pytest.raises(RdError, match="one recording only"):
        data.prepare(folder, tmp_path / "out")


def test_calibration_is_a_part_of_what_is_trained_on_and_long_enough(tmp_path: Path) -> None:
    found = data.prepare(None, tmp_path)
    assert names(found.calibration) < names(found.train)
    assert len(column(found.calibration, "speaker")) == 6


def test_calibration_takes_no_more_than_it_needs() -> None:
    recordings = [data.Recording(Path(f"{i}.wav")) for i in range(100)]
    assert len(data.enough(recordings, {one.path: 60.0 for one in recordings})) == 8
    assert len(data.enough(recordings, {one.path: 1.0 for one in recordings})) == 48
    assert len(data.enough(recordings, {one.path: 0.1 for one in recordings})) == 100
