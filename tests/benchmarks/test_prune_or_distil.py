"""What is compared: a shorter window of the same encoder, and sizes without projections that nothing teaches."""

from __future__ import annotations

import torch
from reuse_distill.student import preset
from reuse_distill.student.model import Student
from reuse_distill.student.whisper import build_student

from benchmarks.prune_or_distil import POSITIONS, size_of, windowed

WHISPER = {
    "front_end": "whisper",
    "conv_layers": ((12, 3, 1), (32, 3, 2)),
    "conv_norm": "layer",
    "frame_norm": False,
    "position": "absolute",
    "position_kernel": 1,
    "position_groups": 1,
    "lookahead_frames": 0,
    "window_frames": 100,
    "norm_first": True,
    "reuse_layers": (),
    "head_width": None,
    "width": 32,
    "ffn_width": 48,
    "heads": 4,
}


def test_a_shorter_window_has_the_first_positions() -> None:
    whole = build_student(preset("tiny", layers=2, **WHISPER)).eval()
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
