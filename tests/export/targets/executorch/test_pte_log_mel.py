"""Students with a log-mel front end for ExecuTorch: the rows are torch's, any length is captured, programs run."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from reuse_distill.devices.measuring.speech import speech_like
from reuse_distill.export.capture.capture import capture
from reuse_distill.export.spec import ExportSpec, Mode, Offline, SlidingWindow, Streaming, WindowContext
from reuse_distill.export.targets.executorch.pte_convert import kept_in_float, weighted
from reuse_distill.export.targets.executorch.row_modules import friendly
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.equivalence.certify import certify
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import ChunkContext, Student
from reuse_distill.student.config import mel_stack

MODES: dict[str, Mode] = {
    "streaming": Streaming(ChunkContext(4, 8), batch=1),
    "offline": Offline(4.0),
    "window": SlidingWindow(WindowContext(6, 4, 5)),
}


@pytest.fixture(scope="module")
def students(make_student: Callable[..., Student]) -> dict[str, Student]:
    small: dict[str, Any] = {"conv_layers": mel_stack(16, 32), "position_kernel": 8, "head_width": None}
    stream = make_student("pocket-stream", **small)
    return {"streaming": stream, "offline": make_student("pocket", **small), "window": stream}


def spec_of(mode: str, precision: str = "fp32") -> ExportSpec:
    return ExportSpec("executorch", MODES[mode], precision, (1, 2), "hidden")


@pytest.mark.parametrize("mode", list(MODES))
def test_rows_are_torchs(mode: str, students: dict[str, Student]) -> None:
    """Features and states of one call from inputs of all kinds, the samples before this step among them."""
    captured = capture(students[mode], spec_of(mode))
    generator = torch.Generator().manual_seed(1)
    example = [0.1 * torch.randn(x.shape, generator=generator) for x in captured.example]
    example = [
        torch.ones_like(x) if name in ("fresh", "frame_valid", "valid", "position_valid") else x
        for name, x in zip(captured.input_names, example, strict=True)
    ]
    with torch.no_grad():
        expected, given = captured.module(*example), friendly(captured)(*example)
    pairs = zip(*([x] if isinstance(x, torch.Tensor) else x for x in (expected, given)), strict=True)
    for one, other in pairs:
        assert one.shape == other.shape and torch.allclose(one, other, atol=2e-5)


def test_the_log_mel_stays_in_float(students: dict[str, Student]) -> None:
    blocks = weighted(friendly(capture(students["streaming"], spec_of("streaming"))))
    assert {name for name, block in blocks.items() if block == "front-end.0"} == {
        f"front_end.log_mel.{part}" for part in ("cosines", "sines", "filters")
    }
    assert {blocks[f"front_end.after_mel.{k}"] for k in range(2)} == {"front-end.1", "front-end.2"}
    kept = kept_in_float(blocks.values(), lambda _block: False)
    assert set(kept) == {"front-end.0", "position"}


@pytest.mark.slow
def test_offline_equals_torch_at_every_length(
    executorch: Any, students: dict[str, Student], exported: Callable[..., Any], clips: list[np.ndarray], tmp_path
) -> None:
    made = exported(students["offline"], spec_of("offline"), tmp_path / "bundle", clips)
    encoder = Encoder.load(made.folder)
    for samples in (400, 719, 720, 1000, 16_000, 64_000):
        wave = speech_like(samples, seed=samples)
        with torch.no_grad():
            wanted = torch.cat(students["offline"](torch.from_numpy(wave)[None]).layers).numpy()
        assert np.abs(encoder.extract(wave) - wanted).max() <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8-dynamic"])
def test_streams_pass_the_certificate(
    executorch: Any,
    students: dict[str, Student],
    exported: Callable[..., Any],
    clips: list[np.ndarray],
    tmp_path,
    precision: str,
) -> None:
    made = exported(students["streaming"], spec_of("streaming", precision), tmp_path / "bundle", clips)
    found = certify(Encoder.load(made.folder))
    assert found.passed, [check for check in found.checks if not check.passed]
    assert made.manifest.graph_proof.softmaxes == 1


def test_another_front_end_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, students: dict[str, Student]) -> None:
    """It was an IndexError."""
    captured = capture(students["offline"], spec_of("offline"))
    monkeypatch.setattr(captured.student, "config", SimpleNamespace(front_end="whisper"))
    with pytest.raises(RdError, match="executorch has no front end 'whisper'") as caught:
        friendly(captured)
    assert "--target onnx" in str(caught.value.hint)
