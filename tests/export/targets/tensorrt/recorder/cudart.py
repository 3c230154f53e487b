"""The CUDA runtime in main memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any


class FakeCudart:
    """The calls of ``runtime.engines.tensorrt.cuda_runtime`` in main memory; a captured stream runs when launched."""

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.capturing: list[Callable[[], None]] | None = None
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.calls: list[str] = []
        self.hosts = 0
        self.name, self.capability = b"Orin (recorded)", {75: 8, 76: 7}

        class ErrorString:
            restype: Any = None

            def __call__(self, status: int) -> bytes:
                return {900: b"operation not permitted when stream is capturing"}.get(status, b"invalid argument")

        self.cudaGetErrorString = ErrorString()

    def cudaGetDevice(self, out: Any) -> int:
        out._obj.value = 0
        return 0

    def cudaGetDeviceProperties(self, properties: Any, device: int) -> int:
        properties.value = self.name
        return 0

    def cudaDeviceGetAttribute(self, out: Any, attribute: int, device: int) -> int:
        out._obj.value = self.capability[attribute]
        return 0

    def cudaMalloc(self, out: Any, size: Any) -> int:
        if self.capturing is not None:
            return 900
        block = (ctypes.c_ubyte * (size.value + 256))()
        address = -(-ctypes.addressof(block) // 256) * 256
        self.memory[address] = block
        out._obj.value = address
        return 0

    def cudaHostAlloc(self, out: Any, size: Any, flags: int) -> int:
        self.hosts += 1
        return self.cudaMalloc(out, size)

    def cudaFree(self, address: Any) -> int:
        return 0 if self.memory.pop(address.value, None) is not None else 1

    def cudaMemset(self, address: Any, value: int, size: Any) -> int:
        ctypes.memset(address.value, value, size.value)
        return 0

    def cudaMemsetAsync(self, address: Any, value: int, size: Any, stream: Any) -> int:
        self.submit(lambda: ctypes.memset(address.value, value, size.value))
        return 0

    def cudaMemcpyAsync(self, target: Any, source: Any, size: Any, kind: int, stream: Any) -> int:
        self.calls.append(f"copy {kind}")
        self.submit(lambda: ctypes.memmove(target.value, source.value, size.value))
        return 0

    def cudaStreamCreateWithFlags(self, out: Any, flags: int) -> int:
        out._obj.value = 77
        return 0

    def cudaStreamSynchronize(self, stream: Any) -> int:
        return 900 if self.capturing is not None else 0

    def cudaStreamBeginCapture(self, stream: Any, mode: int) -> int:
        self.capturing = []
        return 0

    def cudaStreamEndCapture(self, stream: Any, out: Any) -> int:
        out._obj.value = len(self.graphs) + 1
        self.graphs[len(self.graphs) + 1], self.capturing = self.capturing or [], None
        return 0

    def cudaGraphInstantiateWithFlags(self, out: Any, graph: Any, flags: Any) -> int:
        out._obj.value = graph.value
        return 0

    def cudaGraphDestroy(self, graph: Any) -> int:
        return 0

    def cudaGraphExecDestroy(self, graph: Any) -> int:
        return 0 if self.graphs.pop(graph.value, None) is not None else 1

    def cudaGraphLaunch(self, graph: Any, stream: Any) -> int:
        self.calls.append("launch")
        for work in self.graphs[graph.value]:
            work()
        return 0

    def submit(self, work: Callable[[], Any]) -> None:
        if self.capturing is None:
            work()
        else:
            self.capturing.append(work)
