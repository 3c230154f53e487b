"""What stands side by side in an evaluation: the student first, then log-mel, an untrained student, the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from reuse_distill.distill.data.reading import read_utterance
from reuse_distill.distill.data.utterances import find_utterances
from reuse_distill.distill.evaluation.cka import cka_matrix
from reuse_distill.distill.evaluation.features import CPU, Features, of_log_mel, of_student, of_teacher
from reuse_distill.distill.teachers import open_teacher
from reuse_distill.report.training_plots import attention_maps, similarity_matrix
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import SAMPLE_RATE_HZ
from reuse_distill.student import Student, load_checkpoint
from torch import Tensor

DRAWN, DRAWN_S = 8, 10  # utterances of a picture, seconds of each


def sources_of(
    checkpoint: Path,
    *,
    also: Sequence[Path] = (),
    teacher: Path | None = None,
    features: str = "auto",
    seed: int = 0,
    device: torch.device = CPU,
) -> list[Features]:
    """The student, other students, log-mel, the student's shape with its initial weights, and the teacher."""
    how: dict[str, Any] = {"heads": None if features == "auto" else features == "heads", "device": device}
    student = load_checkpoint(checkpoint)
    found = [of_student("student", student, **how)]
    found += [of_student(_name(path), load_checkpoint(path), **how) for path in also]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        untrained = Student(student.config)
    found += [of_log_mel(), of_student("untrained", untrained, **how)]
    if teacher is not None:
        found.append(of_teacher("teacher", open_teacher(teacher), device=device))
    return found


def draw(checkpoint: Path, teacher: Path | None, data: Path, folder: Path) -> list[Path]:
    """SVG files from the first seconds of some utterances of ``data``: attention maps, CKA where there is a teacher."""
    student = load_checkpoint(checkpoint)
    config = student.config
    names, waves = _first_seconds(data)
    with torch.no_grad():
        outputs = [student(wave[None], with_maps=True, context=config.context) for wave in waves]
    reuses = [config.reuses(number) for number in range(1, config.layers + 1)]
    maps = [one[0].mean(0).numpy() for one in outputs[0].maps]
    title, seconds = f"attention of {_name(checkpoint)}, mean of heads: {names[0]}", len(waves[0]) / SAMPLE_RATE_HZ
    paths = [attention_maps(maps, reuses, folder / "attention.svg", seconds=seconds, title=title)]
    if teacher is not None:
        theirs = of_teacher("teacher", open_teacher(teacher))
        matrix = cka_matrix([torch.cat(o.layers) for o in outputs], [theirs(wave.numpy()) for wave in waves])
        paths.append(similarity_matrix(matrix, folder / "cka.svg", title=f"linear CKA, {len(waves)} utterances"))
    return paths


def _first_seconds(data: Path) -> tuple[list[str], list[Tensor]]:
    """Names and waves of the first utterances that can be read; attention maps grow with the square of the length."""
    names, waves = [], []
    for utterance in find_utterances(data).utterances:
        try:
            samples = read_utterance(utterance)
        except RdError:  # the probes have named it
            continue
        names.append(utterance.path.name)
        waves.append(torch.from_numpy(samples[: DRAWN_S * SAMPLE_RATE_HZ]))
        if len(waves) == DRAWN:
            break
    return names, waves


def _name(path: Path) -> str:
    """The run's name for RUN/student, the folder's name otherwise."""
    return path.resolve().parent.name if path.name == "student" else path.name
