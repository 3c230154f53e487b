"""The drift of a sliding window was measured on clips hardly longer than the window, and stated as 0.998.

``../shared/faults/03_window_drift``: speech of 30 s has 0.985, frames of it far less.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from reuse_distill.export.capture.sliding_window import CapturedWindow, drift, sliding
from reuse_distill.export.parity.reference import long_speech, synthetic_clips
from reuse_distill.export.spec import WindowContext
from reuse_distill.runtime.equivalence.parity import frame_cosines
from reuse_distill.student import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
WINDOW = WindowContext()
SECONDS = 20


@pytest.mark.slow
def test_the_stated_drift_is_no_better_than_that_of_long_speech() -> None:
    """Of an export without recordings, against the demo's speech."""
    student = load_checkpoint(ROOT / "student" / "weights" / "tiny").eval()
    stated = drift(student, student, None, WINDOW, long_speech(synthetic_clips())[0], "heads")
    files = sorted((ROOT / "demo" / "speech").glob("*.flac"))
    wave = np.concatenate([soundfile.read(file, dtype="float32")[0] for file in files])[: 16_000 * SECONDS]
    with torch.no_grad():
        whole = student(torch.from_numpy(wave)[None]).projections[-1].numpy()
    module = CapturedWindow(student, WINDOW, (student.config.layers,), "heads")
    cosines = frame_cosines(sliding(module, wave), whole)
    assert stated["seconds"] >= 30
    assert stated["exported"]["mean_cosine"] <= cosines.mean() + 0.005
    assert stated["exported"]["p01_cosine"] <= np.quantile(cosines, 0.01) + 0.02


def test_recordings_that_are_long_enough_are_measured_alone() -> None:
    clips = [np.ones(16_000 * 20, np.float32), np.ones(16_000 * 12, np.float32)]
    assert long_speech(clips) == (clips, False)
    extended, was = long_speech(clips[:1])
    assert was
    assert extended[0] is clips[0]
    assert 30 * 16_000 <= sum(map(len, extended)) < 31 * 16_000


def test_a_point_of_a_curve_is_measured_on_windows_all_over_the_audio() -> None:
    student = load_checkpoint(ROOT / "student" / "weights" / "tiny").eval()
    window = WindowContext(10, 4, 5)
    module = CapturedWindow(student, window, (student.config.layers,), "heads")
    wave = np.random.default_rng(0).standard_normal(320 * 50 + 80).astype(np.float32) * 0.1
    every, some = sliding(module, wave), sliding(module, wave, every=3)
    frames = np.flatnonzero(np.arange(50) // 4 % 3 == 0)
    np.testing.assert_allclose(some, every[:, frames], atol=1e-4)
