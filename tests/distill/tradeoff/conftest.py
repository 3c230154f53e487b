"""A toy student, two labels of sound, and artifacts that are the torch student itself: exports have their own tests."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from reuse_distill.distill.tradeoff import point_stages, tradeoff_run
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student, load_checkpoint, preset, save_checkpoint

SIZES = {
    "width": 32,
    "ffn_width": 48,
    "heads": 4,
    "layers": 2,
    "reuse_layers": (2,),
    "conv_layers": ((8, 10, 5), (8, 1, 1), *((8, 3, 2),) * 4, (32, 1, 1), *((32, 2, 2),) * 2),
    "head_width": 24,
    "position_groups": 4,
    "position_kernel": 16,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        student = Student(preset("tiny-stream", **SIZES)).eval()
    for layer in student.encoder.layers:  # as loud as in a trained student: initial units hardly move the features
        layer.fc2.weight.data.mul_(20)
    return save_checkpoint(tmp_path_factory.mktemp("student") / "toy", student)


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of low and high tones, to train on and to test with."""
    folder, random = tmp_path_factory.mktemp("tones"), np.random.default_rng(0)
    lines = ["file,speaker,label,split"]
    for number in range(24):
        pitch = (200, 1500)[number % 2] * random.uniform(0.8, 1.2)
        wave = 0.1 * np.sin(2 * np.pi * pitch * np.arange(4800) / 16_000) + 0.01 * random.standard_normal(4800)
        soundfile.write(folder / f"{number}.wav", wave, 16_000)
        lines.append(f"{number}.wav,unknown,{('low', 'high')[number % 2]},{'train' if number < 14 else 'test'}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder / "manifest.csv"


class TorchEncoder:
    """Stands for ``Encoder``: the features of the checkpoint that the artifact was made of."""

    def __init__(self, folder: Path) -> None:
        self.student = load_checkpoint(Path((folder / "student.txt").read_text()))

    def extract(self, samples: np.ndarray, rate: int = 16_000) -> np.ndarray:
        with torch.no_grad():
            wave = torch.from_numpy(np.array(samples))[None]
            return self.student(wave, context=self.student.config.context).projections[-1][0].numpy()


@pytest.fixture
def without_export(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No export: a bundle's folder names its student. The list fills with the points that were exported."""
    exported: list[str] = []

    def export(student: Path, folder: Path, grid: object, point: object) -> None:
        if point.precision == "int8":
            raise RdError("rd-export: products of 8 bits overflow")
        folder.mkdir()
        (folder / "student.txt").write_text(str(student))
        exported.append(point.name)

    def bundle(folder: Path) -> SimpleNamespace:
        weights = (Path((folder / "student.txt").read_text()) / "model.safetensors").read_bytes()
        manifest = SimpleNamespace(
            graph_proof="proven", kind="streaming", artifact_bytes=len(weights),
            artifact_sha256=str(hash(weights)),            geometry=SimpleNamespace(chunk_frames=8),
        )  # fmt: skip
        return SimpleNamespace(path=folder, manifest=manifest)

    loader = SimpleNamespace(load=lambda folder, threads: TorchEncoder(folder))
    monkeypatch.setattr(point_stages, "export", export)
    monkeypatch.setattr(point_stages, "read_bundle", bundle)
    monkeypatch.setattr(point_stages, "Encoder", loader)
    monkeypatch.setattr(tradeoff_run, "Encoder", loader)
    return exported
