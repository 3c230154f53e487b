"""Stored outputs of the public reference implementation, and the same checkpoints in our student."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from reuse_distill.student import Student
from reuse_distill.student.checkpoints.public import load_public_checkpoint


@dataclass(frozen=True)
class Case:
    """One tiny public checkpoint with what the reference computed from it."""

    family: str
    student: Student
    stored: dict[str, np.ndarray]
    waves: dict[str, torch.Tensor]  # w0, w1: [T]

    @property
    def bound(self) -> float:
        """float32 on another machine and another torch; the smallest wrong variant differs by 7e-3."""
        return 1e-4 if self.family == "starhubert_tiny" else 5e-5

    def layers(self, prefix: str) -> list[np.ndarray]:
        return [self.stored[f"{prefix}_layer_results_{layer}"] for layer in range(4)]

    def projections(self, prefix: str) -> list[np.ndarray]:
        """The reference returns the last head's output as ``x``."""
        if self.family == "starhubert_tiny":
            return []
        return [*(self.stored[f"{prefix}_projections_{layer}"] for layer in range(3)), self.stored[f"{prefix}_x"]]

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Both utterances, zero padded: ([2, T], lengths [2])."""
        lengths = torch.tensor([len(self.waves["w0"]), len(self.waves["w1"])])
        return torch.nn.utils.rnn.pad_sequence(list(self.waves.values()), batch_first=True), lengths


@pytest.fixture(scope="session")
def all_cases(golden_dir: Path) -> dict[str, Case]:
    soundfile = pytest.importorskip("soundfile")
    waves = {
        name: torch.from_numpy(soundfile.read(golden_dir / f"inputs/{name}.wav", dtype="float32")[0])
        for name in ("w0", "w1")
    }
    cases = {}
    for family in ("armhubert_tiny", "maskhubert_tiny", "starhubert_tiny"):
        folder = golden_dir / family
        with np.load(folder / "expected.npz", allow_pickle=False) as arrays:
            stored = dict(arrays)
        student = load_public_checkpoint(next(folder.glob("*.ckpt")), folder / "config.yaml")
        cases[family] = Case(family, student.requires_grad_(False), stored, waves)
    return cases


@pytest.fixture(params=["armhubert_tiny", "maskhubert_tiny", "starhubert_tiny"])
def case(request: pytest.FixtureRequest, all_cases: dict[str, Case]) -> Case:
    return all_cases[request.param]


@pytest.fixture(params=["armhubert_tiny", "maskhubert_tiny"])
def masking_case(request: pytest.FixtureRequest, all_cases: dict[str, Case]) -> Case:
    return all_cases[request.param]


@pytest.fixture
def reusing_case(all_cases: dict[str, Case]) -> Case:
    return all_cases["armhubert_tiny"]
