"""The frozen student under a head: its features, and what binds the head to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from reuse_distill.distill.evaluation.features import CPU, Features, of_student
from reuse_distill.runtime.bundle import file_sha256
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.tasks import TaskOutput
from reuse_distill.student import load_checkpoint
from reuse_distill.student.checkpoint import WEIGHTS
from reuse_distill.student.tasks import HeadConfig
from torch import Tensor


@dataclass(frozen=True)
class FrozenStudent:
    """Features of some layers; a streaming student computes them in the chunks that it was trained for."""

    features: Features
    name: str
    sha256: str
    takes: str  # hidden | heads
    known: tuple[int, ...]  # layers that there are, in the order of the features
    layers: tuple[int, ...]  # layers that the head takes
    width: int

    def __call__(self, samples: NDArray[np.float32]) -> Tensor:
        """(T,) -> (N, F, W) float32."""
        every = self.features(samples)
        return every[[self.known.index(layer) for layer in self.layers]]

    def head_config(self, output: TaskOutput, **more: object) -> HeadConfig:
        """The configuration of a head on these features."""
        bound = {"student_sha256": self.sha256, "student_name": self.name, "takes": self.takes}
        return HeadConfig(output, layers=self.layers, width=self.width, **bound, **more)  # type: ignore[arg-type]


def open_student(
    checkpoint: Path, *, layers: str = "last", takes: str = "hidden", device: torch.device = CPU
) -> FrozenStudent:
    """The student of a checkpoint folder; ``layers``: last, all, or numbers from 1 such as 3,6.

    Raises RdError for another folder, for layers that there are not, and for projection heads that there are not.
    """
    student = load_checkpoint(checkpoint)
    config = student.config
    if takes == "heads" and config.head_width is None:
        raise RdError(f"{checkpoint}: this student has no projection heads", hint="use --features hidden")
    known = config.targets if takes == "heads" else tuple(range(1, config.layers + 1))
    name = checkpoint.resolve().parent.name if checkpoint.name == "student" else checkpoint.name
    width = config.width if takes == "hidden" else int(config.head_width or 0)
    features = of_student(name, student, heads=takes == "heads", device=device)
    sha256 = file_sha256(checkpoint / WEIGHTS)
    return FrozenStudent(features, name, sha256, takes, known, _layers(layers, known), width)


def _layers(text: str, known: tuple[int, ...]) -> tuple[int, ...]:
    if text in ("last", "all"):
        return known[-1:] if text == "last" else known
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise RdError(f"--layers {text!r} is not last, all or numbers such as 3,6") from None
    missing = [number for number in numbers if number not in known]
    if missing:
        raise RdError(f"--layers: there is no layer {missing[0]}", hint=f"there are {', '.join(map(str, known))}")
    return numbers
