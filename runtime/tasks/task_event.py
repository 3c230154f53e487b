"""What a decoder gives, and the check of what it takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.tasks.contract import TaskOutput


@dataclass(frozen=True)
class TaskEvent:
    """One result: a word, a unit, a label or a vector, and the stretch of audio that it is about."""

    label: str
    start_s: float
    end_s: float
    score: float | None = None  # within 0..1: a probability, or what the kind makes of several
    vector: tuple[float, ...] = ()  # of an x-vector

    def __str__(self) -> str:
        score = "" if self.score is None else f"  {self.score:.2f}"
        numbers = f"  {' '.join(f'{number:.4g}' for number in self.vector)}" if self.vector else ""
        return f"{self.start_s:8.2f} {self.end_s:8.2f}  {self.label}{score}{numbers}"


def check_rows(output: TaskOutput, rows: np.ndarray) -> np.ndarray:
    """``rows`` itself, (n, K). Raises RdError for another width."""
    if rows.ndim != 2 or rows.shape[1] != output.columns:
        raise RdError(f"head {output.name!r}: rows of shape {rows.shape}, (frames, {output.columns}) is needed")
    return rows
