"""The few calls of the CUDA runtime that a stream of steps needs, through ctypes.

JetPack installs ``libcudart`` with CUDA but neither ``cuda-python`` nor ``pycuda``, so the library is called directly.
Only calls whose signature is the same from CUDA 11.4 to 13 are used: ``cudaGraphInstantiateWithFlags`` and not
``cudaGraphInstantiate``, which changed in 12.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from reuse_distill.runtime.errors import RdError

LIBRARIES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")
TO_DEVICE, TO_HOST, ON_DEVICE = 1, 2, 3  # cudaMemcpyKind
DEFAULT_STREAM = 0
_CAPTURE_RELAXED = 2  # cudaStreamCaptureModeRelaxed
_MAJOR, _MINOR = 75, 76  # cudaDevAttrComputeCapabilityMajor, …Minor
_NAME_BYTES, _PROPERTIES_BYTES = 256, 16_384  # the name is first in cudaDeviceProp, which is about 1 KB


class Cuda:
    """A loaded CUDA runtime; every failure is an RdError with CUDA's own words. Addresses are plain integers."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._library.cudaGetErrorString.restype = ctypes.c_char_p

    @classmethod
    def open(cls) -> Cuda:
        """Raises RdError where the library is not there or no device answers."""
        for name in LIBRARIES:
            try:
                library = ctypes.CDLL(name)
            except OSError:
                continue
            cuda = cls(library)
            cuda.device_name()
            return cuda
        raise RdError(
            f"the CUDA runtime is not here: none of {', '.join(LIBRARIES)} can be loaded",
            hint="JetPack: sudo apt install nvidia-jetpack; elsewhere: install CUDA, or set LD_LIBRARY_PATH",
        )

    def device_name(self) -> str:
        """Of the current device, such as ``Orin``."""
        properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        call = "cudaGetDeviceProperties_v2" if hasattr(self._library, "cudaGetDeviceProperties_v2") else None
        self._call(call or "cudaGetDeviceProperties", properties, self._device())
        return properties.raw[:_NAME_BYTES].split(b"\0")[0].decode()

    def compute_capability(self) -> str:
        """Such as ``8.7``."""
        parts = []
        for attribute in (_MAJOR, _MINOR):
            value = ctypes.c_int()
            self._call("cudaDeviceGetAttribute", ctypes.byref(value), attribute, self._device())
            parts.append(str(value.value))
        return ".".join(parts)

    def allocate(self, size_bytes: int) -> int:
        """Device memory, zeros."""
        pointer = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(max(1, size_bytes)))
        address = int(pointer.value or 0)
        self._call("cudaMemset", ctypes.c_void_p(address), 0, ctypes.c_size_t(max(1, size_bytes)))
        return address

    def free(self, address: int) -> None:
        self._call("cudaFree", ctypes.c_void_p(address))

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """A host array, zeros, that a captured graph may copy from and to; never freed before the process ends."""
        kind, count = np.dtype(dtype), int(np.prod(shape))
        pointer = ctypes.c_void_p()
        self._call("cudaHostAlloc", ctypes.byref(pointer), ctypes.c_size_t(max(1, count * kind.itemsize)), 0)
        memory = (ctypes.c_ubyte * (count * kind.itemsize)).from_address(int(pointer.value or 0))
        array = np.frombuffer(memory, kind).reshape(shape)
        array[...] = 0
        return array

    def copy(self, target: int, source: int, size_bytes: int, kind: int, stream: int) -> None:
        """Copy on ``stream``; the host side of it has to stay until the stream is waited for."""
        self._call(
            "cudaMemcpyAsync",
            ctypes.c_void_p(target),
            ctypes.c_void_p(source),
            ctypes.c_size_t(size_bytes),
            kind,
            ctypes.c_void_p(stream),
        )

    def clear(self, address: int, size_bytes: int, stream: int) -> None:
        """Zeros, on ``stream``."""
        self._call(
            "cudaMemsetAsync",
            ctypes.c_void_p(address),
            0,
            ctypes.c_size_t(size_bytes),
            ctypes.c_void_p(stream),
        )

    def stream(self) -> int:
        """A stream of its own: the default one cannot be captured."""
        handle = ctypes.c_void_p()
        self._call("cudaStreamCreateWithFlags", ctypes.byref(handle), 1)  # cudaStreamNonBlocking
        return int(handle.value or 0)

    def wait(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", ctypes.c_void_p(stream))

    def begin_capture(self, stream: int) -> None:
        self._call("cudaStreamBeginCapture", ctypes.c_void_p(stream), _CAPTURE_RELAXED)

    def end_capture(self, stream: int) -> int:
        """The executable graph of what was put on ``stream`` since ``begin_capture``."""
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cudaStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
        self._call("cudaGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
        self._call("cudaGraphDestroy", graph)
        return int(executable.value or 0)

    def launch(self, executable: int, stream: int) -> None:
        self._call("cudaGraphLaunch", ctypes.c_void_p(executable), ctypes.c_void_p(stream))

    def free_graph(self, executable: int) -> None:
        self._call("cudaGraphExecDestroy", ctypes.c_void_p(executable))

    def _device(self) -> int:
        device = ctypes.c_int()
        self._call("cudaGetDevice", ctypes.byref(device))
        return device.value

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            text = self._library.cudaGetErrorString(status)
            reason = text.decode() if isinstance(text, bytes) else f"error {status}"
            raise RdError(f"CUDA: {name} failed: {reason}", hint="does nvidia-smi (Jetson: tegrastats) see the GPU?")
