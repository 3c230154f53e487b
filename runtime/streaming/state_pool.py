"""The state of several streams in contiguous arrays [rows, ...], bound to the step graph where it lies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
from reuse_distill.runtime.bundle_format.manifest import State
from reuse_distill.runtime.bundle_format.stepspec import FRESH, SAMPLES, StepSpec
from reuse_distill.runtime.engines.backend import Backend
from reuse_distill.runtime.streaming.snapshot import Saved


class StepBuffers:
    """What a step of one chunk size reads and writes besides states, for every row of a pool."""

    def __init__(self, spec: StepSpec, rows: int, *, appends: bool = True) -> None:
        self.samples = np.zeros((rows, spec.window_samples), np.float32)
        self.fresh = np.zeros((rows, spec.chunk_frames), np.float32)
        self.outputs = {name: np.zeros((rows, *shape), dtype) for name, (shape, dtype) in spec.outputs.items()}
        states = spec.states if appends else ()
        self.news = [np.zeros((rows, *_news_sizes(s, spec.chunk_frames)), s.dtype) for s in states]
        # The same memory with the axis that moves second: [rows, slots, ...].
        self.new_slots = [np.moveaxis(a, s.axis, 1) for a, s in zip(self.news, states, strict=True)]

    def row_outputs(self, row: int) -> dict[str, np.ndarray]:
        """What the last step gave ``row``: features (N, C, W), output (C, K) of each head."""
        return {name: array[row] for name, array in self.outputs.items()}


class StatePool:
    """Inputs, states and outputs of ``rows`` streams.

    A step of neighbouring rows runs on these buffers as they are (``run``); what came out becomes part of the states
    with ``absorb``. Unordered states are rings: row r's oldest slot is ``cursor[r]``. Where steps may have several
    chunk sizes, all of them read and write the same states; ``chunk`` is the size of a step, None the usual one.
    """

    def __init__(self, spec: StepSpec, backend: Backend, rows: int) -> None:
        self.spec, self.backend, self.rows = spec, backend, rows
        self.states = [np.zeros((rows, *s.row_shape), s.dtype) for s in spec.states]
        self._buffers: dict[int, StepBuffers] = {}
        self.cursor = np.zeros(rows, np.int64)
        self._slots = [np.moveaxis(a, s.axis, 1) for a, s in zip(self.states, spec.states, strict=True)]
        self._bound: dict[tuple[int, int, int], Callable[[], None]] = {}

    def buffers(self, chunk: int | None = None) -> StepBuffers:
        """Inputs and outputs of steps of ``chunk`` frames, made when first needed."""
        chunk = chunk or self.spec.chunk_frames
        if chunk not in self._buffers:
            self._buffers[chunk] = self._new_buffers(self.spec.of_chunk(chunk))
        return self._buffers[chunk]

    @property
    def samples(self) -> np.ndarray:
        """Samples [rows, 320 C + 80] of steps of the usual size."""
        return self.buffers().samples

    @property
    def fresh(self) -> np.ndarray:
        """Frames [rows, C] that exist, of steps of the usual size."""
        return self.buffers().fresh

    @property
    def outputs(self) -> dict[str, np.ndarray]:
        """What steps of the usual size give besides states."""
        return self.buffers().outputs

    def run(self, first: int, last: int, chunk: int | None = None) -> None:
        """One step of rows [first, last); outputs and new state rows lie in the buffers of ``chunk`` afterwards."""
        key = (first, last, chunk or self.spec.chunk_frames)
        call = self._bound.get(key)
        if call is None:
            call = self._bound[key] = self._bind(slice(first, last), self.buffers(chunk))
        call()

    def starts_batch(self, row: int) -> bool:
        """Whether a batch of neighbours may start at ``row``."""
        return True

    def reset(self, row: int) -> None:
        """Row ``row`` back to the start of a stream: zeros."""
        for state in self.states:
            state[row] = 0
        self.cursor[row] = 0

    def absorb(self, row: int, source: StatePool, source_row: int, chunk: int | None = None) -> None:
        """Update the state of ``row`` with what the last step of ``source`` gave in ``source_row``."""
        self._absorb(slice(row, row + 1), source.buffers(chunk), slice(source_row, source_row + 1))

    def absorb_range(self, first: int, last: int, chunk: int | None = None) -> None:
        """Update the states of rows [first, last) after their own step, in one go where they move together."""
        if (self.cursor[first:last] == self.cursor[first]).all():
            self._absorb(slice(first, last), self.buffers(chunk), slice(first, last))
            return
        for row in range(first, last):
            self.absorb(row, self, row, chunk)

    def copy_states(self, row: int, source: StatePool, source_row: int) -> None:
        """Make the states of ``row`` those of another pool's row."""
        for mine, theirs in zip(self.states, source.states, strict=True):
            mine[row] = theirs[source_row]

    def save(self, row: int, saved: Saved) -> None:
        """Add the states of ``row`` to ``saved``."""
        saved.counters["cursor"] = int(self.cursor[row])
        for spec, state in zip(self.spec.states, self.states, strict=True):
            saved.arrays[f"state {spec.name}"] = state[row].copy()

    def check(self, saved: Saved) -> None:
        """Raise RdError where ``saved`` does not hold the states of one row."""
        saved.counter("cursor", 0, max(self.spec.ring_frames - 1, 0))
        for spec, state in zip(self.spec.states, self.states, strict=True):
            saved.array(f"state {spec.name}", state.dtype, state.shape[1:])

    def load(self, row: int, saved: Saved) -> None:
        """Make the states of ``row`` those that were saved (and checked)."""
        self.cursor[row] = saved.counters["cursor"]
        for spec, state in zip(self.spec.states, self.states, strict=True):
            state[row] = saved.arrays[f"state {spec.name}"]

    def _new_buffers(self, spec: StepSpec) -> StepBuffers:
        return StepBuffers(spec, self.rows)

    def _absorb(self, rows: slice, source: StepBuffers, from_rows: slice) -> None:
        cursor = int(self.cursor[rows.start])
        parts = zip(self.spec.states, self.states, self._slots, source.news, source.new_slots, strict=True)
        for spec, state, slots, news, new_slots in parts:
            if spec.update == "replace":
                state[rows] = news[from_rows]
            elif spec.ordered:
                shift_in(slots[rows], new_slots[from_rows])
            else:
                write_ring(slots[rows], new_slots[from_rows], cursor)
        if ring := self.spec.ring_frames:
            # A chunk longer than the ring writes every slot once: the oldest is where it was.
            self.cursor[rows] = (cursor + min(source.fresh.shape[1], ring)) % ring

    def _bind(self, rows: slice, buffers: StepBuffers) -> Callable[[], None]:
        inputs = {SAMPLES: buffers.samples[rows], FRESH: buffers.fresh[rows]}
        outputs = {name: array[rows] for name, array in buffers.outputs.items()}
        for spec, state, news in zip(self.spec.states, self.states, buffers.news, strict=True):
            inputs[spec.input] = state[rows]
            outputs[spec.output] = news[rows]
        return self.backend.bind(inputs, outputs)


