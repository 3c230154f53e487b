"""States of streams in device memory: two buffers per state that swap roles after every step, nothing is copied.

The step graph reads one side and writes the whole next state to the other. What a step does to fixed addresses, the
copies of samples and features included, is captured once per side as a CUDA graph and replayed from then on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from reuse_distill.runtime.bundle_format.stepspec import FRESH, SAMPLES, StepSpec
from reuse_distill.runtime.engines.tensorrt.cuda_runtime import ON_DEVICE, TO_DEVICE, TO_HOST, Cuda
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.streaming.state_pool import StepBuffers
from reuse_distill.runtime.streaming.whole_states import TwoSidedStatePool, appended_states

if TYPE_CHECKING:
    from reuse_distill.runtime.engines.tensorrt.tensorrt_backend import TensorrtBackend


ALIGNMENT_BYTES = 256  # what IExecutionContext.set_tensor_address asks for


class DeviceRows:
    """Device memory for rows of one tensor: rows of one batch lie together, and every batch starts aligned."""

    def __init__(self, cuda: Cuda, rows: int, row_bytes: int, batch: int) -> None:
        self.row_bytes, self._batch = row_bytes, batch
        self._stride = -(-row_bytes * batch // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        self.base = cuda.allocate(self._stride * -(-rows // batch))

    def at(self, row: int) -> int:
        """Address of a row."""
        return self.base + row // self._batch * self._stride + row % self._batch * self.row_bytes


class CudaStatePool(TwoSidedStatePool):
    """``StatePool`` for engines whose states are all ``replace`` and whose batch is fixed."""

    def __init__(self, spec: StepSpec, backend: TensorrtBackend, rows: int) -> None:
        appended = appended_states(spec)
        if appended or spec.batch is None:
            raise RdError(f"an engine needs a fixed batch and whole states; {appended or 'the batch'} are not")
        if len(spec.choices) > 1:
            raise RdError(f"an engine has steps of one size, this bundle of {', '.join(map(str, spec.choices))} frames")
        super().__init__(spec, backend, rows)
        self._device, self._cuda = backend, backend.cuda
        pinned = self._cuda.pinned
        host = StepBuffers(spec, 0, appends=False)
        host.samples = pinned((rows, spec.window_samples), np.float32)
        host.fresh = pinned((rows, spec.chunk_frames), np.float32)
        host.outputs = {name: pinned((rows, *shape), dtype) for name, (shape, dtype) in spec.outputs.items()}
        self._buffers = {spec.chunk_frames: host}
        self._hosts = {SAMPLES: self.samples, FRESH: self.fresh, **self.outputs}
        self._io = {name: self._rows(array[0].nbytes) for name, array in self._hosts.items()}
        self._sides = [tuple(self._rows(s.row_bytes) for _ in range(2)) for s in spec.states]
        self._graphs: dict[tuple[int, int, int], int | None] = {}

    def starts_batch(self, row: int) -> bool:
        """Whether a batch may start at ``row``: the engine wants aligned addresses."""
        return row % (self.spec.batch or 1) == 0

    def run(self, first: int, last: int, chunk: int | None = None) -> None:
        """One step of rows [first, last); outputs lie in the pool afterwards, next states on the other side."""
        with self._device.lock:
            side = self._gather(first, last)
            key = (first, last, side)
            if key not in self._graphs:  # TensorRT wants one plain run at these addresses before a capture
                self._enqueue(*key)
                self._graphs[key] = None
            else:
                graph = self._graphs[key]
                if graph is None:
                    graph = self._graphs[key] = self._capture(key)
                self._cuda.launch(graph, self._device.stream)
            self._cuda.wait(self._device.stream)

    def reset(self, row: int) -> None:
        """Row ``row`` back to the start of a stream: zeros."""
        with self._device.lock:
            for sides in self._sides:
                memory = sides[self._current[row]]
                self._cuda.clear(memory.at(row), memory.row_bytes, self._device.stream)
            self._cuda.wait(self._device.stream)

    def read_row(self, row: int) -> list[np.ndarray]:
        """Copies of the states of ``row``."""
        arrays = [np.empty(state.row_shape, state.dtype) for state in self.spec.states]
        with self._device.lock:
            for array, sides in zip(arrays, self._sides, strict=True):
                address = sides[self._current[row]].at(row)
                self._cuda.copy(array.ctypes.data, address, array.nbytes, TO_HOST, self._device.stream)
            self._cuda.wait(self._device.stream)
        return arrays

    def write_row(self, row: int, states: Sequence[np.ndarray]) -> None:
        """Make the states of ``row`` these."""
        arrays = [np.ascontiguousarray(state) for state in states]
        with self._device.lock:
            for array, sides in zip(arrays, self._sides, strict=True):
                address = sides[self._current[row]].at(row)
                self._cuda.copy(address, array.ctypes.data, array.nbytes, TO_DEVICE, self._device.stream)
            self._cuda.wait(self._device.stream)

    def close(self) -> None:
        """Give the memory and the graphs back."""
        for graph in self._graphs.values():
            if graph is not None:
                self._cuda.free_graph(graph)
        for memory in (*self._io.values(), *(side for sides in self._sides for side in sides)):
            self._cuda.free(memory.base)
        self._graphs, self._io, self._sides = {}, {}, []

    def __del__(self) -> None:
        if getattr(self, "_sides", None):
            self.close()

    def _take(self, row: int, source: TwoSidedStatePool, source_row: int, source_side: int) -> None:
        assert isinstance(source, CudaStatePool)  # noqa: S101  (one backend makes one kind)
        with self._device.lock:
            for mine, theirs in zip(self._sides, source._sides, strict=True):
                target, origin = mine[self._current[row]], theirs[source_side]
                size = target.row_bytes
                self._cuda.copy(target.at(row), origin.at(source_row), size, ON_DEVICE, self._device.stream)
            self._cuda.wait(self._device.stream)

    def _capture(self, key: tuple[int, int, int]) -> int:
        self._cuda.begin_capture(self._device.stream)
        try:
            self._enqueue(*key)
        except RdError:
            self._cuda.end_capture(self._device.stream)
            raise
        return self._cuda.end_capture(self._device.stream)

    def _enqueue(self, first: int, last: int, side: int) -> None:
        """Samples in, one run from ``side`` to the other, features out: all on the stream, nothing waited for."""
        context, stream = self._device.context, self._device.stream
        for name, array in self._hosts.items():
            address, rows = self._io[name].at(first), array[first:last]
            context.set_tensor_address(name, address)
            if name not in self.outputs:
                self._cuda.copy(address, rows.ctypes.data, rows.nbytes, TO_DEVICE, stream)
        for state, sides in zip(self.spec.states, self._sides, strict=True):
            context.set_tensor_address(state.input, sides[side].at(first))
            context.set_tensor_address(state.output, sides[side ^ 1].at(first))
        self._device.execute()
        for name, array in self.outputs.items():
            rows = array[first:last]
            self._cuda.copy(rows.ctypes.data, self._io[name].at(first), rows.nbytes, TO_HOST, stream)

    def _rows(self, row_bytes: int) -> DeviceRows:
        return DeviceRows(self._cuda, self.rows, row_bytes, self.spec.batch or 1)
