"""Pools of engines that keep the states of streams in a memory of their own, for steps that return whole states.

An engine says how the states of one row are read and written; all else follows. Where appended rows would have to be
written over the oldest ones, such a pool cannot serve: every state of the step graph is ``replace``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
from reuse_distill.runtime.bundle_format.stepspec import StepSpec
from reuse_distill.runtime.engines.backend import Backend
from reuse_distill.runtime.streaming.snapshot import Saved
from reuse_distill.runtime.streaming.state_pool import StatePool, StepBuffers


def appended_states(spec: StepSpec) -> list[str]:
    """Names of the states of which a step returns new rows only; none: a pool of whole states may keep them."""
    return [state.name for state in spec.states if state.update != "replace"]


class WholeStatePool(StatePool):
    """``StatePool`` whose states are not on the host. Rows are saved, loaded, copied and reset by way of the host."""

    def __init__(self, spec: StepSpec, backend: Backend, rows: int) -> None:
        self.spec, self.backend, self.rows = spec, backend, rows
        self._buffers: dict[int, StepBuffers] = {}
        self.cursor = np.zeros(rows, np.int64)  # nothing is a ring here

    @abstractmethod
    def read_row(self, row: int) -> list[np.ndarray]:
        """Copies of the states of ``row``, without the batch, in the order of the manifest."""

    @abstractmethod
    def write_row(self, row: int, states: Sequence[np.ndarray]) -> None:
        """Make the states of ``row`` these, and touch no other row."""

    def reset(self, row: int) -> None:
        """Row ``row`` back to the start of a stream: zeros."""
        self.write_row(row, [np.zeros(state.row_shape, state.dtype) for state in self.spec.states])

    def copy_states(self, row: int, source: StatePool, source_row: int) -> None:
        """Make the states of ``row`` those of another pool's row."""
        assert isinstance(source, WholeStatePool)  # noqa: S101  (one backend makes one kind)
        self.write_row(row, source.read_row(source_row))

    def save(self, row: int, saved: Saved) -> None:
        """Add the states of ``row`` to ``saved``."""
        saved.counters["cursor"] = 0
        for state, array in zip(self.spec.states, self.read_row(row), strict=True):
            saved.arrays[f"state {state.name}"] = array

    def check(self, saved: Saved) -> None:
        """Raise RdError where ``saved`` does not hold the states of one row."""
        saved.counter("cursor", 0, 0)
        for state in self.spec.states:
            saved.array(f"state {state.name}", np.dtype(state.dtype), state.row_shape)

    def load(self, row: int, saved: Saved) -> None:
        """Make the states of ``row`` those that were saved (and checked)."""
        self.write_row(row, [saved.arrays[f"state {state.name}"] for state in self.spec.states])

    def _new_buffers(self, spec: StepSpec) -> StepBuffers:
        return StepBuffers(spec, self.rows, appends=False)


class TwoSidedStatePool(WholeStatePool):
    """Two buffers per state that swap roles after every step: it reads one side and writes the other."""

    def __init__(self, spec: StepSpec, backend: Backend, rows: int) -> None:
        super().__init__(spec, backend, rows)
        self._current = np.zeros(rows, np.int8)  # which side holds the row's state

    @abstractmethod
    def _take(self, row: int, source: TwoSidedStatePool, source_row: int, source_side: int) -> None:
        """Copy the states of ``source_row`` on one side of ``source`` over those that ``row`` has now."""

    def absorb(self, row: int, source: StatePool, source_row: int, chunk: int | None = None) -> None:
        """Take the next state of ``row`` from the last step of ``source``."""
        assert isinstance(source, TwoSidedStatePool)  # noqa: S101  (one backend makes one kind)
        if source is self and source_row == row:
            self._current[row] ^= 1
            return
        self._take(row, source, source_row, int(source._current[source_row]) ^ 1)

    def absorb_range(self, first: int, last: int, chunk: int | None = None) -> None:
        """The same for rows [first, last) after their own step: the sides swap."""
        self._current[first:last] ^= 1

    def copy_states(self, row: int, source: StatePool, source_row: int) -> None:
        """Make the states of ``row`` those of another pool's row."""
        assert isinstance(source, TwoSidedStatePool)  # noqa: S101
        self._take(row, source, source_row, int(source._current[source_row]))

    def _gather(self, first: int, last: int) -> int:
        """Bring rows that have made another number of steps to the side of the first one, which is returned."""
        side = int(self._current[first])
        for row in range(first, last):
            if self._current[row] != side:
                self._current[row] = side
                self._take(row, self, row, side ^ 1)
        return side
