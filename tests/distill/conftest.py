"""A small random teacher and folders of synthetic sound, made once; how runs are killed and compared."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

# rd-distill that waits after step 40, so that a run cannot end before it is killed, however slow the machine is.
WAITING = """
import signal, sys
from reuse_distill.distill.cli import main
from reuse_distill.distill.training.run_folder import MetricsFile

add = MetricsFile.add

def adding(self, row):
    add(self, row)
    while row["step"] == 40:
        signal.pause()

MetricsFile.add = adding
sys.exit(main())
"""


def sound(seconds: float, seed: int, rate: int = 16_000) -> np.ndarray:
    """Harmonic tones with a wandering pitch and loudness, and some noise."""
    generator = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    pitch = 120 + 60 * np.sin(2 * np.pi * generator.uniform(0.5, 2) * time + seed)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    tone = sum(np.sin(k * phase) / k for k in range(1, 8))
    loud = 0.5 + 0.5 * np.sin(2 * np.pi * generator.uniform(1, 4) * time)
    return (0.1 * tone * loud + 0.01 * generator.standard_normal(len(time))).astype(np.float32)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small tensors: more threads only wait for each other, and one sums in one order."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_seed() -> None:
    """What a test draws does not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def make_sound():
    return sound


@pytest.fixture(scope="session")
def tiny_teacher(random_hubert: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_hubert(tmp_path_factory.mktemp("teacher") / "random-hubert", seed=3)


@pytest.fixture(scope="session")
def audio_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audio")
    for number, seconds in enumerate((0.6, 0.8, 1.1, 0.5, 0.9, 1.3, 0.7, 1.0)):
        soundfile.write(folder / f"{number}.wav", sound(seconds, number), 16_000)
    return folder


@pytest.fixture(scope="session")
def small_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe for the 2-layer teacher that takes milliseconds a step; dropout is on."""
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(
        """
summary: for tests
student:
  preset: tiny
  changes: {conv_layers: [[8, 10, 5], [8, 1, 1], [8, 3, 2], [8, 3, 2], [8, 3, 2], [8, 3, 2], [32, 1, 1], [32, 2, 2],
            [32, 2, 2]], width: 32, ffn_width: 32, heads: 4, layers: 2, reuse_layers: [2], head_width: 32}
training: {steps: 8, checkpoint_every: 2, seed: 5}
data: {batch_size: 2, batch_seconds: 4.0, crop_seconds: 0.8, buckets: 2}
optimiser: {lr: 2.0e-3}
"""
    )
    return path


@pytest.fixture(scope="session")
def librispeech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two speakers of a small subset, laid out as LibriSpeech is."""
    root = tmp_path_factory.mktemp("LibriSpeech")
    for speaker, chapter in ((84, 121), (174, 50)):
        folder = root / "dev-clean" / str(speaker) / str(chapter)
        folder.mkdir(parents=True)
        names = [f"{speaker}-{chapter}-{n:04d}" for n in range(3)]
        for n, name in enumerate(names):
            soundfile.write(folder / f"{name}.flac", sound(0.6 + 0.1 * n, speaker + n), 16_000)
        (folder / f"{speaker}-{chapter}.trans.txt").write_text("".join(f"{name} WORDS OF {name}\n" for name in names))
    return root


@pytest.fixture(scope="session")
def shards(librispeech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The utterances of ``librispeech`` in three shards."""
    pytest.importorskip("lhotse")
    from reuse_distill.distill.cli import main

    folder = tmp_path_factory.mktemp("prepared") / "shar"
    assert main(["prepare", str(librispeech), "--shar", str(folder), "--shard-size", "2"]) == 0
    return folder


@pytest.fixture(scope="session")
def losses() -> Callable[[Path], list[dict[str, float]]]:
    """The rows of a run's metrics.csv without its times."""
    from reuse_distill.distill.training.run_folder import read_metrics

    return lambda folder: [{k: v for k, v in row.items() if k != "wall_s"} for row in read_metrics(folder)]


@pytest.fixture
def environment() -> dict[str, str]:
    """Of programs that a test starts."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def kill_a_run(tmp_path: Path, environment: dict[str, str]) -> Callable[[Sequence[str], Path], None]:
    """Start ``rd-distill`` with arguments; SIGKILL for all its processes once it has saved its state in a folder."""

    def killed(arguments: Sequence[str], output: Path) -> None:
        script = tmp_path / "waiting.py"
        script.write_text(WAITING)
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(
            [sys.executable, str(script), *arguments], env=environment, start_new_session=True, **quiet
        )
        try:
            while not (output / "state.pt").exists():
                assert process.poll() is None, "the run ended by itself"
                time.sleep(0.02)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    return killed
