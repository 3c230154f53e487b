"""The modules that Core ML and ExecuTorch are made of, for encoders of other libraries: equal to the captured ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from reuse_distill.export.capture.capture import capture
from reuse_distill.export.spec import ExportSpec, Mode, Offline, SlidingWindow, WindowContext
from reuse_distill.export.targets.coreml.coreml_modules import friendly as friendly_to_coreml
from reuse_distill.export.targets.executorch.row_modules import friendly as friendly_to_xnnpack
from reuse_distill.runtime.geometry import samples_for
from reuse_distill.student.foreign import read_foreign, student_of

pytest.importorskip("transformers")
WINDOW = SlidingWindow(WindowContext(6, 4, 5))


@pytest.mark.parametrize(
    "family",
    ["hubert", "hubert-large", "hubert-pre-group", "hubert-batch-norm", "hubert-layer-post", "wavlm", "data2vec"],
)
def test_every_family_in_the_modules_of_phones(make_foreign: Any, family: str) -> None:
    """Offline and as a window whose last frames do not exist; what layer 1 sees (0), a raw layer and the last one."""
    folder, _ = make_foreign(family, normalise=False, num_hidden_layers=2)
    student = student_of(read_foreign(folder))
    torch.manual_seed(0)
    modes: tuple[tuple[Mode, tuple[torch.Tensor, ...]], ...] = (
        (Offline(), (0.1 * torch.randn(1, samples_for(23)),)),
        (WINDOW, (0.1 * torch.randn(1, samples_for(15)), torch.tensor([[0.0] * 3 + [1.0] * 10 + [0.0] * 2]))),
    )
    for mode, inputs in modes:
        captured = capture(student, ExportSpec("onnx", mode, "fp32", (0, 1, 2), "hidden"))
        with torch.no_grad():
            expected = captured.module(*inputs)
            for friendly in (friendly_to_coreml, friendly_to_xnnpack):
                found = friendly(captured)(*inputs)
                assert found.shape == expected.shape
                assert (found - expected).abs().max() < 2e-5 * max(1.0, float(expected.abs().max()))