@runtime_checkable
class KeepsStates(Protocol):
    """A backend that may keep states of streams in a memory of its own."""

    def state_pool(self, spec: StepSpec, rows: int) -> StatePool:
        """Room for ``rows`` streams, there or on the host."""


def open_pool(spec: StepSpec, backend: Backend, rows: int) -> StatePool:
    """Room for ``rows`` streams: in the backend's own memory where it has some (a GPU's), else here."""
    return backend.state_pool(spec, rows) if isinstance(backend, KeepsStates) else StatePool(spec, backend, rows)


def write_ring(slots: np.ndarray, news: np.ndarray, cursor: int) -> None:
    """Write news [B, C, ...] over the oldest slots of [B, L, ...], the oldest being ``cursor``; wraps around."""
    news = news[:, -slots.shape[1] :]  # a chunk longer than the ring leaves its newest rows
    until_end = min(news.shape[1], slots.shape[1] - cursor)
    slots[:, cursor : cursor + until_end] = news[:, :until_end]
    if until_end < news.shape[1]:
        slots[:, : news.shape[1] - until_end] = news[:, until_end:]


def shift_in(slots: np.ndarray, news: np.ndarray) -> None:
    """Move [B, L, ...] towards the front by C rows and put news [B, C, ...] at the end, oldest first.

    Done in blocks of C rows, which do not overlap, so that no temporary copy is made.
    """
    length, step = slots.shape[1], news.shape[1]
    news = news[:, -length:]
    for first in range(0, length - step, step):
        last = min(first + step, length - step)
        slots[:, first:last] = slots[:, first + step : last + step]
    slots[:, length - news.shape[1] :] = news


def _news_sizes(state: State, chunk_frames: int) -> tuple[int, ...]:
    if state.update == "replace":
        return state.row_shape
    sizes = list(state.row_shape)
    sizes[state.axis - 1] = chunk_frames
    return tuple(sizes)
