"""States of streams in the memory of ONNX Runtime's provider: two buffers per state that swap roles after every step.

A step reads one side and writes the whole next state to the other, so nothing but samples and features travels. This
needs steps that return whole states (update ``replace``); appended rows would have to be written over the oldest ones
where ONNX Runtime has no copy for. Rows of one pool are moved to another one, saved and reset by way of the host.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from reuse_distill.runtime.bundle_format.stepspec import FRESH, SAMPLES, StepSpec
from reuse_distill.runtime.engines.backend import Backend
from reuse_distill.runtime.streaming.state_pool import StepBuffers
from reuse_distill.runtime.streaming.whole_states import TwoSidedStatePool


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


class ResidentStatePool(TwoSidedStatePool):
    """``StatePool`` for graphs whose states are all ``replace``."""

    def __init__(self, spec: StepSpec, backend: ResidentBackend, rows: int) -> None:
        super().__init__(spec, backend, rows)
        self._device = backend
        zeros = [np.zeros((rows, *state.row_shape), state.dtype) for state in spec.states]
        self._sides = [(backend.allocate(array), backend.allocate(array)) for array in zeros]
        self._zero = np.ones(rows, np.bool_)  # rows that hold zeros: nothing to reset
        self._lock = threading.RLock()  # rows of one pool may be stepped by several threads
        self._calls: dict[tuple[int, int, int, int], Callable[[], None]] = {}

    def run(self, first: int, last: int, chunk: int | None = None) -> None:
        """One step of rows [first, last); outputs lie in the pool afterwards, next states on the other side."""
        with self._lock:
            side = self._gather(first, last)
            key = (first, last, side, chunk or self.spec.chunk_frames)
            if key not in self._calls:
                self._calls[key] = self._bind_sides(slice(first, last), side, self.buffers(chunk))
            self._zero[first:last] = False
            self._calls[key]()

    def reset(self, row: int) -> None:
        """Row ``row`` back to the start of a stream: zeros."""
        with self._lock:
            if not self._zero[row]:
                super().reset(row)
                self._zero[row] = True

    def _bind_sides(self, rows: slice, side: int, buffers: StepBuffers) -> Callable[[], None]:
        inputs = {SAMPLES: buffers.samples[rows], FRESH: buffers.fresh[rows]}
        hosts = inputs, {name: array[rows] for name, array in buffers.outputs.items()}
        before = {s.input: sides[side] for s, sides in zip(self.spec.states, self._sides, strict=True)}
        after = {s.output: sides[side ^ 1] for s, sides in zip(self.spec.states, self._sides, strict=True)}
        return self._device.bind_resident(hosts, (before, after), rows)

    def read_row(self, row: int) -> list[np.ndarray]:
        """Copies of the states of ``row``."""
        return self._read(row, int(self._current[row]))

    def write_row(self, row: int, states: Sequence[np.ndarray]) -> None:
        """Make the states of ``row`` these. Rows of other streams stay as they are, whoever steps them meanwhile."""
        with self._lock:
            self._zero[row] = False
            for sides, state in zip(self._sides, states, strict=True):
                self._device.write_row(sides[self._current[row]], row, np.ascontiguousarray(state))

    def _take(self, row: int, source: TwoSidedStatePool, source_row: int, source_side: int) -> None:
        assert isinstance(source, ResidentStatePool)  # noqa: S101  (one backend makes one kind)
        self.write_row(row, source._read(source_row, source_side))

    def _read(self, row: int, side: int) -> list[np.ndarray]:
        with self._lock:
            return [self._device.read_row(sides[side], row) for sides in self._sides]
