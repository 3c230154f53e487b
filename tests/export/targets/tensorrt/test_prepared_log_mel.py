"""Students with a log-mel front end, and windows, as prepared graphs: exports that a user makes of what is shipped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from reuse_distill.export.spec import ExportSpec, Mode, Offline, Streaming
from reuse_distill.export.targets.tensorrt.lowering import OLD_OPSET
from reuse_distill.student import ChunkContext, Student
from reuse_distill.student.config import mel_stack

MODES: dict[str, Mode] = {"streaming": Streaming(ChunkContext(4, 8)), "offline": Offline()}


@pytest.mark.parametrize(("mode", "precision"), [("streaming", "fp16"), ("offline", "fp32")])
def test_both_graphs_keep_the_bound(
    mode: str,
    precision: str,
    make_student: Callable[..., Student],
    exported: Callable[..., Any],
    noise: Callable[..., np.ndarray],
    tmp_path: Path,
) -> None:
    """Samples stay float32 between steps, silence before an utterance is written in the old opset, and what is added
    before the logarithm is a bias."""
    preset = "pocket-stream" if mode == "streaming" else "pocket"
    student = make_student(preset, conv_layers=mel_stack(16, 32), position_kernel=8, head_width=None)
    spec = ExportSpec("tensorrt", MODES[mode], precision, (1, 2), "hidden")
    made = exported(student, spec, tmp_path / "bundle", [noise(16_000)])
    assert made.manifest.status == "deferred" and "prepared" in made.manifest.parity
    assert {state.dtype for state in made.manifest.states if state.role == "audio"} <= {"float32"}
    old = onnx.load(str(made.folder / "plain.onnx"))
    assert old.opset_import[0].version == OLD_OPSET
    filters = next(node for node in old.graph.node if node.op_type == "Log").input[0]
    made_by = next(node for node in old.graph.node if filters in node.output)
    assert made_by.op_type in ("Conv", "Cast")


def test_a_window_is_written_in_the_old_opset(prepared: Any) -> None:
    plain = onnx.load(str(prepared.bundle("shared", "window", "fp32") / "plain.onnx"))
    assert plain.opset_import[0].version == OLD_OPSET
