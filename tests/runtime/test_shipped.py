"""The bundle that rd-stream uses where none is named."""

from __future__ import annotations

import json
import re
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import soundfile
from reuse_distill.runtime.bundle_format.bundle import SHIPPED, read_bundle
from reuse_distill.runtime.encoder import Encoder
from reuse_distill.runtime.equivalence.selftest import read_expected
from reuse_distill.runtime.rd_stream import main

SPEECH = Path(__file__).resolve().parents[2] / "demo" / "speech"


def test_it_is_whole_small_and_keeps_its_bound() -> None:
    encoder = Encoder.load(SHIPPED)  # verifies every hash
    assert encoder.manifest.kind == "streaming" and encoder.manifest.graph_proof is not None
    assert sum(entry.size_bytes for entry in encoder.manifest.files.values()) < 8_000_000
    assert encoder.selftest().passed


def test_its_recording_is_synthetic_speech_of_this_project() -> None:
    wave = read_expected(read_bundle(SHIPPED)).wave
    clips = [soundfile.read(path, dtype="float32")[0] for path in sorted(SPEECH.glob("*.flac"))]
    assert any(len(clip) == len(wave) and np.allclose(clip, wave, atol=1e-6) for clip in clips)


@pytest.mark.parametrize("words", [["{audio}"], ["{audio}", "{bundle}"]])
def test_a_file_needs_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    names = {"audio": SPEECH / "gus-1.flac", "bundle": SHIPPED}
    assert main([*(word.format(**names) for word in words), "--output", str(tmp_path / "out.npy")]) == 0
    samples, rate_hz = soundfile.read(names["audio"], dtype="float32")
    assert np.array_equal(np.load(tmp_path / "out.npy"), Encoder.load(SHIPPED).extract(samples, rate_hz))
    said = "" if len(words) == 2 else "bundle: pocket-stream, shipped with this program; name a BUNDLE for another\n"
    assert capsys.readouterr().err == said


def test_units_and_keywords_need_no_bundle_either(capsys: pytest.CaptureFixture[str]) -> None:
    """Words of the set are not in the demo's speech: nothing is detected there. Units are in every frame."""
    assert main([str(SPEECH / "gus-1.flac"), "--head", "units", "--output", "jsonl"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    encoder = Encoder.load(SHIPPED)
    rows = encoder.frames(soundfile.read(SPEECH / "gus-1.flac", dtype="float32")[0]).heads
    assert [event["label"] for event in events] == [str(u) for u, _ in groupby(rows["units"][:, 0])]
    assert rows["keywords"].shape == (len(rows["units"]), 25) and np.allclose(rows["keywords"].sum(1), 1, atol=1e-4)
    assert main([str(SPEECH / "gus-1.flac"), "--head", "keywords", "--output", "jsonl"]) == 0
    assert capsys.readouterr().out == ""


def test_its_manifest_names_no_place_of_a_machine() -> None:
    text = (SHIPPED / "manifest.json").read_text(encoding="utf-8")
    assert not re.search(r'"/|/(?:home|tmp|work|root)/', text)
