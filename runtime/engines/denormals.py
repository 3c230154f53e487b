"""Numbers next to zero cost up to a hundred times more than others; here they are zero while the engine runs.

ONNX Runtime's own setting (session.set_denormal_as_zero) reaches the threads that it starts and the thread that opens
the first session of the process, and stays on there. A step with one thread runs on the caller's thread, so the
caller's floating-point mode is set around each run and put back after it.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

# The C library's fenv_t: size in bytes, offset of the control word, bits that flush results (and inputs) to zero.
LAYOUTS = {
    ("Linux", "x86_64"): (32, 28, 1 << 15 | 1 << 6),  # MXCSR: flush to zero, denormals are zero
    ("Linux", "aarch64"): (8, 0, 1 << 24),  # FPCR: flush to zero
}


def _find() -> tuple[Any, int, int, int] | None:
    """The C library and the layout of its fenv_t, or None where they are not known."""
    layout = LAYOUTS.get((platform.system(), platform.machine()))
    if layout is None or platform.libc_ver()[0] != "glibc":
        return None
    library = ctypes.CDLL(None)
    return (library, *layout) if hasattr(library, "fegetenv") and hasattr(library, "fesetenv") else None


_FOUND = _find()
SUPPORTED = _FOUND is not None


def flushed(call: Callable[[], T]) -> T:
    """``call()`` with denormals flushed to zero on this thread, whose mode is as before afterwards.

    Where the C library's layout is not known (see LAYOUTS) it is a plain call.
    """
    return _with_mode(call, flush=True)


def restored(call: Callable[[], T]) -> T:
    """``call()``, and the mode of this thread as before afterwards: OpenVINO's compiler leaves it flushing to zero."""
    return _with_mode(call, flush=False)


def _with_mode(call: Callable[[], T], *, flush: bool) -> T:
    if _FOUND is None:
        return call()
    library, size, offset, bits = _FOUND
    before = (ctypes.c_ubyte * size)()
    library.fegetenv(before)
    if flush:
        during = (ctypes.c_ubyte * size).from_buffer_copy(before)
        word = ctypes.c_uint32.from_buffer(during, offset)
        word.value |= bits
        library.fesetenv(during)
    try:
        return call()
    finally:
        library.fesetenv(before)
