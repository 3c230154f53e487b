"""MelHuBERT as the study's tools pruned it, and small students whose maps are reused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from reuse_distill.student import Student, preset
from reuse_distill.student.foreign import ForeignCheckpoint, read_foreign, student_of
from reuse_distill.student.whisper import build_student


@pytest.fixture(scope="session")
def study(golden_dir: Path) -> dict[str, Any]:
    """Everything that the study's own code computed: arrays by name, ``pruning`` as JSON, ``masks``."""
    folder, arrays = golden_dir / "melhubert_tiny", {}
    for name in ("expected_melhubert.npz", "expected_pruning.npz", "weight_pruning_30_masks.npz"):
        with np.load(folder / name, allow_pickle=False) as file:
            arrays |= dict(file)
    return {**arrays, "pruning": json.loads((folder / "pruning.json").read_text())}


@pytest.fixture(scope="session")
def open_melhubert(
    golden_dir: Path, study: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], ForeignCheckpoint]:
    folder = tmp_path_factory.mktemp("melhubert")
    np.save(folder / "mean-std.npy", np.stack([study["mean"], study["std"]]))

    def read(name: str) -> ForeignCheckpoint:
        shutil.copy(golden_dir / "melhubert_tiny" / name, folder / name)
        return read_foreign(folder / name)

    return read


@pytest.fixture(scope="session")
def melhubert(open_melhubert: Callable[[str], ForeignCheckpoint]) -> Student:
    return student_of(open_melhubert("melhubert_tiny_20ms.ckpt"))


def toy(name: str = "tiny-stream", **changes: Any) -> Student:
    """A small student whose attention is not flat."""
    sizes = {
        "width": 32,
        "ffn_width": 48,
        "heads": 4,
        "layers": 4,
        "reuse_layers": (2, 4),
        "conv_layers": ((8, 10, 5), (8, 1, 1), *((8, 3, 2),) * 4, (32, 1, 1), *((32, 2, 2),) * 2),
        "head_width": 24,
        "position_groups": 4,
        "position_kernel": 16,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        student = build_student(preset(name, **{**sizes, **changes})).eval()
        with torch.no_grad():
            for key, value in student.named_parameters():
                if ".layers." in key and value.ndim == 2:
                    value.mul_(8)
                elif value.ndim == 1:
                    value.add_(0.1 * torch.randn_like(value))
    return student.requires_grad_(False)


@pytest.fixture(scope="session")
def make_toy() -> Callable[..., Student]:
    return toy


@pytest.fixture
def small() -> Student:
    return toy()


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, random = tmp_path_factory.mktemp("audio"), np.random.default_rng(0)
    for number in range(4):
        soundfile.write(folder / f"{number}.wav", 0.1 * random.standard_normal(16_000), 16_000)
    return folder
