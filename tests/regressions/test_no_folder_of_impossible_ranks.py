"""A share that low rank or heads by data cannot remove left an output folder, which a right command then refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from reuse_distill.distill.cli import main
from reuse_distill.distill.compress.methods import by_name, shape_left
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student, preset, save_checkpoint
from reuse_distill.student.config import conv_stack


@pytest.fixture(scope="module")
def student() -> Student:
    """Four layers, two of which compute a map."""
    torch.manual_seed(0)
    sizes = {"layers": 4, "heads": 4, "width": 32, "ffn_width": 48, "reuse_layers": (2, 4)}
    return Student(preset("tiny-stream", **sizes, conv_layers=conv_stack(8, 16, 32), position_groups=4)).eval()


@pytest.mark.parametrize(
    ("method", "ratio", "message"),
    [
        ("low-rank", "0.99", "rank 1 in all"),
        ("low-rank-data", "0.99", "rank 1 in all"),
        ("rows+low-rank", "0.97,0.93", "rank 1 in all"),  # possible before the rows are gone
        ("heads-data", "0.9", "one stays in each map"),
        ("heads-diagonal", "0.9", "one stays in each map"),
    ],
)
def test_the_right_command_finds_no_folder(
    student: Student, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str, ratio: str, message: str
) -> None:
    checkpoint, audio = save_checkpoint(tmp_path / "student", student), tmp_path / "audio"
    audio.mkdir()
    soundfile.write(audio / "a.wav", np.random.default_rng(0).standard_normal(16_000).astype(np.float32) / 10, 16_000)
    words = ["compress", method, str(checkpoint), "--data", str(audio), "--output", str(tmp_path / "out")]
    assert main([*words, "--ratio", ratio]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main([*words, "--ratio", "0.25"]) == 0


@pytest.mark.parametrize(("method", "possible", "impossible"), [("low-rank", 0.5, 0.95), ("heads", 0.5, 0.9)])
def test_the_check_refuses_what_the_method_refuses(
    student: Student, method: str, possible: float, impossible: float
) -> None:
    by_name(method)(student, possible, (), 0)
    shape_left(student, method, possible)
    for function in (
        lambda: by_name(method)(student, impossible, (), 0),
        lambda: shape_left(student, method, impossible),
    ):
        with pytest.raises(RdError, match=r"leaves"):
            function()
