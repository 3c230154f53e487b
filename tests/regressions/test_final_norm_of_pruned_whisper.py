"""A checkpoint of Whisper's encoder taught its last layer normed a second time, as if it had no norm of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reuse_distill.distill.teachers import open_teacher
from reuse_distill.distill.teachers.protocol import has_final_norm
from reuse_distill.student import preset, save_checkpoint
from reuse_distill.student.whisper import build_student


def test_a_whisper_in_our_own_folder_has_its_norm(tmp_path: Path, whisper_shape: dict[str, Any]) -> None:
    whisper = save_checkpoint(tmp_path / "whisper", build_student(preset("tiny", layers=2, **whisper_shape)).eval())
    assert has_final_norm(open_teacher(whisper).info)
    sizes = {"width": 32, "ffn_width": 48, "heads": 4, "layers": 2, "reuse_layers": (), "position_groups": 4}
    other = save_checkpoint(tmp_path / "other", build_student(preset("tiny", **sizes)).eval())
    assert not has_final_norm(open_teacher(other).info)
