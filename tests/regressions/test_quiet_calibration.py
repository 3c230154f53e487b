"""int8 calibrated with quiet speech was written as certified, and lost the features of speech at its usual level.

``../shared/faults/02_quiet_calibration``: -61 dBFS gave a cosine of 0.92, -71 dBFS 0.35.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from reuse_distill.devices.measuring.speech import speech_like
from reuse_distill.export.parity.reference import reference_features, selftest_arrays, write_selftest
from reuse_distill.export.parity.slices import LEVELS_DBFS, Compared, clips_at_levels, level_dbfs, level_row
from reuse_distill.export.parity.verify import check, measure, within
from reuse_distill.export.rd_export import main
from reuse_distill.export.spec import ExportSpec, Streaming
from reuse_distill.export.targets import Target
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.equivalence.parity import frame_cosines
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import ChunkContext, Student, load_checkpoint, preset

ROOT = Path(__file__).resolve().parents[2]
STUDENT = ROOT / "student" / "weights" / "pocket-stream"


@pytest.mark.slow
def test_what_is_written_keeps_its_bound_at_the_usual_level(tmp_path: Path) -> None:
    speech, quiet = sorted((ROOT / "demo" / "speech").glob("*.flac"))[:4], tmp_path / "quiet"
    quiet.mkdir()
    waves = [soundfile.read(file, dtype="float32")[0] for file in speech]
    for file, wave in zip(speech, waves, strict=True):
        soundfile.write(quiet / f"{file.stem}.wav", 0.01 * wave, 16_000, subtype="FLOAT")
    words = [str(STUDENT), "--mode", "streaming", "--precision", "int8", "--calibration", str(quiet)]
    words += ["--accept-narrow-calibration", "--output", str(tmp_path / "bundle")]
    messages = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(messages):
        status = main(words)
    if status != 0:
        assert not (tmp_path / "bundle").exists()
        assert ", the bound is 0.99" in messages.getvalue()  # at which level it shows first is the student's
        assert "as loud as that of users" in messages.getvalue()
        return
    wave = np.concatenate(waves)
    encoder, student = Encoder.load(tmp_path / "bundle", provider="cpu"), load_checkpoint(STUDENT).eval()
    with torch.no_grad():
        reference = student(torch.from_numpy(wave)[None], context=student.config.context).projections[-1][0].numpy()
    assert float(frame_cosines(encoder.extract(wave)[-1], reference).mean()) >= 0.99


class LevelBound(Target):
    """A target that computes the student, but for inputs that are louder than its calibration audio was."""

    precisions = ("int8",)

    def __init__(self, student: Student, highest_dbfs: float) -> None:
        self.student, self.highest_dbfs = student, highest_dbfs

    def run(self, bundle: Path, job: Any, wave: np.ndarray) -> np.ndarray:
        features = reference_features(self.student, job.spec, wave)
        return features if level_dbfs(wave) <= self.highest_dbfs else np.clip(features, -0.05, 0.05)


@pytest.mark.parametrize(("highest_dbfs", "refused"), [(0.0, None), (-30.0, -26)])
def test_quiet_recordings_that_check_do_not_hide_it(highest_dbfs: float, refused: int | None, tmp_path: Path) -> None:
    """Calibrated and checked on quiet speech: what saturates at the usual level is refused all the same."""
    torch.manual_seed(0)
    student = Student(preset("tiny-stream")).eval().requires_grad_(False)
    spec = ExportSpec("onnx", Streaming(ChunkContext(8, 128)), "int8", (6,), "heads")
    quiet = 0.01 * speech_like(24_000, seed=1)
    write_selftest(tmp_path / "selftest.npz", selftest_arrays(student, spec, quiet[:8_000]))
    geometry = SimpleNamespace(chunk_frames=8)
    job: Any = SimpleNamespace(spec=spec, folder=tmp_path, captured=SimpleNamespace(geometry=geometry), depth=6)
    parity = measure(LevelBound(student, highest_dbfs), job, student, [quiet])
    assert parity["measured"]["mean_cosine"] > 1 - 1e-9
    assert [row["level_dbfs"] for row in parity["slices"] if "level_dbfs" in row] == list(LEVELS_DBFS)
    parity["bound"] = {"mean_cosine": 0.99}
    assert within(parity) == (refused is None)
    if refused is not None:
        with pytest.raises(RdError, match=rf"on speech at {refused} dBFS, the bound is 0\.99\n\nhint: .*as loud as"):
            check(parity, precision="int8")


def test_clips_come_at_every_level_whatever_theirs_is() -> None:
    quiet = 1e-3 * np.random.default_rng(0).standard_normal(70_000).astype(np.float32)
    found = clips_at_levels([np.zeros(500, np.float32), quiet])
    assert tuple(found) == LEVELS_DBFS
    assert {len(clip) for clip in found.values()} == {64_000}
    for level, clip in found.items():
        assert level_dbfs(clip) == pytest.approx(level, abs=0.1)
    assert clips_at_levels([np.zeros(500, np.float32)]) == {}


def test_a_level_outside_the_bound_refuses_the_artifact() -> None:
    good = {"max_abs": 0.1, "mean_cosine": 0.999, "min_cosine": 0.99}
    rng = np.random.default_rng(1)
    wave, reference = rng.standard_normal(720).astype(np.float32), rng.standard_normal((1, 2, 8))
    same = level_row(-26, Compared(wave, reference, reference))
    other = level_row(-16, Compared(wave, rng.standard_normal((1, 2, 8)), reference))
    parity = {"bound": {"mean_cosine": 0.99}, "measured": good, "selftest": good, "slices": [same]}
    assert within(parity)
    parity["slices"] = [same, other]
    assert not within(parity)
    with pytest.raises(RdError, match=r"on speech at -16 dBFS, the bound is 0\.99"):
        check(parity, precision="int8")
