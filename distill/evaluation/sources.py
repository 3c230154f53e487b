"""What stands side by side in an evaluation: the student first, then log-mel, an untrained student, the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from distill.evaluation.features import Features, of_log_mel, of_student, of_teacher
from distill.teachers import open_teacher
from student import Student, load_checkpoint


def sources_of(
    checkpoint: Path, *, also: Sequence[Path] = (), teacher: Path | None = None, features: str = "auto", seed: int = 0
) -> list[Features]:
    """The student, other students, log-mel, the student's shape with its initial weights, and the teacher."""
    heads = None if features == "auto" else features == "heads"
    student = load_checkpoint(checkpoint)
    found = [of_student("student", student, heads=heads)]
    found += [of_student(_name(path), load_checkpoint(path), heads=heads) for path in also]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        untrained = Student(student.config)
    found += [of_log_mel(), of_student("untrained", untrained, heads=heads)]
    if teacher is not None:
        found.append(of_teacher("teacher", open_teacher(teacher)))
    return found


def _name(path: Path) -> str:
    """The run's name for RUN/student, the folder's name otherwise."""
    return path.resolve().parent.name if path.name == "student" else path.name
