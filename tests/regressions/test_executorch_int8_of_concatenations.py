"""XNNPACK's quantiser put every concatenation into int8, whatever it was told to leave alone.

Samples with the silence before them, powers of the log-mel and caches of a step were concatenated in int8: the shipped
`pocket-stream` kept a mean frame cosine of 0.69 with all its weights in float.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from reuse_distill.devices.measuring.speech import speech_like
from reuse_distill.export.capture.capture import capture
from reuse_distill.export.spec import ExportSpec, Mode, Offline, Streaming
from reuse_distill.student import ChunkContext, Student, preset
from reuse_distill.student.config import mel_stack

MODES: dict[str, Mode] = {"offline": Offline(2.0), "streaming": Streaming(ChunkContext(4, 8), batch=1)}


@pytest.mark.parametrize("mode", list(MODES))
def test_what_is_to_stay_in_float_does(mode: str) -> None:
    pytest.importorskip("executorch", reason="needs executorch: pip install '.[executorch]'")
    from reuse_distill.export.targets.executorch.pte_convert import exported, quantised
    from reuse_distill.export.targets.executorch.row_modules import friendly

    small: dict[str, Any] = {
        "conv_layers": mel_stack(16, 32), "position_kernel": 8, "position_groups": 2, "head_width": None,
        "width": 32, "heads": 2, "ffn_width": 64, "layers": 2, "reuse_layers": (2,),
    }  # fmt: skip
    torch.manual_seed(0)
    student = Student(preset("pocket" if mode == "offline" else "pocket-stream", **small)).eval()
    captured = capture(student, ExportSpec("executorch", MODES[mode], "int8", (1, 2), "hidden"))
    program = exported(captured.whole(friendly(captured)), captured, MODES[mode])
    wave = torch.from_numpy(speech_like(captured.example[0].shape[1], seed=1))[None]
    inputs = (wave, *captured.example[1:])
    row = {name: one.numpy() for name, one in zip(captured.input_names, inputs, strict=True)}
    converted = quantised(program, captured, [row], modules=frozenset(), dynamic=False)
    assert not [node for node in converted.graph.nodes if "quantize" in str(node.target)]
    with torch.no_grad():
        plain, given = program.module()(*inputs), converted(*inputs)
    pairs = zip(*([one] if isinstance(one, torch.Tensor) else one for one in (plain, given)), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
