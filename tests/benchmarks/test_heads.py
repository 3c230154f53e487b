"""``benchmarks.heads`` on a folder of seconds: what the pages quote comes out of it, of the test split."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks import heads

ROOT = Path(__file__).resolve().parents[2]
SETS = ("libri_speakers", "libri_transcribed", "ljtext_single")
FOLDERS = ("train_extra/coffee_commands", "train_extra/libri_two", "train_extra/german_kerstin")


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every set with two recordings of a second: one trains, one tests."""
    folder = tmp_path_factory.mktemp("speech")
    wave, rate = soundfile.read(ROOT / "demo" / "speech" / "ada-1.flac", dtype="float32")
    for name in ("keywords_pv", *SETS, *FOLDERS):
        (folder / name).mkdir(parents=True)
        for i, split in enumerate(("train", "test")):
            soundfile.write(folder / name / f"{split}.wav", wave[i * 4000 : i * 4000 + 16_000], rate)
        with (folder / name / "manifest.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("file", "speaker", "text_or_label", "split"))
            label = "alexa" if name == "keywords_pv" else "some words"
            rows.writerows((f"{split}.wav", f"{name}-{split}", label, split) for split in ("train", "test"))
    for name in ("float", "int8"):
        shutil.copytree(ROOT / "runtime" / "bundles" / "pocket-stream", folder / name)
    return folder


def run(monkeypatch: pytest.MonkeyPatch, speech: Path, what: str, *words: str) -> dict:
    bundles = [str(speech / name) for name in ("float", "int8")]
    command = ["heads", what, str(speech), *bundles, *words, "--json", str(speech / "result.json")]
    monkeypatch.setattr(sys, "argv", command)
    assert heads.main() == 0
    result = json.loads((speech / "result.json").read_text())
    assert result["measured"] == what and result["machine"]
    return result["results"]


def test_words_are_counted(monkeypatch: pytest.MonkeyPatch, speech: Path) -> None:
    results = run(monkeypatch, speech, "spot", "--head", "keywords")
    assert set(results) == {"float", "int8"}
    one = results["float"]
    assert one["recordings"] == 1 and one["processor_seconds_per_second"] > 0
    assert one["other_speech_hours"] > 0
    assert set(one["by_set"]) == {"divided by speaker for the head", *heads.UNSEEN}
    assert results["int8"]["against float"]["agreement"] == 1, "the same bundle twice"


def test_units_are_compared(monkeypatch: pytest.MonkeyPatch, speech: Path) -> None:
    results = run(monkeypatch, speech, "agreement", "--head", "units")
    entry = results["units"]["int8"]
    assert entry["agreement"] == 1 and entry["seen"]["edits_without_repeats"] == 0 and entry["frames"] == 49
    assert np.isfinite(entry["seen"]["units_of_source"])
