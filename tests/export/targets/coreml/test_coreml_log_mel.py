"""Students with a log-mel front end as Core ML packages: the log-mel and the samples handed on stay in float."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reuse_distill.devices.measuring.speech import speech_like
from reuse_distill.export.capture.capture import capture
from reuse_distill.export.spec import ExportSpec
from reuse_distill.export.targets.coreml.evaluator.machine import Evaluator
from reuse_distill.export.targets.coreml.package_convert import convert, save
from reuse_distill.runtime.geometry import frames_for
from reuse_distill.student import Student
from reuse_distill.student.config import mel_stack


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_keeps_its_bound(
    precision: str,
    coremltools: Any,
    make_student: Callable[..., Student],
    make_spec: Callable[..., ExportSpec],
    exported: Callable[..., Any],
    clips: list[np.ndarray],
    tmp_path: Path,
) -> None:
    """It could not be converted: a slice of all samples was an operation that coremltools does not know."""
    student = make_student("pocket-stream", conv_layers=mel_stack(16, 32), position_kernel=8, head_width=None)
    spec = make_spec("streaming", precision, features="hidden")
    made = exported(student, spec, tmp_path / "bundle", clips)
    assert {state.dtype for state in made.manifest.states if state.role == "audio"} == {"float32"}
    assert made.manifest.parity["measured"]["mean_cosine"] > 0.9999
    others = {state.dtype for state in made.manifest.states if state.role != "audio"}
    assert others == {"float32" if precision == "fp32" else "float16"}


def test_sizes_are_not_taken_through_16_bits(
    coremltools: Any,
    make_student: Callable[..., Student],
    make_spec: Callable[..., ExportSpec],
    tmp_path: Path,
) -> None:
    """For iOS 17 coremltools did so: utterances of more than 65,535 samples were cut to another length."""
    student = make_student("pocket", conv_layers=mel_stack(16, 32), position_kernel=8, head_width=None, layers=2)
    spec = make_spec("offline", "int8", features="hidden", layers=(1,))
    captured = capture(student, spec)
    save(convert(captured, half=True, held=False, system="iOS17"), tmp_path / "model.mlpackage")
    evaluator = Evaluator.load(tmp_path / "model.mlpackage")
    casts = {str(evaluator.program.constants[one.arguments["dtype"][0]]) for one in evaluator.program.of_kind("cast")}
    assert casts and not casts & {"int16", "uint16"}
    wave = speech_like(70_003, seed=3)[None]
    assert evaluator.run({"wave": wave})["features"].shape[-2] == frames_for(70_003)
