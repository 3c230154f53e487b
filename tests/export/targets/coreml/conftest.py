"""The smallest students, and packages of them made once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reuse_distill.devices.measuring.speech import speech_like
from reuse_distill.export.spec import ExportSpec, Mode, Offline, SlidingWindow, Streaming, WindowContext
from reuse_distill.student import ChunkContext, Student


@pytest.fixture(scope="session")
def coremltools() -> Any:
    return pytest.importorskip("coremltools", reason="coremltools is not installed (the extra coreml)")


@pytest.fixture(scope="session")
def offline_student(make_student: Callable[..., Student]) -> Student:
    return make_student("tiny", lookahead_frames=7)


@pytest.fixture(scope="session")
def stream_student(make_student: Callable[..., Student]) -> Student:
    return make_student("tiny-stream")


@pytest.fixture(scope="session")
def make_spec(with_mode: Callable[..., ExportSpec]) -> Callable[..., ExportSpec]:
    """An ExportSpec by mode and precision, both layers exported."""

    def make(name: str, precision: str, *, layers: tuple[int, ...] = (1, 2), **changes: Any) -> ExportSpec:
        modes: dict[str, Mode] = {
            "offline": Offline(),
            "window": SlidingWindow(WindowContext(6, 4, 5)),
            "streaming": Streaming(ChunkContext(4, 6)),
        }
        return with_mode(ExportSpec("coreml", modes[name], precision, layers, "heads"), **changes)

    return make


@pytest.fixture(scope="session")
def clips() -> list[np.ndarray]:
    return [speech_like(320 * 37 + 123, seed=1), speech_like(400, seed=2)]


@pytest.fixture(scope="session")
def export_one(
    coremltools: Any,
    between_processes: Callable[[str], Path],
    offline_student: Student,
    stream_student: Student,
    make_spec: Callable[..., ExportSpec],
    clips: list[np.ndarray],
    exported: Callable[..., Any],
) -> Callable[..., Any]:
    """Export once per mode, precision and states; the same bundle afterwards."""
    made: dict[tuple[str, str, str], Any] = {}

    def export(mode: str, precision: str, *, states: str = "tensors", min_cosine: float | None = None) -> Any:
        key = (mode, precision, states)
        if key not in made:
            student = stream_student if mode == "streaming" else offline_student
            folder = between_processes("coreml") / "-".join(key)
            spec = make_spec(mode, precision, **({"states": states} if mode == "streaming" else {}))
            made[key] = exported(student, spec, folder, clips, min_cosine=min_cosine)
        return made[key]

    return export
