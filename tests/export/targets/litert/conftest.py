"""The smallest students, and .tflite bundles of them made once for all tests of this folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reuse_distill.devices.measuring.speech import speech_like
from reuse_distill.export.capture.capture import Capture
from reuse_distill.export.spec import ExportSpec, Mode, Offline, SlidingWindow, Streaming, WindowContext
from reuse_distill.student import ChunkContext, Student

MODES: dict[str, Mode] = {
    "offline": Offline(1.3),
    "window": SlidingWindow(WindowContext(6, 4, 5)),
    "streaming": Streaming(ChunkContext(4, 6)),
}


@pytest.fixture(scope="session")
def clips() -> list[np.ndarray]:
    return [speech_like(320 * 60 + 123, seed=1), speech_like(400, seed=2)]


@pytest.fixture(scope="session")
def export_one(
    tmp_path_factory: pytest.TempPathFactory,
    make_student: Callable[..., Student],
    clips: list[np.ndarray],
    exported: Callable[..., Any],
) -> Callable[..., Any]:
    """Export once per mode and precision, both layers; the same bundle afterwards. A mode is converted once."""
    pytest.importorskip("litert_torch", reason="litert-torch is not installed (the extra litert-export)")
    from reuse_distill.export.targets.litert import litert_target

    made: dict[tuple[str, str], Any] = {}
    converted, convert = tmp_path_factory.mktemp("converted"), litert_target.convert

    def once(mode: str) -> Callable[[Capture, Path], None]:
        def cached(captured: Capture, file: Path) -> None:
            kept = converted / f"{mode}.tflite"
            if not kept.exists():
                convert(captured, kept)
            shutil.copyfile(kept, file)

        return cached

    def export(mode: str, precision: str = "fp32") -> Any:
        key = (mode, precision)
        if key not in made:
            student = make_student("tiny-stream") if mode == "streaming" else make_student("tiny", lookahead_frames=7)
            spec = ExportSpec("litert", MODES[mode], precision, (1, 2), "heads")
            folder = tmp_path_factory.mktemp("bundles") / f"{mode}-{precision}"
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(litert_target, "convert", once(mode))
                made[key] = exported(student, spec, folder, clips)
        return made[key]

    return export
