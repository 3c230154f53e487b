"""Units without their repeats: each run of the same unit once, with its duration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from reuse_distill.runtime.tasks.contract import TaskOutput
from reuse_distill.runtime.tasks.task_event import TaskEvent, check_rows


@dataclass(frozen=True)
class OpenRun:
    """State: the run that has not ended; ``unit`` is -1 before the first frame."""

    unit: int = -1
    first: int = 0  # frame where it began
    frames: int = 0  # of the stream so far


class UnitRuns:
    """Decoder of ``units``: an event per run, its label the unit's number."""

    def __init__(self, output: TaskOutput) -> None:
        self.output = output

    def start(self) -> OpenRun:
        return OpenRun()

    def step(self, state: OpenRun, rows: np.ndarray) -> tuple[OpenRun, list[TaskEvent]]:
        """``rows`` (n, 1) of integers."""
        units = check_rows(self.output, rows)[:, 0].astype(np.int64)
        if not len(units):
            return state, []
        changes = np.flatnonzero(np.diff(units, prepend=state.unit))
        events = []
        unit, first = state.unit, state.first
        for change in changes.tolist():
            at = state.frames + change
            events += self._event(unit, first, at)
            unit, first = int(units[change]), at
        return OpenRun(unit, first, state.frames + len(units)), events

    def finish(self, state: OpenRun) -> list[TaskEvent]:
        return self._event(state.unit, state.first, state.frames)

    def _event(self, unit: int, first: int, last: int) -> list[TaskEvent]:
        rate = self.output.rate_hz
        return [TaskEvent(str(unit), first / rate, last / rate)] if unit >= 0 and last > first else []
