"""The shipped students know something: keywords of speakers that nothing was trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from reuse_distill.distill.evaluation.evaluate import Probe, probe_sources
from reuse_distill.distill.evaluation.features import of_log_mel, of_student
from reuse_distill.student import Student, load_checkpoint

WEIGHTS = Path(__file__).resolve().parents[2] / "student" / "weights"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "pocket-stream"])
def test_keywords_are_told_apart_far_better_than_by_an_untrained_student(shared_dir: Path, name: str) -> None:
    student = load_checkpoint(WEIGHTS / name)
    torch.manual_seed(0)
    sources = [of_student("student", student), of_student("untrained", Student(student.config)), of_log_mel()]
    answers = probe_sources(Probe("label", shared_dir / "speech" / "keywords_pv" / "manifest.csv"), sources)
    score = {one.source: sum(one.numerators) / len(one.numerators) for one in answers.outcomes}
    assert score["student"] > 0.9 and score["log-mel"] > 0.85
    assert score["student"] > score["untrained"] + 0.15
