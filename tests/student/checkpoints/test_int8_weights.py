"""Checkpoints stored in int8: a quarter of float32, floats near the original once loaded, read strictly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student, load_checkpoint, save_checkpoint
from reuse_distill.student.checkpoints.checkpoint import LARGEST, SCALE, WEIGHTS, is_packed, packed, unpacked
from safetensors.torch import load_file, save_file


@pytest.fixture
def student(small_config, randomised) -> Student:
    return randomised(small_config(ffn_width=128), dtype=torch.float32)


def test_what_is_loaded_is_within_half_a_step_of_what_was_saved(student: Student, tmp_path: Path) -> None:
    whole = save_checkpoint(tmp_path / "whole", student)
    small = save_checkpoint(tmp_path / "small", student, int8=True)
    assert is_packed(small / WEIGHTS) and not is_packed(whole / WEIGHTS)
    assert (small / WEIGHTS).stat().st_size < 0.5 * (whole / WEIGHTS).stat().st_size
    loaded, stored = load_checkpoint(small).state_dict(), load_file(small / WEIGHTS)
    assert any(value.dtype == torch.int8 for value in stored.values())
    for name, value in student.state_dict().items():
        assert loaded[name].dtype == torch.float32 and loaded[name].shape == value.shape
        if stored[name].dtype == torch.int8:
            step = value.flatten(1).abs().amax(1) / LARGEST
            error = (loaded[name] - value).flatten(1).abs().amax(1)
            assert (error <= 0.5001 * step + 1e-12).all(), name
            assert (stored[name].flatten(1).abs().amax(1) == LARGEST).all(), name
        else:
            torch.testing.assert_close(loaded[name], value.half().float(), rtol=0, atol=0)


def test_a_row_of_zeros_stays_zeros() -> None:
    state = {"w": torch.randn(64, 32), "b": torch.zeros(64)}
    state["w"][5] = 0
    again = unpacked(packed(state), where="here")
    assert again.keys() == state.keys() and (again["w"][5] == 0).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("w" + SCALE), "do not belong together: w"),
        (lambda s: s.pop("w"), "do not belong together: w"),
        (lambda s: s.update({"w" + SCALE: torch.ones(3)}), r"w.int8_scale is \[3\] or not finite, expected \[64\]"),
        (lambda s: s["w" + SCALE].fill_(torch.inf), "not finite"),
        (lambda s: s.update({"w" + SCALE: torch.ones(())}), r"is \[\] or not finite"),
    ],
)
def test_what_does_not_belong_together_is_refused(change, said: str, tmp_path: Path) -> None:
    state = packed({"w": torch.randn(64, 32)})
    change(state)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(RdError, match=said):
        unpacked(load_file(tmp_path / "w.safetensors"), where="w.safetensors")
