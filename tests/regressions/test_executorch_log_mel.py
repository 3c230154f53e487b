"""A student with a log-mel front end is refused for ExecuTorch in words; it was an IndexError."""

from __future__ import annotations

import pytest
from reuse_distill.export.capture.capture import capture
from reuse_distill.export.spec import ExportSpec, Streaming
from reuse_distill.export.targets.executorch.row_modules import friendly
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import ChunkContext, Student, preset
from reuse_distill.student.config import mel_stack


def test_the_front_end_is_named() -> None:
    small = {"width": 32, "ffn_width": 48, "heads": 2, "layers": 2, "reuse_layers": (2,), "position_groups": 4}
    config = preset("pocket-stream", **small, conv_layers=mel_stack(16, 32), position_kernel=8, head_width=None)
    spec = ExportSpec("executorch", Streaming(ChunkContext(4, 8), batch=1), "fp32", (2,), "hidden")
    with pytest.raises(RdError, match="executorch has no front end 'mel'") as caught:
        friendly(capture(Student(config).eval(), spec))
    assert "--target litert" in str(caught.value.hint)
