"""States of streams in the memory of ONNX Runtime's provider: two buffers per state that swap roles after every step.

A step reads one side and writes the whole next state to the other, so nothing but samples and features travels. This
needs steps that return whole states (update ``replace``); appended rows would have to be written over the oldest ones
where ONNX Runtime has no copy for. Rows of one pool are moved to another one, saved and reset by way of the host.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from reuse_distill.runtime.bundle_format.manifest import State
from reuse_distill.runtime.bundle_format.stepspec import FRESH, SAMPLES, StepSpec
from reuse_distill.runtime.engines.backend import Backend
from reuse_distill.runtime.streaming.snapshot import Saved
from reuse_distill.runtime.streaming.state_pool import StatePool, StepBuffers


class ResidentBackend(Backend, Protocol):
    """What a pool needs besides running."""

    def allocate(self, array: np.ndarray) -> Any:
        """An OrtValue in the provider's memory that holds ``array``."""

    def write_row(self, value: Any, row: int, array: np.ndarray) -> None:
        """Make row ``row`` of an allocated value that of ``array``, and touch no other row."""

    def read_row(self, value: Any, row: int) -> np.ndarray:
        """A copy of row ``row`` of an allocated value."""

    def bind_resident(
        self,
        host: tuple[dict[str, np.ndarray], dict[str, np.ndarray]],
        device: tuple[dict[str, Any], dict[str, Any]],
        rows: slice,
    ) -> Callable[[], None]:
        """A call that runs once: inputs and outputs on the host, and rows of inputs and outputs on the device."""


def can_reside(spec: StepSpec) -> bool:
    """Whether the states of a step graph may stay on a device."""
    return all(state.update == "replace" for state in spec.states)


class ResidentStatePool(StatePool):
    """``StatePool`` for graphs whose states are all ``replace``."""

    def __init__(self, spec: StepSpec, backend: ResidentBackend, rows: int) -> None:
        self.spec, self.backend, self.rows, self._device = spec, backend, rows, backend
        self._buffers: dict[int, StepBuffers] = {}
        self.cursor = np.zeros(rows, np.int64)  # nothing is a ring here
        zeros = [np.zeros((rows, *_sizes(state)), state.dtype) for state in spec.states]
        self._sides = [(backend.allocate(array), backend.allocate(array)) for array in zeros]
        self._current = np.zeros(rows, np.int8)  # which side holds the row's state
        self._zero = np.ones(rows, np.bool_)  # rows that hold zeros: nothing to reset
        self._lock = threading.RLock()  # rows of one pool may be stepped by several threads
        self._calls: dict[tuple[int, int, int, int], Callable[[], None]] = {}

    def run(self, first: int, last: int, chunk: int | None = None) -> None:
        """One step of rows [first, last); outputs lie in the pool afterwards, next states on the other side."""
        with self._lock:
            side = int(self._current[first])
            for row in range(first, last):
                if self._current[row] != side:  # rows that have made another number of steps
                    states = self._read(row, int(self._current[row]))
                    self._current[row] = side
                    self._write(row, side, states)
            key = (first, last, side, chunk or self.spec.chunk_frames)
            if key not in self._calls:
                self._calls[key] = self._bind_sides(slice(first, last), side, self.buffers(chunk))
            self._zero[first:last] = False
            self._calls[key]()

    def reset(self, row: int) -> None:
        """Row ``row`` back to the start of a stream: zeros."""
        with self._lock:
            if not self._zero[row]:
                self._write(row, int(self._current[row]), [np.zeros(_sizes(s), s.dtype) for s in self.spec.states])
                self._zero[row] = True

    def absorb(self, row: int, source: StatePool, source_row: int, chunk: int | None = None) -> None:
        """Take the next state of ``row`` from the last step of ``source``."""
        assert isinstance(source, ResidentStatePool)  # noqa: S101  (one backend makes one kind)
        if source is self and source_row == row:
            self._current[row] ^= 1
            return
        self._write(row, int(self._current[row]), source._read(source_row, int(source._current[source_row]) ^ 1))

    def absorb_range(self, first: int, last: int, chunk: int | None = None) -> None:
        """The same for rows [first, last) after their own step: the sides swap."""
        self._current[first:last] ^= 1

    def copy_states(self, row: int, source: StatePool, source_row: int) -> None:
        """Make the states of ``row`` those of another pool's row."""
        assert isinstance(source, ResidentStatePool)  # noqa: S101
        self._write(row, int(self._current[row]), source._read(source_row, int(source._current[source_row])))

    def save(self, row: int, saved: Saved) -> None:
        """Add the states of ``row`` to ``saved``."""
        saved.counters["cursor"] = 0
        for state, array in zip(self.spec.states, self._read(row, int(self._current[row])), strict=True):
            saved.arrays[f"state {state.name}"] = array

    def check(self, saved: Saved) -> None:
        """Raise RdError where ``saved`` does not hold the states of one row."""
        saved.counter("cursor", 0, 0)
        for state in self.spec.states:
            saved.array(f"state {state.name}", np.dtype(state.dtype), _sizes(state))

    def load(self, row: int, saved: Saved) -> None:
        """Make the states of ``row`` those that were saved (and checked)."""
        self._write(row, int(self._current[row]), [saved.arrays[f"state {s.name}"] for s in self.spec.states])

    def _new_buffers(self, spec: StepSpec) -> StepBuffers:
        return StepBuffers(spec, self.rows, appends=False)

    def _bind_sides(self, rows: slice, side: int, buffers: StepBuffers) -> Callable[[], None]:
        inputs = {SAMPLES: buffers.samples[rows], FRESH: buffers.fresh[rows]}
        hosts = inputs, {name: array[rows] for name, array in buffers.outputs.items()}
        before = {s.input: sides[side] for s, sides in zip(self.spec.states, self._sides, strict=True)}
        after = {s.output: sides[side ^ 1] for s, sides in zip(self.spec.states, self._sides, strict=True)}
        return self._device.bind_resident(hosts, (before, after), rows)

    def _read(self, row: int, side: int) -> list[np.ndarray]:
        with self._lock:
            return [self._device.read_row(sides[side], row) for sides in self._sides]

    def _write(self, row: int, side: int, states: list[np.ndarray]) -> None:
        """Rows of other streams stay as they are, whoever steps them meanwhile."""
        with self._lock:
            self._zero[row] = False
            for sides, state in zip(self._sides, states, strict=True):
                self._device.write_row(sides[side], row, np.ascontiguousarray(state))


def _sizes(state: State) -> tuple[int, ...]:
    return tuple(int(d) for d in state.shape[1:])
