"""The smallest students, and IRs of them made once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reuse_distill.devices.measuring.speech import speech_like
from reuse_distill.export.spec import ExportSpec, Mode, Offline, SlidingWindow, Streaming, WindowContext
from reuse_distill.runtime.engines.openvino.openvino_device import load_openvino
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import ChunkContext, Student

MODES: dict[str, Mode] = {
    "offline": Offline(),
    "window": SlidingWindow(WindowContext(6, 4, 5)),
    "streaming": Streaming(ChunkContext(4, 6)),
    "streaming-engine": Streaming(ChunkContext(4, 6), states="engine"),
    "streaming-engine-2": Streaming(ChunkContext(4, 6), 2, "engine"),
}


@pytest.fixture(scope="session")
def openvino() -> Any:
    try:
        return load_openvino()
    except RdError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def clips() -> list[np.ndarray]:
    return [speech_like(320 * 60 + 123, seed=1), speech_like(400, seed=2)]


@pytest.fixture(scope="session")
def export_one(
    openvino: Any,
    between_processes: Callable[[str], Path],
    make_student: Callable[..., Student],
    clips: list[np.ndarray],
    exported: Callable[..., Any],
) -> Callable[..., Any]:
    """Export once per mode and precision, both layers; the same bundle afterwards."""
    made: dict[tuple[str, str], Any] = {}

    def export(mode: str, precision: str = "fp32") -> Any:
        key = (mode, precision)
        if key not in made:
            student = (
                make_student("tiny-stream")
                if mode.startswith("streaming")
                else make_student("tiny", lookahead_frames=7)
            )
            spec = ExportSpec("openvino", MODES[mode], precision, (1, 2), "heads")
            folder = between_processes("openvino") / f"{mode}-{precision}"
            made[key] = exported(student, spec, folder, clips)
        return made[key]

    return export
