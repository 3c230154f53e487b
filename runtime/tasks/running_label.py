"""The label of what was heard so far, or of the newest seconds (the largest mean logit); and units without repeats.

Each run of the same unit is given once, with its duration.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from reuse_distill.runtime.tasks.contract import TaskEvent, TaskOutput, check_rows

SETTLE_S = 0.5  # of audio before the first label is reported, where there is so much


@dataclass(frozen=True, eq=False)
class RunningMean:
    """State: sums of logits, in float64, added in the order of the frames."""

    total: np.ndarray  # (K,)
    frames: int = 0
    recent: np.ndarray | None = None  # (n, K): the rows of a windowed mean, the oldest first
    reported: int = -1  # the label that was reported last


class RunningLabel:
    """Decoder of ``classify``: an event when the label changes, and one for the whole at the end."""

    def __init__(self, output: TaskOutput) -> None:
        self.output = output
        self.window = None if output.window_s is None else max(1, round(output.window_s * output.rate_hz))
        self.settle = max(1, round(SETTLE_S * output.rate_hz))

    def start(self) -> RunningMean:
        recent = None if self.window is None else np.zeros((0, self.output.size))
        return RunningMean(np.zeros(self.output.size), recent=recent)

    def step(self, state: RunningMean, rows: np.ndarray) -> tuple[RunningMean, list[TaskEvent]]:
        """``rows`` (n, K) of logits."""
        rows = check_rows(self.output, rows).astype(np.float64)
        if not len(rows):
            return state, []
        means = self._means(state, rows)
        events, reported = [], state.reported
        for i, label in enumerate(means.argmax(1).tolist()):
            count = state.frames + i + 1
            if label != reported and count >= self.settle:
                events.append(self._event(means[i], count))
                reported = label
        recent = None if state.recent is None else np.concatenate([state.recent, rows])[-(self.window or 1) :]
        total = _totals(state.total, rows)[-1]
        return RunningMean(total, state.frames + len(rows), recent, reported), events

    def finish(self, state: RunningMean) -> list[TaskEvent]:
        """The label of the whole stream, or of its last window; nothing of a stream without frames."""
        mean = self.mean(state)
        return [] if mean is None else [self._event(mean, state.frames)]

    def mean(self, state: RunningMean) -> np.ndarray | None:
        """Mean logits (K,) now; None before the first frame."""
        if not state.frames:
            return None
        return state.total / state.frames if state.recent is None else state.recent.mean(0)

    def _means(self, state: RunningMean, rows: np.ndarray) -> np.ndarray:
        """The mean after each of ``rows``: (n, K)."""
        if state.recent is None:
            counts = np.arange(state.frames + 1, state.frames + len(rows) + 1)
            return _totals(state.total, rows) / counts[:, None]
        joined, before = np.concatenate([state.recent, rows]), len(state.recent)
        ends = range(before + 1, before + len(rows) + 1)
        return np.stack([joined[max(0, end - (self.window or 1)) : end].mean(0) for end in ends])

    def _event(self, mean: np.ndarray, count: int) -> TaskEvent:
        share = np.exp(mean - mean.max())
        label, rate = int(mean.argmax()), self.output.rate_hz
        first = 0 if self.window is None else max(0, count - self.window)
        return TaskEvent(self.output.labels[label], first / rate, count / rate, float(share[label] / share.sum()))


def _totals(total: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The sum after each of ``rows`` (n, K), added one by one: it does not matter how rows are cut into steps."""
    return np.cumsum(np.concatenate([total[None], rows]), axis=0)[1:]


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
