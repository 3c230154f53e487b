"""Students that are refused, and what is exported of DistilHuBERT."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from export.cli import main
from export.families import check_family
from runtime.errors import RdError
from student import Student, preset, save_checkpoint


def test_a_student_that_reduces_time_is_refused(tmp_path: Path, capsys) -> None:
    folder = save_checkpoint(tmp_path / "s", Student(preset("tiny-fit", layers=1)))
    for mode in ("offline", "window", "streaming"):
        assert main([str(folder), "--mode", mode, "--output", str(tmp_path / "b")]) == 2
        assert "sees 2 frames as one step (FitHuBERT)" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_the_heads_of_distilhubert_are_for_training() -> None:
    config = preset("tiny-distil")
    assert check_family(config, None) == check_family(config, "hidden") == "hidden"
    with pytest.raises(RdError, match=r"predict layers \[2, 4, 6\] from its last one"):
        check_family(config, "heads")
    assert check_family(preset("tiny"), None) is None and check_family(preset("tiny"), "heads") == "heads"


@pytest.mark.slow
def test_the_layers_of_distilhubert_are_exported(tmp_path: Path) -> None:
    config = preset("tiny-distil")
    torch.manual_seed(0)
    folder = save_checkpoint(tmp_path / "s", Student(config).eval())
    assert main([str(folder), "--output", str(tmp_path / "b")]) == 0
    manifest = json.loads((tmp_path / "b/manifest.json").read_text())
    assert manifest["outputs"][0]["shape"] == [1, 1, "F", config.width]
