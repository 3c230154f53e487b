"""A small random teacher and a folder of synthetic sound, made once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch


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


@pytest.fixture(scope="session")
def make_sound():
    return sound


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from distill.teachers.tiny import make_teacher

    return make_teacher(tmp_path_factory.mktemp("teacher") / "random-hubert", seed=3, layers=2, width=32, conv_width=16)


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
