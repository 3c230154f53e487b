"""What is compared: a shorter window of the same encoder, and sizes without projections that nothing teaches."""

from __future__ import annotations

from typing import Any

import torch
from reuse_distill.student import preset
from reuse_distill.student.model import Student
from reuse_distill.student.whisper import build_student

from benchmarks.prune_or_distil import POSITIONS, size_of, windowed


def test_a_shorter_window_has_the_first_positions(whisper_shape: dict[str, Any]) -> None:
    whole = build_student(preset("tiny", layers=2, **whisper_shape)).eval()
    short = windowed(whole, 1.0)
    assert short.config.window_frames == 50
    assert torch.equal(short.state_dict()[POSITIONS], whole.state_dict()[POSITIONS][:50])
    assert size_of(whole) - size_of(short) == 50 * 32
    with torch.no_grad():
        assert short(torch.zeros(1, 16_000)).layers[-1].shape == (1, 49, 32)


def test_projections_of_other_layers_are_not_counted() -> None:
    student = Student(preset("tiny", width=32, ffn_width=48, heads=4, layers=3, reuse_layers=(), position_groups=4))
    assert student.proj_head is not None
    each = sum(p.numel() for p in student.proj_head[-1].parameters())
    assert size_of(student) == sum(p.numel() for p in student.parameters()) - 2 * each
