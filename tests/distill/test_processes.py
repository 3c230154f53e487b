"""Runs in processes of their own: killed and resumed, and two processes that train as one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from distill.cli import main
from distill.training.state import load_state, read_metrics


def command(recipe: Path, teacher: Path, data: Path, output: Path, *more: str) -> list[str]:
    paths = ["--teacher", str(teacher), "--data", str(data), "--output", str(output), "--device", "cpu"]
    return [sys.executable, "-m", "distill.cli", "run", str(recipe), *paths, *more]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


def losses(folder: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "wall_s"} for row in read_metrics(folder)]


def test_a_killed_run_resumed_equals_the_uninterrupted_one(
    tiny_teacher: Path, audio_folder: Path, small_recipe: Path, tmp_path: Path
) -> None:
    """SIGKILL at whatever step the run has reached; some of its steps are lost and done again."""
    more = ("--steps", "150", "training.checkpoint_every=7")
    run = command(small_recipe, tiny_teacher, audio_folder, tmp_path / "killed", *more)
    process = subprocess.Popen(run, env=environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed/state.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(float(np.random.default_rng().uniform(0, 0.4)))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it was killed"
    killed_at = load_state(tmp_path / "killed")["step"]
    assert 0 < killed_at < 150
    assert main([*run[3:], "--resume"]) == 0
    assert main(command(small_recipe, tiny_teacher, audio_folder, tmp_path / "whole", *more)[3:]) == 0
    np.testing.assert_equal(losses(tmp_path / "killed"), losses(tmp_path / "whole"))
    weights = [(tmp_path / name / "student/model.safetensors").read_bytes() for name in ("killed", "whole")]
    assert weights[0] == weights[1]


def test_two_processes_are_one_with_the_doubled_batch(
    tiny_teacher: Path, audio_folder: Path, small_recipe: Path, tmp_path: Path
) -> None:
    """DDP with gloo: losses, gradient norms and weights as from one process that accumulates two batches."""
    more = ("--steps", "4", "data.crop_seconds=0")
    two = command(small_recipe, tiny_teacher, audio_folder, tmp_path / "two", *more, "--devices", "2")
    one = command(small_recipe, tiny_teacher, audio_folder, tmp_path / "one", *more, "training.accumulate=2")
    result = subprocess.run(two, env=environment(), capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    assert main(one[3:]) == 0
    a, b = (losses(tmp_path / name) for name in ("two", "one"))
    assert len(a) == len(b) == 4
    for two_row, one_row in zip(a, b, strict=True):
        for key in one_row:
            assert two_row[key] == pytest.approx(one_row[key], rel=2e-4), key
