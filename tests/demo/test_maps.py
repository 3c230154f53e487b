"""The maps that the report shows are the student's own, and a reusing layer's is the one it took."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from reuse_distill.runtime.geometry import SAMPLE_RATE_HZ, frames_for
from reuse_distill.student import Student, preset, save_checkpoint

from demo.pictures import SECONDS, read_pair

SPEECH = Path(__file__).resolve().parents[2] / "demo" / "speech" / "gus-1.flac"


@pytest.mark.parametrize("mode", ["shared", "renormalised"])
def test_last_pair_of_the_student(tmp_path: Path, mode: str) -> None:
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "student", Student(preset("tiny", reuse_mode=mode)), provenance={}, training={})
    pair = read_pair(tmp_path / "student", SPEECH)
    frames = frames_for(int(SECONDS * SAMPLE_RATE_HZ))
    assert (pair.computing, pair.reusing) == (5, 6)
    assert pair.computed.shape == pair.reused.shape == (frames, frames)
    np.testing.assert_allclose(pair.computed.sum(axis=1), 1, atol=1e-5)
    assert pair.largest_difference == 0  # the map taken; what a renormalising layer makes of it comes after
