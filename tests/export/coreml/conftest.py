"""The smallest students, and packages of them made once for all tests of this folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from devices.speech import speech_like
from export.capture import Capture, capture
from export.pipeline import Audio, export_bundle
from export.quantise.calibration import CalibrationSet
from export.source import Source
from export.spec import ExportSpec, WindowContext
from runtime.manifest import Manifest
from student import ChunkContext, Student, StudentConfig, preset
from student.config import conv_stack

SMALL: dict[str, Any] = {
    "conv_layers": conv_stack(8, 8, 32),
    "width": 32,
    "ffn_width": 48,
    "heads": 2,
    "layers": 2,
    "reuse_layers": (2,),
    "head_width": 24,
    "position_kernel": 16,
    "position_groups": 4,
}


@dataclass(frozen=True)
class Exported:
    """One finished bundle with what it was made from."""

    folder: Path
    manifest: Manifest
    student: Student
    spec: ExportSpec

    @property
    def package(self) -> Path:
        return self.folder / self.manifest.artifact

    def capture(self) -> Capture:
        return capture(self.student, dataclasses.replace(self.spec, batch=1))


def lively(config: StudentConfig, seed: int = 0) -> Student:
    """Weights away from their initial values, so that gains, biases and sharp maps count."""
    torch.manual_seed(seed)
    student = Student(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, value in student.named_parameters():
        if value.ndim == 1:
            value.add_(0.2 * torch.randn(value.shape, generator=generator))
        elif "q_proj" in name or "k_proj" in name:
            value.mul_(6.0)
    return student


@pytest.fixture(scope="session")
def coremltools() -> Any:
    return pytest.importorskip("coremltools", reason="coremltools is not installed (the extra coreml)")


@pytest.fixture(scope="session")
def make_student() -> Callable[..., Student]:
    """A small student of a preset, with fields replaced."""
    return lambda name, **changes: lively(preset(name, **{**SMALL, **changes}))


@pytest.fixture(scope="session")
def offline_student() -> Student:
    return lively(preset("tiny", lookahead_frames=7, **SMALL))


@pytest.fixture(scope="session")
def stream_student() -> Student:
    return lively(preset("tiny-stream", **SMALL))


@pytest.fixture(scope="session")
def make_spec() -> Callable[..., ExportSpec]:
    """An ExportSpec by mode and precision, both layers exported."""

    def make(mode: str, precision: str, *, layers: tuple[int, ...] = (1, 2), **changes: Any) -> ExportSpec:
        return ExportSpec(
            "coreml",
            mode,
            precision,
            layers,
            "heads",
            context=ChunkContext(4, 6) if mode == "streaming" else None,
            window=WindowContext(6, 4, 5) if mode == "window" else None,
            **changes,
        )

    return make


@pytest.fixture(scope="session")
def clips() -> list[np.ndarray]:
    return [speech_like(320 * 37 + 123, seed=1), speech_like(400, seed=2)]


@pytest.fixture(scope="session")
def export_one(
    coremltools: Any,
    tmp_path_factory: pytest.TempPathFactory,
    offline_student: Student,
    stream_student: Student,
    make_spec: Callable[..., ExportSpec],
    clips: list[np.ndarray],
) -> Callable[..., Exported]:
    """Export once per mode, precision and states; the same bundle afterwards."""
    made: dict[tuple[str, str, str], Exported] = {}

    def export(mode: str, precision: str, *, states: str = "tensors", min_cosine: float | None = None) -> Exported:
        key = (mode, precision, states)
        if key not in made:
            student = stream_student if mode == "streaming" else offline_student
            spec = make_spec(mode, precision, states=states)
            folder = tmp_path_factory.mktemp("bundles") / "-".join(key)
            calibration = CalibrationSet(tuple(clips), 2, 2, "0" * 64, ()) if precision == "int8" else None
            manifest = export_bundle(
                Source(student, "small", "0" * 64, {}),
                spec,
                folder,
                audio=Audio(calibration, clips, "seeded speech-like signals"),
                min_cosine=min_cosine,
            )
            made[key] = Exported(folder, manifest, student, spec)
        return made[key]

    return export
