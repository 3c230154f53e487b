"""The modules that are converted compute what the captured ones do."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from reuse_distill.export.capture.capture import CapturedStep, capture
from reuse_distill.export.spec import ExportSpec
from reuse_distill.export.targets.coreml.coreml_modules import HeldStep, friendly, held_states, shifted
from reuse_distill.student import Student


def test_offline(offline_student: Student, make_spec: Callable[..., ExportSpec], clips: list[np.ndarray]) -> None:
    captured = capture(offline_student, make_spec("offline", "fp32"))
    for clip in clips:
        wave = torch.from_numpy(clip)[None]
        torch.testing.assert_close(friendly(captured)(wave), captured.module(wave), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("valid", [(0, 15), (4, 15), (0, 9), (6, 7)])
def test_window_with_absent_frames(
    offline_student: Student,
    make_spec: Callable[..., ExportSpec],
    clips: list[np.ndarray],
    valid: tuple[int, int],
) -> None:
    captured = capture(offline_student, make_spec("window", "fp32"))
    samples, frames = captured.example[0].shape[1], captured.example[1].shape[1]
    assert frames == 15
    wave, mask = torch.zeros(1, samples), torch.zeros(1, frames)
    first, last = valid
    wave[0, 320 * first : 320 * last + 80] = torch.from_numpy(clips[0][: 320 * (last - first) + 80])
    mask[0, first:last] = 1
    with torch.no_grad():
        wanted = captured.module(wave, mask)
        torch.testing.assert_close(friendly(captured)(wave, mask), wanted, atol=1e-5, rtol=1e-4)


def test_held_step_equals_the_step_with_states_outside(
    stream_student: Student, make_spec: Callable[..., ExportSpec], clips: list[np.ndarray]
) -> None:
    captured = capture(stream_student, make_spec("streaming", "fp32", batch=1))
    module = captured.module
    assert isinstance(module, CapturedStep)
    held, tensors = HeldStep(module, captured.states, captured.example[2:], 1), list(captured.example[2:])
    fresh = torch.ones(1, 4)
    for first in range(0, 8, 4):
        samples = torch.from_numpy(clips[0][320 * first : 320 * (first + 4) + 80])[None]
        with torch.no_grad():
            wanted, *rows = module(samples, fresh, *tensors)
            (found,) = held(samples, fresh)
        assert torch.equal(found, wanted)
        tensors = [
            new if state.update == "replace" else shifted(old, new, state.axis)
            for state, old, new in zip(captured.states, tensors, rows, strict=True)
        ]
    for state, tensor in zip(captured.states, tensors, strict=True):
        assert torch.equal(getattr(held, state.name), tensor), state.name


def test_shifted_drops_the_oldest_rows() -> None:
    before = torch.arange(4.0)[None]
    assert shifted(before, torch.tensor([[9.0]]), 1).tolist() == [[1, 2, 3, 9]]
    assert shifted(before, torch.arange(10.0, 16.0)[None], 1).tolist() == [[12, 13, 14, 15]]


def test_held_states_are_replaced_whole(stream_student: Student, make_spec: Callable[..., ExportSpec]) -> None:
    states = held_states(capture(stream_student, make_spec("streaming", "fp16", batch=1)).states)
    assert {(s.update, s.dtype, s.input == s.output) for s in states} == {("replace", "float16", True)}
