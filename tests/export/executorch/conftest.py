"""The smallest students, and programs of them made once for all tests of this folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from devices.speech import speech_like
from export.pipeline import Audio, export_bundle
from export.quantise.calibration import CalibrationSet
from export.source import Source
from export.spec import ExportSpec, WindowContext
from runtime.manifest import Manifest
from student import ChunkContext, Student, preset
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
    def program(self) -> Path:
        return self.folder / self.manifest.artifact


@pytest.fixture(scope="session")
def executorch() -> Any:
    return pytest.importorskip("executorch.exir", reason="executorch is not installed (the extra executorch)")


@pytest.fixture(scope="session")
def make_student() -> Callable[..., Student]:
    """A small student of a preset, with fields replaced and weights away from their initial values."""

    def make(name: str, **changes: Any) -> Student:
        torch.manual_seed(0)
        student = Student(preset(name, **{**SMALL, **changes})).eval().requires_grad_(False)
        generator = torch.Generator().manual_seed(0)
        for parameter, value in student.named_parameters():
            if value.ndim == 1:
                value.add_(0.2 * torch.randn(value.shape, generator=generator))
            elif "q_proj" in parameter or "k_proj" in parameter:
                value.mul_(6.0)
        return student

    return make


@pytest.fixture(scope="session")
def make_spec() -> Callable[..., ExportSpec]:
    """An ExportSpec by mode and precision, both layers exported."""

    def make(mode: str, precision: str = "fp32", **changes: Any) -> ExportSpec:
        values: dict[str, Any] = {
            "context": ChunkContext(4, 6) if mode == "streaming" else None,
            "window": WindowContext(6, 4, 5) if mode == "window" else None,
            "max_seconds": 4.0,
        }
        return ExportSpec("executorch", mode, precision, (1, 2), "heads", **{**values, **changes})

    return make


@pytest.fixture(scope="session")
def clips() -> list[np.ndarray]:
    return [speech_like(320 * 60 + 123, seed=1), speech_like(400, seed=2)]


@pytest.fixture(scope="session")
def export_one(
    executorch: Any,
    tmp_path_factory: pytest.TempPathFactory,
    make_student: Callable[..., Student],
    make_spec: Callable[..., ExportSpec],
    clips: list[np.ndarray],
) -> Callable[..., Exported]:
    """Export once per mode and precision (and whatever else is asked for); the same bundle afterwards."""
    made: dict[str, Exported] = {}

    def export(mode: str, precision: str = "fp32", *, min_cosine: float | None = None, **changes: Any) -> Exported:
        key = json.dumps([mode, precision, {name: str(value) for name, value in changes.items()}])
        if key not in made:
            student = make_student("tiny-stream") if mode == "streaming" else make_student("tiny", lookahead_frames=7)
            spec = make_spec(mode, precision, **changes)
            folder = tmp_path_factory.mktemp("bundles") / f"{len(made)}-{mode}-{precision}"
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
