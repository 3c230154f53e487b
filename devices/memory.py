"""Memory of this process, as the kernel counts it."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def _status(field: str) -> int | None:
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    match = re.search(rf"^{field}:\s*(\d+) kB", text, re.M)
    return int(match[1]) * 1024 if match else None


def resident_bytes() -> int | None:
    """Resident memory now, where the system tells (Linux, Android)."""
    return _status("VmRSS")


def peak_bytes() -> int | None:
    """Largest resident memory so far.

    ``VmHWM`` on Linux: `getrusage` would count what the parent had at the fork. On macOS `getrusage`, in bytes.
    """
    if (peak := _status("VmHWM")) is not None:
        return peak
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None
